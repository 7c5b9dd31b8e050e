"""The loops over batches. Everything comes in as arguments, numbers go out as a dict; sums stay on the device."""
import math
import time

import torch
from tqdm import tqdm

from utils.config import UserError
from utils.distributed import gather, in_order, total, world_size
from utils.losses import batch_mean, cross_entropy, negative_prompt_loss
from utils.selection import clean_probability, select_clean


class NonFinite(UserError):
    """A loss that is not a number; the message says in which epoch and batch."""


def learning_rate(base, epoch, epochs, schedule="cosine"):
    """Learning rate of epoch 1 … epochs: constant, or cosine from `base` towards 0, stepped once an epoch."""
    if schedule == "constant":
        return base
    return base * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def precision(device, prec):
    """What `prec: auto` means on a device: bf16 where its hardware multiplies it, else fp32; the others mean themselves."""
    if prec != "auto":
        return prec
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        has_bf16 = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bf16" if has_bf16 else "fp32"


def autocast(device, prec):
    """Context of a forward pass: bf16 or fp16 over fp32 weights, or fp32."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision(device, prec))
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def grad_scaler(device, prec):
    """The loss scaler that fp16 gradients need to not underflow; None for every other precision."""
    return torch.amp.GradScaler(device.type) if prec == "fp16" else None


def _run(model, images):
    """model(images (B, 3, H, W)); for B = 0 a blank image goes through, so that every gradient is zero, not absent."""
    if len(images):
        return model(images)
    model.eval()  # batch statistics must not see it
    out = model(images.new_zeros(1, *images.shape[1:]))
    model.train()
    return tuple(x[:0] for x in out) if isinstance(out, tuple) else out[:0]


def _step(loss, optimizer, scaler):
    loss = loss * world_size()  # gradients are averaged over the processes, whose losses add up
    optimizer.zero_grad()
    if scaler is None:
        loss.backward()
        optimizer.step()
    else:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


def _bar(batches, title):
    return tqdm(batches, title, leave=False, disable=None, unit="batch")  # silent where there is no terminal


def _watched(bar, step):
    """Whether to bring numbers to the host for the bar now: rarely, and only when somebody looks at it."""
    return not bar.disable and step % 20 == 0


def _check_finite(losses, title):
    bad = ~torch.isfinite(losses)
    if bad.any():
        batch = int(bad.nonzero()[0])
        raise NonFinite(f"{title}, batch {batch + 1} of {len(losses)}: the loss is {losses[batch].item()}; "
                        "a lower lr, or prec fp32, may help.")


def train_detector_epoch(model, batches, complementary_labels, optimizer, *, warm, use_pseudo_labels,
                         warmup_loss=cross_entropy, neg_weight=1.0, require_agreement=False, is_clean=None,
                         amp=None, scaler=None, title="train"):
    """One epoch of phase 1 (DeFT, section 3; loss = cls + neg, see utils/losses.py).

    batches: (images (B, 3, H, W), labels (B,), index (B,)); complementary_labels (N,) by sample. While `warm`, cls is
    `warmup_loss` over the whole batch, later cross-entropy over the selected samples; the selection is made before
    each step. With `use_pseudo_labels` the target of the negative prompt is the label where selected, else
    argmax logits_pos; without, the label. is_clean (N,) bool is only for the progress bar.

    Returns averages (`loss`, `loss_cls`, `loss_neg` over batches, weighted by size) and, in visiting order, the CPU
    tensors `index`, `p_clean`, `selected`, `predicted` and `confidence` (n,), the softmax of logits_pos at the
    predicted class. Raises NonFinite.
    """
    model.train()
    start, losses, seen = time.perf_counter(), [], []
    bar = _bar(batches, title)
    for step, (images, labels, index) in enumerate(bar):
        with amp() if amp else autocast(images.device, "fp32"):
            logits_pos, logits_neg = _run(model, images)  # (B, K)
        p_yes = clean_probability(logits_pos, logits_neg)
        selected, p_clean = select_clean(p_yes.detach(), labels, require_agreement)
        confidence, predicted = logits_pos.detach().softmax(1).max(1)
        everyone = torch.ones_like(selected)
        loss_cls = batch_mean((warmup_loss if warm else cross_entropy)(logits_pos, labels), everyone if warm else selected)
        targets = torch.where(selected, labels, predicted) if use_pseudo_labels else labels
        loss_neg = batch_mean(negative_prompt_loss(p_yes, complementary_labels[index], targets, neg_weight), everyone)
        loss = loss_cls + loss_neg
        _step(loss, optimizer, scaler)
        losses.append(torch.stack([loss, loss_cls, loss_neg]).detach() * total(everyone.sum()))
        seen.append((index, p_clean, selected, predicted, confidence))
        if _watched(bar, step):
            numbers = {"loss": f"{loss.item():.3f}"}
            if is_clean is not None:
                clean, kept = (torch.cat(x) for x in zip(*((is_clean[i], s) for i, _, s, *_ in seen[-20:])))
                hits = 100 * (clean & kept).sum()
                numbers |= {"precision": f"{hits / kept.sum():.1f}", "recall": f"{hits / clean.sum():.1f}"}
            bar.set_postfix(numbers)
    index, p_clean, selected, predicted, confidence = gather(*(torch.cat(column).cpu() for column in zip(*seen)))
    losses = total(torch.stack(losses)).cpu()
    _check_finite(losses[:, 0], title)
    loss, loss_cls, loss_neg = (losses.sum(0) / len(index)).tolist()
    return {"loss": loss, "loss_cls": loss_cls, "loss_neg": loss_neg, "seconds": time.perf_counter() - start,
            "index": index, "p_clean": p_clean, "selected": selected, "predicted": predicted, "confidence": confidence}


def train_classifier_epoch(model, batches, optimizer, loss, *, clean_mask=None, batch_mask=None, amp=None, scaler=None,
                           title="train"):
    """One epoch of phase 2 or of a baseline: in each batch the mean of loss(logits, labels, index) over its clean samples.

    batches may hold all samples, then clean_mask (N,) bool picks; or only the clean ones (Loader.train(keep=…)), then
    clean_mask is None. batch_mask(losses (B,)) -> (B,) bool picks further inside each batch. A batch without a clean
    sample has loss 0 and the step is still taken: momentum and weight decay act.

    Returns `loss` (mean over the batches with a clean sample), `samples` trained on, `seconds` and, in visiting order,
    the CPU tensors `index`, `kept`, `losses` (per sample), `predicted` and its probability `confidence` (n,).
    Raises NonFinite.
    """
    model.train()
    start, batch_losses, counts, seen = time.perf_counter(), [], [], []
    bar = _bar(batches, title)
    for step, (images, labels, index) in enumerate(bar):
        with amp() if amp else autocast(images.device, "fp32"):
            logits = _run(model, images).float()  # (B, K)
        losses = loss(logits, labels, index)
        kept = torch.ones_like(labels, dtype=torch.bool) if clean_mask is None else clean_mask[index]
        if batch_mask is not None:
            kept = kept & batch_mask(losses)
        batch_loss = batch_mean(losses, kept)
        confidence, predicted = logits.detach().softmax(1).max(1)
        seen.append((index, kept, losses.detach(), predicted, confidence))
        _step(batch_loss, optimizer, scaler)
        batch_losses.append(batch_loss.detach())
        counts.append(kept.sum())
        if _watched(bar, step):
            bar.set_postfix(loss=f"{batch_loss.item():.3f}")
    batch_losses, counts = total(torch.stack(batch_losses)).cpu(), total(torch.stack(counts)).cpu()
    _check_finite(batch_losses, title)
    columns = gather(*(torch.cat(column).cpu() for column in zip(*seen)))
    return {"loss": batch_losses.sum().item() / max(int((counts > 0).sum()), 1), "samples": int(counts.sum()),
            "seconds": time.perf_counter() - start,
            **dict(zip(("index", "kept", "losses", "predicted", "confidence"), columns))}


@torch.no_grad()
def score_samples(predict, batches, amp=None, title="score"):
    """Losses, predicted class and its probability, (N,) each, of every sample of un-augmented, ordered batches.

    The losses are cross-entropy with the given labels. The caller puts the model into eval mode. CPU tensors.
    """
    seen = []
    for images, labels, index in _bar(batches, title):
        with amp() if amp else autocast(images.device, "fp32"):
            logits = predict(images).float()
        confidence, predicted = logits.softmax(1).max(1)
        seen.append((index, cross_entropy(logits, labels), predicted, confidence))
    losses, predicted, confidence = in_order(seen)
    _check_finite(losses, title)
    return losses, predicted, confidence


@torch.no_grad()
def evaluate(predict, batches, num_classes, amp=None, title="test"):
    """Accuracy in per cent, over the whole set and per class, of predict(images (B, 3, H, W)) -> logits (B, K).

    The caller puts the model into eval mode. Returns {"acc", "acc_per_class" (None for a class without images)}.
    """
    seen = []
    for images, labels, _ in _bar(batches, title):
        with amp() if amp else autocast(images.device, "fp32"):
            logits = predict(images)
        seen.append((labels, logits.argmax(1) == labels, logits.float().sum(1)))
    labels, hits, sums = gather(*(torch.cat(column).cpu() for column in zip(*seen)))
    _check_finite(sums, title)  # weights that went bad in the last step
    total_hits, count = (torch.bincount(labels, weights, num_classes).tolist() for weights in (hits.double(), None))
    return {"acc": 100 * hits.double().mean().item(),
            "acc_per_class": [100 * h / n if n else None for h, n in zip(total_hits, count)]}


def evaluate_all(predict, loaders, num_classes, amp=None):
    """Accuracy on every test set: {"accs": {"acc_test", "acc_<name>", …}, "acc_per_class": that of `test`, if any}."""
    results = {name: evaluate(predict, loader.eval(), num_classes, amp, name) for name, loader in loaders.items()}
    return {"accs": {f"acc_{name}": r["acc"] for name, r in results.items()},
            "acc_per_class": results["test"]["acc_per_class"] if "test" in results else None}
