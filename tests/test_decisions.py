"""What a person decides about labels: it stays with its image, is kept in the run, and report, export and training follow."""

import csv
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import main_clipcleaner
import main_detect
import main_phase2
import main_real_phase2
import report.page as report
from dataloader.dataset import Dataset, Split, View
from dataloader.load import load_data
from methods.decisions import (
    LOG,
    Decision,
    Images,
    Log,
    as_arrays,
    labels_to_train_on,
    read_decisions,
    say_contradictions,
    settle,
)
from methods.masks import default_mask
from report import export
from report.suspects import fixed_labels, read_run, to_review
from tests.helpers import DIGITS, LABEL_MATCH, rows_of, write_digits
from utils.config import load_config
from utils.errors import UserError
from utils.summaries import read_summary, with_checksum, write_summary

FLAGS = ["--backbone", "tiny-clip-digits", "--test_fraction", "0", "--device", "cpu"]
HERE = Path(__file__).parents[1]
OWN = [*LABEL_MATCH, *FLAGS]


def write(path, *rows):
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def detect(root, out="runs"):
    main_detect.main([*OWN, "--data_path", str(root / "data"), "--output_dir", str(root / out)])
    return next((root / out).glob("*/none/seed0/label-match"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with digits, a third of them mislabelled, and a finished run of label-match on them."""
    root = tmp_path_factory.mktemp("source")
    write_digits(root / "data", 0.3, every=9)
    detect(root)
    return root


@pytest.fixture
def root(source, tmp_path):
    return Path(shutil.copytree(source, tmp_path / "root"))


@pytest.fixture
def run(root):
    """The run of `root`, whose images lie beside it."""
    folder = next((root / "runs").glob("*/none/seed0/label-match"))
    summary = read_summary(folder / "summary.json") | {"root": str(root / "data")}
    write_summary(folder / "summary.json", with_checksum(summary))
    return folder


def decided(folder, **flags):
    """{path: (decision, new label)} of a run."""
    _, arrays, data, _ = read_run(folder, **flags)
    names = [*data.label_names, ""]
    return {
        data.path(i): ("", "right", "wrong")[arrays["decision"][i]] + " " + names[arrays["new_labels"][i]]
        for i in np.flatnonzero(arrays["decision"])
    }


# --- a decision stays with its image


def test_a_decision_stays_with_its_image_when_a_file_is_deleted(root, run, tmp_path, capsys):
    suspects = rows_of(run / "suspects.csv")[:5]
    first = min(suspects, key=lambda row: int(row["index"]))
    ticks = write(tmp_path / "ticks.csv", *(row | {"decision": "wrong"} for row in suspects))
    decided(run, decisions=ticks)
    (root / "data" / first["path"]).unlink()  # so all behind it move up
    with pytest.raises(
        UserError, match=f"other images .1 gone.*also deletes your decisions; save {run}/decisions.jsonl"
    ):
        detect(root)
    found = decided(detect(root, "again"), decisions=run / "decisions.jsonl")
    assert found == {row["path"]: "wrong " for row in suspects if row is not first}
    assert (
        f"{run}/decisions.jsonl: decisions not used because the image is none that the run judged: 1 ({first['path']})"
        in capsys.readouterr().out
    )


def test_what_is_said_of_a_file_is_of_its_rows_alone(root, run, tmp_path, capsys):
    """Decisions of the log whose image is gone are the log's; paths may be written as Windows does."""
    lost, kept, other = rows_of(run / "suspects.csv")[:3]
    log = run / "decisions.jsonl"
    decided(run, decisions=write(tmp_path / "ticks.csv", *(row | {"decision": "wrong"} for row in (lost, kept))))
    (root / "data" / lost["path"]).unlink()
    new = {"path": other["path"].replace("/", "\\"), "given_label": other["given_label"], "decision": "right"}
    capsys.readouterr()
    assert decided(run, decisions=write(tmp_path / "new.csv", new)) == {kept["path"]: "wrong ", other["path"]: "right "}
    printed = capsys.readouterr().out
    assert f"{log}: decisions not used because the image is gone or has changed: 1 ({lost['path']})" in printed
    assert "new.csv: decisions not used" not in printed
    decided(run, decisions=tmp_path / "new.csv")
    assert "new.csv: no new decision; 1 of its 1 rows are of images of this run" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"none.csv: names no image of this run; these are named as in 'path .*\.png'"):
        decided(run, decisions=write(tmp_path / "none.csv", new | {"path": "elsewhere.png"}))


def test_an_image_held_out_for_testing_is_not_called_gone(root, run, tmp_path, capsys):
    """Where the data set has its test images, as in phase 2."""
    data = load_data(load_config([*OWN, "--data_path", str(root / "data"), "--test_fraction", "0.5"]))
    path = data.test.images[0]
    row = {
        "path": str(Path(path).relative_to(root / "data")),
        "given_label": Path(path).parent.name,
        "decision": "wrong",
    }
    lost = row | {"path": "lost.png"}
    capsys.readouterr()
    settle(tmp_path, data, write(tmp_path / "ticks.csv", row, lost))
    printed = capsys.readouterr().out
    assert f"decisions not used because the image is held out for testing: 1 ({row['path']})" in printed
    assert "decisions not used because the image is gone: 1 (lost.png)" in printed


def test_what_became_of_an_image_decides(root, run, tmp_path, capsys):
    """Renamed: found by its content. Changed, or moved to another class: not used."""
    renamed, changed, moved, *_ = suspects = rows_of(run / "suspects.csv")[:4]
    files = [root / "data" / row["path"] for row in suspects]
    files[0].rename(files[0].with_name("another name.png"))
    shutil.copy(next(f for f in sorted((root / "data").rglob("*.png")) if f not in files), files[1])
    other = next(d for d in sorted((root / "data").iterdir()) if d.name != moved["given_label"])
    files[2].rename(other / "moved.png")
    again = detect(root, "again")
    ticks = write(tmp_path / "ticks.csv", *(row | {"decision": "right"} for row in suspects))
    found = decided(again, decisions=ticks)
    assert found == {f"{renamed['given_label']}/another name.png": "right ", suspects[3]["path"]: "right "}
    printed = capsys.readouterr().out
    assert f"decisions not used because the image has changed: 1 ({changed['path']})" in printed
    assert f"decisions not used because the image has another label: 1 ({moved['path']})" in printed


def test_decisions_follow_files_that_a_person_renumbered_or_moved_to_the_right_class(root, run, tmp_path, capsys):
    """Two files that changed names keep their own decisions. A label corrected as decided is right, unless taken back."""
    one, two = [row for row in rows_of(run / "scores.csv") if row["given_label"] == "one"][:2]
    corrected, taken_back = [row for row in rows_of(run / "scores.csv") if row["given_label"] == "two"][:2]
    files = {row["path"]: root / "data" / row["path"] for row in (one, two, corrected, taken_back)}
    _, _, data, _ = read_run(run)
    images = Images(data)
    by_path = {row["path"]: images.row(int(row["index"])) for row in (one, two, corrected, taken_back)}
    said = {one["path"]: ("right", ""), two["path"]: ("wrong", "")}
    said |= {row["path"]: ("wrong", "one") for row in (corrected, taken_back)}
    log = [replace(by_path[path], decision=d, new_label=new) for path, (d, new) in said.items()]
    Log(run).add([*log, replace(by_path[taken_back["path"]], decision="")])
    spare = root / "spare.png"
    for source, target in ((one, spare), (two, files[one["path"]]), (spare, files[two["path"]])):
        (source if source is spare else files[source["path"]]).rename(target)
    for row in (corrected, taken_back):
        files[row["path"]].rename(root / "data" / "one" / f"was {Path(row['path']).name}")
    found = decided(detect(root, "again"), decisions=run / "decisions.jsonl")
    moved = f"one/was {Path(corrected['path']).name}"
    assert found == {two["path"]: "right ", one["path"]: "wrong ", moved: "right "}
    assert "not used" not in capsys.readouterr().out


def test_ids_come_before_paths(tmp_path):
    """A table whose files were all renamed, with its rows in another order: the ids still hold."""
    write_digits(tmp_path / "data", 0.3, every=12, table=True)
    table = tmp_path / "data" / "labels.csv"
    before = tmp_path / "before"
    main_detect.main([*OWN, "--data_path", str(table), "--output_dir", str(before)])
    row = rows_of(next(before.rglob("suspects.csv")))[0]
    ticks = write(tmp_path / "ticks.csv", row | {"decision": "right", "path": "elsewhere.png", "content": ""})
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *reversed(lines[1:]), ""]))
    main_detect.main([*OWN, "--data_path", str(table), "--output_dir", str(tmp_path / "after")])
    assert decided(next((tmp_path / "after").rglob("label-match")), decisions=ticks) == {row["path"]: "right "}


def test_images_of_an_array_are_known_by_their_pixels(cell, tmp_path):
    folder = shutil.copytree(cell[0] / "digits/sym-0.4/seed0/label-match", tmp_path / "label-match")
    suspect = rows_of(folder / "suspects.csv")[0]
    assert suspect["path"] == "" and len(suspect["content"]) == 32
    ticks = write(tmp_path / "ticks.csv", suspect | {"decision": "right", "index": "0", "rank": "1"})
    _, arrays, data, _ = read_run(folder, decisions=ticks)
    assert [data.digests[i] for i in np.flatnonzero(arrays["decision"])] == [suspect["content"]]
    assert arrays["mask"][int(suspect["index"])]


def test_a_file_in_several_rows_of_a_table(tmp_path):
    """As of several annotators: a decision is of one label, and of all rows that give it."""
    write_digits(tmp_path / "data", 0, every=200, table=True)
    path = tmp_path / "data" / "twice.csv"
    path.write_text("path,label\nimg/0.png,x\nimg/0.png,y\nimg/1.png,y\nimg/1.png,y\nimg/2.png,x\n")
    images = Images(load_data(load_config([*OWN, "--data_path", str(path)])))
    assert [images.find(images.row(i))[0] for i in range(5)] == [[0], [1], [2, 3], [2, 3], [4]]


@pytest.mark.parametrize(
    "said, against",
    [
        ({}, ""),
        ({0: "wrong"}, ""),  # a is not x; that b is y may be
        ({0: "right"}, "b.png (y)"),
        ({0: "right", 1: "wrong"}, ""),
        ({0: "right", 1: "right"}, "a.png (x), b.png (y)"),
        ({0: "right", 1: "wrong x"}, ""),
        ({0: "wrong z"}, "b.png (y)"),
        ({2: "wrong"}, "d.png (z)"),  # two of one label
        ({2: "right"}, ""),
    ],
)
def test_decisions_against_identical_images(said, against, capsys):
    split = Split(list("abcd"), np.array([0, 1, 2, 2]), digests=["1", "1", "2", "2"])
    split.images = [f"/data/{name}.png" for name in split.images]
    data = Dataset("own", split, None, list("xyz"), View(), label_names=list("xyz"), root="/data")
    images = Images(data)
    decision, new = as_arrays({i: images.row(i, *text.split()) for i, text in said.items()}, data)
    say_contradictions(data, *labels_to_train_on(np.ones(4, dtype=bool), split.labels, decision, new), decision)
    printed = capsys.readouterr().out
    assert (f"({against}); review all their copies" in printed) if against else not printed


def test_rows_that_contradict_each_other(run, tmp_path):
    a, b = rows_of(run / "suspects.csv")[:2]
    same = [a | {"decision": "wrong"}, b | {"decision": "right"}, a | {"decision": "wrong"}]
    assert len(decided(run, decisions=write(tmp_path / "same.csv", *same))) == 2
    ticks = write(tmp_path / "ticks.csv", *same[:2], a | {"decision": "right"})
    with pytest.raises(UserError, match=f"ticks.csv: line 2 says wrong.*, line 4 says right.*{a['path']}"):
        read_run(run, decisions=ticks)
    assert len(decided(run)) == 2  # nothing of it was kept


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"decision": "wrogn"},
            "line 2 has the decision 'wrogn', expected right, wrong or undecided. Did you mean wrong?",
        ),
        ({"new_label": "sevn"}, "line 2: the new_label 'sevn' is no class. Did you mean seven?"),
        ({"given_label": "two", "new_label": "two"}, "line 2 calls the label 'two' wrong and the new_label is 'two'"),
        ({"decision": "right", "given_label": "two", "new_label": "six"}, "line 2 calls the label 'two' right and"),
        ({"path": "", "content": "", "id": ""}, "line 2 names no image; expected an id, a path or a content"),
    ],
)
def test_rows_that_cannot_be(run, tmp_path, change, message):
    row = rows_of(run / "suspects.csv")[0] | {"decision": "wrong", "new_label": ""}
    with pytest.raises(UserError, match="ticks.csv: " + message.replace("?", r"\?")):
        read_run(run, decisions=write(tmp_path / "ticks.csv", row | change))
    with pytest.raises(UserError, match="none.csv"):
        read_run(run, decisions=tmp_path / "none.csv")


@pytest.mark.parametrize(
    "header, message",
    [
        ("id,path,given_label,decision,newlabel", "has no column new_label; is 'newlabel' meant"),
        ("Path,given_label,decision", "has no column path; is 'Path' meant"),
        ("path,decision,new_label", "has no column given_label; found path, decision, new_label"),
        ("path,given_label,true_label", "has no column decision; found path"),
    ],
)
def test_columns_that_are_missing_or_misspelt(run, tmp_path, header, message):
    ticks = tmp_path / "ticks.csv"
    ticks.write_text(header + "\n" + "," * header.count(",") + "\n")
    with pytest.raises(UserError, match=f"ticks.csv: {message}"):
        read_run(run, decisions=ticks)


# --- the run keeps decisions


def test_a_decision_is_taken_back(run, tmp_path, capsys):
    """By the word; rows without a decision, as in a list of which some rows are filled in, and other columns say nothing."""
    a, b, c = (row | {"new_label": "", "idx": "1", "contents": ""} for row in rows_of(run / "suspects.csv")[:3])
    decided(run, decisions=write(tmp_path / "1.csv", a | {"decision": "wrong"}, b | {"decision": "right"}))
    rows = [
        row | {"decision": word} for row, word in ((a, "undecided"), (b, "wrong"), (b, ""), (c, ""), (c, "undecided"))
    ]
    for news in (
        "decisions.jsonl: 1, 1 of them replace earlier ones; taken back: 1\n",
        "your decisions: 0 right, 1 wrong",
    ):
        capsys.readouterr()
        assert decided(run, decisions=write(tmp_path / "2.csv", *rows)) == {b["path"]: "wrong "}
        assert news in capsys.readouterr().out
    assert decided(run) == {b["path"]: "wrong "}
    decided(run, decisions=write(tmp_path / "2.csv", rows[0]))  # alone, and again
    for bad, message in (
        ([c | {"decision": ""}], "holds no decision"),
        (
            [b | {"decision": "", "new_label": "six"}],
            "line 2 has a new_label but no decision; expected the decision wrong",
        ),
        ([rows[0], a | {"decision": "right"}], "line 2 says undecided, line 3 says right of the same image"),
    ):
        with pytest.raises(UserError, match=f"3.csv: {message}"):
            decided(run, decisions=write(tmp_path / "3.csv", *bad))


def test_a_file_is_added_once(run, tmp_path, capsys):
    """The same command again, from the history of a shell, must not undo what was decided since."""
    a, b, c, d = (row | {"new_label": ""} for row in rows_of(run / "suspects.csv")[:4])
    ticks = write(tmp_path / "ticks.csv", *(row | {"decision": "wrong"} for row in (a, b, c)))
    assert len(decided(run, decisions=ticks)) == 3
    later = [replace(row, decision=word, file="") for row, word in zip(Log(run).rows(DIGITS), ("right", ""))]
    Log(run).add(later)
    lines = Log(run).path.read_text()
    now = {a["path"]: "right ", c["path"]: "wrong "}
    assert decided(run) == now
    capsys.readouterr()
    assert decided(run, decisions=ticks) == now and Log(run).path.read_text() == lines
    assert "2 of its decisions were changed after they had been added; the changes stand" in capsys.readouterr().out
    more = write(
        tmp_path / "ticks.csv", *(row | {"decision": "wrong"} for row in (a, d))
    )  # another content is another file
    assert decided(run, decisions=more) == now | {a["path"]: "wrong ", d["path"]: "wrong "}


def test_what_a_file_says_already_is_not_said_again_later(run, tmp_path):
    """A row that changed nothing when it was added is as old as the others of its file."""
    (row,) = (row | {"new_label": ""} for row in rows_of(run / "suspects.csv")[:1])
    ticks = write(tmp_path / "ticks.csv", row | {"decision": "wrong"})
    Log(run).add(read_decisions(ticks, DIGITS))
    assert decided(run, decisions=ticks) == {row["path"]: "wrong "}
    Log(run).add([replace(read_decisions(ticks, DIGITS)[0], decision="right")])
    assert decided(run, decisions=ticks) == {row["path"]: "right "}


def add_150(folder, name):
    for i in range(150):
        Log(folder).add([Decision("", f"{name}{i}.png", "", "one", "wrong")])


def test_two_processes_add_to_one_log(tmp_path):
    both = [multiprocessing.get_context("fork").Process(target=add_150, args=(tmp_path, name)) for name in "ab"]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    found = {row.path for row in Log(tmp_path).rows(["one"])}
    assert found == {f"{name}{i}.png" for name in "ab" for i in range(150)}


def test_what_was_taken_back_stays_so_whatever_the_image_is_called(root, run):
    """Also where the decision was logged under an earlier name, or under the label that the person has corrected since."""
    a, b = rows_of(run / "suspects.csv")[:2]
    before = Decision("", "earlier.png", a["content"], a["given_label"], "right")
    wrong = next(name for name in DIGITS if name != b["given_label"])
    corrected = Decision("", b["path"], b["content"], wrong, "wrong", b["given_label"])
    Log(run).add([before, corrected])
    assert decided(run) == {a["path"]: "right ", b["path"]: "right "}
    Log(run).add([Decision("", row["path"], row["content"], row["given_label"], "") for row in (a, b)])
    assert decided(run) == {}


def test_a_file_of_decisions_that_is_not_there(run, tmp_path):
    for name in ("ticks.csv", LOG):
        with pytest.raises(UserError, match=f"decisions: there is no file {tmp_path / name}"):
            read_run(run, decisions=tmp_path / name)


def test_report_and_export_follow_decisions_from_then_on(run, tmp_path, capsys):
    """Right is kept; wrong alone is in no list; wrong with another label is put right. Also without --decisions, later."""
    suspects = rows_of(run / "suspects.csv")
    sure = next(row for row in suspects if float(row["predicted_probability"]) > 0.9)
    right, wrong, new = [row for row in suspects if row is not sure][:3]
    kept = next(row for row in rows_of(run / "scores.csv") if row["is_label_issue"] == "False")
    label = next(name for name in ("one", "two", "three") if name not in (new["given_label"], new["predicted_label"]))
    ticks = write(
        tmp_path / "ticks.csv",
        right | {"decision": "right", "new_label": ""},
        *(row | {"decision": "wrong", "new_label": ""} for row in (wrong, kept, sure)),
        new | {"decision": "wrong", "new_label": label},
    )
    scores = (run / "scores.csv").read_bytes()
    report.main([str(run), "--decisions", str(ticks)])
    first = {name: (run / name).read_text() for name in ("labels_clean.csv", "labels_fixed.csv", "suspects.csv")}
    assert f"{ticks}: new decisions added to {run / LOG}: 5" in capsys.readouterr().out
    report.main([str(run)])
    assert "your decisions: 1 right, 4 wrong, 1 of these relabelled" in capsys.readouterr().out
    assert first == {name: (run / name).read_text() for name in first}
    assert scores == (run / "scores.csv").read_bytes()  # what the detector says stays

    clean, fixed = ({row["index"]: row for row in rows_of(run / f"labels_{name}.csv")} for name in ("clean", "fixed"))
    assert clean[right["index"]]["label"] == fixed[right["index"]]["label"] == right["given_label"]
    assert clean[right["index"]]["trusted_by"] == fixed[new["index"]]["trusted_by"] == "person"
    assert sum(row["trusted_by"] == "person" for row in fixed.values()) == 2
    assert fixed[new["index"]]["label"] == label and new["index"] not in clean
    assert not {row["index"] for row in (wrong, kept, sure)} & (clean.keys() | fixed.keys())

    export.main([str(run), "--to", str(tmp_path / "fixed"), "--fixed"])
    names = {str(p.relative_to(tmp_path / "fixed")) for p in (tmp_path / "fixed").rglob("*.png")}
    assert f"{label}/{Path(new['path']).name}" in names and len(names) == len(fixed)
    report.main([str(run), "--decisions", str(write(ticks, wrong | {"decision": "right", "new_label": ""}))])
    assert f"added to {run / LOG}: 1, 1 of them replace earlier ones" in capsys.readouterr().out
    assert wrong["index"] in {row["index"] for row in rows_of(run / "labels_clean.csv")}


def test_reviewed_ones_leave_the_list(run, tmp_path):
    suspects = rows_of(run / "suspects.csv")
    ticks = write(tmp_path / "ticks.csv", *(row | {"decision": d} for row, d in zip(suspects, ["right", "wrong"] * 2)))
    _, arrays, _, _ = read_run(run, decisions=ticks)
    assert to_review(arrays).tolist() == [int(row["index"]) for row in suspects[4:]]


def test_a_run_names_the_decisions_that_lie_beside_it(run, capsys):
    """A person who reviewed the first detector's suspects trains the next on them, or learns how."""
    other = shutil.copytree(run, run.with_name("deft"))
    _, _, data, _ = read_run(run)
    images = Images(data)
    Log(run).add([images.row(0, "right"), images.row(1, "right"), images.row(1)])
    capsys.readouterr()
    assert not decided(other)
    command = f"python -m report.page {other} --decisions {run / LOG}"
    assert f"decisions about 1 images of this run are not used here; to use them: {command}" in capsys.readouterr().out
    decided(other, decisions=run / LOG)
    Log(other).add([images.row(0)])  # taken back there
    capsys.readouterr()
    assert not decided(other) and decided(run) and "not used here" not in capsys.readouterr().out


def test_a_log_that_a_kill_cut_off(run):
    _, _, data, _ = read_run(run)
    a, b, *_ = rows_of(run / "suspects.csv")
    log = Log(run)
    images = Images(data)
    log.add([images.row(int(a["index"]), "wrong"), images.row(int(b["index"]), "right")])
    log.add([images.row(int(b["index"]))])  # taken back
    with log.path.open("a") as file:
        file.write('{"id": "", "path": "half a li')
    assert decided(run) == {a["path"]: "wrong "}
    log.add([images.row(int(a["index"]), "wrong", a["predicted_label"])])  # over what was cut off
    assert decided(run) == {a["path"]: f"wrong {a['predicted_label']}"}
    assert len(read_decisions(log.path, data.label_names)) == 4


# --- images that are gone or elsewhere


def test_report_and_export_go_on_without_a_deleted_image(root, run, tmp_path, capsys):
    suspects, kept = rows_of(run / "suspects.csv"), rows_of(run / "scores.csv")
    kept = next(row for row in kept if row["is_label_issue"] == "False")
    for row in (suspects[0], kept):
        (root / "data" / row["path"]).unlink()
    shutil.copy(root / "data" / suspects[2]["path"], root / "data" / suspects[1]["path"])
    ticks = [row | {"decision": "wrong", "new_label": row["predicted_label"]} for row in (suspects[0], suspects[3])]
    report.main([str(run), "--decisions", str(write(tmp_path / "ticks.csv", *ticks))])
    printed = capsys.readouterr().out
    assert "your decisions: 0 right, 1 wrong, 1 of these relabelled" in printed  # the other image is gone
    assert f"decisions not used because the image is gone or has changed: 1 ({suspects[0]['path']})" in printed
    gone = ", ".join(row["path"] for row in sorted((suspects[0], kept), key=lambda row: int(row["index"])))
    total = len(rows_of(run / "scores.csv"))
    assert f"missing now, left out: 2 of {total} images ({gone})" in printed
    assert f"changed since the run, left out: 1 of {total} images ({suspects[1]['path']})" in printed
    assert kept["index"] not in {row["index"] for row in rows_of(run / "labels_clean.csv")}
    assert suspects[0]["path"] not in (run / "report.html").read_text()
    export.main([str(run), "--to", str(tmp_path / "clean")])
    assert len(list((tmp_path / "clean").rglob("*.png"))) == len(rows_of(run / "labels_clean.csv"))
    assert len(rows_of(run / "scores.csv")) == total  # the record stays whole
    shutil.rmtree(root / "data")
    with pytest.raises(
        UserError, match=r"data_path: of the 200 images of the run, 200 are missing from .*--data_path DIR"
    ):
        report.main([str(run)])


def test_lists_can_be_moved_with_their_images(root, run, tmp_path):
    suspect = rows_of(run / "suspects.csv")[0]
    assert (root / "data" / suspect["path"]).is_file() and not suspect["path"].startswith(("/", "."))
    root.rename(tmp_path / "elsewhere")
    folder = tmp_path / "elsewhere" / run.relative_to(root)
    report.main([str(folder), "--data_path", str(tmp_path / "elsewhere/data")])
    row = rows_of(folder / "labels_clean.csv")[0]
    assert Path(row["path"]).is_file() and row["path"].startswith(str(tmp_path / "elsewhere"))


# --- from detection to training on the corrected labels


FIRST = "eight"  # class number 0
PHASE2 = ["--cfg", str(HERE / "config/FFT/own.yaml"), *FLAGS, "--epochs", "1", "--mask"]


def test_training_follows_decisions_by_the_runs_mask(root, run, tmp_path, monkeypatch):
    """detect -> review -> phase 2 on the same folder: the mask and the labels are those of the review."""
    new, right, wrong = [row for row in rows_of(run / "suspects.csv") if row["given_label"] != FIRST][:3]
    ticks = write(
        tmp_path / "ticks.csv",
        new | {"decision": "wrong", "new_label": FIRST},
        right | {"decision": "right", "new_label": ""},
        wrong | {"decision": "wrong", "new_label": ""},
    )
    report.main([str(run), "--decisions", str(ticks)])
    _, arrays, data, _ = read_run(run)
    seen = {}

    def trains(cfg, data, run, method, mask):
        names = [Path(path).name for path in data.train.images]
        seen.update(zip(names, zip((data.label_names[k] for k in data.train.labels), mask)))
        return {}, None

    monkeypatch.setattr("methods.fine_tuning.fine_tune", trains)
    main_real_phase2.main(
        [*PHASE2, "label-match", "--data_path", str(root / "data"), "--output_dir", str(root / "runs")]
    )
    judged = zip(data.train.images, data.train.labels, arrays["mask"])
    expected = {Path(path).name: (data.label_names[k], trusted) for path, k, trusted in judged}
    expected[Path(new["path"]).name] = (FIRST, True)
    expected[Path(right["path"]).name] = (right["given_label"], True)
    del expected[Path(wrong["path"]).name]  # nothing may give the label back
    assert seen == expected
    (record,) = (path for path in root.rglob("summary.json") if path.parent.name.startswith("phase2"))
    assert read_summary(record)["decisions"] == 3


def test_nothing_is_left_to_train_on(tmp_path):
    """A person called every label wrong that the mask selects."""
    root = write_digits(tmp_path / "data", 0.3, every=30)[0]
    flags = ["--dataset", "own", "--data_path", str(root), "--output_dir", str(tmp_path / "runs"), *FLAGS]
    main_detect.main(["--detector", "label-match", *flags])
    (run,) = (path.parent for path in tmp_path.rglob("scores.csv"))
    rows = [row | {"decision": "wrong", "new_label": ""} for row in rows_of(run / "scores.csv")]
    Log(run).add(read_decisions(write(tmp_path / "ticks.csv", *rows), DIGITS))
    with pytest.raises(UserError, match="clean_mask.npz: selects no sample, so there is nothing to train on"):
        main_phase2.main(["--mask", "label-match", *flags])


def test_clipcleaner_follows_decisions_too(tmp_path, monkeypatch):
    root = write_digits(tmp_path / "data", 0.3, every=30)[0]
    seen = []

    def trains(cfg, data, run, method, mask):
        seen.append((data.train.labels, mask))
        raise KeyboardInterrupt

    monkeypatch.setattr("methods.fine_tuning.fine_tune", trains)
    flags = ["--dataset", "own", "--data_path", str(root), "--output_dir", str(tmp_path / "runs"), *FLAGS[2:]]
    flags += ["--detector", "label-match", "--clip_backbone", "tiny-clip-digits", "--backbone", "preact_resnet18"]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            main_clipcleaner.main(flags)
        if len(seen) == 1:
            (run,) = (path.parent for path in tmp_path.rglob("suspects.csv"))
            wrong = next(row for row in rows_of(run / "suspects.csv") if row["given_label"] != FIRST)
            ticks = write(tmp_path / "ticks.csv", wrong | {"decision": "wrong", "new_label": FIRST})
            Log(run).add(read_decisions(ticks, DIGITS))
    (before, untrusted), (labels, mask) = seen
    i = int(wrong["index"])
    assert np.flatnonzero(labels != before).tolist() == [i] and np.flatnonzero(mask != untrusted).tolist() == [i]


FAILED = {"level": "not usable", "why": "it guesses", "instead": "look"}


def test_a_corrected_label_is_not_known_to_be_wrong():
    """People said so of the label that was there before (Food-101N, red mini-ImageNet)."""
    images, verified = np.zeros((4, 2, 2, 3), np.uint8), np.array([0, 0, 1, -1], dtype=np.int8)
    split = Split(images, np.array([0, 0, 1, 1]), verified=verified).relabelled(np.array([1, 0, 1, 1]))
    assert split.verified.tolist() == [-1, 0, 1, -1] and split.labels.tolist() == [1, 0, 1, 1]
    data = Dataset("x", split, None, ["a", "b"], View())
    assert data.known()[0].tolist() == [1, 2]


def test_training_on_corrected_labels_without_a_mask(root, run, tmp_path, capsys):
    """detect -> review -> labels_fixed.csv -> a classifier, in a folder that holds nothing else."""
    new = rows_of(run / "suspects.csv")[0]
    label = next(name for name in ("one", "two") if name != new["given_label"])
    report.main(
        [str(run), "--decisions", str(write(tmp_path / "t.csv", new | {"decision": "wrong", "new_label": label}))]
    )
    table = run / "labels_fixed.csv"
    flags = ["--data_path", str(table), "--output_dir", str(tmp_path / "fresh")]
    summary = main_real_phase2.main([*PHASE2[:-1], *flags])
    assert summary["mask"] == "all" and summary["selected"] == 1 and summary["name"] == "phase2-all-tiny-clip-digits"
    assert "warning" not in (printed := capsys.readouterr().out) and "training on all labels, since" in printed
    write_summary(run / "summary.json", with_checksum(read_summary(run / "summary.json") | {"verdict": FAILED}))
    assert default_mask(str(table)) == "all"
    assert f"warning: {table}: not usable: it guesses. Instead: look" in capsys.readouterr().out
    data, rows = load_data(load_config([*PHASE2[:-1], *flags])), rows_of(table)
    assert summary["num_train"] == len(rows) and label == next(r["label"] for r in rows if r["index"] == new["index"])
    assert [data.label_names[k] for k in data.train.labels] == [row["label"] for row in rows]
    with pytest.raises(UserError, match="mask: no clean mask at .*or --mask all to trust every label"):
        main_real_phase2.main(
            [*PHASE2[:-1], "--data_path", str(root / "data"), "--output_dir", str(tmp_path / "fresh2")]
        )


def test_only_sure_suspects_are_put_right_and_a_person_comes_first():
    arrays = {
        "mask": np.array([True, False, False, False, False, False]),
        "confidence": np.array([0.99, 0.9, 0.89, 0.99, 0.99, 0.99]),
        "predicted": np.array([1, 1, 1, 0, 1, 1]),
        "labels": np.zeros(6, dtype=int),
        "decision": np.array([0, 0, 0, 0, 2, 2]),
        "new_labels": np.array([-1, -1, -1, -1, -1, 2]),
    }
    labels, sure = fixed_labels(arrays, 0.9)
    assert labels.tolist() == [0, 1, 0, 0, 0, 2] and sure.tolist() == [False, True, False, False, False, True]
