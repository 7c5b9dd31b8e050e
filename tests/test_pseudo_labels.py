"""Phase 2 on all samples: which labels those outside the mask get, and how they count."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import main_phase2
from dataloader.load import load_data
from methods.deft import build_detector
from methods.pseudo_labels import (
    PseudoLabels,
    choose_labels,
    detector_probabilities,
    pseudo_labels,
    zero_shot_probabilities,
)
from tests.helpers import phase2
from utils.checkpoint import load_checkpoint
from utils.config import load_config
from utils.errors import UserError

CPU = torch.device("cpu")


def test_labels_of_the_surer_source():
    one = [[0.95, 0.03, 0.02], [0.5, 0.5, 0.0], [0.6, 0.2, 0.2], [0.4, 0.35, 0.25]]
    two = [[0.1, 0.1, 0.8], [0.2, 0.3, 0.5], [0.05, 0.91, 0.04], [0.0, 0.55, 0.45]]
    both = np.array([one, two])
    p, used = choose_labels(both, "zero_shot", 0.9, 0.2)
    assert (p == both[0]).all() and used.all()
    p, used = choose_labels(both, "confidence", 0.9, 0.2)
    assert p.argmax(1).tolist() == [0, 0, 1, 1] and used.tolist() == [True, False, True, False]
    assert (p[2] == both[1, 2]).all()
    # entropies in parts of log 3: .21 .63 .86 .98 and .58 .94 .33 .63
    p, used = choose_labels(both, "entropy", 0.9, 0.63)
    assert p.argmax(1).tolist() == [0, 0, 1, 1] and used.tolist() == [True, False, True, True]
    assert choose_labels(both, "entropy", 0.9, 0.3)[1].tolist() == [True, False, False, False]
    p, _ = choose_labels(both, "entropy", 0.9, 0.2)
    assert (p[1] == both[0, 1]).all()  # less confident or not, it is the surer one


def test_targets_and_weights_go_with_the_sample():
    mask = np.array([True, False, True, False])
    targets = np.eye(3, dtype=np.float32)[[2, 2, 2, 1]]
    targets[3] = [0.5, 0.25, 0.25]
    method = PseudoLabels(load_config([]), mask, targets, weight=0.5)
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    losses = method(logits, torch.tensor([0, 1, 0]), torch.tensor([3, 2, 1]))
    log_p = logits.log_softmax(1)
    soft = -(log_p[0] * torch.tensor([0.5, 0.25, 0.25])).sum()
    torch.testing.assert_close(losses, torch.stack([0.5 * soft, -log_p[1, 1], -0.5 * log_p[2, 2]]))


def test_new_labels_that_are_right_are_counted(monkeypatch):
    """Those of samples outside the mask alone."""
    p = np.eye(3)[[0, 1, 1, 2, 0]]
    monkeypatch.setattr("methods.pseudo_labels.zero_shot_probabilities", lambda *_: p)
    data = SimpleNamespace(true_labels=np.array([0, 1, 2, 2, 1]), num_classes=3)
    mask = np.array([True, False, False, False, False])
    targets, used, numbers = pseudo_labels(load_config(["--noisy_samples", "zero_shot"]), data, mask, None, CPU)
    assert numbers == {"pseudo_labels": 4, "pseudo_labels_right": 2} and (used == ~mask).all()
    assert (targets == p * used[:, None]).all()


@pytest.mark.parametrize(
    "flags, used",
    [
        (["--noisy_samples", "confidence", "--min_confidence", "0.7"], [True, False]),
        (["--noisy_samples", "entropy", "--max_entropy", "0.9"], [True, True]),
        (["--noisy_samples", "entropy", "--max_entropy", "0.6"], [False, False]),
    ],
)
def test_how_sure_a_source_must_be_is_a_setting(monkeypatch, flags, used):
    for source in ("zero_shot", "detector"):
        p = np.array([[0.75, 0.25], [0.69, 0.31]])  # entropies in parts of log 2: .81 and .89
        monkeypatch.setattr(f"methods.pseudo_labels.{source}_probabilities", lambda *_: p)
    data = SimpleNamespace(true_labels=None, num_classes=2)
    assert pseudo_labels(load_config(flags), data, np.zeros(2, dtype=bool), None, CPU)[1].tolist() == used


def test_a_run_goes_on_with_the_labels_it_was_begun_with():
    mask, targets = np.array([True, False, False]), np.eye(3, dtype=np.float32)[[0, 1, 2]]
    state = PseudoLabels(load_config([]), mask, targets, 1.0).state_dict()
    PseudoLabels(load_config([]), mask, targets[[1, 1, 2]], 1.0).load_state_dict(state)  # differs within the mask
    for other in ((mask, targets[[0, 1, 1]]), (~mask, targets), (mask, targets * [[1], [1], [0]])):
        with pytest.raises(UserError, match="noisy_samples: the run was begun with other labels"):
            PseudoLabels(load_config([]), *other, 1.0).load_state_dict(state)


def test_phase_1_s_accuracy_takes_no_settings_of_a_training():
    for flags, key in ((["--noisy_samples", "zero_shot"], "noisy_samples"), (["--phase2_loss", "GCE"], "phase2_loss")):
        with pytest.raises(UserError, match=f"{key}: adaptation none trains nothing"):
            main_phase2.main(phase2("nowhere", "--adaptation", "none", *flags))


def test_both_sources_on_the_digits(cell):
    out, finished = cell
    cfg = load_config(phase2(out))
    data, folder = load_data(cfg), out / "digits/sym-0.4/seed0/deft"
    zero_shot = zero_shot_probabilities(cfg, data, folder, CPU)
    label_match = np.load(folder.parent / "label-match/clean_mask.npz")
    np.testing.assert_array_equal(zero_shot.argmax(1), label_match["predicted"])
    np.testing.assert_allclose(zero_shot.max(1), label_match["confidence"], atol=1e-4)
    cfg.templates = ["a scan of the number {}."]  # phase 2's own, whatever the detector's run had
    assert not np.allclose(zero_shot_probabilities(cfg, data, folder, CPU), zero_shot, atol=0.01)
    found = detector_probabilities(cfg, data, folder, CPU)
    model = build_detector(load_config(["--cfg", str(folder / "config.yaml")]), data.classnames, CPU)
    load_checkpoint(folder / "checkpoint.pt", model)
    assert found.shape == (359, 10) and not np.allclose(found, zero_shot, atol=0.05)
    accuracy = (found.argmax(1) == data.true_labels).mean()
    assert accuracy == pytest.approx(finished["deft"]["acc_last"] / 100, abs=0.06)  # of images it was not scored on
    classifier = detector_probabilities(cfg, data, folder.parent / "ce-tiny-clip-digits", CPU)
    assert (classifier.argmax(1) == data.true_labels).mean() > 0.8
    with pytest.raises(UserError, match="seed0/deft was trained with other class names"):
        detector_probabilities(cfg, replace(data, classnames=data.classnames[::-1]), folder, CPU)
    more = replace(data, label_names=["a new class", *data.label_names])
    with pytest.raises(
        UserError, match="ce-tiny-clip-digits was trained on other classes"
    ):  # else 1 would be read as 0
        detector_probabilities(cfg, more, folder.parent / "ce-tiny-clip-digits", CPU)
    with pytest.raises(UserError, match="label-match holds no trained detector; zero_shot takes CLIP as it is"):
        detector_probabilities(cfg, data, folder.parent / "label-match", CPU)


@pytest.mark.parametrize("rule, flags", [("zero_shot", []), ("confidence", ["--soft_labels", "--noisy_weight", "0.5"])])
def test_phase_2_trains_on_the_rest_too_and_says_how_many_are_right(cell, tmp_path, rule, flags):
    out, _ = cell
    folder = out / "digits/sym-0.4/seed0/deft"
    mask = np.load(folder / "clean_mask.npz")["mask"]
    common = ["--mask", str(folder / "clean_mask.npz"), "--epochs", "1", "--noisy_samples", rule, *flags]
    summary = main_phase2.main(phase2(tmp_path, *common))
    run = tmp_path / f"digits/sym-0.4/seed0/phase2-deft-tiny-clip-digits-{rule}{'-soft' if flags else ''}"
    assert json.loads((run / "summary.json").read_text()) == summary
    log = json.loads((run / "log.jsonl").read_text())
    assert log["images"] == mask.sum() + summary["pseudo_labels"]
    assert summary["selected"] == mask.mean() and 0 < summary["pseudo_labels_right"] <= summary["pseudo_labels"]
    assert (summary["pseudo_labels"] == (~mask).sum()) == (rule == "zero_shot")


def test_another_loss_on_the_mask(cell, tmp_path):
    out, _ = cell
    mask = ["--mask", str(out / "digits/sym-0.4/seed0/deft/clean_mask.npz"), "--epochs", "1"]
    log = {}
    for loss in ("CE", "GCE"):
        summary = main_phase2.main(phase2(tmp_path, *mask, "--phase2_loss", loss))
        run = tmp_path / "digits/sym-0.4/seed0" / summary["name"]
        log[loss] = json.loads((run / "log.jsonl").read_text())
        assert (
            "precision" in summary and summary["selected"] == np.load(mask[1])["mask"].mean()
        )  # of the mask it was given
    assert summary["name"] == "phase2-deft-tiny-clip-digits-gce"
    assert log["GCE"]["images"] == log["CE"]["images"] and log["GCE"]["loss"] < 1 / 0.7 < log["CE"]["loss"]
    with pytest.raises(UserError, match="phase2_loss: GCE trains on the samples of the mask only"):
        main_phase2.main(phase2(tmp_path, *mask, "--phase2_loss", "GCE", "--noisy_samples", "detector"))
