"""MixFix, the training of CLIPCleaner: the network's predictions extend a clean mask."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataloader.loaders import ViewBatch
from methods.losses import batch_mean, cross_entropy, one_hot
from methods.method import Training
from methods.semi_supervised import Forward, Outputs, SemiSupervised, mixup


class MixFix(SemiSupervised):
    """MixFix, CLIPCleaner's training (Feng et al., ACM MM 2024): the network's predictions extend a clean mask.

    The first epoch trains on the samples of `mask`, later epochs also on those that absorb_and_relabel adds (theta_r,
    theta_r2). Classes are sampled evenly, with floor(N / batch_size) batches per epoch; one strong view (`strong_view`),
    MixUp with Beta(b, b), b = `mixup_beta`; cross-entropy; no warm-up.
    """

    pair, weak, strong, takes_mask = False, 0, 1, True

    def is_warm(self, epoch: int) -> bool:
        return False

    def train_epoch(self, epoch: int, training: Training) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        self.initial = torch.from_numpy(training.mask)
        return super().train_epoch(epoch, training)

    def divide(self, outputs: Outputs, labels: Tensor, epoch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        p = outputs.logits.softmax(-1).mean(0)
        thetas = (self.cfg.theta_r, self.cfg.theta_r2) if epoch > 1 else (torch.inf, torch.inf)
        fixed, self.selected = absorb_and_relabel(p, labels, self.initial, *thetas)
        self.plan, self.fixed = {"labels": fixed}, fixed.numpy()
        return self.selected & (fixed == labels), p.gather(1, labels[:, None])[:, 0]

    def order(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        batches = max(self.num_samples // self.cfg.batch_size, 1)
        length = min(batches * self.cfg.batch_size, self.num_samples)
        return class_balanced_order(self.fixed, self.selected.numpy(), length, rng)

    def step(self, run: Forward, batch: ViewBatch, part: float, epoch: int, rng: np.random.Generator) -> Tensor:
        targets = one_hot(self.plan["labels"][batch.index], self.num_classes)
        mixed = [mixup(batch.views[0], targets, self.cfg.mixup_beta, rng) for _ in range(self.count)]
        outs, everyone = run.train([images for images, _ in mixed]), torch.ones_like(batch.labels, dtype=torch.bool)
        losses = [cross_entropy(logits, target) for (logits, _), (_, target) in zip(outs, mixed)]
        return torch.stack([batch_mean(row, everyone) for row in losses]).sum()


def absorb_and_relabel(
    probabilities: Tensor, labels: Tensor, initial: Tensor, theta_r: float, theta_r2: float
) -> tuple[Tensor, Tensor]:
    """MixFix's update (CLIPCleaner, ACM MM 2024): (labels to train on (N,) int64, samples to train on (N,) bool).

    Takes the network's probabilities (N, K), the given labels (N,) and the initial selection (N,) bool. A sample predicted
    as its label joins if its confidence reaches theta_r. A sample predicted as another class is relabelled and joins if its
    confidence reaches theta_r2. The initial samples stay in; they can be relabelled, too.
    """
    confidence, predicted = probabilities.max(1)
    same = predicted == labels
    relabelled = ~same & (confidence >= theta_r2)
    return torch.where(relabelled, predicted, labels), initial | relabelled | (same & (confidence >= theta_r))


def class_balanced_order(labels: np.ndarray, selected: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """MixFix's sampler: `length` positions (int64, numpy) of selected samples (N,) bool in random order, classes balanced.

    Every class of labels (N,) is repeated, in successive permutations, up to the size of the largest class.
    """
    members = [np.flatnonzero(selected & (labels == k)) for k in np.unique(labels[selected])]
    largest = max(map(len, members))
    rounds = -(-length // (largest * len(members)))
    repeated = [
        np.concatenate([rng.permutation(m) for _ in range(-(-largest * rounds // len(m)))])[: largest * rounds]
        for m in members
    ]
    return rng.permutation(np.concatenate(repeated))[:length]
