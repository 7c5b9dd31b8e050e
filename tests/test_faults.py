"""Malformed inputs and damaged files: benchmarks/faults.py tries many more of them than are here."""

import shutil

import pytest
import torch

import main_phase1
from benchmarks.faults import differences
from benchmarks.malformed import SEED, Payload, cases, evil, judge, own_run
from dataloader.files import inspect_file
from model.saved import load_classifier
from tests.helpers import phase1
from utils.errors import UserError
from utils.safe_pickle import load_arrays

EVERY = 12  # of the malformed inputs


def test_malformed_inputs_end_with_one_line_that_names_the_culprit(cell, tmp_path):
    runs = own_run(tmp_path / "base")
    shutil.copytree(cell[0] / SEED, runs / SEED)
    makes, seen = list(cases())[::EVERY], set()
    for number, make in enumerate(makes):
        case, problem = judge(make, tmp_path / str(number), runs)
        assert not problem, (case, problem)
        seen.add(case.kind)
    assert len(makes) > 30 and len(seen) > 9


def test_the_pickles_of_the_malformed_inputs_do_run_code(tmp_path):
    """Otherwise nothing would be shown by a marker that is not there."""
    import pickle

    Payload.marker = str(tmp_path / "executed")
    path = tmp_path / "mask.pt"
    path.write_bytes(evil()["pickle.pt"])
    with pytest.raises(pickle.UnpicklingError):
        load_arrays(path)
    assert not (tmp_path / "executed").exists()
    pickle.loads(path.read_bytes())  # noqa: S301  to show what it does
    assert (tmp_path / "executed").exists()


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)


def _cut(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("damage, why", [(_flip, "checksum"), (_cut, "")])
def test_a_damaged_checkpoint_is_named(cell, tmp_path, damage, why):
    shutil.copytree(cell[0] / SEED / "deft", tmp_path / SEED / "deft")
    (tmp_path / SEED / "deft" / "summary.json").unlink()
    damage(tmp_path / SEED / "deft" / "checkpoint.pt")
    with pytest.raises(UserError, match=f"checkpoint.pt: not a checkpoint of this run .*{why}"):
        main_phase1.main(phase1(tmp_path))


def test_one_bit_of_the_weights(cell, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(cell[0] / SEED / "phase2-deft-tiny-clip-digits", run)
    load_classifier(run)
    _flip(run / "model.safetensors")
    with pytest.raises(UserError, match="do not form a model .*checksum"):
        load_classifier(run)


def test_a_device_is_no_image():
    assert inspect_file("/dev/zero") == ("", "not a file")


def test_labels_to_score_are_read_before_training(tmp_path):
    with pytest.raises(UserError, match="score: there is no folder or file nowhere"):
        main_phase1.main(phase1(tmp_path, "--score", "nowhere"))
    assert not (tmp_path / SEED).exists()


def test_what_counts_as_the_same_result(cell, tmp_path):
    """Time may differ, weights may not, and no file may be missing."""
    whole = cell[0] / SEED / "deft"
    shutil.copytree(whole, tmp_path / "deft")
    log = (whole / "log.jsonl").read_text()
    (tmp_path / "deft" / "log.jsonl").write_text(log.replace('"seconds": ', '"seconds": 9'))
    assert differences(tmp_path / "deft", whole) == []
    (tmp_path / "deft" / "scores.csv").unlink()
    saved = torch.load(whole / "checkpoint.pt", weights_only=True)
    next(iter(saved["model"].values())).view(-1)[0] += 1e-6
    torch.save(saved, tmp_path / "deft" / "checkpoint.pt")
    assert differences(tmp_path / "deft", whole) == ["checkpoint.pt", "scores.csv"]
