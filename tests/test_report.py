"""What a person gets out of a detector's run: CSV files, the page (in a real browser), and the cleaned folders."""

import csv
import json
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_detect
import report.page as report
from dataloader.load import load_data
from report import export
from report.suspects import fixed_labels, ranking, read_run
from tests.helpers import write_digits, write_folder
from utils.config import UserError, load_config

COLUMNS = [
    "rank",
    "index",
    "id",
    "path",
    "given_label",
    "predicted_label",
    "predicted_probability",
    "label_score",
    "is_label_issue",
]
NASTY = ["<script>", "ends<", '"quo\'te" & $x$', "plain, with comma", "Ünï 数字"]


def rows_of(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def digits_run(cell, tmp_path_factory):
    """A copy of a finished detector run of digits, with its report."""
    folder = tmp_path_factory.mktemp("report") / "deft"
    shutil.copytree(cell[0] / "digits/sym-0.4/seed0/deft", folder)
    report.main([str(folder)])
    return folder


@pytest.fixture(scope="module")
def nasty_run(tmp_path_factory):
    """Label-match on files whose names and classes are HTML, CSV and mathtext syntax, with its report."""
    root = tmp_path_factory.mktemp("nasty")
    write_folder(root / "data", {name: 6 for name in NASTY})
    for folder in (root / "data").iterdir():
        for i, file in enumerate(sorted(folder.iterdir())[:4]):  # with the folder before: ends</script>
            file.rename(folder / f"script>\"><!--<script>alert({i})'.png")
    main_detect.main(
        [
            "--cfg",
            "config/PEFT/own.yaml",
            "--data_path",
            str(root / "data"),
            "--backbone",
            "tiny-clip-digits",
            "--test_fraction",
            "0",
            "--device",
            "cpu",
            "--output_dir",
            str(root / "runs"),
        ]
    )
    folder = root / "runs/own-data/none/seed0/label-match"
    report.main([str(folder)])
    return folder


# --- the lists


def test_decisions_of_a_person_change_what_is_kept(digits_run, tmp_path):
    _, before, data, _ = read_run(digits_run)
    suspects = rows_of(digits_run / "suspects.csv")
    kept = next(row for row in rows_of(digits_run / "scores.csv") if row["is_label_issue"] == "False")
    file = tmp_path / "decisions.csv"

    def decide(*rows):
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, [*suspects[0], "decision"])
            writer.writeheader()
            writer.writerows(rows)

    decide(suspects[0] | {"decision": "right"}, suspects[1] | {"decision": "wrong"}, kept | {"decision": "wrong"})
    _, after, *_ = read_run(digits_run, decisions=file)
    changed = {int(suspects[0]["index"]): True, int(kept["index"]): False}
    assert {i: after["mask"][i] for i in np.flatnonzero(before["mask"] != after["mask"])} == changed
    copy = shutil.copytree(digits_run, tmp_path / "deft")
    report.main([str(copy), "--decisions", str(file)])
    clean = {row["index"] for row in rows_of(copy / "labels_clean.csv")}
    assert suspects[0]["index"] in clean and not {suspects[1]["index"], kept["index"]} & clean
    for wrong, message in (
        (suspects[0] | {"decision": "maybe"}, "line 2 has the decision 'maybe', expected right or wrong"),
        (suspects[0] | {"decision": "right", "index": "359"}, "index '359', expected one from 0 to 358"),
        (suspects[0] | {"decision": "right", "given_label": "x"}, "the decisions are of another run"),
    ):
        decide(wrong)
        with pytest.raises(UserError, match=message):
            read_run(digits_run, decisions=file)
    with pytest.raises(UserError, match="none.csv"):
        read_run(digits_run, decisions=tmp_path / "none.csv")


def test_a_detector_leaves_its_lists_beside_the_mask(cell):
    for name in ("deft", "label-match"):
        folder = cell[0] / "digits/sym-0.4/seed0" / name
        _, arrays, data, _ = read_run(folder)
        scores, suspects = rows_of(folder / "scores.csv"), rows_of(folder / "suspects.csv")
        assert list(scores[0]) == list(suspects[0]) == [*COLUMNS, "true_label"]
        assert [int(row["index"]) for row in scores] == list(range(len(arrays["mask"])))
        assert [row["is_label_issue"] == "False" for row in scores] == arrays["mask"].tolist()
        for i in (0, 7, 200):
            row = scores[i]
            assert (row["given_label"], row["predicted_label"], row["true_label"]) == tuple(
                data.label_names[k] for k in (arrays["labels"][i], arrays["predicted"][i], data.true_labels[i])
            )
            assert float(row["label_score"]) == pytest.approx(arrays["p_clean"][i], abs=1e-6)
            assert float(row["predicted_probability"]) == pytest.approx(arrays["confidence"][i], abs=1e-6)
        assert [int(row["rank"]) for row in suspects] == list(range(1, np.sum(~arrays["mask"]) + 1))
        assert sorted(scores, key=lambda row: int(row["rank"]))[: len(suspects)] == suspects
        values = [float(row["label_score"]) for row in suspects]
        assert values == sorted(values) and {row["is_label_issue"] for row in suspects} == {"True"}


def test_ranking_puts_suspects_first():
    p_clean, mask = np.array([0.4, 0.1, 0.9, 0.2, 0.2]), np.array([False, True, True, False, False])
    assert ranking(p_clean, mask).tolist() == [3, 4, 0, 1, 2]


def test_only_sure_suspects_are_put_right():
    arrays = {
        "mask": np.array([True, False, False, False]),
        "confidence": np.array([0.99, 0.9, 0.89, 0.99]),
        "predicted": np.array([1, 1, 1, 0]),
        "labels": np.array([0, 0, 0, 0]),
    }
    labels, sure = fixed_labels(arrays, 0.9)
    assert labels.tolist() == [0, 1, 0, 0] and sure.tolist() == [False, True, False, False]


def test_labels_to_train_on_are_a_data_set(tmp_path, monkeypatch):
    """From a table with ids, relative paths and the run's folder elsewhere: both files load as the data of a run."""
    source, truth, given = write_digits(tmp_path / "data", 0.3, every=6, table=True)
    flags = [
        "--cfg",
        "config/PEFT/own.yaml",
        "--backbone",
        "tiny-clip-digits",
        "--test_fraction",
        "0",
        "--device",
        "cpu",
    ]
    monkeypatch.chdir(tmp_path)
    flags[1] = str(Path(__file__).parents[1] / flags[1])
    main_detect.main([*flags, "--data_path", "data/labels.csv", "--output_dir", "runs"])
    folder = tmp_path / "runs/own-data-labels/none/seed0/label-match"
    report.main([str(folder), "--relabel_above", "0.5"])
    _, arrays, data, _ = read_run(folder)
    assert [row["id"] for row in rows_of(folder / "scores.csv")] == data.ids
    monkeypatch.chdir(folder)
    _, sure = fixed_labels(arrays, 0.5)
    for name, kept in (("labels_clean.csv", arrays["mask"]), ("labels_fixed.csv", arrays["mask"] | sure)):
        again, rows = load_data(load_config([*flags, "--data_path", str(folder / name)])), rows_of(folder / name)
        assert again.train.images == [str(tmp_path / data.train.images[i]) for i in np.flatnonzero(kept)]
        assert again.ids == [data.ids[i] for i in np.flatnonzero(kept)]
        assert [again.label_names[k] for k in again.train.labels] == [row["label"] for row in rows]
        for row in rows:
            was, mend = given[row["path"]], data.label_names[arrays["predicted"][int(row["index"])]]
            assert row["label"] == (was if arrays["mask"][int(row["index"])] else mend)
            assert row.get("original_label", was) == was
    changed = [row for row in rows if row["label"] != row["original_label"]]
    before, after = (sum(row[key] == truth[row["path"]] for row in changed) for key in ("original_label", "label"))
    assert after > 3 * before  # what was put right is mostly right


# --- the page


class Page(HTMLParser):
    """What of a page matters here: tags, the texts of its cells and headings, and attributes that load something."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts, self.links, self.inside = [], [], [], ""
        self.feed(Path(path).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = tag
        self.links += [value for key, value in attrs if key in ("src", "href", "action", "data", "srcset")]

    def handle_data(self, text):
        if self.inside != "script":
            self.texts.append(text)


def test_the_page_holds_everything_and_loads_nothing(digits_run, cell):
    page, summary = Page(digits_run / "report.html"), cell[1]["deft"]
    suspects = round(359 * (1 - summary["selected"]))
    assert f"{suspects} of 359 labels look wrong" in page.texts
    assert page.tags.count("article") == min(suspects, report.GALLERY) == page.tags.count("img")
    assert all(link.startswith(("data:", "#")) for link in page.links)
    for what in (
        f"{100 * summary['precision']:.1f} %",
        f"{100 * summary['recall']:.1f} %",
        f"{100 * summary['f1']:.1f} %",
        "Against the truth",
        "Training",
        "acc_test",
        "noise_ratio",
    ):
        assert what in page.texts, what
    assert (digits_run / "suspects.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in digits_run.glob(".*")} == set()


def test_names_are_text_and_not_markup(nasty_run):
    page = Page(nasty_run / "report.html")
    assert page.tags.count("script") == 2  # the page's own: its rows, its code
    suspects = rows_of(nasty_run / "suspects.csv")
    assert page.tags.count("article") == len(suspects) and any("</script>" in row["path"] for row in suspects)
    for name in NASTY:
        assert name in page.texts
    assert "Training" not in page.texts and "Against the truth" not in page.texts  # neither is there


def test_many_classes_make_a_list_instead_of_a_matrix(digits_run):
    _, arrays, data, _ = read_run(digits_run)
    assert 'class="scroll matrix"' in report.confusions(data, arrays)[2]
    data.classnames, data.label_names = [[f"class {k}" for k in range(120)] for _ in range(2)]
    html = report.confusions(data, arrays)[2]
    assert "matrix" not in html and html.count("<tr>") == 1 + report.PAIRS


@pytest.mark.parametrize("trusted", [True, False])
def test_nothing_or_everything_may_be_suspect(digits_run, tmp_path, trusted):
    cfg, arrays, data, summary = read_run(digits_run)
    arrays["mask"][:] = trusted
    report.draw_suspects(data, arrays, tmp_path / "suspects.png")
    report.write_page(tmp_path, cfg, data, arrays, summary, 0.9)
    page = Page(tmp_path / "report.html")
    assert page.tags.count("article") == (0 if trusted else report.GALLERY)
    assert f"{0 if trusted else 359} of 359 labels look wrong" in page.texts


def test_the_interval_is_wilsons():
    assert report._interval(10, 100) == "5.5–17.4 %"  # Wilson score interval without continuity correction
    assert report._interval(0, 5) == "0.0–43.4 %"


def test_thresholds_move_precision_and_recall():
    p_clean, is_clean = np.array([0.1, 0.4, 0.6, 0.9]), np.array([False, True, False, True])
    curve = report.threshold_curve(p_clean, is_clean, [0, 0.5, 0.8])
    assert curve["precision"].tolist() == [0.5, 0.5, 1] and curve["recall"].tolist() == [1, 0.5, 0.5]


def test_thumbnails_are_small(tmp_path):
    Image.effect_noise((3000, 2000), 90).convert("RGB").save(tmp_path / "big.jpg")
    image = report.thumbnail([str(tmp_path / "big.jpg")], 0, 160)
    assert image.size == (160, 107) and len(report._data_uri(image)) < 40_000


def test_errors_of_the_commands(cell, nasty_run, tmp_path):
    folder = cell[0] / "digits/sym-0.4/seed0"
    with pytest.raises(UserError, match="holds no clean_mask.npz; expected the folder of a finished detector run"):
        report.main([str(folder / "ce-tiny-clip-digits")])
    with pytest.raises(UserError, match="--relabel_above: expected a number from 0 to 1, not '90'"):
        report.main([str(folder / "deft"), "--relabel_above", "90"])
    with pytest.raises(UserError, match="--relabel: no such flag. Did you mean --relabel_above"):
        report.main([str(folder / "deft"), "--relabel", "0.5"])
    write_folder(tmp_path / "other", {name: 5 for name in NASTY})
    with pytest.raises(UserError, match="data_path: the images in .*other are not those of the run"):
        report.main([str(nasty_run), "--data_path", str(tmp_path / "other")])
    data = nasty_run.parents[4] / "data"
    shutil.copytree(data, tmp_path / "moved")
    assert read_run(nasty_run, str(tmp_path / "moved"))[2].train.images[0].startswith(str(tmp_path / "moved"))


# --- in a browser


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium that logs its console and its network; downloads go to tmp_path/downloads."""
    program, driver = (
        next((p for name in names if (p := shutil.which(name))), None)
        for names in (("chromium", "google-chrome"), ("chromedriver",))
    )
    if not (program and driver):
        pytest.skip("needs Chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument("--" + flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(executable_path=driver))
    chrome.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "downloads")}
    )
    yield chrome
    chrome.quit()


def size(browser, width, height):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def requests(browser):
    """Addresses asked for since the last call, without the page's own file and the images inside it."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("file:", "data:", "blob:", "chrome:"))]  # chrome: its start page


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(browser, nasty_run, tmp_path, width):
    """Opens clean and whole, filters, takes ticks by mouse and keyboard, keeps them, and saves them as CSV."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    size(browser, width, 844)
    browser.get((nasty_run / "report.html").as_uri())
    cards = browser.find_elements(By.TAG_NAME, "article")
    suspects = rows_of(nasty_run / "suspects.csv")
    assert len(cards) == len(suspects) > 10
    widths = browser.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert len(widths) == len(cards) and min(widths) > 0
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width

    given = Select(browser.find_element(By.ID, "given"))
    chosen = next(option.text for option in given.options if option.text.startswith("<script>"))
    given.select_by_visible_text(chosen)
    shown = [card for card in cards if card.is_displayed()]
    expected = [row["index"] for row in suspects if row["given_label"] == "<script>"]
    assert [card.get_attribute("data-index") for card in shown] == expected and 0 < len(shown) < len(cards)
    given.select_by_value("")

    def box(i, value):
        return cards[i].find_element(By.CSS_SELECTOR, f"input[value={value}]")

    save = browser.find_element(By.ID, "export")
    assert not save.is_enabled()
    box(0, "wrong").click()
    box(2, "wrong").click()
    box(2, "right").send_keys(Keys.SPACE)  # by keyboard; takes the other tick away
    assert not box(2, "wrong").is_selected() and "ticked: 1 wrong, 1 right" in browser.find_element(By.ID, "count").text
    browser.refresh()  # the ticks are still there
    cards = browser.find_elements(By.TAG_NAME, "article")
    assert box(0, "wrong").is_selected() and box(2, "right").is_selected()

    browser.find_element(By.ID, "export").click()
    deadline = time.time() + 20
    while not (saved := list((tmp_path / "downloads").glob("*.csv"))) and time.time() < deadline:
        time.sleep(0.05)
    assert [path.name for path in saved] == ["own-data-none-seed0-label-match-decisions.csv"]
    assert rows_of(saved[0]) == [suspects[0] | {"decision": "wrong"}, suspects[2] | {"decision": "right"}]
    assert browser.get_log("browser") == [] and requests(browser) == []


def test_the_whole_page_fits_a_phone(browser, digits_run):
    size(browser, 390, 844)
    browser.get((digits_run / "report.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    assert len(browser.find_elements("css selector", "figure svg")) == 5  # scores, thresholds, three learning curves
    assert browser.get_log("browser") == [] and requests(browser) == []


# --- the cleaned folders


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_export_copies_what_is_trusted(nasty_run, tmp_path, capsys):
    source = nasty_run.parents[4] / "data"
    before = {p: p.stat().st_mtime_ns for p in source.rglob("*")}
    _, arrays, data, _ = read_run(nasty_run)
    export.main([str(nasty_run), "--to", str(tmp_path / "clean")])
    kept = np.flatnonzero(arrays["mask"])
    assert f"{len(kept)} of {len(data.train.labels)} training images" in capsys.readouterr().out
    copied = tree(tmp_path / "clean")
    assert sorted(copied.values()) == sorted(Path(data.train.images[i]).read_bytes() for i in kept)
    folders = {"_script_", "ends_", "_quo'te_ & $x$", "plain, with comma", "Ünï 数字"}
    assert {name.split("/")[0] for name in copied} <= folders
    export.main([str(nasty_run), "--to", str(tmp_path / "links"), "--link"])
    links = [p for p in (tmp_path / "links").rglob("*") if p.is_symlink()]
    assert tree(tmp_path / "links") == copied and len(links) == len(kept)
    assert before == {p: p.stat().st_mtime_ns for p in source.rglob("*")}

    for to in (source / "clean", source, source / "<script>" / "x"):
        with pytest.raises(UserError, match="--to: .* lies inside the source .*data"):
            export.main([str(nasty_run), "--to", str(to)])
    export.main([str(nasty_run), "--to", str(tmp_path / "clean")])  # whole already
    assert tree(tmp_path / "clean") == copied
    (tmp_path / "clean" / "mine.txt").touch()
    with pytest.raises(UserError, match="--to: .*clean is not empty; name a new folder"):
        export.main([str(nasty_run), "--to", str(tmp_path / "clean")])


def test_export_of_arrays_writes_png_and_fixed_labels(digits_run, tmp_path):
    _, arrays, data, _ = read_run(digits_run)
    export.main([str(digits_run), "--to", str(tmp_path / "fixed"), "--fixed", "--relabel_above", "0.5"])
    labels, sure = fixed_labels(arrays, 0.5)
    expected = {f"{data.label_names[labels[i]]}/{i:06d}.png" for i in np.flatnonzero(arrays["mask"] | sure)}
    assert sure.any() and set(tree(tmp_path / "fixed")) == expected
    i = int(np.flatnonzero(sure)[0])
    with Image.open(tmp_path / "fixed" / data.label_names[labels[i]] / f"{i:06d}.png") as image:
        assert np.array_equal(np.asarray(image), data.train.images[i])


def test_a_stopped_export_is_completed_by_the_same_command_only(nasty_run, tmp_path, monkeypatch):
    export.main([str(nasty_run), "--to", str(tmp_path / "whole")])
    real, calls = export._write, []

    def stops(*args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(real(*args))

    with monkeypatch.context() as patch:
        patch.setattr(export, "_write", stops)
        with pytest.raises(KeyboardInterrupt):
            export.main([str(nasty_run), "--to", str(tmp_path / "half")])
    assert len(tree(tmp_path / "half")) == 3 + 1  # and what it was to be
    with pytest.raises(
        UserError, match="is not empty, and holds an unfinished export of another run or with other flags"
    ):
        export.main([str(nasty_run), "--to", str(tmp_path / "half"), "--link"])
    export.main([str(nasty_run), "--to", str(tmp_path / "half")])
    assert tree(tmp_path / "half") == tree(tmp_path / "whole")


def test_names_that_clash_are_told_apart():
    taken = set()
    assert [export.unused(name, taken) for name in ("a.jpg", "A.jpg", "a-2.jpg", "a.jpg", "b.jpg")] == [
        "a.jpg",
        "A-2.jpg",
        "a-2-2.jpg",
        "a-3.jpg",
        "b.jpg",
    ]
    assert [export.safe_name(text) for text in ("a/b", "../x", "..", "n\n:1", "é" * 200)] == [
        "a_b",
        "_x",
        "_",
        "n__1",
        "é" * 75,
    ]
