"""What CUDA graphs replay, and, on a GPU, that they give what is computed without them."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from dataloader.load import load_data
from dataloader.loaders import EpochRandomness, make_loaders
from methods.deft import build_detector, epoch_rules, train_detector_epoch
from model.classifier import build_optimizer
from model.clip import input_pixels
from model.graphs import recorded_encoders
from tests.helpers import CELL, DEVICE, FAST, same
from utils.config import load_config
from utils.device import Amp


def cell(*flags):
    """A detector, its data and loaders, and the settings."""
    cfg = load_config(["--backbone", "tiny-clip-digits", *CELL, *FAST, "--n_ctx", "4", "--vpt_len", "4", *flags])
    data = load_data(cfg)
    model = build_detector(cfg, data.classnames, DEVICE)
    return model, data, *make_loaders(data, cfg, input_pixels(model.clip, cfg), DEVICE), cfg


class OnGpu:
    """An Amp that says so."""

    device = SimpleNamespace(type="cuda")

    def __call__(self, cache_enabled):
        assert not cache_enabled  # PyTorch refuses to record with it
        return nullcontext()


def test_only_full_batches_with_gradients_are_replayed(monkeypatch):
    """Without a GPU: what is recorded are the functions themselves."""
    model, _, train, _, cfg = cell("--vpt_deep")
    images, replayed = torch.rand(cfg.batch_size, 3, train.resolution, train.resolution, device=DEVICE), []

    def record(function, sample):
        if isinstance(function, torch.nn.Module):
            function.forward = record(function.forward, sample)
            return function
        return lambda *x: replayed.append([one.shape for one in x]) or function(*x)

    zeros = torch.zeros
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None, **rest: zeros(*shape, **rest))
    before = model(images)
    with recorded_encoders(model, cfg, train, OnGpu()):
        assert all(map(torch.equal, before, model(images)))
        assert replayed == [[model.prompts.pos_ctx.shape] * 2, [images.shape]]
        model(images[1:])  # the texts alone
        with torch.no_grad():
            model(images)
            model.classifier()(images)
    model(images)
    assert len(replayed) == 3
    for flags in ("--compile",), ("--micro_batch", "8"), ("--checkpoint_text",):
        *_, cfg = cell("--vpt_deep", *flags)
        with recorded_encoders(model, cfg, train, OnGpu()):
            model(images)
    assert len(replayed) == 3


@pytest.mark.skipif(DEVICE.type != "cuda", reason="no GPU")
@pytest.mark.parametrize("flags", [("--vpt_deep", "--csc"), ("--vpt_shallow",), ("--lora",), ()])
@pytest.mark.parametrize("prec", ["fp32", "bf16", "fp16"])
def test_recorded_steps_are_the_same(flags, prec):
    model, data, train, tests, cfg = cell(*flags)
    assert len(train) % cfg.batch_size  # the last batch runs without graphs
    ways = []
    for recorded in (False, True):
        one, amp = copy.deepcopy(model), Amp(DEVICE, prec)
        optimizer, records = build_optimizer(one, cfg), []
        with recorded_encoders(one, cfg, train, amp) if recorded else nullcontext():
            assert ("forward" in vars(one.clip.visual)) == ("text_features" in vars(one)) == recorded
            for epoch in (1, 2):
                randomness = EpochRandomness(0, epoch, data.train.labels, data.num_classes)
                complementary = randomness.complementary.to(DEVICE)
                result = train_detector_epoch(
                    one, train.train(randomness), complementary, optimizer, epoch_rules(cfg, epoch), amp
                )
                records.append({key: result[key] for key in ("loss", "mask", "p_clean")})
        assert "forward" not in vars(one.clip.visual) and "text_features" not in vars(one)
        with torch.no_grad(), amp():
            logits = one.eval().classifier()(next(iter(tests["test"].eval()))[0])
        ways.append((records, logits, {name: p for name, p in one.named_parameters() if p.requires_grad}))
    assert same(*ways)
