"""Digits written out as files with wrong labels, through the detectors and both phases; detect() and --score."""

import csv
import json
import os
import shutil
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import main_detect
import main_phase1
import main_real_phase1
import main_real_phase2
from dataloader.dataset import Dataset, Split, View
from dataloader.files import images_identity
from dataloader.load import DATASETS, load_data
from dataloader.transforms import normalise
from main_detect import detect
from methods.deft import build_detector
from methods.detectors import (
    DETECTORS,
    Detection,
    _checked,
    clip_margin,
    confident_learning,
    out_of_fold,
    run_detector,
)
from methods.inputs import Inputs
from methods.masks import load_mask
from methods.selection import clean_probability, detection_quality, precision_recall
from model import features
from model.clip import image_statistics
from model.encoder import load_encoder
from report import page, tables
from tests.helpers import DIGITS, TESTED, detection, digits_with_few_tests, phase1, phase2, write_digits
from utils.checkpoint import load_checkpoint
from utils.config import load_config
from utils.errors import UserError

TINY = ["--backbone", "tiny-clip-digits", "--device", "cpu"]
SMALL = ["--n_ctx", "4", "--vpt_len", "4", "--batch_size", "16", "--epochs", "6"]


def f1_of_masks(summaries, cfg, truth):
    """{detector: F1 of the mask it wrote}, by the truth of each path."""
    f1, data = {}, load_data(cfg)
    for name in summaries:
        judged = data if name == "deft" else data.whole()
        mask = load_mask(f"{cfg.output_dir}/{data.place}/seed0/{name}/clean_mask.npz", judged, 0)
        is_clean = np.array(data.label_names)[judged.train.labels] == [truth[p] for p in judged.train.images]
        f1[name] = precision_recall(mask, is_clean)["f1"]
    return f1


@pytest.mark.parametrize("ratio, table", [(0.2, False), (0.4, True)])
def test_mislabelled_digits(tmp_path, ratio, table):
    """Detectors find the right labels among files as a person has them, and so do both phases where the truth is known."""
    path, truth, _ = write_digits(tmp_path / "data", ratio, every=3, table=table)
    flags = ["--data_path", str(path), "--output_dir", str(tmp_path / "runs"), *TINY]
    peft = ["--cfg", "config/PEFT/own.yaml", *flags]
    names = (
        "label-match",
        "clip-margin",
        "confident-learning",
        "lemon",
        "clipcleaner",
        "aum",
    )  # the others: test_neighbours
    found = {name: main_detect.main([*peft, "--detector", name]) for name in names}
    if table:
        found["deft"] = main_real_phase1.main([*peft, *SMALL])
        assert found["deft"]["num_train"] + found["deft"]["held_out"] == 599
    f1 = f1_of_masks(found, load_config(peft), truth)
    best = f1.keys() - {"label-match", "clipcleaner"}
    assert min(f1[name] for name in best) > 0.94 and min(f1.values()) > 0.88, f1
    assert len(list((tmp_path / "runs" / "cache").glob("features-*"))) == 1  # of all images, once
    assert all(found[name]["num_train"] == 599 and found[name]["all_judged"] for name in names)
    for name, summary in found.items():
        assert ("f1" in summary) == table  # the table has the truth
        if table:
            assert summary["f1"] == f1[name] and 0.3 < summary["noise_rate"] < 0.5
            assert summary["auroc"] > 0.95, name
    if table:
        fft = ["--cfg", "config/FFT/own.yaml", *flags, "--batch_size", "16", "--epochs", "4", "--lr", "0.01"]
        trained = main_real_phase2.main([*fft, "--mask", "deft", "--schedule", "cosine"])
        assert trained["name"] == "phase2-deft-tiny-clip-digits" and trained["acc_last"] > 85


@pytest.mark.parametrize("name", ["knn", "confident-learning", "clip-margin", "aum"])
def test_labels_held_out_for_testing_have_no_say_in_the_mask_of_the_others(tmp_path, name):
    path, _, _ = write_digits(tmp_path / "data", 0.4, every=6, table=True)
    flags = ["--data_path", str(path), "--output_dir", str(tmp_path / "runs"), "--detector", name, *TINY]
    cfg = load_config(["--cfg", "config/PEFT/own.yaml", *flags])
    data = load_data(cfg)
    whole, rows = data.whole(), np.setdiff1d(np.arange(len(data.train.labels) + len(data.held_out)), data.held_out)
    other = whole.train.labels.copy()
    other[data.held_out] = (other[data.held_out] + 1) % 10
    swapped = replace(whole, train=replace(whole.train, labels=other))
    runs = [run_detector(cfg, x, torch.device("cpu")) for x in (whole, swapped, data)]
    found, again, alone = (selection for selection, _ in runs)
    assert next(iter(runs[-1][1]["evidence"].values()))["contrast"] > 0.5
    for key in ("mask", "p_clean", "predicted"):
        assert np.array_equal(found[key][rows], alone[key]) and np.array_equal(found[key][rows], again[key][rows])
    assert (found["p_clean"][data.held_out] != again["p_clean"][data.held_out]).any()


@pytest.mark.parametrize(
    "field, value, expected",
    [
        ("mask", np.ones(10, int), "mask is a numpy array \\(10,\\) of bool"),
        ("p_clean", np.full(10, np.nan), "p_clean is .* of floats in \\[0, 1\\]"),
        ("p_clean", np.full(10, 1.5), "p_clean"),
        ("predicted", np.full(10, 3), "predicted is .* of whole numbers from 0 to 2"),
        ("confidence", np.ones((10, 1)), "confidence"),
        ("confidence", torch.ones(10), "confidence"),
    ],
)
def test_what_a_detector_of_ones_own_returns_is_checked(tmp_path, monkeypatch, field, value, expected):
    features = np.eye(10, dtype=np.float32)
    inputs = Inputs(features, np.arange(10) % 3, 3, None)
    found = Detection(np.ones(10, bool), np.ones(10), np.zeros(10, int), np.ones(10))
    assert _checked(found, inputs, "mine") is found
    wrong = found._replace(**{field: value})
    with pytest.raises(UserError, match=f"detector: mine: expected a Detection whose {expected}"):
        _checked(wrong, inputs, "mine")
    if field == "mask":  # through a whole detector
        monkeypatch.setitem(DETECTORS, "mine", DETECTORS["knn"]._replace(find=lambda inputs: wrong))
        split = Split(np.zeros((10, 2, 2, 3), np.uint8), inputs.labels)
        data = Dataset("x", split, None, ["a", "b", "c"], View())
        with pytest.raises(UserError, match="detector: mine: expected a Detection whose mask"):
            cfg = load_config(["--detector", "mine", "--output_dir", str(tmp_path)])
            run_detector(cfg, data, torch.device("cpu"), {"features": features})


def test_what_looks_different_is_never_taken_for_the_same(tmp_path):
    """The caches' names: pixels of the same bytes in another palette or shape; equal weights in another architecture."""
    image = Image.new("P", (8, 8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    other = image.copy()
    other.putpalette([255, 255, 255, 0, 0, 0])
    assert images_identity([image]) != images_identity([other])
    assert images_identity([image]) == images_identity([image.copy()])
    assert images_identity(np.zeros((2, 3, 4, 3), np.uint8)) != images_identity(np.zeros((2, 4, 3, 3), np.uint8))
    split = Split(np.zeros((1, 32, 32, 3), dtype=np.uint8), np.zeros(1, dtype=np.int64))
    cfg = load_config([*TINY, "--output_dir", str(tmp_path)])
    encoder = load_encoder(cfg, torch.device("cpu"))
    features.image_features(encoder, split, View(), cfg, torch.device("cpu"))
    other = replace(encoder, config=encoder.config | {"quick_gelu": True})
    features.image_features(other, split, View(), cfg, torch.device("cpu"))
    assert len(list((tmp_path / "cache").glob("features-*"))) == 2


def test_features_are_computed_once_and_only_for_the_same_images(tmp_path, monkeypatch, capsys):
    path, _, _ = write_digits(tmp_path / "data", 0.4, every=9, table=True)
    flags = ["--cfg", "config/PEFT/own.yaml", "--data_path", str(path), "--output_dir", str(tmp_path / "runs"), *TINY]
    first = main_detect.main([*flags, "--tag", "first"])

    def again(tag):
        summary = main_detect.main([*flags, "--tag", tag])
        with np.load(tmp_path / "runs/own-data-labels/none/seed0" / summary["name"] / "clean_mask.npz") as file:
            return summary, file["p_clean"]

    with monkeypatch.context() as patch:
        patch.setattr(features, "make_loader", None)
        summary, p_clean = again("second")
    assert {k: summary[k] for k in ("f1", "auroc", "acc_last")} == {k: first[k] for k in ("f1", "auroc", "acc_last")}
    kept = sorted((tmp_path / "runs/cache").glob("features-*"))
    for file in kept:
        file.write_bytes(file.read_bytes()[:-400])
    assert np.array_equal(again("damaged")[1], p_clean) and "computed again" in capsys.readouterr().out
    Image.new("RGB", (32, 32)).save(load_data(load_config(flags)).train.images[0])
    assert not np.array_equal(again("changed")[1], p_clean)
    assert len(list((tmp_path / "runs/cache").glob("features-*"))) == len(kept) + 1


def test_out_of_fold_with_classes_smaller_than_the_folds():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 3], [60, 4, 1])  # no image of class 2
    centres = rng.normal(0, 1, (4, 64))
    probabilities = out_of_fold(centres[labels] + rng.normal(0, 0.3, (65, 64)), labels, 4, 0)
    assert np.allclose(probabilities.sum(1), 1) and (probabilities[:, 2] == 0).all() and probabilities[64, 3] == 0
    assert (probabilities.argmax(1)[:64] == labels[:64]).all()
    for labels in ([0, 0, 0, 0, 1], [0, 1, 2]):  # a regression would see one class only
        with pytest.raises(UserError, match="confident-learning needs two images or more of two classes"):
            out_of_fold(rng.normal(0, 1, (len(labels), 2)), np.array(labels), 3, 0)


def test_clip_margin_grows_with_the_margin():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 1, (400, 5)).astype(np.float32), rng.integers(0, 5, 400)
    logits[np.arange(400), np.where(np.arange(400) < 300, labels, (labels + 1) % 5)] += 8
    mask, p_clean, predicted, _ = clip_margin(
        SimpleNamespace(logits=logits, labels=labels, cfg=SimpleNamespace(seed=0))
    )
    rows, others = np.arange(400), logits.copy()
    others[rows, labels] = -np.inf
    order = np.argsort(logits[rows, labels] - others.max(1))
    assert (np.diff(p_clean[order]) >= -1e-12).all() and (mask == (p_clean > 0.5)).all() and mask[:300].mean() > 0.99
    assert mask[300:].mean() < 0.01 and np.array_equal(predicted, logits.argmax(1))


def test_detection_quality_by_hand():
    mask, p_clean = np.array([True, True, True, False, False]), np.array([0.9, 0.8, 0.4, 0.6, 0.1])
    is_clean = np.array([True, True, False, True, False])
    q = detection_quality(mask, p_clean, is_clean)
    assert (q["precision"], q["recall"], q["f1"]) == (2 / 3, 2 / 3, 2 / 3)
    assert (q["precision_mislabelled"], q["recall_mislabelled"], q["f1_mislabelled"]) == (0.5, 0.5, 0.5)
    assert q["auroc"] == 1 and q["auprc_mislabelled"] == 1  # 0.1 and 0.4 are the two lowest
    q = detection_quality(mask, p_clean, np.array([True, False, True, True, False]))
    assert q["auroc"] == pytest.approx(4 / 6) and q["auprc_mislabelled"] == pytest.approx((1 + 2 / 4) / 2)
    assert detection_quality(mask, p_clean, np.ones(5, dtype=bool))["auroc"] is None


# --- detect()


def test_detect_in_a_notebook(tmp_path):
    _, truth, given = write_digits(tmp_path / "data", 0.3, every=9)
    paths, labels, settings = list(given), list(given.values()), {"backbone": "tiny-clip-digits", "device": "cpu"}
    by_name = settings | {"detector": "label-match"}
    true = np.array(list(truth.values()))
    p_clean, suggested = detect(paths, labels, **by_name)
    assert p_clean.shape == (200,) and (suggested == true).mean() > 0.85 > (true == labels).mean()
    for images in ([Image.open(p) for p in paths], np.stack([np.asarray(Image.open(p)) for p in paths])):
        again, _ = detect(images, labels, **by_name)
        assert np.allclose(again, p_clean, atol=0.02)
    numbers = [DIGITS.index(name) for name in labels]
    named = {"classnames": np.array(DIGITS)}  # any sequence
    again, suggested_numbers = detect(paths, numbers, **named, **by_name, output_dir=tmp_path / "runs")
    assert np.allclose(again, p_clean) and [DIGITS[k] for k in suggested_numbers] == suggested.tolist()
    assert (tmp_path / "runs/own-notebook/none/seed0/label-match/clean_mask.npz").is_file()
    _, far = detect(paths[:20], np.zeros(20, np.uint8), ["cat"] * 300 + DIGITS, **by_name)
    assert (far >= 300).mean() > 0.5  # more than a label of 8 bits can say
    p_clean, suggested = detect(paths, labels, **settings, output_dir=tmp_path / "runs")
    assert (tmp_path / "runs/own-notebook/none/seed0/auto").is_dir() and (suggested == true).mean() > 0.95
    p_clean, suggested = detect(paths, labels, detector="deft", n_ctx=2, vpt_len=1, epochs=1, **settings)
    assert p_clean.shape == suggested.shape == (200,) and ((0 <= p_clean) & (p_clean <= 1)).all()
    for args, message in [
        ((paths[:5], labels), "labels: expected 5 strings or whole numbers"),
        ((paths, numbers, DIGITS[:9]), "labels: 10 classes, .* of which there are 9"),
        ((np.zeros((2, 8, 8), dtype=np.uint8), ["a", "b"]), r"images: expected uint8 \(N, H, W, 3\)"),
        ((paths, [None, *labels[1:]]), "labels: number 0 is missing"),
        ((paths, [*labels[:-1], float("nan")]), "labels: number 199 is missing"),
        ((paths, [*numbers[:-1], 2.0]), "labels: number 199 is 2.0; expected strings or whole numbers"),
        ((paths, [*labels[:-1], 3]), "labels: expected 200 .*, found 1 numbers and 199 strings"),
        (([3, *paths[1:]], labels), "images: expected paths or Pillow images"),
        (([*paths[:-1], Image.new("RGB", (8, 8))], labels), "images: some are paths and some are Pillow images"),
        (
            ([*paths[:-1], "gone.png"], labels),
            r"images: 1 of 200 files cannot be read, first .*gone.png \(missing\); skip_",
        ),
        ((paths, labels, None, "deftt"), "detector: unknown name 'deftt'.*Did you mean deft"),
        ((str(tmp_path / "data"), labels), "images: expected a list of paths or Pillow images, not a str"),
        ((paths, labels, "names.txt"), "classnames: expected a list of names, not a str"),
        ((paths, numbers, dict(enumerate(DIGITS))), "classnames: expected a list of names, not a dict"),
    ]:
        with pytest.raises(UserError, match=message):
            detect(*args, **settings)
    with pytest.raises(UserError, match="--epoch: unknown flag. Did you mean --epochs"):
        detect(paths, labels, epoch=3)
    for key, value in {"noise_mode": "sym", "score": "test", "class_names": DIGITS, "label_column": "x"}.items():
        with pytest.raises(UserError, match=f"{key}: has no effect on images in memory"):
            detect(paths, labels, **{key: value})
    with pytest.raises(UserError, match="templates: 'it, has none' has no {}"):  # lists are not read as text
        detect(paths, labels, templates=["a photo of a {}, a digit.", "it, has none"], **settings)


def test_warnings_survive_cleanlab(monkeypatch):
    """Its import silences every warning of the process, the one of a verdict among them."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "cleanlab"]:
        monkeypatch.delitem(sys.modules, name)
    before = list(warnings.filters)
    labels = np.repeat([0, 1], 20)
    confident_learning(SimpleNamespace(labels=labels, pred_probs=np.eye(2)[labels] * 0.8 + 0.1))
    assert warnings.filters == before and "cleanlab.filter" in sys.modules


def test_detect_takes_what_a_notebook_has(tmp_path, monkeypatch):
    """Pandas columns, arrays of paths and generators give what lists give; broken files can be left out."""
    pd = pytest.importorskip("pandas")
    _, _, given = write_digits(tmp_path / "data", 0.3, every=30)
    paths, labels, settings = list(given), list(given.values()), {"backbone": "tiny-clip-digits", "device": "cpu"}
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    p_clean, suggested = detect(paths, labels, **settings)
    assert torch.backends.cudnn.allow_tf32  # the notebook's own networks are as fast as before
    frame = pd.DataFrame({"path": paths, "label": labels}, index=range(100, 100 + len(paths)))
    frame["label"] = frame["label"].astype("string")
    for images, given_labels in (
        (frame["path"], frame["label"]),
        (np.array(paths), frame["label"].astype("category")),
        (np.array(paths, dtype=object), np.array(labels, dtype=object)),
        ((path for path in paths), (label for label in labels)),
    ):
        again, same = detect(images, given_labels, **settings)
        assert np.array_equal(again, p_clean) and same.tolist() == suggested.tolist()
    with pytest.raises(UserError, match="labels: number 2 is missing"):
        detect(frame["path"], frame["label"].mask(np.arange(len(frame)) == 2), **settings)
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    again, same = detect(
        [paths[0], str(bad), *paths[1:]], [labels[0], "nine", *labels[1:]], skip_broken=True, **settings
    )
    assert np.isnan(again[1]) and same[1] == "nine" and np.array_equal(np.delete(again, 1), p_clean)
    assert np.delete(same, 1).tolist() == suggested.tolist()


@pytest.mark.parametrize("kind", ["paths", "images", "array"])
def test_a_kept_run_of_a_notebook_is_reported(tmp_path, kind):
    _, _, given = write_digits(tmp_path / "data", 0.3, every=30)
    images = {
        "paths": list(given),
        "images": [Image.open(path) for path in given],
        "array": np.stack([np.asarray(Image.open(path)) for path in given]),
    }[kind]
    labels = [DIGITS.index(name) for name in given.values()]  # numbers
    out = tmp_path / "runs"
    settings = {"backbone": "tiny-clip-digits", "device": "cpu", "output_dir": out, "classnames": DIGITS}
    p_clean, suggested = detect(images, labels, **settings)
    assert np.array_equal(detect(images, labels, **settings)[0], p_clean)  # the kept run
    with pytest.raises(UserError, match="used other class names"):
        detect(images, labels, **settings | {"classnames": DIGITS[::-1]})
    (run,) = [path.parent for path in out.rglob("clean_mask.npz")]
    page.main([str(run)])
    rows = list(csv.DictReader((run / "labels_clean.csv").open()))
    kept = np.flatnonzero(suggested == labels)
    assert (run / "report.html").is_file() and {int(row["label"]) for row in rows} <= set(range(10))
    assert len(rows) <= len(kept) and all(os.path.isfile(run / row["path"]) for row in rows)


# --- --score


def test_a_finished_detector_scores_other_labels(cell, tmp_path, capsys, monkeypatch):
    out = shutil.copytree(cell[0], tmp_path / "runs")
    before = (out / "digits/sym-0.4/seed0/deft/clean_mask.npz").read_bytes()
    test = main_phase1.main(phase1(out, "--score", "test"))
    folder = out / "digits/sym-0.4/seed0/deft/score-test"
    assert test["name"] == "deft/score-test" and test["num_train"] == TESTED
    assert (test["noise_rate"], test["precision"], test["auroc"]) == (0, 1, None)  # all of these labels are right
    cfg = load_config([*phase1(out), "--score", yaml.safe_load((folder / "config.yaml").read_text())["score"]])
    data = load_data(cfg)  # what a report reads
    model = build_detector(cfg, data.classnames, torch.device("cpu"))
    load_checkpoint(folder.parent / "checkpoint.pt", model)
    some = np.arange(0, TESTED, 3)
    pixels = torch.from_numpy(data.train.images[some]).permute(0, 3, 1, 2)
    with torch.no_grad():
        p_yes = clean_probability(*model.eval()(normalise(pixels, *image_statistics(model.clip)))).numpy()
    with np.load(folder / "clean_mask.npz") as file:
        assert np.array_equal(file["labels"], data.train.labels) and len(file["labels"]) == TESTED
        assert np.allclose(file["p_clean"][some], p_yes[np.arange(len(some)), data.train.labels[some]], atol=1e-5)
    reads = []
    monkeypatch.setitem(DATASETS, "digits", lambda cfg: reads.append(cfg) or digits_with_few_tests(cfg))
    assert main_phase1.main(phase1(out, "--score", "test")) == test and "already finished" in capsys.readouterr().out
    assert len(reads) == 1  # what is said of the data is said once

    path, truth, _ = write_digits(tmp_path / "digits", 0.3, every=9, table=True)
    of_the_run = ["--cfg", str(folder.parent / "config.yaml"), "--output_dir", str(out)]
    own = main_phase1.main([*of_the_run, "--score", str(path)])  # all settings are those of the run
    assert own["name"] == "deft/score-labels.csv" and own["num_train"] == 200 and 0.2 < own["noise_rate"] < 0.4
    assert json.loads((folder.parent / "score-labels.csv/summary.json").read_text()) == own
    path.write_text(path.read_text().replace("d0,img/0.png,", "d0,img/0.png,x"))
    with pytest.raises(
        UserError, match="labels.csv: line 2: 'xzero' is no class of the training images.*Did you mean zero"
    ):
        main_phase1.main(phase1(out, "--score", str(path)))
    with pytest.raises(UserError, match="score: there is no folder or file tset"):
        main_phase1.main(phase1(out, "--score", "tset"))
    assert (out / "digits/sym-0.4/seed0/deft/clean_mask.npz").read_bytes() == before
    with pytest.raises(
        UserError, match="--cfg: .*deft/config.yaml is of a run that main_phase1.py made; score with that"
    ):
        main_detect.main([*of_the_run, "--score", "test"])
    zero_shot = main_detect.main([*detection(tmp_path), "--score", "test"])
    assert zero_shot["name"] == "label-match/score-test" and zero_shot["num_train"] == TESTED
    with pytest.raises(
        UserError,
        match="--score: main_phase2.py does not use this key; it is used by main_phase1.py and main_detect.py",
    ):
        main_real_phase2.main([*phase2(tmp_path), "--mask", str(folder / "clean_mask.npz"), "--score", "test"])
    tables.main([str(out)])
    assert "| deft/score-test" in capsys.readouterr().out


def test_confident_learning_flags_exactly_what_cleanlab_does():
    """cleanlab.filter.find_label_issues with its default settings, on the same out-of-fold probabilities."""
    from cleanlab.filter import find_label_issues

    rng = np.random.default_rng(0)
    truth = np.arange(120) % 4
    x = rng.normal(size=(4, 8))[truth] + 0.4 * rng.normal(size=(120, 8))
    labels = np.where(rng.random(120) < 0.2, (truth + 1) % 4, truth)
    inputs = Inputs(
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels, 4, SimpleNamespace(seed=0)
    )
    found = DETECTORS["confident-learning"].find(inputs)
    issues = find_label_issues(labels, out_of_fold(inputs.features, labels, 4, 0))
    assert 10 < issues.sum() < 60 and np.array_equal(~found.mask, issues)
