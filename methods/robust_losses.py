"""Label-noise methods that change the loss and train on every sample."""

from types import SimpleNamespace

import torch
from torch import Tensor

from methods.losses import cross_entropy, generalized_cross_entropy, symmetric_cross_entropy
from methods.method import Method


class CE(Method):
    """Cross-entropy on all given labels."""


class SCE(Method):
    """Symmetric cross-entropy, alpha = beta = 1 (Wang et al., ICCV 2019)."""

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        return symmetric_cross_entropy(logits, labels)


class GCE(Method):
    """Generalized cross-entropy, q = 0.7 (Zhang and Sabuncu, NeurIPS 2018)."""

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        return generalized_cross_entropy(logits, labels)


class ELR(Method):
    """Early-learning regularization (Liu et al., NeurIPS 2020): CE + 5 log(1 - sum t p).

    Each sample has a target t (K,), initially 0: t <- 0.3 t + 0.7 p / sum(p), with p clamped to [1e-4, 1 - 1e-4].
    """

    target: Tensor  # (N, K)

    def __init__(self, cfg: SimpleNamespace, num_samples: int, num_classes: int) -> None:
        super().__init__(cfg, num_samples, num_classes)
        self.register_buffer("target", torch.zeros(num_samples, num_classes))

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        p = logits.softmax(1).clamp(1e-4, 1 - 1e-4)
        p_detached = p.detach()
        self.target[index] = 0.3 * self.target[index] + 0.7 * p_detached / p_detached.sum(1, keepdim=True)
        return cross_entropy(logits, labels) + 5 * (1 - (self.target[index] * p).sum(1)).log()
