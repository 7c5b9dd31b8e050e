"""A training step never waits for the device: nothing is read from it before the next, nor copied to it from pageable memory.

This watches loaders, loops, models, losses and optimizers of one process; among several, small-loss must compare its losses.
On a GPU, CUDA itself reports what waits: CUDA_VISIBLE_DEVICES=0 python -m pytest tests/test_no_waiting.py
"""

from contextlib import closing, contextmanager

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dataloader.image_noise import ImageNoise
from dataloader.load import load_data
from dataloader.loaders import EpochRandomness, make_loaders
from methods.baselines import METHODS
from methods.deft import build_detector, epoch_rules, train_detector_epoch
from methods.method import Training, train_classifier_epoch
from methods.moving_average import MovingAverage
from model.classifier import build_classifier, build_optimizer
from model.clip import input_pixels
from model.graphs import recorded_encoders
from tests.helpers import CELL, DEVICE, FAST
from utils.config import load_config
from utils.device import Amp

READS = ("cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__")
PRECISIONS = ("fp32", "bf16", "fp16") if DEVICE.type == "cuda" else ("fp32",)
UPLOADS = ("tensor", "as_tensor", "new_tensor")  # of numbers


class Waited(AssertionError):
    pass


WAITED = RuntimeError if DEVICE.type == "cuda" else Waited  # CUDA's, or ours


class NoScalars(TorchDispatchMode):
    """Refuses the operators whose result, or its shape, the host must know: on a GPU each of them waits for it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = "index" in str(func) and any(
            i is not None and i.dtype == torch.bool for i in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        if by_mask or func.overloadpacket in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
            torch.ops.aten.masked_select,
            torch.ops.aten.equal,
        ):
            raise Waited(str(func))
        return func(*args, **(kwargs or {}))


class NoCopies(TorchFunctionMode):
    """Refuses what copies a tensor to the host, or numbers to the device unless it says whether it waits."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        moves = name == "to" and any(isinstance(x, (str, torch.device)) for x in (*args[1:], *kwargs.values()))
        numbers = name in UPLOADS and not isinstance(args[-1], torch.Tensor)
        if name in READS or numbers or moves and "non_blocking" not in kwargs:
            raise Waited(name)
        return func(*args, **kwargs)


@contextmanager
def no_reads():
    with NoScalars(), NoCopies():
        yield


@contextmanager
def no_syncs():
    """On a GPU, CUDA itself refuses them: a RuntimeError."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def watched(batches):
    """The batches, with everything watched from the first on: the steps, and how the others are made."""
    batches = iter(batches)
    first = next(batches)  # before it, the random numbers of the epoch are copied
    with no_syncs() if DEVICE.type == "cuda" else no_reads():
        yield first
        yield from batches


def cell(*flags):
    """60 images in batches of 16."""
    cfg = load_config(["--backbone", "tiny-clip-digits", *CELL, *FAST, "--batch_size", "16", *flags])
    data = load_data(cfg)
    data.train = data.train.take(np.arange(60))
    return cfg, data, EpochRandomness(0, 1, data.train.labels, data.num_classes)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.item(),
        lambda x: x.cpu(),
        lambda x: x.sum() and 1,
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: int(x),
        lambda x: x.to("cpu"),
        lambda x: torch.from_numpy(np.ones(1)).to(x.device),
        lambda x: torch.tensor([1], device=x.device),
        lambda x: x.new_tensor([1]),
    ],
)
def test_what_waits_is_seen(read):
    x = torch.ones(1, device=DEVICE)
    with pytest.raises(WAITED), closing(watched([x])) as batches:
        for batch in batches:
            read(batch)
    with pytest.raises(WAITED), closing(watched(read(x) for _ in range(2))) as batches:
        list(batches)


@pytest.mark.parametrize("prec", PRECISIONS)
@pytest.mark.parametrize(
    "flags", [(), ("--warmup", "0", "--require_agreement"), ("--micro_batch", "8", "--checkpoint_text")]
)
def test_phase_1(flags, prec, monkeypatch):
    monkeypatch.setattr("model.detector.PROMPTS_AT_ONCE", 7)
    cfg, data, randomness = cell("--vpt_deep", "--vpt_len", "4", "--n_ctx", "4", *flags)
    model = build_detector(cfg, data.classnames, DEVICE)
    train, _ = make_loaders(data, cfg, input_pixels(model.clip, cfg), DEVICE)
    amp = Amp(DEVICE, prec)
    with recorded_encoders(model, cfg, train, amp), closing(watched(train.train(randomness))) as batches:
        result = train_detector_epoch(
            model,
            batches,
            randomness.complementary.to(DEVICE),
            build_optimizer(model, cfg),
            epoch_rules(cfg, 1),
            amp,
        )
    assert len(result["index"]) == len(data.train.labels)  # every batch was watched


@pytest.mark.parametrize("prec", PRECISIONS)
@pytest.mark.parametrize("method", ["CE", "SCE", "GCE", "ELR", "GMM", "small-loss"])
def test_phase_2_and_baselines(method, prec):
    cfg, data, randomness = cell("--finetune", "--lr", "0.01")
    model, pixels = build_classifier(cfg, data, torch.Generator().manual_seed(0))
    train, _ = make_loaders(data, cfg, pixels, DEVICE)
    model.to(DEVICE)
    method = METHODS[method](cfg, len(data.train.labels), data.num_classes).to(DEVICE)
    keep = np.random.default_rng(0).random(len(data.train.labels)) < 0.6
    optimizer = build_optimizer(model, cfg)
    averaged = MovingAverage(model, 0.9, optimizer)
    with closing(watched(train.train(randomness, keep))) as batches:
        result = train_classifier_epoch(
            model, batches, optimizer, method, Amp(DEVICE, prec), batch_mask=method.batch_mask(1)
        )
    assert averaged.begun
    assert len(result["index"]) == keep.sum() and result["samples"] > 0  # every batch was watched


@pytest.mark.parametrize("noise", [("gaussian", 0.1), ("blur", 0.05), ("jpeg", 20)])
def test_image_noise(noise):
    images, keys = torch.zeros(2, 3, 12, 12, dtype=torch.uint8, device=DEVICE), torch.arange(2, device=DEVICE)
    with closing(watched(ImageNoise(*noise, seed=0)(images, keys) for _ in range(2))) as batches:
        assert all(batch.shape == images.shape for batch in batches)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if hasattr(method, "divide")])
def test_semi_supervised_steps(name):
    cfg, data, _ = cell("--finetune", "--lr", "0.01", "--warmup", "0", "--epochs", "12")
    method = METHODS[name](cfg, len(data.train.labels), data.num_classes).to(DEVICE)
    model, pixels = method.build(data)
    model.to(DEVICE)
    train, _ = make_loaders(data, cfg, pixels, DEVICE)
    seen, real = [], train.views
    train.views = lambda *args: Sized(real(*args), seen)
    training = Training(
        model, model, train, build_optimizer(model, cfg), Amp(DEVICE), data.num_classes, data.train.labels < 6
    )
    result, _ = method.train_epoch(12, training)
    assert len(seen) >= 2 and sum(len(batch.samples) for batch in seen) == result["samples"]  # every batch was watched


class Sized:
    """Batches that are watched, counted in `seen`."""

    def __init__(self, batches, seen):
        self.batches, self.seen = batches, seen

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        with closing(watched(self.batches)) as batches:
            for batch in batches:
                self.seen.append(batch)
                yield batch
