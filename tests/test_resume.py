"""A run stopped at any moment goes on by the same command and ends the same."""

import signal
import subprocess
import sys
import time

import pytest
import torch

import main_baseline
import main_phase1
import main_phase2
from methods import deft, fine_tuning
from tests.helpers import Killed, checkpoint, copy_after_epoch_1, kill_at, phase1, phase2, same
from utils import runs
from utils.config import load_config
from utils.errors import UserError


@pytest.mark.parametrize("script, flags", [(main_phase1, phase1), (main_phase2, phase2)])
@pytest.mark.parametrize("moment", ["before the checkpoint", "between checkpoint and log", "in the next epoch"])
def test_killed_and_resumed_ends_the_same(cell, tmp_path, monkeypatch, script, flags, moment):
    """Interrupted after epoch 1 of 2 at three moments: the same mask and the same weights, bit for bit."""
    out, _ = cell
    whole = out / "digits/sym-0.4/seed0" / ("deft" if script is main_phase1 else "phase2-deft-tiny-clip-digits")
    mask = [] if script is main_phase1 else ["--mask", str(out / "digits/sym-0.4/seed0/deft/clean_mask.npz")]
    with monkeypatch.context() as patch:
        if moment == "before the checkpoint":
            patch.setattr(torch, "save", lambda value, file: (file.write(b"half"), (_ for _ in ()).throw(Killed())))
        elif moment == "between checkpoint and log":
            kill_at(patch, runs.Run, "_write_log", 1)
        else:
            kill_at(patch, deft if script is main_phase1 else fine_tuning, "evaluate_all", 2)
        with pytest.raises(Killed):
            script.main(flags(tmp_path, *mask))
    folder = next((tmp_path / "digits/sym-0.4/seed0").iterdir())
    assert not list(folder.glob(".*"))  # no half-written file
    assert (folder / "checkpoint.pt").exists() == (moment != "before the checkpoint")
    script.main(flags(tmp_path, *mask))
    a, b = checkpoint(whole), checkpoint(folder)
    assert same(a["model"], b["model"]) and same(a["optimizer"], b["optimizer"])
    if script is main_phase1:
        assert (whole / "clean_mask.npz").read_bytes() == (folder / "clean_mask.npz").read_bytes()
    assert len((folder / "log.jsonl").read_text().splitlines()) == 2


def test_a_run_that_goes_on_with_other_code_names_both(tmp_path, monkeypatch, capsys):
    """It is a seed of neither in a table."""
    flags = [*phase1(tmp_path), "--epochs", "3"]
    for code, epochs in (("aaaa", 1), ("bbbb", 1), ("aaaa", 3)):
        monkeypatch.setattr(runs, "this_code", lambda code=code: {"version": "0", "git_commit": None, "code": code})
        with monkeypatch.context() as patch:
            kill_at(patch, deft, "evaluate_all", 1 + epochs)
            try:
                summary = main_phase1.main(flags)
            except Killed:
                continue
    said = [line for line in capsys.readouterr().out.splitlines() if "other code" in line]
    assert said == [
        "begun with other code (aaaa) than that of now (bbbb), with which it goes on",
        "begun with other code (aaaa, bbbb) than that of now (aaaa), with which it goes on",
    ]
    assert summary["code"] == "aaaa, bbbb" and summary["epochs"] == 3


PHASE_1 = "import tests.helpers, main_phase1; main_phase1.main()"  # tests.helpers: with as many tests


def test_a_process_killed_with_signal_9_goes_on(cell, tmp_path):
    """While it lives, another is refused in one line that names it; killed, it leaves no lock behind."""
    flags = phase1(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", PHASE_1, *flags], stdout=subprocess.DEVNULL)
    log = tmp_path / "digits/sym-0.4/seed0/deft/log.jsonl"
    deadline = time.time() + 120
    try:
        while not (log.exists() and len(log.read_text().splitlines()) >= 1):
            assert process.poll() is None and time.time() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(UserError, match=rf"sym-0.4/seed0/deft: process {process.pid} \(since 20.*--tag NAME"):
            main_phase1.main(flags)
        for _ in range(2):  # another run is free, and one process may open a run twice
            other = runs.Run(load_config(flags), "digits/sym-0.4", "label-match", {})
            assert other.summary == {} and not other.folder.exists()
    finally:
        process.kill()
        process.wait()
    assert not (log.parent / "summary.json").exists()
    main_phase1.main(flags)
    whole = cell[0] / "digits/sym-0.4/seed0/deft"
    assert same(checkpoint(log.parent)["model"], checkpoint(whole)["model"])
    assert (log.parent / "clean_mask.npz").read_bytes() == (whole / "clean_mask.npz").read_bytes()


def test_elr_targets_survive_a_stop(tmp_path, monkeypatch):
    flags = ["--lnl_methods", "ELR"]
    with monkeypatch.context() as patch:
        copy_after_epoch_1(patch, tmp_path / "cut")
        main_baseline.main(phase2(tmp_path / "whole", *flags))
    main_baseline.main(phase2(tmp_path / "cut", *flags))
    a, b = (checkpoint(tmp_path / d / "digits/sym-0.4/seed0/elr-tiny-clip-digits") for d in ("whole", "cut"))
    assert a["method"]["target"].abs().sum() > 0 and same(a["method"], b["method"]) and same(a["model"], b["model"])


def test_nan_stops_the_run_and_nothing_of_it_is_kept(tmp_path):
    with pytest.raises(UserError, match=r"epoch 1/2, batch \d+ of 23: the loss is (nan|inf)"):
        main_phase1.main(phase1(tmp_path, "--lr", "1e30"))
    assert not list(tmp_path.rglob("checkpoint.pt"))
