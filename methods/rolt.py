"""RoLT: labels whose features lie far from their class get soft targets."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from dataloader.loaders import Views
from methods.division import prototype_detection
from methods.losses import batch_mean, one_hot, soft_cross_entropy
from methods.semi_supervised import Forward, Outputs, SemiSupervised
from utils.errors import UserError

AVERAGES_UP_TO = 250_000_000  # samples x classes


class RoLT(SemiSupervised):
    """RoLT, robust long-tailed learning under label noise (Wei et al., 2021, arXiv 2108.11569): one network.

    Labels are divided by the distance of their features to class centroids (methods.division.prototype_detection). After
    the warm-up, trusted samples are trained with their label, the others with the soft label

        0.4 y_net + 0.2 y_proto + 0.2 y + 0.2 / K

    where y_net and y_proto are the predictions of the network and of the prototypes, from logits averaged over the epochs
    (0.6 old average + 0.4 new; a correction of the bias would not change the argmax). Constants: the released code, which
    keeps the corrected average, so that its corrections add up. The published warm-up is 80 of 200 epochs. The code's
    prototype logits are squared distances; here the distances are not squared.
    """

    pair, weak, features, keep, warm_entropy = False, 1, True, 0.6, False
    averages: Tensor  # (2, N, K)

    def __init__(self, cfg: SimpleNamespace, num_samples: int, num_classes: int) -> None:
        super().__init__(cfg, num_samples, num_classes)
        if num_samples * num_classes > AVERAGES_UP_TO:
            raise UserError(
                f"lnl_methods: RoLT keeps two logits for every sample and class; {num_samples:,} x {num_classes:,} are more "
                f"than {AVERAGES_UP_TO:,}, of which each checkpoint is 2 GB."
            )
        self.register_buffer("averages", torch.zeros(2, num_samples, num_classes))  # logits of network and prototypes

    def divide(self, outputs: Outputs, labels: Tensor, epoch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        p_clean, prototypes = prototype_detection(outputs.features, labels, self.num_classes)
        now = torch.stack([outputs.logits.mean(0), prototypes.clamp(min=-1e4)]).to(self.averages.device)
        self.averages.mul_(self.keep).add_(now, alpha=1 - self.keep)
        mask = torch.from_numpy(p_clean > 0.5)
        by_network, by_prototype = self.averages.cpu().argmax(-1)
        self.plan = {"targets": soft_labels(labels, mask, by_network, by_prototype, self.num_classes)}
        return mask, torch.from_numpy(p_clean)

    def step(self, run: Forward, batch: Views, part: float, epoch: int, rng: np.random.Generator) -> Tensor:
        everyone, targets = torch.ones_like(batch.labels, dtype=torch.bool), self.plan["targets"][batch.index]
        outs = run.train(batch.views * self.count)
        return torch.stack([batch_mean(soft_cross_entropy(logits, targets), everyone) for logits, _ in outs]).sum()


def soft_labels(labels: Tensor, mask: Tensor, network: Tensor, prototypes: Tensor, num_classes: int) -> Tensor:
    """RoLT's targets (N, K): the label if `mask` (N,) bool is true, else a mixture of the label, the predictions of the
    network and of the prototypes, (N,) each, and the uniform distribution."""
    given, network, prototypes = (one_hot(x, num_classes) for x in (labels, network, prototypes))
    return torch.where(mask[:, None], given, 0.4 * network + 0.2 * prototypes + 0.2 * given + 0.2 / num_classes)
