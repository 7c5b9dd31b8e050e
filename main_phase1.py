"""DeFT, phase 1: learn the noisy-label detector and write the clean mask.

    python main_phase1.py --cfg config/PEFT/cifar100.yaml --noise_mode sym --noise_ratio 0.2
"""
import torch

from dataloader.datasets import load_data
from dataloader.loaders import EpochRandomness, make_loader, make_loaders
from model.classifier import build_optimizer
from model.clip import image_statistics, load_clip, resolution
from model.detector import Detector
from model.tuners import tune
from utils.checkpoint import load_checkpoint
from utils.config import load_config, settle_epochs
from utils.distributed import in_order, parallel, run_main
from utils.engine import (
    autocast,
    evaluate_all,
    grad_scaler,
    learning_rate,
    train_detector_epoch,
)
from utils.losses import cross_entropy, symmetric_cross_entropy
from utils.runs import Run, show, torch_generator
from utils.selection import clean_probability, precision_recall, select_clean

RECORDS = ("selected", "p_clean", "predicted", "confidence")  # of each sample, made on line
WARMUP_LOSS = {"ce": cross_entropy, "sce": symmetric_cross_entropy}


def main(argv=None, **settings):
    """Train the detector that the flags describe; returns the summary. `settings` are the script's own defaults.

    With `score`, the finished detector scores other labels and the summary is of those.
    """
    cfg = load_config(argv, __doc__, **settings)
    score, cfg.score = cfg.score, ""
    summary = train_detector(cfg, load_data(cfg))
    if score:
        cfg.score = score
        summary = score_labels(cfg, load_data(cfg))
    return summary


def build_detector(cfg, classnames, device):
    """The untrained Detector that `cfg` describes, on the device."""
    clip, tokenizer = load_clip(cfg.backbone, cfg.pretrained)
    generator = torch_generator(cfg.seed, 0)
    tune(clip.visual, cfg, generator)
    return Detector(clip, tokenizer, classnames, cfg.n_ctx, cfg.class_token_position, cfg.csc, generator, cfg.micro_batch,
                    cfg.checkpoint_text).to(device)


def train_detector(cfg, data):
    """Train the detector on a Dataset and write its clean mask; returns the summary."""
    settle_epochs(cfg, len(data.train.labels))
    run = Run(cfg, data, "deft")
    if run.summary:
        show(run.summary)
        return run.summary

    device = run.device
    model = build_detector(cfg, data.classnames, device)
    train, tests = make_loaders(data, cfg, resolution(model.clip, cfg), image_statistics(model.clip), device)
    if cfg.compile:
        model.clip.visual.compile()
    optimizer = build_optimizer(model, cfg)
    scaler, labels = grad_scaler(device, cfg.prec), data.train.labels
    is_clean = None if data.true_labels is None else data.true_labels == labels

    def amp():
        return autocast(device, cfg.prec)

    first, saved = run.resume(model, optimizer, scaler)
    trained = parallel(model)
    records = {k: saved.get(k) for k in RECORDS}
    for epoch in range(first, cfg.epochs + 1):
        randomness = EpochRandomness(cfg.seed, epoch, labels, data.num_classes)
        optimizer.param_groups[0]["lr"] = learning_rate(cfg.lr, epoch, cfg.epochs, cfg.schedule)
        result = train_detector_epoch(
            trained, train.train(randomness), randomness.complementary.to(device), optimizer, warm=epoch <= cfg.warmup,
            use_pseudo_labels=epoch >= (cfg.pseudo_from or cfg.warmup + 1), warmup_loss=WARMUP_LOSS[cfg.warmup_loss],
            neg_weight=cfg.neg_weight, require_agreement=cfg.require_agreement,
            is_clean=None if is_clean is None else torch.from_numpy(is_clean).to(device),
            amp=amp, scaler=scaler, title=f"epoch {epoch}/{cfg.epochs}")
        index = result.pop("index")
        for key in records:  # the mask is the selection of the last epoch, made on line (before each step)
            column = result.pop(key)
            records[key] = torch.empty_like(column).index_copy_(0, index, column)
        model.eval()
        with torch.no_grad(), amp():
            predict = model.classifier()
        accuracy = evaluate_all(predict, tests, data.num_classes, amp)
        mask = records["selected"].numpy()
        quality = {} if is_clean is None else precision_recall(mask, is_clean)
        run.end_epoch({"epoch": epoch, "images": len(labels), **result, "selected": float(mask.mean()), **quality,
                       **accuracy["accs"], "lr": optimizer.param_groups[0]["lr"]},
                      model, optimizer, scaler, **records, acc_per_class=accuracy["acc_per_class"])
        saved = {"acc_per_class": accuracy["acc_per_class"]}

    quality = run.save_selection(data, *(records[k].numpy() for k in RECORDS))
    summary = run.finish(data, {**quality, "acc_per_class": saved["acc_per_class"]})
    show(summary)
    if data.test and summary["acc_last"] < 0.8 * summary["acc_best"]:
        print(f"warning: the test accuracy fell from {summary['acc_best']:.1f} to {summary['acc_last']:.1f}: the training "
              "has probably failed, and this mask should not be used. More warmup, more epochs or a lower lr may help.")
    run.say_where()
    return summary


@torch.no_grad()
def score_labels(cfg, data):
    """The finished detector's opinion of the labels of a Dataset that it was not trained on, on un-augmented images.

    Written as a run is, to <run>/score-<name>/; returns the summary.
    """
    run = Run(cfg, data, "deft")
    if run.summary:
        show(run.summary)
        return run.summary
    model = build_detector(cfg, data.classnames, run.device)
    load_checkpoint(run.folder.parent / "checkpoint.pt", model)
    model.eval()
    loader = make_loader(data.train, data.view, cfg, resolution(model.clip, cfg), image_statistics(model.clip), run.device,
                         augmented=False)
    seen = []
    with autocast(run.device, cfg.prec):
        predict = model.pair_classifier()
        for images, labels, index in loader.eval():
            logits_pos, logits_neg = predict(images)
            p_yes = clean_probability(logits_pos, logits_neg)
            confidence, predicted = logits_pos.softmax(1).max(1)
            seen.append((index, *select_clean(p_yes, labels, cfg.require_agreement), predicted, confidence))
    quality = run.save_selection(data, *(column.numpy() for column in in_order(seen)))
    summary = run.finish(data, quality)
    show(summary)
    run.say_where()
    return summary


if __name__ == "__main__":
    run_main(main)
