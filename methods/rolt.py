"""RoLT: labels whose features lie far from their class get soft targets."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from dataloader.loaders import ViewBatch
from methods.losses import batch_mean, cross_entropy, one_hot
from methods.selection import class_mixtures
from methods.semi_supervised import Forward, Outputs, SemiSupervised
from utils.errors import UserError

AVERAGES_UP_TO = 250_000_000  # samples x classes


class RoLT(SemiSupervised):
    """RoLT, robust long-tailed learning under label noise (Wei et al., 2021, arXiv 2108.11569): one network.

    Labels are divided by the distance of their features to class centroids (prototype_detection). After
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

    def step(self, run: Forward, batch: ViewBatch, part: float, epoch: int, rng: np.random.Generator) -> Tensor:
        everyone, targets = torch.ones_like(batch.labels, dtype=torch.bool), self.plan["targets"][batch.index]
        outs = run.train(batch.views * self.count)
        return torch.stack([batch_mean(cross_entropy(logits, targets), everyone) for logits, _ in outs]).sum()


def soft_labels(labels: Tensor, mask: Tensor, network: Tensor, prototypes: Tensor, num_classes: int) -> Tensor:
    """RoLT's targets (N, K): the label if `mask` (N,) bool is true, else a mixture of the label, the predictions of the
    network and of the prototypes, (N,) each, and the uniform distribution."""
    given, network, prototypes = (one_hot(x, num_classes) for x in (labels, network, prototypes))
    return torch.where(mask[:, None], given, 0.4 * network + 0.2 * prototypes + 0.2 * given + 0.2 / num_classes)


def centroid_logits(features: Tensor, labels: Tensor, num_classes: int, mask: Tensor | None = None) -> Tensor:
    """RoLT's prototype logits (N, K): the negative distance of each feature (N, D) to the centroid of each class.

    Features are centred and scaled to unit length (CL2N). The centroid of a class is the mean over its samples, limited to
    `mask` (N,) bool if given. A class without samples is infinitely far away.
    """
    x = torch.nn.functional.normalize(features - features.mean(0), dim=1)
    members = one_hot(labels, num_classes).to(x.dtype)  # (N, K)
    if mask is not None:
        members = members * mask[:, None]
    counts = members.sum(0)
    centroids = (members.T @ x) / counts.clamp(min=1)[:, None]
    return torch.where(counts > 0, -torch.cdist(x, centroids), -torch.inf)


def prototype_detection(features: Tensor, labels: Tensor, num_classes: int) -> tuple[np.ndarray, Tensor]:
    """RoLT's noise detection: (p_clean (N,) numpy, prototype logits (N, K)) from features (N, D) and labels (N,).

    A first selection uses the centroids of all samples; the second uses the centroids of the selected samples.
    """
    logits = centroid_logits(features, labels, num_classes)
    mask = torch.from_numpy(prototype_mixtures(logits, labels) > 0.5)
    logits = centroid_logits(features, labels, num_classes, mask)
    return prototype_mixtures(logits, labels), logits


def prototype_mixtures(logits: Tensor, labels: Tensor) -> np.ndarray:
    """p_clean (N,), numpy: a mixture per class on the prototype logit of the label, from logits (N, K) and labels (N,).

    The mixtures have scikit-learn's defaults and start the same in every epoch and run. If none of a class would be clean,
    all get 1.
    """
    distance, given = -logits.gather(1, labels[:, None])[:, 0].numpy(), labels.numpy()
    p_clean = class_mixtures(distance, given, seed=0, max_iter=100, tol=1e-3, reg_covar=1e-6)
    return np.where(np.bincount(given, p_clean > 0.5)[given] > 0, p_clean, 1.0)
