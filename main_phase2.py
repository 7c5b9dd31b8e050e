"""DeFT, phase 2: fine-tune a backbone on the samples that the clean mask selects.

    python main_phase2.py --cfg config/FFT/cifar100.yaml --noise_mode sym --noise_ratio 0.2
"""
from pathlib import Path

import torch

from dataloader.datasets import label_hash, load_data
from dataloader.loaders import EpochRandomness, make_loaders
from model.classifier import build_classifier, build_optimizer
from utils.checkpoint import find_mask, load_mask
from utils.config import load_config, run_main
from utils.engine import autocast, evaluate, grad_scaler, learning_rate, train_classifier_epoch
from utils.losses import cross_entropy
from utils.runs import Run, backbone_name, show, slug, torch_generator
from utils.selection import precision_recall


def main(argv=None, **settings):
    """Fine-tune on the mask that the flags name; returns the summary. `settings` are the script's own defaults."""
    cfg = load_config(argv, __doc__, **settings)
    data = load_data(cfg)
    named = Path(cfg.mask)
    source = named.parent.name if named.name == "clean_mask.npz" else named.stem if named.suffix else cfg.mask
    run = Run(cfg, data, f"phase2-{slug(source)}-{backbone_name(cfg)}")
    if run.summary:
        show(run.summary)
        return run.summary

    path = find_mask(cfg.mask, run.seed_folder)
    mask = load_mask(path, data.train.labels, cfg.dataset, data.noise_name, cfg.seed)
    run.identity += f"-{label_hash(mask)}"
    numbers = {"mask": str(path), "selected": float(mask.mean())}
    if data.true_labels is not None:
        numbers |= precision_recall(mask, data.true_labels == data.train.labels)
    print(f"training on {mask.sum()} of {len(mask)} samples ({path})")
    return fine_tune(cfg, data, run, cross_entropy, mask, numbers)


def fine_tune(cfg, data, run, loss, clean_mask=None, numbers=None):
    """Train and evaluate the classifier of `cfg` for all epochs of a run and write its summary, which is returned.

    clean_mask (N,) bool numpy: the samples to train on, None for all; `numbers` go into the summary as they are.
    """
    device = run.device
    model, pixels, statistics = build_classifier(cfg, data.num_classes, torch_generator(cfg.seed, 0))
    train, test = make_loaders(data, cfg, pixels, statistics, device)
    model.to(device)
    optimizer, scaler = build_optimizer(model, cfg), grad_scaler(device, cfg.prec)
    # unselected samples need not run through the network, unless its batch-norm statistics are to see them
    in_loss = torch.from_numpy(clean_mask).to(device) if cfg.full_batch and clean_mask is not None else None
    keep = None if cfg.full_batch else clean_mask

    first, accuracy = run.resume(model, optimizer, scaler)
    for epoch in range(first, cfg.epochs + 1):
        randomness = EpochRandomness(cfg.seed, epoch, data.train.labels, data.num_classes)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(cfg.lr, epoch, cfg.epochs, cfg.schedule)
        result = train_classifier_epoch(model, train.train(randomness, keep), optimizer, loss, clean_mask=in_loss,
                                        amp=lambda: autocast(device, cfg.prec), scaler=scaler,
                                        title=f"epoch {epoch}/{cfg.epochs}")
        model.eval()
        accuracy = evaluate(model, test.eval(), data.num_classes, lambda: autocast(device, cfg.prec))
        run.end_epoch({"epoch": epoch, "images": result.pop("samples"), **result, "acc_test": accuracy["acc"],
                       "lr": optimizer.param_groups[0]["lr"]},
                      model, optimizer, scaler, acc_per_class=accuracy["acc_per_class"])
    summary = run.finish(data, {**(numbers or {}), "acc_per_class": accuracy["acc_per_class"]})
    show(summary)
    print(f"results: {run.folder}")
    return summary


if __name__ == "__main__":
    run_main(main)
