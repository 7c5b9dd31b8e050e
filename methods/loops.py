"""What the loops over batches share: learning rate, progress bar, evaluation. Sums stay on the device until the end."""

import math
from contextlib import nullcontext

import torch
from tqdm import tqdm

from methods.losses import cross_entropy
from utils.config import UserError
from utils.distributed import gather, in_order


class NonFinite(UserError):
    """A loss that is not a number; the message says in which epoch and batch."""


def learning_rate(base, epoch, epochs, schedule="cosine"):
    """Learning rate of epoch 1 … epochs: constant, or cosine from `base` towards 0, stepped once an epoch."""
    if schedule == "constant":
        return base
    return base * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def run_batch(model, images):
    """model(images (B, 3, H, W)); for B = 0 a blank image goes through, so that every gradient is zero, not absent."""
    if len(images):
        return model(images)
    model.eval()  # batch statistics must not see it
    out = model(images.new_zeros(1, *images.shape[1:]))
    model.train()
    return tuple(x[:0] for x in out) if isinstance(out, tuple) else out[:0]


def progress(batches, title):
    """A progress bar over batches, where there is a terminal."""
    return tqdm(batches, title, leave=False, disable=None, unit="batch")  # silent where there is no terminal


def watched(bar, step):
    """Whether to bring numbers to the host for the bar now: rarely, and only when somebody looks at it."""
    return not bar.disable and step % 20 == 0


def check_finite(losses, title):
    """NonFinite if one of the losses, one a batch, is not a number."""
    bad = ~torch.isfinite(losses)
    if bad.any():
        batch = int(bad.nonzero()[0])
        raise NonFinite(
            f"{title}, batch {batch + 1} of {len(losses)}: the loss is {losses[batch].item()}; "
            "a lower lr, or prec fp32, may help."
        )


@torch.no_grad()
def score_samples(predict, batches, amp=nullcontext, title="score"):
    """Losses, predicted class and its probability, (N,) each, of every sample of un-augmented, ordered batches.

    The losses are cross-entropy with the given labels. The caller puts the model into eval mode. CPU tensors.
    """
    seen = []
    for images, labels, index in progress(batches, title):
        with amp():
            logits = predict(images).float()
        confidence, predicted = logits.softmax(1).max(1)
        seen.append((index, cross_entropy(logits, labels), predicted, confidence))
    losses, predicted, confidence = in_order(seen)
    check_finite(losses, title)
    return losses, predicted, confidence


@torch.no_grad()
def evaluate(predict, batches, num_classes, amp=nullcontext, title="test"):
    """Accuracy in per cent, over the whole set and per class, of predict(images (B, 3, H, W)) -> logits (B, K).

    The caller puts the model into eval mode. Returns {"acc", "acc_per_class" (None for a class without images)}.
    """
    seen = []
    for images, labels, _ in progress(batches, title):
        with amp():
            logits = predict(images)
        seen.append((labels, logits.argmax(1) == labels, logits.float().sum(1)))
    labels, hits, sums = gather(*(torch.cat(column).cpu() for column in zip(*seen)))
    check_finite(sums, title)  # weights that went bad in the last step
    total_hits, count = (torch.bincount(labels, weights, num_classes).tolist() for weights in (hits.double(), None))
    return {
        "acc": 100 * hits.double().mean().item(),
        "acc_per_class": [100 * h / n if n else None for h, n in zip(total_hits, count)],
    }


def evaluate_all(predict, loaders, num_classes, amp=nullcontext):
    """Accuracy on every test set: {"accs": {"acc_test", "acc_<name>", …}, "acc_per_class": that of `test`, if any}."""
    results = {name: evaluate(predict, loader.eval(), num_classes, amp, name) for name, loader in loaders.items()}
    return {
        "accs": {f"acc_{name}": r["acc"] for name, r in results.items()},
        "acc_per_class": results["test"]["acc_per_class"] if "test" in results else None,
    }
