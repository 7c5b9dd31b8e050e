"""Repeating a run: which command is run, and which differences count."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import reproduce
from report.verify import differences, verify
from tests.helpers import SUMMARY
from utils.errors import UserError
from utils.summaries import read_summary, with_checksum, write_summary


def test_what_verify_repeats(tmp_path, monkeypatch):
    seen = []

    def note(words, **_):
        seen.append(words[1:])
        return subprocess.CompletedProcess(words, 1)

    monkeypatch.setattr("report.verify.subprocess", SimpleNamespace(run=note))
    (tmp_path / "clean_mask.npz").touch()
    for script, mask in (
        ("main_baseline", str(tmp_path / "clean_mask.npz")),
        ("main_phase2", "all"),
        ("main_clipcleaner", "runs/clean_mask.npz"),
        ("main_phase1", None),
        ("detect", None),
        (None, None),
    ):
        summary = SUMMARY | {"script": script} | ({"mask": mask} if mask else {})
        write_summary(tmp_path / "summary.json", with_checksum(summary))
        expected = "fails with the settings" if script and script != "detect" else "was made by .*no command repeats"
        with pytest.raises(UserError, match=f"--verify: .*{expected}"):
            reproduce.main(["--verify", str(tmp_path)])
    assert [(words[0], words[5:]) for words in seen] == [
        ("main_baseline.py", ["--mask", str(tmp_path / "clean_mask.npz")]),
        ("main_phase2.py", ["--mask", "all"]),
        ("main_clipcleaner.py", []),
        ("main_phase1.py", []),
    ]


def test_verify(cell, monkeypatch, capsys):
    out, summaries = cell
    assert {name: summary["script"] for name, summary in summaries.items()} == {
        "label-match": "main_detect",
        "deft": "main_phase1",
        "phase2-deft-tiny-clip-digits": "main_phase2",
        "ce-tiny-clip-digits": "main_baseline",
    }
    run = out / "digits" / "sym-0.4" / "seed0" / "label-match"

    def in_this_process(words, **_):
        import main_detect

        main_detect.main([*words[2:], *changes])
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr("report.verify.subprocess", SimpleNamespace(run=in_this_process))
    changes = []
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--verify", str(run)])
    assert ended.value.code == 0 and "the same again" in capsys.readouterr().out
    changes = ["--noise_ratio", "0.2"]
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--verify", str(run)])
    text = capsys.readouterr().out
    assert ended.value.code == 1 and "noise_rate: " in text and "clean_mask.npz, labels: " in text
    assert read_summary(run / "summary.json") == summaries["label-match"]  # the record itself is as it was


def test_verify_of_other_data(tmp_path):
    """Images that were added, arrays of another version: said, not a traceback."""
    for name, arrays in (("old", {"p": np.zeros(3), "lost": np.zeros(2)}), ("new", {"p": np.zeros(4)})):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "clean_mask.npz", **arrays)
        write_summary(tmp_path / name / "summary.json", with_checksum(SUMMARY))
    assert differences(tmp_path / "old", tmp_path / "new") == [
        "clean_mask.npz, p: of shape (3,) before, (4,) now",
        "clean_mask.npz, lost: missing now",
    ]
    (tmp_path / "old/log.jsonl").write_text('{"epoch": 1}\n')
    (tmp_path / "new/clean_mask.npz").unlink()
    assert differences(tmp_path / "old", tmp_path / "new") == [
        "log.jsonl: 1 epochs before, 0 now",
        "clean_mask.npz: missing now",
    ]
    for name in ("old", "new"):
        (tmp_path / name / "clean_mask.npz").write_bytes(b"PK cut short")
    with pytest.raises(UserError, match="old/clean_mask.npz: not a mask file"):
        differences(tmp_path / "old", tmp_path / "new")


def test_verify_of_a_verdict(tmp_path):
    """Its level is a result, the words that explain it are not."""
    for name, level in (("old", "usable"), ("reworded", "usable"), ("worse", "doubtful")):
        summary = SUMMARY | {"verdict": {"level": level, "why": name}}
        summary |= {} if name == "old" else {"class_names": ["a"]}  # an older version had none
        write_summary(tmp_path / name / "summary.json", with_checksum(summary))
    assert differences(tmp_path / "old", tmp_path / "reworded") == []
    assert differences(tmp_path / "old", tmp_path / "worse") == ["verdict: usable before, doubtful now"]


def test_verify_takes_the_threads_of_the_run_and_says_what_else_it_was_made_with(tmp_path, monkeypatch):
    """Sums over other numbers of threads differ in their last digits."""
    made = {"script": "main_phase1", "threads": 3, "versions": {"torch": "1"}, "f1": 0.5}
    write_summary(tmp_path / "run" / "summary.json", with_checksum(SUMMARY | made))
    now = {"threads": 3, "versions": {"torch": "2"}}

    def again(words, env, **_):
        assert env["OMP_NUM_THREADS"] == "3"
        out = Path(words[words.index("--output_dir") + 1])
        write_summary(out / "x" / "summary.json", with_checksum(SUMMARY | made | now))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr("report.verify.subprocess", SimpleNamespace(run=again))
    assert verify(tmp_path / "run") == []
    now["f1"] = 0.4
    assert verify(tmp_path / "run") == [
        "f1: 0.5 before, 0.4 now",
        "made with other versions: {'torch': '1'} before, {'torch': '2'} now",
    ]


def test_verify_of_a_renamed_folder(tmp_path, monkeypatch, capsys):
    write_summary(tmp_path / "kept" / "summary.json", with_checksum(SUMMARY | {"script": "main_phase1"}))

    def again(words, **_):
        out = Path(words[words.index("--output_dir") + 1])
        write_summary(
            out / "toy" / "none" / "seed0" / "x" / "summary.json", with_checksum(SUMMARY | {"script": "main_phase1"})
        )
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr("report.verify.subprocess", SimpleNamespace(run=again))
    assert verify(tmp_path / "kept") == []
