"""DeFT, phase 1: building, training and applying the noisy-label detector (DeFT, section 3)."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.special import logit
from torch import Tensor, nn

from dataloader.dataset import Dataset
from dataloader.loaders import EpochRandomness, make_loader, make_loaders
from methods.detectors import DETECTORS, run_detector
from methods.loops import check_finite, evaluate_all, learning_rate, progress, run_batch, watched
from methods.losses import batch_mean, cross_entropy, negative_prompt_loss, symmetric_cross_entropy
from methods.selection import clean_probability, histograms, margins, precision_recall, select_clean, two_groups
from model.classifier import TextClassifier, build_optimizer
from model.clip import input_pixels, load_clip
from model.detector import Detector, with_prompts
from model.graphs import recorded_encoders
from model.saved import save_classifier
from model.tuners import tune
from utils.checkpoint import load_checkpoint
from utils.config import recorded_settings
from utils.device import Amp, torch_generator
from utils.distributed import gather, in_order, parallel, total
from utils.errors import UserError, pick
from utils.runs import Run, own_files
from utils.summaries import read_summary

# per sample, recorded during the training pass; margin: the positive logit of the label minus the best other one
RECORDS = ("mask", "p_clean", "predicted", "confidence", "margin")
WARMUP_LOSS = {"ce": cross_entropy, "sce": symmetric_cross_entropy}


@dataclass(frozen=True)
class Rules:
    """How samples are selected and which losses apply in one epoch of phase 1.

    While `warm`, the positive prompt minimises `warmup_loss` on all samples, afterwards cross-entropy on the selected
    samples. With `use_pseudo_labels`, the target of the negative prompt is the label of selected samples and
    argmax logits_pos of the others; without, it is always the label. `neg_weight` weights this term. With
    `require_agreement`, a selected sample must also have argmax p_yes = label.
    """

    warm: bool
    use_pseudo_labels: bool
    warmup_loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    neg_weight: float = 1.0
    require_agreement: bool = False


def epoch_rules(cfg: SimpleNamespace, epoch: int) -> Rules:
    """The Rules of epoch 1 … epochs."""
    return Rules(
        warm=epoch <= cfg.warmup,
        use_pseudo_labels=epoch >= (cfg.pseudo_from or cfg.warmup + 1),
        warmup_loss=WARMUP_LOSS[cfg.warmup_loss],
        neg_weight=cfg.neg_weight,
        require_agreement=cfg.require_agreement,
    )


def train_detector_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    complementary_labels: Tensor,
    optimizer: torch.optim.Optimizer,
    rules: Rules,
    amp: Amp,
    is_clean: Tensor | None = None,
    title: str = "train",
) -> dict[str, Any]:
    """One epoch of phase 1 with loss = cls + neg (methods/losses.py); samples are selected before each step.

    batches: (images (B, 3, H, W), labels (B,), index (B,)); complementary_labels (N,) per sample; is_clean (N,) bool, if
    known, is used for the progress bar only.

    Returns `loss`, `loss_cls` and `loss_neg`, averaged over the samples; `seconds`; and CPU tensors (n,) in the order
    visited: `index` and RECORDS; `confidence` is the softmax of logits_pos at the predicted class. Raises NonFinite.
    """
    model.train()
    start, losses, seen = time.perf_counter(), [], []
    bar = progress(batches, title)
    for step, (images, labels, index) in enumerate(bar):
        with amp():
            logits_pos, logits_neg = run_batch(model, images)  # (B, K)
        p_yes = clean_probability(logits_pos, logits_neg)
        record = _record(logits_pos.detach(), p_yes.detach(), labels, rules.require_agreement)
        selected, _, predicted, *_ = record
        loss_cls, loss_neg = _losses(logits_pos, p_yes, labels, complementary_labels[index], selected, predicted, rules)
        loss = loss_cls + loss_neg
        amp.step(loss, optimizer)
        losses.append(torch.stack([loss, loss_cls, loss_neg]).detach() * total(torch.ones_like(selected).sum()))
        seen.append((index, *record))
        if watched(bar, step):
            bar.set_postfix({"loss": f"{loss.item():.3f}"} | _recent_quality(seen[-20:], is_clean))
    index, *records = gather(seen)
    sums = total(torch.stack(losses)).cpu()
    check_finite(sums[:, 0], title)
    averages = dict(zip(("loss", "loss_cls", "loss_neg"), (sums.sum(0) / len(index)).tolist()))
    return averages | {"seconds": time.perf_counter() - start, "index": index, **dict(zip(RECORDS, records))}


def _record(logits_pos: Tensor, p_yes: Tensor, labels: Tensor, require_agreement: bool) -> tuple[Tensor, ...]:
    """RECORDS (B,) of a batch, from logits and p_yes (B, K), and labels (B,)."""
    selected, p_clean = select_clean(p_yes, labels, require_agreement)
    confidence, predicted = logits_pos.softmax(1).max(1)
    return selected, p_clean, predicted, confidence, margins(logits_pos.float(), labels)


def _losses(
    logits_pos: Tensor,
    p_yes: Tensor,
    labels: Tensor,
    complementary_labels: Tensor,
    selected: Tensor,
    predicted: Tensor,
    rules: Rules,
) -> tuple[Tensor, Tensor]:
    """The losses cls and neg of a batch."""
    everyone = torch.ones_like(selected)
    if rules.warm:
        loss_cls = batch_mean(rules.warmup_loss(logits_pos, labels), everyone)
    else:
        loss_cls = batch_mean(cross_entropy(logits_pos, labels), selected)
    targets = torch.where(selected, labels, predicted) if rules.use_pseudo_labels else labels
    return loss_cls, batch_mean(negative_prompt_loss(p_yes, complementary_labels, targets, rules.neg_weight), everyone)


def _recent_quality(seen: Sequence[tuple[Tensor, ...]], is_clean: Tensor | None) -> dict[str, str]:
    """Precision and recall of the selection in the last batches, for the progress bar; {} if the truth is unknown."""
    if is_clean is None:
        return {}
    clean, kept = (torch.cat(x) for x in zip(*((is_clean[index], mask) for index, mask, *_ in seen)))
    hits = 100 * (clean & kept).sum()
    return {"precision": f"{hits / kept.sum():.1f}", "recall": f"{hits / clean.sum():.1f}"}


def build_detector(cfg: SimpleNamespace, classnames: list[str], device: torch.device) -> Detector:
    """The untrained Detector described by `cfg`, on the device."""
    clip, tokenizer = load_clip(cfg.backbone, cfg.pretrained)
    generator = torch_generator(cfg.seed, 0)
    tune(clip.visual, cfg, generator)
    return with_prompts(clip, tokenizer, cfg, classnames, generator).to(device)


def train_detector(cfg: SimpleNamespace, data: Dataset, run: Run) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Train the detector on a Dataset for all epochs of a Run; returns its selection and numbers for the summary.

    The selection (`mask`, `p_clean`, `predicted`, `confidence`, (N,) numpy) follows from the records of the last epochs
    by `mask_by`, `mask_view`, `mask_epochs` and `agree_with`. By default, as published, it is the one made during the last
    epoch, before each step.
    """
    if cfg.agree_with:
        pick(DETECTORS, cfg.agree_with, "agree_with")
    if cfg.schedule == "steps":
        raise UserError("schedule: steps is for phase 2 and baselines; phase 1 has cosine and constant.")
    if cfg.warmup >= cfg.epochs:
        print(f"warmup: {cfg.warmup} leaves none of the epochs ({cfg.epochs}) to train on the selected labels alone")
    records, numbers = train_with_records(cfg, data, run)
    return agreed_selection(records, data, cfg, run.device), numbers


def train_with_records(cfg: SimpleNamespace, data: Dataset, run: Run) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The training of train_detector; returns {RECORDS: (E, N) numpy} of the last `mask_epochs` epochs, and the numbers."""
    device, labels = run.device, data.train.labels
    model = build_detector(cfg, data.classnames, device)
    train, tests = make_loaders(data, cfg, input_pixels(model.clip, cfg), device)
    if cfg.compile:
        model.clip.visual.compile()
    optimizer, amp = build_optimizer(model, cfg), Amp(device, cfg.prec)
    known = data.known()
    on_device = None if data.true_labels is None or known is None else torch.from_numpy(known[1]).to(device)
    first, saved = run.resume(model, optimizer, amp.scaler)
    trained, recent = parallel(model), saved.get("recent", {})
    if saved and not all(key in recent and recent[key].shape[1:] == labels.shape for key in RECORDS):
        raise UserError(
            f"{run.folder / 'checkpoint.pt'}: not a checkpoint of this version; delete its folder to start over."
        )
    with recorded_encoders(model, cfg, train, amp):
        for epoch in range(first, cfg.epochs + 1):
            randomness = EpochRandomness(cfg.seed, epoch, labels, data.num_classes)
            optimizer.param_groups[0]["lr"] = learning_rate(cfg.lr, epoch, cfg.epochs, cfg.schedule)
            result = train_detector_epoch(
                trained,
                train.train(randomness),
                randomness.complementary.to(device),
                optimizer,
                epoch_rules(cfg, epoch),
                amp,
                on_device,
                title=f"epoch {epoch}/{cfg.epochs}",
            )
            order = result.pop("index").argsort()
            records = {key: result.pop(key)[order] for key in RECORDS}
            model.eval()
            if cfg.mask_view == "eval" and epoch > cfg.epochs - cfg.mask_epochs:
                records = score_records(model, cfg, data, device)
            recent = {k: torch.cat([recent.get(k, v[:0]), v[None]])[-cfg.mask_epochs :] for k, v in records.items()}
            with torch.no_grad(), amp():
                predict = model.classifier()
            accuracy = evaluate_all(predict, tests, data.num_classes, amp)
            mask = records["mask"].numpy()
            quality = {} if known is None else precision_recall(mask[known[0]], known[1])
            saved = {"acc_per_class": accuracy["acc_per_class"]}
            line = dict[str, Any](epoch=epoch, images=len(labels), **result, selected=float(mask.mean()), **quality)
            line |= {"p_clean": histograms(records["p_clean"].numpy(), known), **accuracy["accs"]}
            line |= {"lr": optimizer.param_groups[0]["lr"]}
            run.end_epoch(line, model, optimizer, amp.scaler, recent=recent, **saved)
    return {k: v.numpy() for k, v in recent.items()}, {"acc_per_class": saved["acc_per_class"]}


def final_selection(records: dict[str, np.ndarray], labels: np.ndarray, cfg: SimpleNamespace) -> dict[str, np.ndarray]:
    """The selection (`mask`, `p_clean`, `predicted`, `confidence`, (N,) numpy) from {RECORDS: (E, N)} of the last epochs.

    By `mask_by`: `pair`, the published rule, p_clean > 0.5, of several epochs their mean (and with require_agreement, in
    most of them); `positive`, the positive prompts predict the label; `margin`, the upper of two groups of the mean margin;
    `threshold`, the upper of two groups of logit(p_clean).
    """
    last = {k: v[-1] for k, v in records.items()}
    p_clean, seed = records["p_clean"].mean(0), cfg.seed
    if cfg.mask_by == "positive":
        mask = last["predicted"] == labels
    elif cfg.mask_by == "pair":
        mask = last["mask"] if len(records["mask"]) == 1 else p_clean > 0.5
        if cfg.require_agreement:
            mask = mask & (records["mask"].mean(0) > 0.5)
    else:
        margin = records["margin"].mean(0)
        p_clean = two_groups(margin if cfg.mask_by == "margin" else logit(p_clean.clip(1e-6, 1 - 1e-6)), seed)
        mask = p_clean > 0.5
    return {"mask": mask, "p_clean": p_clean, "predicted": last["predicted"], "confidence": last["confidence"]}


def agreed_selection(
    records: dict[str, np.ndarray], data: Dataset, cfg: SimpleNamespace, device: torch.device
) -> dict[str, np.ndarray]:
    """final_selection of the training images of a Dataset, in which `agree_with`, where given, must trust a label too."""
    selection = final_selection(records, data.train.labels, cfg)
    if cfg.agree_with:
        settings = SimpleNamespace(**vars(cfg) | {"detector": cfg.agree_with})
        selection = trusted_by_both(selection, run_detector(settings, data, device)[0])
    return selection


def trusted_by_both(selection: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A selection in which a label must also be trusted by the `other`; p_clean is the mean of both."""
    p_clean = (selection["p_clean"] + other["p_clean"]) / 2
    return selection | {"mask": selection["mask"] & other["mask"], "p_clean": p_clean}


@torch.no_grad()
def score_records(model: Detector, cfg: SimpleNamespace, data: Dataset, device: torch.device) -> dict[str, Tensor]:
    """{RECORDS: (N,)} CPU tensors of the training images of a Dataset, un-augmented; the model is in eval mode."""
    loader = make_loader(data.train, data.view, cfg, input_pixels(model.clip, cfg), device, augmented=False)
    seen, amp = [], Amp(device, cfg.prec)
    with amp():
        predict = model.pair_classifier()
        for images, labels, index in progress(loader.eval(), "score"):
            logits_pos, logits_neg = predict(images)
            p_yes = clean_probability(logits_pos, logits_neg)
            seen.append((index, *_record(logits_pos, p_yes, labels, cfg.require_agreement)))
    return dict(zip(RECORDS, in_order(seen)))


def score_labels(cfg: SimpleNamespace, data: Dataset, run: Run) -> dict[str, np.ndarray]:
    """Apply a finished detector to the labels of a Dataset it was not trained on, with un-augmented images.

    run: the Run of these scores, inside the folder of the detector's run. Returns a selection as train_detector does.
    """
    model = load_detector(run.folder.parent, cfg, data, run.device)
    records = score_records(model, cfg, data, run.device)
    return agreed_selection({k: v[None].numpy() for k, v in records.items()}, data, cfg, run.device)


def load_detector(folder: Path, cfg: SimpleNamespace, data: Dataset, device: torch.device) -> Detector:
    """The trained detector of a finished phase 1 in `folder`, in eval mode; cfg: its settings.

    UserError if it was trained behind other class names than those of `data`, or on other weights than there are now.
    """
    trained_with = read_summary(folder / "summary.json").get("identity", {})
    if trained_with.get("class names") not in (None, data.identity["class names"]):
        raise UserError(f"classnames: {folder} was trained with other class names.")
    if trained_with.get("weights") not in (None, own_files(cfg).get("weights")):
        raise UserError(f"backbone: the weights of {cfg.backbone} have changed since {folder} was trained.")
    model = build_detector(cfg, data.classnames, device)
    load_checkpoint(folder / "checkpoint.pt", model)
    return model.eval()


def save_text_classifier(folder: Path, detector_run: Path, data: Dataset, device: torch.device) -> None:
    """Save the positive prompts of a finished phase 1 in `folder` as a classifier, see model.saved.save_classifier."""
    cfg = SimpleNamespace(**recorded_settings(detector_run / "config.yaml"))
    model = load_detector(detector_run, cfg, data, device)
    save_classifier(folder, TextClassifier(model), cfg, data, input_pixels(model.clip, cfg))
