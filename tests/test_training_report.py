"""What a run's record says of its training: curves, histograms of p_clean, nearest words, TensorBoard's files."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba

from methods.selection import histograms
from model.clip import load_clip, text_tower
from report import training
from tests.helpers import phase1
from utils.config import load_config
from utils.errors import UserError
from utils.runs import Run


@pytest.fixture
def run(cell, tmp_path):
    """A copy of the finished phase 1."""
    return shutil.copytree(cell[0] / "digits" / "sym-0.4" / "seed0" / "deft", tmp_path / "deft")


def test_histograms():
    p_clean = np.array([0.0, 0.04, 0.06, 0.5, 0.999, 1.0])
    index, is_clean = np.array([0, 1, 3, 5]), np.array([False, True, True, False])
    counts = histograms(p_clean, (index, is_clean))
    assert np.flatnonzero(counts["right"]).tolist() == [0, 10] and np.flatnonzero(counts["wrong"]).tolist() == [0, 19]
    assert sum(histograms(p_clean, None)["not known"]) == 6


def test_log_and_picture(run, capsys):
    log, cfg = training.read_training(run)
    with np.load(run / "clean_mask.npz") as file:
        p_clean = file["p_clean"]
    last = log[-1]["p_clean"]
    assert sum(last["right"]) + sum(last["wrong"]) == len(p_clean) and cfg.n_ctx == 4
    assert np.array_equal(np.add(last["right"], last["wrong"]), np.histogram(p_clean, 20, (0, 1))[0])
    assert training.main([str(run)]) == run
    assert (run / "training.png").read_bytes().startswith(b"\x89PNG")
    rows = (run / "words.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 4 * 3 and rows[1].startswith("positive,,1,1,")
    assert "| context vector |" in " ".join(capsys.readouterr().out.split())


def test_what_the_picture_shows(tmp_path, figures):
    """Curves of all epochs; histograms of at most six, evenly spread, the first and the last among them."""
    rng = np.random.default_rng(0)
    log = [
        {
            "epoch": e,
            "loss": 1 / e,
            "loss_neg": 2 / e,
            "acc_test": 50.0 + e,
            "f1": 0.9 - e / 100,
            "p_clean": {"right": rng.integers(0, 9, 20).tolist(), "wrong": rng.integers(0, 9, 20).tolist()},
        }
        for e in range(1, 9)
    ]
    training.plot_training(log, tmp_path / "x.png")
    above, below = figures[0].subfigs
    curves = {axis.get_title(): {line.get_label(): line.get_xydata() for line in axis.lines} for axis in above.axes}
    for title, name, key, factor in (
        ("loss", "loss", "loss", 1),
        ("loss", "loss_neg", "loss_neg", 1),
        ("test accuracy, %", "test", "acc_test", 1),
        ("selection, %", "f1", "f1", 100),
    ):
        np.testing.assert_allclose(curves[title].pop(name), [(line["epoch"], factor * line[key]) for line in log])
    assert not any(curves.values())
    shown = [int(axis.get_title().removeprefix("epoch ")) for axis in below.axes]
    assert shown[0] == 1 and shown[-1] == 8 and len(shown) == 6 and set(np.diff(shown)) <= {1, 2}
    for epoch, axis in zip(shown, below.axes):
        for part in axis.patches:
            assert part.get_data().values.tolist() == log[epoch - 1]["p_clean"][part.get_label()]
            assert to_rgba(part.get_facecolor(), 1) == to_rgba(training.COLOURS[part.get_label()])
        assert len(axis.patches) == 2


def test_nearest_words_are_the_nearest():
    clip, tokenizer = load_clip("tiny-clip-digits")
    table = text_tower(clip).token_embedding.weight
    seven, photo = (tokenizer([word])[0, 1].item() for word in ("seven", "photo"))
    found = training.nearest_words(torch.stack([table[seven] * 0.3, table[photo]]), clip, tokenizer, 2)
    assert [words[0][0] for words in found] == ["seven", "photo"]
    assert all(words[0][1] == pytest.approx(1, abs=1e-5) and words[1][1] < 0.99 for words in found)


def test_of_other_runs(cell, tmp_path):
    baseline = cell[0] / "digits" / "sym-0.4" / "seed0" / "ce-tiny-clip-digits"
    log, cfg = training.read_training(baseline)
    assert training.prompt_words(baseline, cfg) is None and "p_clean" not in log[0]
    training.plot_training(log, tmp_path / "x.png")
    with pytest.raises(UserError, match="no log.jsonl there; expected the folder of a run that trains"):
        training.main([str(baseline.parent / "label-match")])
    (tmp_path / "config.yaml").write_text("seed: 0")
    for p_clean in ("3", "{}", '{"right": 3}'):
        (tmp_path / "log.jsonl").write_text(f'{{"epoch": 1, "p_clean": {p_clean}}}\n')
        with pytest.raises(UserError, match="log.jsonl: not the log of a run"):
            training.main([str(tmp_path)])
    (tmp_path / "log.jsonl").write_text("{")
    with pytest.raises(UserError, match="log.jsonl: not lines of JSON"):
        training.main([str(tmp_path)])


def scalars(folder):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = loader.EventAccumulator(str(folder), size_guidance={"histograms": 0})
    events.Reload()
    return events


def test_tensorboard_of_a_finished_run(run):
    pytest.importorskip("tensorboard")
    for _ in range(2):  # written again, nothing stands there twice
        training.main([str(run), "--tensorboard"])
    events, log = scalars(run / "tensorboard"), training.read_training(run)[0]
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("loss")] == [(x["epoch"], x["loss"]) for x in log]
    histogram = events.Histograms("p_clean/wrong")[-1].histogram_value
    assert list(histogram.bucket) == log[-1]["p_clean"]["wrong"] and histogram.bucket_limit[-1] == 1


def test_tensorboard_during_training(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    cfg = load_config(phase1(tmp_path, "--tensorboard"))
    run, model = Run(cfg, "digits/x", "toy", {}), torch.nn.Linear(1, 1)
    optimizer = SimpleNamespace(state_dict=dict)
    run.end_epoch({"epoch": 1, "images": 3, "loss": 0.5}, model, optimizer)
    assert [e.value for e in scalars(run.folder / "tensorboard").Scalars("loss")] == [0.5]
    assert json.loads((run.folder / "log.jsonl").read_text())["loss"] == 0.5
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="tensorboard: the package is not installed"):
        Run(cfg, "digits/x", "other", {})
    assert not (run.folder.parent / "other").exists()
