"""What the benchmarks compare with computes the same, so that a ratio is of the same work."""

import copy
import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import data, noise, scale
from benchmarks.common import in_turns, settings, synthetic
from benchmarks.noise import plain_idn
from benchmarks.published import plain
from benchmarks.step import ROWS, build, turn
from dataloader.loaders import make_loaders
from dataloader.noise import official_idn

CPU = torch.device("cpu")


def gradients(model, out):
    out.square().sum().backward()
    return [p.grad for p in model.parameters() if p.requires_grad]


def test_the_plain_way_gives_the_same_numbers():
    data, flags = synthetic(6, 4, 5), ["--backbone", "tiny-clip-digits", "--n_ctx", 4]
    for phase, more in ((1, ["--vpt_deep", "--vpt_len", 3]), (2, ["--finetune"])):
        cfg = settings(*flags, *more)
        model, pixels = build(phase, cfg, data, CPU)
        other = plain(copy.deepcopy(model))
        assert type(other) is not type(model) or phase == 2
        images = next(iter(make_loaders(data, cfg, pixels, CPU)[1]["test"].eval()))[0]
        ours, theirs = (torch.cat(m(images), 1) if phase == 1 else m(images) for m in (model, other))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        for a, b in zip(gradients(model, ours), gradients(other, theirs), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3 * a.abs().max().item(), rtol=1e-3)


SMALL_NOISE = ["--n", "60", "--many", "600", "--num_classes", "5", "--pixels", "12", "--as_published"]


@pytest.mark.parametrize("module, flags, number", [(noise, SMALL_NOISE, 5), (data, ["--n", "64"], 9)])
def test_every_row_is_measured(module, flags, number, tmp_path, monkeypatch, capsys):
    file = tmp_path / "rows.json"
    monkeypatch.setattr("sys.argv", ["benchmark", *flags, "--repeats", "1", "--json", str(file)])
    module.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == number and all(row.split("|")[2].strip() for row in rows)
    assert ('"ratio"' in file.read_text()) == (module is noise)


def test_plain_noise_draws_the_official_labels():
    rng = np.random.default_rng(0)
    labels, pixels = rng.integers(0, 4, 200), rng.integers(0, 256, (200, 12), dtype=np.uint8)
    assert np.array_equal(plain_idn(labels, 0.4, 4, pixels), official_idn(labels, 0.4, 4, pixels))


def test_rounds_run_every_variant_and_the_first_does_not_count(monkeypatch):
    calls = []
    seconds = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3 and [len(s) for s in seconds.values()] == [2, 2]


def test_a_turn_gives_one_line_of_figures():
    args = SimpleNamespace(device="cpu", steps=2, num_classes=5, noise=0.5)
    cfg = settings("--backbone", "tiny-clip-digits", "--batch_size", 4, "--vpt_deep")
    lines = {(row, plain): turn(row, cfg, args, plain) for row in ROWS for plain in (False, True)}
    assert {"text ms", "image ms", "loader, loss ms", "optimizer ms", "flops"} < lines["phase 1", False].keys()
    assert all(line["ms"] > 0 and line["peak GB"] > 0 for line in lines.values())
    flops = {row: lines[row, False]["flops"] for row in ROWS}
    assert flops["phase 1"] > flops["evaluation"] > 0 and flops["phase 2"] > 0


@pytest.mark.parametrize("name", ["datalab", "detectors", "epoch", "sameness"])
def test_other_benchmarks_start(name, monkeypatch, capsys):
    """As far as their help: what they import is there."""
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(f"benchmarks.{name}").main()
    assert "usage: " in capsys.readouterr().out


def test_a_listing_is_read_in_seconds(tmp_path, capsys):
    scale.write_list(tmp_path / "list", 100)
    scale.start(tmp_path / "list")
    assert '"s"' in capsys.readouterr().out
