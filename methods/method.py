"""The interface of a label-noise learning method, used by methods/fine_tuning.py, and the default training epoch."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from dataloader.dataset import Dataset
from dataloader.loaders import EpochRandomness, Loader
from dataloader.transforms import Pixels
from methods.loops import check_finite, progress, run_batch, watched
from methods.losses import batch_mean, cross_entropy
from methods.moving_average import MovingAverage
from model.classifier import begin, build_classifier, frozen
from utils.device import Amp, torch_generator
from utils.distributed import gather, in_order, merged_buffers, total
from utils.errors import UserError


@dataclass
class Training:
    """What a method needs for training.

    model: the network; parallel: the same, with gradients averaged over the processes; mask (N,) bool numpy: the samples
    to train on, None for all.
    """

    model: Any  # nn.Module, or an ensemble of them
    parallel: nn.Module
    loader: Loader
    optimizer: torch.optim.Optimizer
    amp: Amp
    num_classes: int
    mask: np.ndarray | None = None
    averaged: MovingAverage | None = None  # the moving average of the weights, where there is one

    def start_again(self, weights: dict[str, Tensor]) -> None:
        """Forget what was trained: the model gets these weights (a state_dict), momentum and moving average begin anew."""
        self.model.load_state_dict(weights)
        begin(self.optimizer)
        if self.averaged:
            self.averaged.start_again()

    @torch.no_grad()
    def score(self) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, predicted classes and their probabilities, CPU tensors (N,), of the un-augmented training set."""
        with self.amp():
            predict = frozen(self.model)
        seen = []
        for images, labels, index in progress(self.loader.eval(), "score"):
            with self.amp():
                logits = predict(images).float()
            confidence, predicted = logits.softmax(1).max(1)
            seen.append((index, cross_entropy(logits, labels), predicted, confidence))
        losses, predicted, confidence = in_order(seen)
        check_finite(losses, "score")
        return losses, predicted, confidence


def train_classifier_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    amp: Amp,
    clean_mask: Tensor | None = None,
    batch_mask: Callable[[Tensor], Tensor] | None = None,
    title: str = "train",
) -> dict[str, Any]:
    """One epoch that minimises the mean of loss(logits (B, K), labels (B,), index (B,)) -> (B,) over clean samples.

    If batches contain all samples, clean_mask (N,) bool selects the clean ones; if they contain clean samples only
    (Loader.train(keep=…)), clean_mask is None. batch_mask(losses (B,)) -> (B,) bool selects further within each batch. A
    batch without a clean sample has loss 0; the optimizer still steps, so momentum and weight decay apply.

    Returns `loss` (mean over batches with a clean sample), `samples` (number trained on), `seconds`; and CPU tensors (n,)
    in the order visited: `index`, `mask`, `losses`, `predicted` and its probability `confidence`. Raises NonFinite.
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
    means, sizes = total(torch.stack(batch_losses)).cpu(), total(torch.stack(counts)).cpu()
    check_finite(means, title)
    columns = gather(seen)
    return {
        "loss": means.sum().item() / max(int((sizes > 0).sum()), 1),
        "samples": int(sizes.sum()),
        "seconds": time.perf_counter() - start,
        **dict(zip(("index", "mask", "losses", "predicted", "confidence"), columns)),
    }


def selection_by_batch(result: dict[str, Any]) -> dict[str, Tensor]:
    """Move the per-sample columns out of an epoch's result into a selection, where p_clean is the label's probability."""
    back = result.pop("index").argsort()
    p_clean = (-result.pop("losses")[back]).exp()
    return {name: result.pop(name)[back] for name in ("mask", "predicted", "confidence")} | {"p_clean": p_clean}


class Method(nn.Module):
    """A label-noise method: the loss of each sample, and which samples to train on.

    State that must survive a restart is a buffer.
    """

    selects = False  # whether the samples trained on in the last epoch are recorded as a clean mask
    takes_mask = False  # whether it starts from the clean mask given by `mask`

    def __init__(self, cfg: SimpleNamespace, num_samples: int, num_classes: int) -> None:
        super().__init__()
        self.cfg = cfg
        if cfg.adaptation == "none":
            raise UserError(f"adaptation: none is for phase 2 only; {type(self).__name__} needs peft or fft.")
        if self.is_warm(cfg.epochs):
            raise UserError(
                f"warmup: {cfg.warmup} leaves {type(self).__name__} no epoch to select in; epochs is {cfg.epochs}"
                f"{f' in stages, the last of {self.stage(cfg.epochs)[1]}' if self.stage(1)[1] < cfg.epochs else ''}."
            )

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """Losses (B,) of logits (B, K), given labels (B,) and positions in the training set (B,). Default: cross-entropy."""
        return cross_entropy(logits, labels)

    def build(self, data: Dataset) -> tuple[nn.Module, Pixels]:
        """The network that the method trains, and its input format (Pixels)."""
        return build_classifier(self.cfg, data, torch_generator(self.cfg.seed, 0))

    def prepare(self, model: nn.Module, loader: Loader, amp: Amp) -> None:
        """Called before the first epoch with the pre-trained network and the training set."""

    def epoch_selection(
        self, epoch: int, score: Callable[[], tuple[Tensor, Tensor, Tensor]]
    ) -> dict[str, Tensor] | None:
        """Called before an epoch: a selection (`mask`, the samples to train on, `p_clean`, `predicted`, `confidence`, (N,)
        each), or None to train on all samples.

        score() runs the network over the un-augmented training set: losses, predicted, confidence, CPU tensors (N,).
        """
        return None

    def batch_mask(self, epoch: int) -> Callable[[Tensor], Tensor] | None:
        """A function losses (B,) -> (B,) bool that selects samples within each batch, or None."""
        return None

    def is_warm(self, epoch: int) -> bool:
        """Whether the epoch belongs to a warm-up, which trains on all given labels. The last epoch must not."""
        return False

    def stage(self, epoch: int) -> tuple[int, int]:
        """(epoch, epochs) for the learning rate schedule; methods that train in stages override it."""
        return epoch, self.cfg.epochs

    def train_epoch(self, epoch: int, training: Training) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        """Train for one epoch, numbered from 1.

        Returns numbers for the log (`loss`, `samples`, `seconds`) and a selection of CPU tensors as from epoch_selection,
        or None.
        """
        loader, cfg = training.loader, self.cfg
        selection = self.epoch_selection(epoch, training.score)
        mask = training.mask if selection is None else selection["mask"].numpy()
        randomness = EpochRandomness(cfg.seed, epoch, loader.labels.cpu().numpy(), training.num_classes)
        # by default, unselected samples do not run through the network; full_batch includes them in batch statistics
        keep, in_loss = mask, None
        if cfg.full_batch and mask is not None:
            keep, in_loss = None, torch.from_numpy(mask).to(loader.device)
        with merged_buffers(self):
            result = train_classifier_epoch(
                training.parallel,
                loader.train(randomness, keep),
                training.optimizer,
                self,
                training.amp,
                in_loss,
                self.batch_mask(epoch),
                title=f"epoch {epoch}/{cfg.epochs}",
            )
        by_batch = selection_by_batch(result)
        return result, by_batch if self.selects and selection is None else selection
