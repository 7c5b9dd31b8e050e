"""Co-teaching: two networks select for each other."""

import numpy as np
import torch
from torch import Tensor, nn

from dataloader.dataset import Dataset
from dataloader.loaders import ViewBatch
from dataloader.transforms import Pixels
from methods.losses import batch_mean, cross_entropy
from methods.sample_selection import forget_rates, require_estimate, smallest
from methods.semi_supervised import Forward, Outputs, SemiSupervised


class CoTeaching(SemiSupervised):
    """Co-teaching (Han et al., NeurIPS 2018): in every batch, each network trains on the other's smallest losses.

    These are int((1 - rate) B) samples, with the rate as for small-loss: from 0 to noise_ratio over the warm-up. The recorded
    mask applies the same rule to the mean of the networks' losses over the whole training set. The accuracy is that of the
    ensemble; the paper reports the mean accuracy of the two networks. UserError where labels may be wrong, but noise_ratio
    is 0.
    """

    weak = 1

    def build(self, data: Dataset) -> tuple[nn.Module, Pixels]:
        require_estimate(self.cfg, data)
        return super().build(data)

    def rate(self, epoch: int) -> float:
        cfg = self.cfg
        return forget_rates(cfg.noise_mode, cfg.noise_ratio, cfg.epochs, cfg.warmup)[epoch - 1]

    def is_warm(self, epoch: int) -> bool:
        return False

    def divide(self, outputs: Outputs, labels: Tensor, epoch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        losses = torch.stack([cross_entropy(logits, labels) for logits in outputs.logits]).mean(0)
        order = losses.argsort(stable=True)[: int((1 - self.rate(epoch)) * len(losses))]
        return torch.zeros_like(losses, dtype=torch.bool).index_fill_(0, order, True), (-losses).exp()

    def step(self, run: Forward, batch: ViewBatch, part: float, epoch: int, rng: np.random.Generator) -> Tensor:
        losses = [cross_entropy(logits, batch.labels) for logits, _ in run.train(batch.views * self.count)]
        small = [smallest(row, self.rate(epoch)) for row in losses]
        return torch.stack([batch_mean(row, other) for row, other in zip(losses, small[::-1])]).sum()
