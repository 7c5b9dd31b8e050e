"""Fine-tuning of a classifier with a label-noise method, on all samples or on a clean mask: phase 2 and baselines."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from dataloader.dataset import Dataset
from dataloader.loaders import make_loaders
from methods.loops import evaluate_all, learning_rate
from methods.method import Method, Training
from methods.moving_average import MovingAverage
from methods.selection import histograms
from model.classifier import build_optimizer, frozen
from model.saved import save_classifier
from utils.checkpoint import trained_state
from utils.config import whole_numbers
from utils.device import Amp
from utils.distributed import average_statistics, parallel, rank
from utils.errors import UserError
from utils.runs import Run


def milestones_of(cfg: SimpleNamespace) -> list[int]:
    """The epochs after which `schedule: steps` lowers the learning rate; UserError if it has none."""
    milestones = whole_numbers(cfg.milestones, "milestones")
    if cfg.schedule == "steps" and not milestones:
        raise UserError("schedule: steps needs milestones, e.g. --milestones 5,8; without, the learning rate stays.")
    return milestones


def fine_tune(
    cfg: SimpleNamespace, data: Dataset, run: Run, method: Method, clean_mask: np.ndarray | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
    """Train and evaluate a classifier for all epochs of a Run, and save it in the run's folder.

    method: a methods.method.Method; clean_mask (N,) bool numpy: the samples to train on, None for all. Returns numbers
    for the summary and, if the method selects samples, the selection of its last epoch (`mask`, `p_clean`, `predicted`,
    `confidence`, (N,) numpy), else None.
    """
    device, milestones = run.device, milestones_of(cfg)
    model, pixels = method.build(data)
    train, tests = make_loaders(data, cfg, pixels, device)
    model.to(device)
    optimizer, amp = build_optimizer(model, cfg), Amp(device, cfg.prec)
    averaged = MovingAverage(model, cfg.ema, optimizer) if cfg.ema else None
    final = model if averaged is None else averaged.network
    if cfg.compile:
        model.compile()
    method.to(device)
    first, saved = run.resume(model, optimizer, amp.scaler)
    if saved:
        method.load_state_dict(saved["method"])
        if averaged:
            averaged.resume(saved["averaged"])
    else:
        method.prepare(model, train, amp)
    training = Training(model, parallel(model), train, optimizer, amp, data.num_classes, clean_mask, averaged)
    selection = saved.get("selection")
    for epoch in range(first, cfg.epochs + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(cfg.lr, *method.stage(epoch), cfg.schedule, milestones)
        result, selection = method.train_epoch(epoch, training)
        average_statistics(model)
        if averaged:  # its statistics are those of this process's model before they were averaged
            average_statistics(final)
        with amp():
            predict = frozen(final)
        accuracy = evaluate_all(predict, tests, data.num_classes, amp)
        saved = {"acc_per_class": accuracy["acc_per_class"]}
        line = {"epoch": epoch, "images": result.pop("samples"), **result}
        if method.selects and selection:
            line["p_clean"] = histograms(selection["p_clean"].numpy(), data.known())
        run.end_epoch(
            line | accuracy["accs"] | {"lr": optimizer.param_groups[0]["lr"]},
            model,
            optimizer,
            amp.scaler,
            method=method.state_dict(),
            selection=selection,
            averaged=trained_state(averaged.network) if averaged else None,
            **saved,
        )
    if rank() == 0:
        save_classifier(run.folder, final, cfg, data, pixels)
    numbers = {"acc_per_class": saved["acc_per_class"]}
    if not method.selects or selection is None:
        return numbers, None
    return numbers, {k: selection[k].numpy() for k in ("mask", "p_clean", "predicted", "confidence")}
