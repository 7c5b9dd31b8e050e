"""Two processes under torchrun do what one does."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import write_digits
from tests.two_processes import train, train_semi_supervised


def torchrun(*args):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    return subprocess.run([*start, "tests.two_processes", *map(str, args)], capture_output=True, text=True, timeout=300)


def test_two_processes_train_as_one(tmp_path):
    ended = torchrun(tmp_path / "two", "--die")
    assert ended.returncode != 0 and "exitcode  : 9" in ended.stderr  # a process that dies ends the run …
    resumed = torchrun(tmp_path / "two")  # … and the same command goes on
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after epoch 1" in resumed.stdout and resumed.stdout.count("epoch 2/2") == 6  # one process prints
    train(tmp_path / "one")
    cell = "digits/sym-0.4/seed0"
    for run in (
        "deft",
        "phase2-deft-tiny-clip-digits",
        "elr-tiny-clip-digits",
        "gmm-tiny-clip-digits",
        "turn-tiny-clip-digits",
        "small-loss-tiny-clip-digits",
    ):
        logs = [
            [json.loads(line) for line in (tmp_path / n / cell / run / "log.jsonl").read_text().splitlines()]
            for n in ("one", "two")
        ]
        for one, two in zip(*logs, strict=True):
            assert two["loss"] == pytest.approx(one["loss"], abs=1e-4), run
            assert two["acc_test"] == pytest.approx(one["acc_test"], abs=0.2) and two["images"] == one["images"], run
    for run in ("deft", "gmm-tiny-clip-digits", "turn-tiny-clip-digits", "small-loss-tiny-clip-digits"):
        one, two = (dict(np.load(tmp_path / n / cell / run / "clean_mask.npz")) for n in ("one", "two"))
        np.testing.assert_allclose(two["p_clean"], one["p_clean"], atol=1e-3)
        different = one["mask"] != two["mask"]
        if run != "small-loss-tiny-clip-digits":  # there the threshold is a rank within the batch
            assert (np.abs(one["p_clean"][different] - 0.5) < 1e-3).all(), run
        assert different.sum() <= 2, run


def test_semi_supervised_methods_in_two_processes(tmp_path):
    folder, _, _ = write_digits(tmp_path / "digits", 0.0, every=10)
    both = torchrun(folder, "--semi-supervised")
    assert both.returncode == 0, both.stderr
    train_semi_supervised(folder)
    for run in ("rolt", "co-teaching", "unicon", "promix"):
        one, two = (
            json.loads(
                next((tmp_path / f"digits-{n}").glob(f"*/sym-0.4/seed0/{run}-tiny-clip-digits/log.jsonl"))
                .read_text()
                .split("\n")[0]
            )
            for n in (1, 2)
        )
        assert one["images"] == two["images"]
        # where MixUp has each process mix its own share, the loss is not the same, but like it
        assert two["loss"] == pytest.approx(
            one["loss"], **({"abs": 1e-4} if run in ("rolt", "co-teaching") else {"rel": 0.1})
        )
