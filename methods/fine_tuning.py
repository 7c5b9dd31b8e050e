"""Fine-tuning a classifier, on all samples or on a clean mask, by a label-noise method: phase 2 and the baselines."""

import time

import torch

from dataloader.loaders import EpochRandomness, make_loaders
from methods.loops import (
    check_finite,
    evaluate_all,
    learning_rate,
    progress,
    run_batch,
    score_samples,
    watched,
)
from methods.losses import batch_mean
from model.classifier import build_classifier, build_optimizer, frozen
from model.saved import save_classifier
from utils.device import Amp, torch_generator
from utils.distributed import average_statistics, gather, merged_buffers, parallel, rank, total


def train_classifier_epoch(model, batches, optimizer, loss, amp, clean_mask=None, batch_mask=None, title="train"):
    """One epoch: in each batch the mean of loss(logits (B, K), labels (B,), index (B,)) -> (B,) over its clean samples.

    batches may hold all samples, then clean_mask (N,) bool picks; or only the clean ones (Loader.train(keep=…)), then
    clean_mask is None. batch_mask(losses (B,)) -> (B,) bool picks further inside each batch. A batch without a clean
    sample has loss 0 and the step is still taken: momentum and weight decay act.

    Returns `loss` (mean over the batches with a clean sample), `samples` trained on, `seconds` and, in visiting order,
    the CPU tensors `index`, `mask`, `losses` (per sample), `predicted` and its probability `confidence` (n,).
    Raises NonFinite.
    """
    model.train()
    start, batch_losses, counts, seen = time.perf_counter(), [], [], []
    bar = progress(batches, title)
    for step, (images, labels, index) in enumerate(bar):
        with amp():
            logits = run_batch(model, images).float()  # (B, K)
        losses = loss(logits, labels, index)
        kept = torch.ones_like(labels, dtype=torch.bool) if clean_mask is None else clean_mask[index]
        if batch_mask is not None:
            kept = kept & batch_mask(losses)
        batch_loss = batch_mean(losses, kept)
        confidence, predicted = logits.detach().softmax(1).max(1)
        seen.append((index, kept, losses.detach(), predicted, confidence))
        amp.step(batch_loss, optimizer)
        batch_losses.append(batch_loss.detach())
        counts.append(kept.sum())
        if watched(bar, step):
            bar.set_postfix(loss=f"{batch_loss.item():.3f}")
    batch_losses, counts = total(torch.stack(batch_losses)).cpu(), total(torch.stack(counts)).cpu()
    check_finite(batch_losses, title)
    columns = gather(*(torch.cat(column).cpu() for column in zip(*seen)))
    return {
        "loss": batch_losses.sum().item() / max(int((counts > 0).sum()), 1),
        "samples": int(counts.sum()),
        "seconds": time.perf_counter() - start,
        **dict(zip(("index", "mask", "losses", "predicted", "confidence"), columns)),
    }


def selection_by_batch(result):
    """Take the samples' columns out of an epoch's result: the choices made in each batch; p_clean is the label's chance."""
    index, mask, losses, predicted, confidence = (
        result.pop(k) for k in ("index", "mask", "losses", "predicted", "confidence")
    )
    back = index.argsort()
    return {
        "mask": mask[back],
        "p_clean": (-losses[back]).exp(),
        "predicted": predicted[back],
        "confidence": confidence[back],
    }


def fine_tune(cfg, data, run, method, clean_mask=None):
    """Train and evaluate the classifier of `cfg` for all epochs of a Run, and leave it in the run's folder.

    method: a methods.method.Method; clean_mask (N,) bool numpy: the samples to train on, None for all. Returns numbers
    for the summary and, of a method that selects, its last epoch's selection (`mask`, `p_clean`, `predicted`,
    `confidence`, (N,) numpy), else None.
    """
    device, labels = run.device, data.train.labels
    model, pixels = build_classifier(cfg, data, torch_generator(cfg.seed, 0))
    train, tests = make_loaders(data, cfg, pixels, device)
    model.to(device)
    if cfg.compile:
        model.compile()
    method.to(device)
    optimizer, amp = build_optimizer(model, cfg), Amp(device, cfg.prec)

    def score():
        with amp():
            predict = frozen(model)
        return score_samples(predict, train.eval(), amp)

    first, saved = run.resume(model, optimizer, amp.scaler)
    if saved:
        method.load_state_dict(saved["method"])
    else:
        method.prepare(model, train, cfg.seed, amp)
    trained, selection = parallel(model), saved.get("selection")
    for epoch in range(first, cfg.epochs + 1):
        selection = method.epoch_selection(epoch, score)
        mask = clean_mask if selection is None else selection["mask"].numpy()
        randomness = EpochRandomness(cfg.seed, epoch, labels, data.num_classes)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(cfg.lr, epoch, cfg.epochs, cfg.schedule)
        # unselected samples need not run through the network, unless its batch-norm statistics are to see them
        keep, in_loss = (
            (None, torch.from_numpy(mask).to(device)) if cfg.full_batch and mask is not None else (mask, None)
        )
        with merged_buffers(method):
            result = train_classifier_epoch(
                trained,
                train.train(randomness, keep),
                optimizer,
                method,
                amp,
                in_loss,
                method.batch_mask(epoch),
                title=f"epoch {epoch}/{cfg.epochs}",
            )
        average_statistics(model)
        by_batch = selection_by_batch(result)
        if method.selects and selection is None:
            selection = by_batch
        with amp():
            predict = frozen(model)
        accuracy = evaluate_all(predict, tests, data.num_classes, amp)
        saved = {"acc_per_class": accuracy["acc_per_class"]}
        run.end_epoch(
            {
                "epoch": epoch,
                "images": result.pop("samples"),
                **result,
                **accuracy["accs"],
                "lr": optimizer.param_groups[0]["lr"],
            },
            model,
            optimizer,
            amp.scaler,
            method=method.state_dict(),
            selection=selection,
            **saved,
        )
    if rank() == 0:
        save_classifier(run.folder, model, cfg, data, pixels)
    if method.selects:
        selection = {k: selection[k].numpy() for k in ("mask", "p_clean", "predicted", "confidence")}
    return {"acc_per_class": saved["acc_per_class"]}, selection if method.selects else None
