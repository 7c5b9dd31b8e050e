"""Going through suspects in a real browser: the page as a file, and the page that `python -m report.review` serves."""

import csv
import json
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import report.page as report
from methods.decisions import Decision, Log
from report import render, review
from report.server import Review, serve
from report.suspects import read_run
from tests.helpers import NASTY, rows_of
from utils.errors import UserError
from utils.summaries import read_summary, with_checksum, write_summary

By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
Select = pytest.importorskip("selenium.webdriver.support.ui").Select


NEAR = "return [...document.querySelectorAll('#near img')].map((image) => image.naturalWidth)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that logs its console and its network; `downloads` is where it saves files."""
    program, driver = (
        next((p for name in names if (p := shutil.which(name))), None)
        for names in (("chromium", "google-chrome"), ("chromedriver",))
    )
    if not (program and driver):
        pytest.skip("needs Chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    folder, options = tmp_path_factory.mktemp("browser"), webdriver.ChromeOptions()
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
        f"user-data-dir={folder / 'profile'}",
    ):
        options.add_argument("--" + flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(executable_path=driver))
    chrome.downloads = folder / "downloads"
    where = {"behavior": "allow", "downloadPath": str(chrome.downloads)}
    chrome.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    yield chrome
    chrome.quit()


def show(browser, address, width=1280):
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(address if isinstance(address, str) else address.as_uri())


def requests(browser):
    """Addresses asked for since the last call, without local files and the images inside the page."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("file:", "data:", "blob:", "chrome:"))]  # chrome: its start page


def wait_for(what, seconds=20):
    deadline = time.time() + seconds
    while not (result := what()) and time.time() < deadline:
        time.sleep(0.02)
    return result


def text(browser, name):
    return browser.find_element(By.ID, name).text


def cards(browser):
    return browser.find_elements(By.CSS_SELECTOR, "#cards article")


def names(browser):
    script = "return [...document.querySelectorAll('#cards article')].map((card) => card.getAttribute('aria-label'))"
    return browser.execute_script(script)


def labels(row):
    return f"{row['path'].split('/')[-1]}: {row['given_label']} → {row['predicted_label']}"


def press(browser, *keys):
    for key in keys:
        browser.switch_to.active_element.send_keys(key)


def choose(browser, which, value):
    Select(browser.find_element(By.ID, which)).select_by_value(value)


def saved_csv(browser):
    before = set(browser.downloads.glob("*.csv"))
    browser.find_element(By.ID, "export").click()
    new = wait_for(lambda: [p for p in set(browser.downloads.glob("*.csv")) - before if p.stat().st_size])
    return new[0]  # Chromium makes the file before it writes it


# --- the page as a file


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_opens_whole_and_filters(browser, nasty_run, width):
    show(browser, nasty_run / "report.html", width)
    suspects = rows_of(nasty_run / "suspects.csv")
    assert names(browser) == [labels(row) for row in suspects] and len(suspects) > 10
    browser.find_element(By.ID, "start").click()
    assert wait_for(lambda: min(browser.execute_script(NEAR), default=0)) == 8  # the nearest of its classes
    press(browser, Keys.ESCAPE)
    ready = "return [...document.images].every((image) => image.id === 'picture' || image.naturalWidth > 0)"
    browser.execute_script("for (const image of document.images) image.loading = 'eager'")
    assert wait_for(lambda: browser.execute_script(ready))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    choose(browser, "given", "=<script>")
    shown = [row for row in suspects if row["given_label"] == "<script>"]
    assert names(browser) == [labels(row) for row in shown] and 0 < len(shown) < len(suspects)
    choose(browser, "given", "")
    choose(browser, "order", "given")
    given = [name.rsplit(": ", 1)[1].split(" → ")[0] for name in names(browser)]
    assert sorted(given, key=given.index) == given and len(set(given)) > 1  # each class in one piece
    choose(browser, "order", "turn")
    given = [name.rsplit(": ", 1)[1].split(" → ")[0] for name in names(browser)]
    ranks = [given[:at].count(one) for at, one in enumerate(given)]
    assert ranks == sorted(ranks) and ranks[-1] > 0  # the worst of every class, then the second of every class
    choose(browser, "order", "pair")
    pairs = [name.rsplit(": ", 1)[1] for name in names(browser)]
    sizes = [pairs.count(pair) for pair in pairs]
    assert sizes == sorted(sizes, reverse=True)
    choose(browser, "order", "sure")
    first = next(row for row in suspects if labels(row) == names(browser)[0])
    apart = [float(r["predicted_probability"]) - float(r["label_score"]) for r in suspects]
    assert float(first["predicted_probability"]) - float(first["label_score"]) == max(apart)
    assert browser.get_log("browser") == [] and requests(browser) == []


def test_a_suspect_without_a_better_class(browser, nasty_run, tmp_path):
    """No arrow from a class to itself: DeFT also suspects labels that fit better than any other."""
    run = shutil.copytree(nasty_run, tmp_path / "nasty")
    _, arrays, data, summary = read_run(run)
    arrays["predicted"] = arrays["labels"]
    (run / "report.html").write_text(render.page_html(run, data, arrays, summary, [("overview", "", "")]))
    show(browser, run / "report.html")
    assert all(name.endswith(" (no class fits better)") and "→" not in name for name in names(browser))
    browser.find_element(By.ID, "start").click()
    assert text(browser, "is-suggested") == "no other class"


def test_decisions_by_mouse_and_keyboard_end_in_a_file(browser, nasty_run, tmp_path):
    run = shutil.copytree(nasty_run, tmp_path / "nasty")
    report.main([str(run)])
    show(browser, run / "report.html")
    suspects = rows_of(run / "suspects.csv")
    assert not browser.find_element(By.ID, "export").is_enabled()

    def button(i, value):
        return cards(browser)[i].find_element(By.CSS_SELECTOR, f"button[value={value}]")

    button(0, "wrong").click()
    button(1, "wrong").click()
    button(1, "right").send_keys(Keys.SPACE)  # by keyboard; takes the place of the other
    button(2, "wrong").click()
    button(2, "wrong").click()  # taken back
    pressed = [button(1, value).get_attribute("aria-pressed") for value in ("wrong", "right")]
    assert pressed == ["false", "true"]
    assert f"reviewed: 2 of {len(suspects)}, 1 wrong, 1 right" in text(browser, "count")

    cards(browser)[2].find_element(By.CLASS_NAME, "open").click()  # one at a time, from here on
    other = next(name for name in ("ends<", "<script>") if name != suspects[4]["given_label"])
    assert text(browser, "is-given") == suspects[2]["given_label"]
    press(browser, "w", "u", "s")  # wrong, taken back, the suggestion
    assert text(browser, "is-given") == suspects[3]["given_label"] and "3 reviewed" in text(browser, "place")
    press(browser, "k", "/")  # to the end of the list; the search box
    press(browser, other[:3].upper())
    (option,) = browser.find_elements(By.CSS_SELECTOR, "[role=option]")
    assert option.is_displayed() and option.text == other
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))  # a section of the same name once took the list
    press(browser, Keys.ENTER)
    press(browser, "n", "p", "r", Keys.ESCAPE)
    assert text(browser, "count").endswith(f"reviewed: 5 of {len(suspects)}, 3 wrong, 2 right")
    assert wait_for(lambda: len(cards(browser)) == len(suspects) - 5)  # reviewed ones have left the list

    browser.refresh()  # they are still there
    assert wait_for(lambda: len(cards(browser)) == len(suspects) - 5)
    decided = {0: ("wrong", ""), 1: ("right", ""), 2: ("wrong", suspects[2]["predicted_label"]), 4: ("wrong", other)}
    decided[5] = ("right", "")
    expected = [suspects[i] | {"decision": d, "new_label": n} for i, (d, n) in sorted(decided.items())]
    saved = saved_csv(browser)
    assert rows_of(saved) == expected and saved.name == "own-data-none-seed0-nasty-decisions.csv"
    assert browser.get_log("browser") == [] and requests(browser) == []

    report.main([str(run), "--decisions", str(saved)])  # the run takes them over
    assert len(rows_of(run / "suspects.csv")) == len(suspects) - 2
    show(browser, run / "report.html")
    assert names(browser) == [labels(row) for i, row in enumerate(suspects) if i not in decided]
    assert f"reviewed: 5 of {len(suspects)}, 3 wrong, 2 right" in text(browser, "count")

    saved.unlink()  # Chromium writes the next one in its place
    choose(browser, "which", "reviewed")  # what is taken back on the page is taken back in the run
    button(0, "wrong").click()
    assert f"reviewed: 4 of {len(suspects)}, 2 wrong, 2 right" in text(browser, "count")
    report.main([str(run), "--decisions", str(saved_csv(browser))])
    assert len(Log(run).path.read_text().splitlines()) == 6 and int((read_run(run)[1]["decision"] > 0).sum()) == 4


def test_two_tabs_of_one_page_keep_the_decisions_of_both(browser, nasty_run, tmp_path):
    run = Path(shutil.copytree(nasty_run, tmp_path / "tabs"))
    report.main([str(run)])
    first, suspects = browser.current_window_handle, rows_of(run / "suspects.csv")
    show(browser, run / "report.html")
    browser.switch_to.new_window("tab")
    show(browser, run / "report.html")
    second = browser.current_window_handle
    for tab, i in ((first, 0), (second, 1), (first, 2)):
        browser.switch_to.window(tab)
        cards(browser)[i].find_element(By.CSS_SELECTOR, "button[value=wrong]").click()
    for tab in (first, second):
        browser.switch_to.window(tab)
        assert wait_for(lambda: f"reviewed: 3 of {len(suspects)}" in text(browser, "count"))
    browser.refresh()
    assert f"reviewed: 3 of {len(suspects)}, 3 wrong" in text(browser, "count")
    browser.close()
    browser.switch_to.window(first)


def test_a_page_saves_what_was_decided_in_it(browser, nasty_run, tmp_path):
    """Not what the run knew before: of that, the run may have changed its mind since the page was made."""
    run = Path(shutil.copytree(nasty_run, tmp_path / "old"))
    a, b = rows_of(run / "suspects.csv")[:2]
    Log(run).add([Decision("", a["path"], a["content"], a["given_label"], "wrong")])
    report.main([str(run)])
    show(browser, run / "report.html")
    assert not browser.find_element(By.ID, "export").is_enabled()
    choose(browser, "which", "open")
    cards(browser)[0].find_element(By.CSS_SELECTOR, "button[value=right]").click()
    saved = saved_csv(browser)
    assert [(row["path"], row["decision"]) for row in rows_of(saved)] == [(b["path"], "right")]
    saved.unlink()


def test_each_key_decides_about_the_image_that_is_shown(browser, nasty_run, tmp_path):
    run = Path(shutil.copytree(nasty_run, tmp_path / "keys"))
    report.main([str(run)])
    show(browser, run / "report.html")
    browser.find_element(By.ID, "start").click()
    held = """const picture = document.getElementById("picture"), dialog = document.getElementById("review"), seen = [];
        for (const repeat of [false, true, true, true])
            dialog.dispatchEvent(new KeyboardEvent("keydown", {key: "r", repeat, bubbles: true}));
        const place = document.getElementById("place").textContent;
        for (const key of ["n", "n"]) {
            const before = picture.currentSrc;
            dialog.dispatchEvent(new KeyboardEvent("keydown", {key, repeat: true, bubbles: true}));
            seen.push(before !== "" && picture.currentSrc === before);
        }
        return [place, document.getElementById("place").textContent, seen]"""
    before, after, stale = browser.execute_script(held)
    assert before.startswith("2 of") and "1 reviewed" in before and after.startswith("4 of") and stale == [False, False]


def test_a_sample_of_all_labels(browser, nasty_run, tmp_path):
    """Labels of the whole list, kept ones too, by p_clean alone; what is decided there counts like any other decision."""
    run = Path(shutil.copytree(nasty_run, tmp_path / "sampled"))
    _, arrays, data, _ = read_run(run)
    i = int(np.flatnonzero(arrays["mask"])[0])  # a label that the detector keeps
    p_clean, all_true = np.linspace(1, 0, 1000), np.ones(1000, dtype=bool)
    many = {"mask": all_true, "there": all_true, "p_clean": p_clean, "decision": np.zeros(1000, dtype=np.int8)}
    shown = render.to_show(many)
    assert len(shown) == 100 and shown[0] == 994 and shown[-1] == 4 and set(np.diff(shown)) == {-10}
    report.main([str(run)])
    show(browser, run / "report.html")
    suspects = rows_of(run / "suspects.csv")
    assert len(cards(browser)) == len(suspects) < len(data.train.labels) < 100
    choose(browser, "which", "sample")
    assert len(cards(browser)) == len(data.train.labels)
    name = f"{Path(data.path(i)).name}: {data.label_names[data.train.labels[i]]}"
    cards(browser)[names(browser).index(name)].find_element(By.CSS_SELECTOR, "button[value=wrong]").click()
    assert f"reviewed: 1 of {len(data.train.labels)}, 1 wrong" in text(browser, "count")
    choose(browser, "which", "all")
    assert f"reviewed: 1 of {len(suspects) + 1}, 1 wrong" in text(browser, "count")
    report.main([str(run), "--decisions", str(saved_csv(browser))])
    _, arrays, _, _ = read_run(run)
    assert not arrays["mask"][i] and arrays["decision"].nonzero()[0].tolist() == [i]
    assert browser.get_log("browser") == []


def test_decisions_of_one_run_do_not_show_in_another(browser, nasty_run, tmp_path):
    """The same name, labels and places: but other images."""
    run = Path(shutil.copytree(nasty_run, tmp_path / "a" / "run"))
    report.main([str(run)])
    show(browser, run / "report.html")
    cards(browser)[0].find_element(By.CSS_SELECTOR, "button[value=wrong]").click()
    other = Path(shutil.copytree(run, tmp_path / "b" / "run"))
    _, arrays, data, summary = read_run(other)
    data.train.digests = [digest[::-1] for digest in data.digests]
    (other / "report.html").write_text(render.page_html(other, data, arrays, summary, [("overview", "", "")]))
    show(browser, other / "report.html")
    assert "reviewed: 0 of" in text(browser, "count")
    show(browser, run / "report.html")
    assert "reviewed: 1 of" in text(browser, "count")


def test_images_come_as_they_are_needed(browser, nasty_run, tmp_path):
    """Of many suspects the page makes sixty cards, and more where they come into sight; a class is there whole."""
    run = Path(shutil.copytree(nasty_run, tmp_path / "run"))
    _, arrays, data, summary = read_run(run)
    order = render.to_show(arrays)
    html = render.page_html(run, data, arrays, summary, [("overview", "", "")])
    rows = json.loads(html.split('id="rows">')[1].split("</script>")[0])
    many, issue = 3000, rows["header"].index("is_label_issue")
    rows["rows"] = [row for row in rows["rows"] if row[issue] == "True"]
    rows["rows"] = [[*row[:3], f"{k}/{row[3]}", *row[4:]] for k, row in enumerate((rows["rows"] * many)[:many])]
    uris = [uri for uri in html.split() if uri.startswith("data:image")]
    piece = (uris * render.PIECE)[: render.PIECE]
    pieces = "".join(
        f'<script type="text/plain" id="images-{k}">{chr(10).join(piece)}</script>' for k in range(many // render.PIECE)
    )
    head, tail = html.split('<script type="application/json" id="rows">')
    tail = tail.split("</script>", 1)[1].split('<script type="text/plain"', 1)[1].split("</script>", 1)[1]
    text_rows = json.dumps(rows).replace("<", "\\u003c")
    page = run / "many.html"
    page.write_text(f'{head}<script type="application/json" id="rows">{text_rows}</script>{pieces}{tail}')
    show(browser, page)
    assert len(order) < 60 == len(cards(browser)) and text(browser, "count").startswith("3000 shown")
    browser.execute_script("document.getElementById('end').scrollIntoView()")
    assert wait_for(lambda: len(cards(browser)) >= 120)


# --- the page that is served


def opened(review):
    """A running server and its address; the caller shuts it down."""
    server, address = serve(review)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, address


def decide(address, **body):
    request = urllib.request.Request(address + "decide", json.dumps(body).encode(), method="POST")
    return urllib.request.urlopen(request).read()


def key(row):
    return f"path {row['path']}\n{row['given_label']}"


def status(address, **headers):
    try:
        return urllib.request.urlopen(urllib.request.Request(address, headers=headers)).status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_review_on_the_server(browser, nasty_run, tmp_path):
    """Every decision is in the run's folder as soon as the page says so; a reload, and the report, go on from there."""
    out = nasty_run.parents[3]  # with the features in its cache
    run = Path(shutil.copytree(out, tmp_path / "runs")) / nasty_run.relative_to(out)
    suspects = rows_of(run / "suspects.csv")
    server, address = opened(Review(run))
    show(browser, address)
    requests(browser)
    assert names(browser) == [labels(row) for row in suspects]
    browser.find_element(By.ID, "start").click()
    wide = "const picture = document.getElementById('picture'); return picture.complete && picture.naturalWidth"
    assert wait_for(lambda: browser.execute_script(wide)) == 8
    assert wait_for(lambda: min(browser.execute_script(NEAR), default=0)) == 8  # the nearest of its classes
    press(browser, "r", "w", "s")
    assert wait_for(lambda: text(browser, "review-saved") == "all decisions are saved")
    log = [json.loads(line) for line in (run / "decisions.jsonl").read_text().splitlines()]
    assert [row["decision"] for row in log] == ["right", "wrong", "wrong"]
    assert [row["path"] for row in log] == [row["path"] for row in suspects[:3]]
    assert log[2]["new_label"] == suspects[2]["predicted_label"]
    press(browser, "u")
    assert wait_for(lambda: len((run / "decisions.jsonl").read_text().splitlines()) == 4)
    press(browser, Keys.ESCAPE)
    browser.refresh()
    assert names(browser) == [labels(row) for row in suspects[2:]]
    assert browser.get_log("browser") == [] and all(url.startswith(address) for url in requests(browser))
    server.shutdown()
    server.server_close()
    browser.get("about:blank")
    report.main([str(run)])
    assert len(rows_of(run / "suspects.csv")) == len(suspects) - 1


def test_a_served_page_counts_the_decisions_so_far(nasty_run, tmp_path):
    """A log that cannot be read is named."""
    run = Path(shutil.copytree(nasty_run, tmp_path / "run"))
    server, address = opened(Review(run))
    first, *others = rows_of(run / "suspects.csv")
    decide(address, image=key(first), decision="right", new_label="")
    page = urllib.request.urlopen(address).read().decode()
    assert f"<dt>suspects</dt><dd>{len(others)}</dd>" in page
    assert "<dt>reviewed: label is right</dt><dd>1</dd>" in page
    (run / "decisions.jsonl").write_text("no JSON\n")
    with pytest.raises(urllib.error.HTTPError, match="500") as answer:
        urllib.request.urlopen(address)
    assert "decisions.jsonl: not a log of decisions" in answer.value.read().decode()
    server.shutdown()
    server.server_close()


def test_a_served_page_leaves_out_decisions_about_images_that_are_gone(nasty_run, tmp_path):
    """As the page that is a file does; its tiles count what is in the lists."""
    out = nasty_run.parents[4]
    run = Path(shutil.copytree(out, tmp_path / "all")) / nasty_run.relative_to(out)
    rows = rows_of(run / "suspects.csv")
    for i in range(4):
        suspect = next(r for r in NASTY if r != rows[i]["given_label"])
        Log(run).add([Decision("", rows[i]["path"], rows[i]["content"], rows[i]["given_label"], "wrong", suspect)])
    data = tmp_path / "all" / "data"
    for row in rows[:3]:
        (data / row["path"]).unlink()
    served = Review(run, str(data)).page()
    report.main([str(run), "--data_path", str(data)])
    for html in (served, (run / "report.html").read_text(encoding="utf-8")):
        assert "<dt>reviewed: label is wrong</dt><dd>1</dd>" in html
        assert "by you</dt><dd>1</dd>" in html
    assert sum(row["label"] != row["original_label"] for row in rows_of(run / "labels_fixed.csv")) == 1


def test_a_server_that_was_started_again_says_what_to_do(browser, nasty_run, tmp_path):
    run = Path(shutil.copytree(nasty_run, tmp_path / "again"))
    server, address = opened(Review(run))
    show(browser, address)
    server.RequestHandlerClass.token = "another"
    cards(browser)[0].find_element(By.CSS_SELECTOR, "button[value=wrong]").click()
    assert wait_for(lambda: "save your decisions as CSV, then open its new address" in text(browser, "saved"))
    server.shutdown()
    server.server_close()
    browser.execute_script("unsaved = 0")  # or the browser asks before it leaves the page
    browser.get("about:blank")
    browser.get_log("browser")


def test_a_file_with_two_labels(browser, nasty_run, tmp_path):
    """Both rows are in a list of their own, side by side, even where the detector keeps them, and each has its decision.

    A class is shown with the name that CLIP reads, and found by it.
    """
    run = Path(shutil.copytree(nasty_run, tmp_path / "run"))
    header, *rows = csv.reader((run / "scores.csv").open(newline="", encoding="utf-8"))
    path, given, kept, content = (header.index(n) for n in ("path", "given_label", "is_label_issue", "content"))
    first = next(row for row in rows if row[kept] == "False")
    second = next(row for row in rows if row[given] != first[given])
    second[path], second[content] = first[path], first[content]  # as two rows of a table name one file
    with (run / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    summary = read_summary(run / "summary.json")
    summary["class_names"] = ["some bird" if name == first[given] else name for name in summary["classes"]]
    write_summary(run / "summary.json", with_checksum(summary))
    shown = {row[given]: row[given] + " (some bird)" * (row is first) for row in (first, second)}
    server, address = opened(Review(run))
    show(browser, address)
    choose(browser, "which", "copies")
    both = cards(browser)
    texts = [card.find_element(By.CSS_SELECTOR, ".copies").text for card in both]
    assert len(both) == 2 and sorted(texts) == sorted(
        f"identical: {Path(first[path]).name} ({shown[row[given]]})" for row in (first, second)
    )
    at = next(k for k, found in enumerate(texts) if f"({shown[second[given]]})" in found)
    assert both[at].find_element(By.CSS_SELECTOR, "button[value=right]").text == f"is {shown[first[given]]}"
    both[at].find_element(By.CSS_SELECTOR, "button[value=right]").click()
    assert wait_for(lambda: text(browser, "saved") == "all decisions are saved")
    (line,) = (run / "decisions.jsonl").read_text(encoding="utf-8").splitlines()
    assert (json.loads(line)["given_label"], json.loads(line)["decision"]) == (first[given], "right")
    browser.refresh()
    choose(browser, "which", "reviewed")
    assert [card.find_element(By.CSS_SELECTOR, ".said").text for card in cards(browser)] == ["label is right"]
    browser.find_element(By.ID, "start").click()
    press(browser, "/", "some b", Keys.ENTER)
    assert wait_for(lambda: len((run / "decisions.jsonl").read_text(encoding="utf-8").splitlines()) == 2)
    press(browser, Keys.ESCAPE)
    browser.get("about:blank")
    server.shutdown()
    server.server_close()


def test_a_decision_is_on_the_disk_before_the_page_hears_so(nasty_run, tmp_path, monkeypatch, capsys):
    """So a kill loses none."""
    run, servers = Path(shutil.copytree(nasty_run, tmp_path / "run")), []
    monkeypatch.setattr("report.server.serve", lambda *args: servers.append(serve(*args)) or servers[0])
    thread = threading.Thread(target=review.main, args=([str(run)],), daemon=True)
    thread.start()
    assert wait_for(lambda: servers)
    ((server, address),) = servers
    suspects = rows_of(run / "suspects.csv")
    for row in suspects[:2]:
        assert decide(address, image=key(row), decision="wrong", new_label="") == b"saved"
    _, arrays, _, _ = read_run(run)
    assert set(arrays["decision"].nonzero()[0]) == {int(row["index"]) for row in suspects[:2]}
    server.shutdown()
    thread.join(10)
    printed = capsys.readouterr().out
    assert f"open {address} in a browser" in printed and f"decisions: {run / 'decisions.jsonl'}\n" in printed


def test_the_server_answers_this_machine_and_the_token_only(nasty_run, tmp_path):
    run = Path(shutil.copytree(nasty_run, tmp_path / "run"))
    review = Review(run)
    server, address = opened(review)
    image = next(iter(review.index))
    host, token = address.rsplit("/", 2)[0], address.rsplit("/", 2)[1]
    assert server.server_address[0] == "127.0.0.1" and len(token) >= 20
    assert status(address) == 200
    picture = address + "image?of=" + urllib.request.quote(image)
    assert urllib.request.urlopen(picture).read().startswith((b"\x89PNG", b"\xff\xd8"))
    for wrong in (f"{host}/", f"{host}/x/", f"{host}/x/image?of={urllib.request.quote(image)}", address + "log"):
        assert status(wrong) == 404
    assert status(address, Host="elsewhere.example") == 404
    assert status(address + "image?of=path%20/etc/passwd") == 404
    with socket.create_connection(server.server_address) as odd:  # no path
        odd.sendall(f"GET * HTTP/1.1\r\nHost: {host.partition('//')[2]}\r\n\r\n".encode())
        assert odd.recv(20).startswith(b"HTTP/1.1 404")
    given, other = (review.data.label_names[k] for k in (review.data.train.labels[0], review.data.train.labels[-1]))
    for body in (
        {"image": image, "decision": "maybe", "new_label": ""},
        {"image": image},
        {"image": "no"},
        {"image": image, "decision": "right", "new_label": other},
        {"image": image, "decision": "wrong", "new_label": given},
    ):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            decide(address, **{"decision": "wrong", **body} if "no" in body.values() else body)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        decide(f"{host}/x/", image=image, decision="right", new_label="")
    assert not review.log.path.exists()
    with pytest.raises(UserError, match="--port: .* cannot be used"):
        serve(review, server.server_address[1])
    server.shutdown()
    server.server_close()
