"""DeFT, phase 2: fine-tune a backbone on the samples that the clean mask selects.

    python main_phase2.py --cfg config/FFT/cifar100.yaml --noise_mode sym --noise_ratio 0.2
"""
import json
from pathlib import Path

import torch

from dataloader.datasets import load_data
from dataloader.loaders import EpochRandomness, make_loaders
from model.classifier import build_classifier, build_optimizer, frozen
from model.saved import save_classifier
from utils.baselines import METHODS
from utils.checkpoint import find_mask, load_mask
from utils.config import UserError, load_config, settle_epochs
from utils.distributed import average_statistics, merged_buffers, parallel, rank, run_main
from utils.engine import (
    autocast,
    evaluate_all,
    grad_scaler,
    learning_rate,
    score_samples,
    train_classifier_epoch,
)
from utils.runs import Run, backbone_name, seed_folder, show, slug, torch_generator
from utils.selection import precision_recall


def main(argv=None, **settings):
    """Fine-tune on the mask that the flags name; returns the summary. `settings` are the script's own defaults."""
    cfg = load_config(argv, __doc__, **settings)
    refuse_score(cfg)
    data = load_data(cfg)
    settle_epochs(cfg, len(data.train.labels))
    named = Path(cfg.mask)
    source = named.parent.name if named.name == "clean_mask.npz" else named.stem if named.suffix else cfg.mask
    path = find_mask(cfg.mask, seed_folder(cfg, data))
    mask = load_mask(path, data.train.labels, cfg.dataset, data.noise_name, cfg.seed)
    run = Run(cfg, data, "-".join(filter(None, ["phase2", slug(source), backbone_name(cfg), cfg.adaptation])), mask)
    if run.summary:
        show(run.summary)
        return run.summary

    numbers = {"mask": str(path), "selected": float(mask.mean())}
    if data.true_labels is not None:
        numbers |= precision_recall(mask, data.true_labels == data.train.labels)
    if cfg.adaptation == "none":
        summary = run.finish(data, {**numbers, **text_classifier(path)})
        show(summary)
        return summary
    print(f"training on {mask.sum()} of {len(mask)} samples ({path})")
    return fine_tune(cfg, data, run, METHODS["CE"](cfg, len(mask), data.num_classes), mask, numbers)


def text_classifier(mask_path):
    """The test accuracies of phase 1's text classifier, from the record of the run that made the mask."""
    record = mask_path.parent / "summary.json"
    if not record.is_file():
        raise UserError(f"adaptation: none shows the accuracy of phase 1, but there is no finished run beside {mask_path}.")
    summary = json.loads(record.read_text(encoding="utf-8"))
    return {k: v for k, v in summary.items() if k.startswith("acc_")}


def refuse_score(cfg):
    """UserError where a script that is no detector is asked to score labels."""
    if cfg.score:
        raise UserError("score: only a detector scores labels (main_phase1.py, main_detect.py).")


def selection_by_batch(result):
    """Take the samples' columns out of an epoch's result: the choices made in each batch; p_clean is the label's chance."""
    index, kept, losses, predicted, confidence = (
        result.pop(k) for k in ("index", "kept", "losses", "predicted", "confidence"))
    back = index.argsort()
    return {"kept": kept[back], "p_clean": (-losses[back]).exp(), "predicted": predicted[back],
            "confidence": confidence[back]}


def fine_tune(cfg, data, run, method, clean_mask=None, numbers=None):
    """Train and evaluate the classifier of `cfg` for all epochs of a run and write its summary, which is returned.

    method: a utils.baselines.Method; clean_mask (N,) bool numpy: the samples to train on, None for all; `numbers` go
    into the summary as they are. A method that selects also leaves its last epoch's selection as clean_mask.npz.
    """
    device, labels = run.device, data.train.labels
    model, pixels, statistics = build_classifier(cfg, data, torch_generator(cfg.seed, 0))
    train, tests = make_loaders(data, cfg, pixels, statistics, device)
    model.to(device)
    if cfg.compile:
        model.compile()
    method.to(device)
    optimizer, scaler = build_optimizer(model, cfg), grad_scaler(device, cfg.prec)

    def amp():
        return autocast(device, cfg.prec)

    def score():
        with amp():
            predict = frozen(model)
        return score_samples(predict, train.eval(), amp)

    first, saved = run.resume(model, optimizer, scaler)
    if saved:
        method.load_state_dict(saved["method"])
    else:
        method.prepare(model, train, cfg.seed, amp)
    trained, selection = parallel(model), saved.get("selection")
    for epoch in range(first, cfg.epochs + 1):
        selection = method.epoch_selection(epoch, score)
        mask = clean_mask if selection is None else selection["kept"].numpy()
        randomness = EpochRandomness(cfg.seed, epoch, labels, data.num_classes)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(cfg.lr, epoch, cfg.epochs, cfg.schedule)
        # unselected samples need not run through the network, unless its batch-norm statistics are to see them
        keep, in_loss = (None, torch.from_numpy(mask).to(device)) if cfg.full_batch and mask is not None else (mask, None)
        with merged_buffers(method):
            result = train_classifier_epoch(trained, train.train(randomness, keep), optimizer, method, clean_mask=in_loss,
                                            batch_mask=method.batch_mask(epoch), amp=amp, scaler=scaler,
                                            title=f"epoch {epoch}/{cfg.epochs}")
        average_statistics(model)
        by_batch = selection_by_batch(result)
        if method.selects and selection is None:
            selection = by_batch
        with amp():
            predict = frozen(model)
        accuracy = evaluate_all(predict, tests, data.num_classes, amp)
        saved = {"acc_per_class": accuracy["acc_per_class"]}
        run.end_epoch({"epoch": epoch, "images": result.pop("samples"), **result, **accuracy["accs"],
                       "lr": optimizer.param_groups[0]["lr"]},
                      model, optimizer, scaler, method=method.state_dict(), selection=selection, **saved)
    numbers = dict(numbers or {})
    if method.selects:
        numbers |= run.save_selection(data, *(selection[k].numpy() for k in ("kept", "p_clean", "predicted", "confidence")))
    if rank() == 0:
        save_classifier(run.folder, model, cfg, data, pixels, statistics)
    summary = run.finish(data, {**numbers, "acc_per_class": saved["acc_per_class"]})
    show(summary)
    print(f"results: {run.folder}")
    return summary


if __name__ == "__main__":
    run_main(main)
