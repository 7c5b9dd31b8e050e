"""Shared by the training loops: learning rate, progress bar, evaluation. Sums stay on the device until the end."""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from tqdm import tqdm

from utils.distributed import gather
from utils.errors import UserError


class NonFinite(UserError):
    """A loss is NaN or infinite; the message names the epoch and the batch."""


def learning_rate(
    base: float, epoch: int, epochs: int, schedule: str = "cosine", milestones: Iterable[int] = ()
) -> float:
    """Learning rate of epoch 1 … epochs: constant; cosine from `base` towards 0, stepped once an epoch; or steps, a tenth
    of itself after each of the epochs `milestones`."""
    if schedule == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
    return base * 0.1 ** sum(epoch > milestone for milestone in milestones) if schedule == "steps" else base


def run_batch(model: nn.Module, images: Tensor) -> Any:
    """model(images (B, 3, H, W)); for B = 0, a blank image is used so that gradients are zero instead of None."""
    if len(images):
        return model(images)
    model.eval()  # the blank image must not affect batch statistics
    out = model(images.new_zeros(1, *images.shape[1:]))
    model.train()
    return tuple(x[:0] for x in out) if isinstance(out, tuple) else out[:0]


def progress(batches: Iterable[Any], title: str) -> tqdm:
    """A progress bar over batches if the output is a terminal."""
    return tqdm(batches, title, leave=False, disable=None, unit="batch")


def watched(bar: tqdm, step: int) -> bool:
    """Whether to update the bar's numbers in this step: rarely, since it synchronises the device, and only on a terminal."""
    return not bar.disable and step % 20 == 0


def check_finite(losses: Tensor, title: str) -> None:
    """Raise NonFinite if one of the losses (one per batch) is NaN or infinite."""
    bad = ~torch.isfinite(losses)
    if bad.any():
        batch = int(bad.nonzero()[0])
        raise NonFinite(
            f"{title}, batch {batch + 1} of {len(losses)}: the loss is {losses[batch].item()}; "
            "a lower lr, or prec fp32, may help."
        )


@torch.no_grad()
def evaluate(
    predict: Callable[[Tensor], Tensor],
    batches: Iterable[Any],
    num_classes: int,
    amp: Callable[[], Any] = nullcontext,
    title: str = "test",
) -> dict[str, Any]:
    """Accuracy in per cent of predict(images (B, 3, H, W)) -> logits (B, K), over the whole set and per class.

    Returns {"acc", "acc_per_class" (None for a class without images)}. The caller puts the model into eval mode.
    """
    seen = []
    for images, labels, _ in progress(batches, title):
        with amp():
            logits = predict(images)
        seen.append((labels, logits.argmax(1) == labels, logits.float().sum(1)))
    labels, hits, sums = gather(seen)
    check_finite(sums, title)  # the last step may have made the weights NaN
    total_hits, count = (torch.bincount(labels, weights, num_classes).tolist() for weights in (hits.double(), None))
    return {
        "acc": 100 * hits.double().mean().item(),
        "acc_per_class": [100 * h / n if n else None for h, n in zip(total_hits, count)],
    }


def evaluate_all(
    predict: Callable[[Tensor], Tensor], loaders: dict[str, Any], num_classes: int, amp: Callable[[], Any] = nullcontext
) -> dict[str, Any]:
    """Accuracy on every test set: {"accs": {"acc_test", "acc_<name>", …}, "acc_per_class": that of `test`, if any}."""
    results = {name: evaluate(predict, loader.eval(), num_classes, amp, name) for name, loader in loaders.items()}
    return {
        "accs": {f"acc_{name}": r["acc"] for name, r in results.items()},
        "acc_per_class": results["test"]["acc_per_class"] if "test" in results else None,
    }
