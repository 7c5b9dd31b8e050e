"""MixFix, the training of CLIPCleaner: the network's predictions extend a clean mask."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataloader.loaders import Views
from methods.division import absorb_and_relabel, class_balanced_order
from methods.losses import batch_mean, one_hot, soft_cross_entropy
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

    def step(self, run: Forward, batch: Views, part: float, epoch: int, rng: np.random.Generator) -> Tensor:
        targets = one_hot(self.plan["labels"][batch.index], self.num_classes)
        mixed = [mixup(batch.views[0], targets, self.cfg.mixup_beta, rng) for _ in range(self.count)]
        outs, everyone = run.train([images for images, _ in mixed]), torch.ones_like(batch.labels, dtype=torch.bool)
        losses = [soft_cross_entropy(logits, target) for (logits, _), (_, target) in zip(outs, mixed)]
        return torch.stack([batch_mean(row, everyone) for row in losses]).sum()
