"""CUDA graphs give what is computed without them; seen with a GPU only."""

import copy
from contextlib import nullcontext

import pytest
import torch

from dataloader.load import load_data
from dataloader.loaders import EpochRandomness, make_loaders
from methods.deft import build_detector, epoch_rules, train_detector_epoch
from model.classifier import build_optimizer
from model.clip import input_pixels
from model.graphs import _replayed, recorded_encoders
from tests.helpers import CELL, DEVICE, FAST, same
from utils.config import load_config
from utils.device import Amp


def test_only_full_batches_with_gradients_are_replayed():
    run = _replayed(lambda x: "replayed", lambda x: "as before", (torch.zeros(2, 3),))
    assert run(torch.ones(2, 3)) == "replayed" and run(torch.ones(1, 3)) == "as before"
    with torch.no_grad():
        assert run(torch.ones(2, 3)) == "as before"


@pytest.mark.skipif(DEVICE.type != "cuda", reason="no GPU")
@pytest.mark.parametrize("flags", [("--vpt_deep", "--csc"), ("--vpt_shallow",), ("--lora",), ()])
@pytest.mark.parametrize("prec", ["fp32", "bf16", "fp16"])
def test_recorded_steps_are_the_same(flags, prec):
    cfg = load_config(["--backbone", "tiny-clip-digits", *CELL, *FAST, "--n_ctx", "4", "--vpt_len", "4", *flags])
    data = load_data(cfg)
    model = build_detector(cfg, data.classnames, DEVICE)
    train, tests = make_loaders(data, cfg, input_pixels(model.clip, cfg), DEVICE)
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
