"""What a person gets out of a detector's run: CSV files, the page (in a real browser), and the cleaned folders."""

import csv
import json
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_detect
import report.page as report
from dataloader.load import load_data
from methods.decisions import RIGHT
from methods.selection import precision_recall
from report import export, pictures, plots, render, sections
from report.suspects import fixed_labels, follow, ranking, read_run
from tests.helpers import NASTY, rows_of, write_digits, write_folder
from utils.config import load_config
from utils.errors import UserError

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
    "content",
]


@pytest.fixture(scope="module")
def digits_run(cell, tmp_path_factory):
    """A copy of a finished detector run of digits, with its report."""
    folder = tmp_path_factory.mktemp("report") / "deft"
    shutil.copytree(cell[0] / "digits/sym-0.4/seed0/deft", folder)
    report.main([str(folder)])
    return folder


# --- the lists


def test_a_detector_leaves_its_lists_beside_the_mask(cell):
    for name in ("deft", "label-match"):
        folder = cell[0] / "digits/sym-0.4/seed0" / name
        _, arrays, data, _ = read_run(folder)
        scores, suspects = rows_of(folder / "scores.csv"), rows_of(folder / "suspects.csv")
        assert list(scores[0]) == list(suspects[0]) == [*COLUMNS[:-1], "true_label", "content"]
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
    folder = tmp_path / "runs/own-data-labels/none/seed0/auto"
    report.main([str(folder), "--relabel_above", "0.5"])
    _, arrays, data, _ = read_run(folder)
    assert [row["id"] for row in rows_of(folder / "scores.csv")] == data.ids
    monkeypatch.chdir(folder)
    _, sure = fixed_labels(arrays, 0.5)
    for name, kept in (("labels_clean.csv", arrays["mask"]), ("labels_fixed.csv", arrays["mask"] | sure)):
        again, rows = load_data(load_config([*flags, "--data_path", str(folder / name)])), rows_of(folder / name)
        assert again.train.images == [data.train.images[i] for i in np.flatnonzero(kept)]
        assert again.ids == [data.ids[i] for i in np.flatnonzero(kept)]
        assert [again.label_names[k] for k in again.train.labels] == [row["label"] for row in rows]
        for row in rows:
            was, mend = given[row["path"]], data.label_names[arrays["predicted"][int(row["index"])]]
            assert row["label"] == (was if arrays["mask"][int(row["index"])] else mend)
            assert row.get("original_label", was) == was
    changed = [row for row in rows if row["label"] != row["original_label"]]
    before, after = (sum(row[key] == truth[row["path"]] for row in changed) for key in ("original_label", "label"))
    assert after > 2 * before  # what was put right is mostly right


# --- the page


class Page(HTMLParser):
    """What of a page matters here: tags, the texts of its cells and headings, attributes that load something, what its
    script reads (rows) and the images it holds."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.links, self.inside, self.scripts = [], [], [], "", {}
        self.feed(html.read_text(encoding="utf-8") if isinstance(html, Path) else html)
        self.rows = json.loads(self.scripts["rows"])
        self.images = [uri for k, text in self.scripts.items() if k.startswith("images-") for uri in text.split()]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = tag
        self.id = dict(attrs).get("id", "")
        self.links += [value for key, value in attrs if key in ("src", "href", "action", "data", "srcset")]

    def handle_data(self, text):
        if self.inside == "script":
            self.scripts[self.id] = self.scripts.get(self.id, "") + text
        else:
            self.texts.append(text)


def test_the_page_holds_everything_and_loads_nothing(digits_run, cell):
    page, summary = Page(digits_run / "report.html"), cell[1]["deft"]
    suspects = round(359 * (1 - summary["selected"]))
    assert summary["verdict"]["level"] == "usable"
    assert f"{suspects} of 359 labels look wrong" in page.texts and f"{suspects}" in page.texts
    assert "share of wrong labels, 90 % interval, from the scores alone" in page.texts
    issue = [row[page.rows["header"].index("is_label_issue")] for row in page.rows["rows"]]
    assert issue == ["True"] * suspects + ["False"] * (len(issue) - suspects)  # those of the sample
    assert len(page.rows["sample"]) == 100 > len(issue) - suspects > 0
    assert len(issue) == len(page.images) and page.tags.count("svg") == 5
    assert all(uri.startswith("data:image/png;base64,") for uri in page.images)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    for what in (
        f"{100 * summary['precision']:.1f} %",
        f"{100 * summary['recall']:.1f} %",
        f"{100 * summary['f1']:.1f} %",
        "Against the truth",
        "Training",
        "test accuracy, %",
        "noise_ratio",
    ):
        assert what in page.texts, what
    assert (digits_run / "suspects.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in digits_run.glob(".*")} == set()


def test_names_are_text_and_not_markup(nasty_run):
    page = Page(nasty_run / "report.html")
    assert page.tags.count("script") == 4  # the page's own: its rows, its images, the nearest ones, its code
    suspects = rows_of(nasty_run / "suspects.csv")
    assert len(page.rows["rows"]) == 30 == len(page.images) and any("</script>" in row["path"] for row in suspects)
    for name in NASTY:
        assert name in page.texts
    assert "Training" not in page.texts and "Against the truth" not in page.texts  # neither is there


def test_copies_that_are_kept_with_different_labels_are_said(nasty_run, tmp_path, monkeypatch, capsys):
    run = Path(shutil.copytree(nasty_run, tmp_path / "run"))
    rows = list(csv.DictReader((run / "scores.csv").open(newline="", encoding="utf-8")))
    kept = [int(row["index"]) for row in rows if row["is_label_issue"] == "False"]
    given = {int(row["index"]): row["given_label"] for row in rows}
    other = next(i for i in kept if given[i] != given[kept[0]])
    suspect = next(int(row["index"]) for row in rows if row["is_label_issue"] == "True")
    monkeypatch.setattr("report.suspects.differing_copies", lambda data: [[kept[0], other], [kept[0], suspect]])
    report.main([str(run)])
    assert (
        "warning: in 1 of the groups of identical images, copies are kept with different labels"
        in capsys.readouterr().out
    )


def test_many_classes_make_a_list_instead_of_a_matrix(digits_run):
    _, arrays, data, _ = read_run(digits_run)
    assert 'class="scroll matrix"' in sections.confusions(data, arrays)[2]
    data.classnames, data.label_names = [[f"class {k}" for k in range(120)] for _ in range(2)]
    html = sections.confusions(data, arrays)[2]
    assert "matrix" not in html and html.count("<tr>") == 1 + sections.PAIRS


@pytest.mark.parametrize("trusted", [True, False])
def test_nothing_or_everything_may_be_suspect(digits_run, tmp_path, monkeypatch, figures, trusted):
    cfg, arrays, data, summary = read_run(digits_run)
    arrays["mask"][:] = arrays["by_detector"][:] = trusted
    summary["verdict"] = {"level": "usable", "why": "all is well", "instead": ""}
    monkeypatch.setattr(render, "GALLERY", 300)
    pictures.draw_suspects(data, arrays, tmp_path / "suspects.png", "0 labels look wrong")
    (ax,) = figures[0].axes
    *labels, headline = [text.get_text() for text in ax.texts]
    assert len(ax.images) == len(labels) == (0 if trusted else 40) and headline.startswith("0 labels look wrong\n")
    first = np.argsort(arrays["p_clean"], kind="stable")[0]
    assert trusted or labels[0].startswith(f"{data.shown_names[arrays['labels'][first]]} → ")
    parts = [*render.label_sections(data, arrays, 0.9), *render.other_sections(digits_run, cfg, data, arrays, summary)]
    page = Page(render.page_html(digits_run, data, arrays, summary, parts))
    rows = page.rows["rows"]
    assert len(rows) == len(page.images) and 300 < len(rows) + 300 * trusted < 400 + trusted  # with the sample's, 100
    assert {row[page.rows["header"].index("is_label_issue")] for row in rows} == {str(not trusted)}
    assert any("the server also has the other 59" in text for text in page.texts) == (not trusted)
    assert f"{0 if trusted else 359} of 359 labels look wrong" in page.texts
    assert "usable: all is well" in page.texts


def test_the_histogram_says_that_decisions_are_not_in_it(digits_run):
    _, arrays, _, _ = read_run(digits_run)
    assert "Your decisions" not in plots.plot_scores(arrays)
    follow(arrays, np.full(len(arrays["mask"]), RIGHT, dtype=np.int8), arrays["labels"])
    assert "Your decisions are not shown here." in plots.plot_scores(arrays)


def test_what_the_pages_plots_show(digits_run, figures):
    _, arrays, data, _ = read_run(digits_run)
    p_clean, kept = arrays["p_clean"], arrays["by_detector"]
    plots.plot_scores(arrays)
    suspects, both = figures[0].axes[0].containers[:2]
    for bars, scores in ((suspects, p_clean[~kept]), (both, p_clean[kept])):
        counts = np.histogram(scores, np.linspace(0, 1, 41))[0]
        np.testing.assert_array_equal([bar.get_height() for bar in bars], counts)
    assert [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()] == ["suspect", "kept"]

    index, is_clean = data.known()
    of_known = {"p_clean": p_clean[index]}
    plots.plot_thresholds(of_known, is_clean)
    curves = {line.get_label(): line.get_xydata() for line in figures[1].axes[0].lines}
    for name, key in (("precision", "precision"), ("recall", "recall"), ("F1", "f1")):
        (value,) = curves[name][np.isclose(curves[name][:, 0], 0.3), 1]
        assert value == precision_recall(of_known["p_clean"] > 0.3, is_clean)[key]

    history = [
        {"epoch": 1, "loss": 2.0, "acc_test": 50.0, "f1": 0.5},
        {"epoch": 2, "loss": 1.0, "acc_test": 70.0, "f1": 0.6},
    ]
    plots.plot_history(history)
    expected = [("loss", "loss", [2, 1]), ("test accuracy, %", "test", [50, 70]), ("selection, %", "f1", [50, 60])]
    for figure, (title, name, values) in zip(figures[2:], expected, strict=True):
        (line,) = figure.axes[0].lines
        assert (figure.axes[0].get_ylabel(), line.get_label()) == (title, name)
        assert line.get_xydata().tolist() == [[1, values[0]], [2, values[1]]]


def test_the_interval_is_wilsons():
    assert sections._interval(10, 100) == "5.5–17.4 %"  # Wilson score interval without continuity correction
    assert sections._interval(0, 5) == "0.0–43.4 %"


def test_thresholds_move_precision_and_recall():
    p_clean, is_clean = np.array([0.1, 0.4, 0.6, 0.9]), np.array([False, True, False, True])
    curve = plots.threshold_curve(p_clean, is_clean, [0, 0.5, 0.8])
    assert curve["precision"].tolist() == [0.5, 0.5, 1] and curve["recall"].tolist() == [1, 0.5, 0.5]


def test_thumbnails_are_small(tmp_path):
    Image.effect_noise((3000, 2000), 90).convert("RGB").save(tmp_path / "big.jpg")
    image = pictures.thumbnail([str(tmp_path / "big.jpg")], 0, 160)
    assert image.size == (160, 107) and len(pictures.data_uri(image)) < 40_000


def test_errors_of_the_commands(cell, nasty_run, tmp_path):
    folder = cell[0] / "digits/sym-0.4/seed0"
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "checkpoint.pt").touch()
    with pytest.raises(UserError, match="begun: not finished; the same command continues it; expected the folder of"):
        report.main([str(tmp_path / "begun")])
    with pytest.raises(
        UserError, match="holds no clean_mask.npz; expected .* finished detector run, such as .*label-match"
    ):
        report.main([str(folder / "ce-tiny-clip-digits")])
    with pytest.raises(UserError, match="--relabel_above: expected a number from 0 to 1, not '90'"):
        report.main([str(folder / "deft"), "--relabel_above", "90"])
    with pytest.raises(UserError, match="--relabel: unknown flag. Did you mean --relabel_above"):
        report.main([str(folder / "deft"), "--relabel", "0.5"])
    write_folder(tmp_path / "other", {name: 5 for name in NASTY})
    with pytest.raises(
        UserError, match="data_path: of the 30 images of the run, 29 are missing from .*other and 0 have changed"
    ):
        report.main([str(nasty_run), "--data_path", str(tmp_path / "other")])
    data = nasty_run.parents[4] / "data"
    shutil.copytree(data, tmp_path / "moved")
    assert read_run(nasty_run, str(tmp_path / "moved"))[2].train.images[0].startswith(str(tmp_path / "moved"))


# --- the cleaned folders


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_export_copies_what_is_trusted(nasty_run, tmp_path, capsys):
    source = nasty_run.parents[4] / "data"
    before = {p: p.stat().st_mtime_ns for p in source.rglob("*")}
    _, arrays, data, _ = read_run(nasty_run)
    export.main([str(nasty_run), "--to", str(tmp_path / "clean")])
    kept = np.flatnonzero(arrays["mask"])
    assert f"{len(kept)} of {len(data.train.labels)} judged images" in capsys.readouterr().out
    copied = tree(tmp_path / "clean")
    images = {name: content for name, content in copied.items() if name != "metadata.csv"}
    assert sorted(images.values()) == sorted(Path(data.train.images[i]).read_bytes() for i in kept)
    folders = {"_script_", "ends_", "_quo'te_ & $x$", "plain, with comma", "Ünï 数字"}
    assert {name.split("/")[0] for name in images} <= folders
    export.main([str(nasty_run), "--to", str(tmp_path / "links"), "--link"])
    links = [p for p in (tmp_path / "links").rglob("*") if p.is_symlink()]
    assert tree(tmp_path / "links") == copied and len(links) == len(kept)
    assert before == {p: p.stat().st_mtime_ns for p in source.rglob("*")}

    for to in (source / "clean", source, source / "<script>" / "x"):
        with pytest.raises(UserError, match="--to: .* lies inside the source .*data"):
            export.main([str(nasty_run), "--to", str(to)])
    export.main([str(nasty_run), "--to", str(tmp_path / "clean")])  # whole already
    assert tree(tmp_path / "clean") == copied
    with pytest.raises(UserError, match="--to: .*clean is not empty; name a new folder"):
        export.main([str(nasty_run), "--to", str(tmp_path / "clean"), "--link"])  # which would stay copies
    (tmp_path / "clean" / "mine.txt").touch()
    with pytest.raises(UserError, match="--to: .*clean is not empty; name a new folder"):
        export.main([str(nasty_run), "--to", str(tmp_path / "clean")])
    metadata = tmp_path / "links" / "metadata.csv"  # the same images, trusted by another detector with other scores
    metadata.write_text(metadata.read_text().replace(",detector,0.", ",detector,1."))
    with pytest.raises(UserError, match="--to: .*links is not empty; name a new folder"):
        export.main([str(nasty_run), "--to", str(tmp_path / "links"), "--link"])


def test_export_of_arrays_writes_png_and_fixed_labels(digits_run, tmp_path):
    _, arrays, data, _ = read_run(digits_run)
    export.main([str(digits_run), "--to", str(tmp_path / "fixed"), "--fixed", "--relabel_above", "0.1"])
    labels, sure = fixed_labels(arrays, 0.1)
    expected = {f"{data.label_names[labels[i]]}/{i:06d}.png" for i in np.flatnonzero(arrays["mask"] | sure)}
    assert sure.any() and set(tree(tmp_path / "fixed")) == expected | {"metadata.csv"}
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


def test_two_exports_to_one_folder_take_turns(nasty_run, tmp_path):
    """Also into what a kill in the first moment of an export leaves."""
    to = tmp_path / "to"
    with export._alone(to):
        second = threading.Thread(target=export.main, args=([str(nasty_run), "--to", str(to)],))
        second.start()
        second.join(0.5)
        assert second.is_alive() and not list(to.iterdir())
        (to / f".{export.UNFINISHED}.tmp").write_text("{")
    second.join()
    export.main([str(nasty_run), "--to", str(tmp_path / "whole")])
    assert tree(to) == tree(tmp_path / "whole")


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
