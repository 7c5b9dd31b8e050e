"""Losses, one value per sample: logits (B, K), labels (B,) int64 -> (B,)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.distributed import total


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[y]; for probabilities (B, K) instead of labels, -sum_k t_k log softmax(logits)_k."""
    return F.cross_entropy(logits, labels, reduction="none")


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Labels (…) int64 as float32 targets (…, K). F.one_hot would give int64, and on CPUs read the labels to check them."""
    return (labels[..., None] == torch.arange(num_classes, device=labels.device)).float()


def symmetric_cross_entropy(logits: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """SCE (Wang et al., ICCV 2019): alpha CE + beta RCE, RCE = -sum_k p_k log(onehot_k) with log 0 = log 1e-4."""
    p = logits.softmax(1).clamp(1e-7, 1.0)
    onehot = one_hot(labels, logits.shape[1]).to(p.dtype).clamp(1e-4, 1.0)
    return alpha * cross_entropy(logits, labels) - beta * (p * onehot.log()).sum(1)


def generalized_cross_entropy(logits: Tensor, labels: Tensor, q: float = 0.7) -> Tensor:
    """GCE (Zhang and Sabuncu, NeurIPS 2018): (1 - p_y^q) / q; between CE (q -> 0) and the mean absolute error (q = 1)."""
    return (1 - (-q * cross_entropy(logits, labels)).exp()) / q


def negative_prompt_loss(p_yes: Tensor, complementary_labels: Tensor, targets: Tensor, weight: float) -> Tensor:
    """DeFT's loss of the negative prompt (DeFT, eq. 7): -log p_no[i, c_i] - weight log p_yes[i, t_i], (B,).

    p_yes (B, K), p_no = 1 - p_yes, complementary labels c (B,), targets t (B,); probabilities clamped to [1e-5, 1].
    """
    p_no_c = (1 - p_yes.gather(1, complementary_labels[:, None])[:, 0]).clamp(1e-5, 1.0)
    p_yes_t = p_yes.gather(1, targets[:, None])[:, 0].clamp(1e-5, 1.0)
    return -p_no_c.log() - weight * p_yes_t.log()


def batch_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values (B,) over mask (B,) bool; 0 with zero gradient if the mask is empty.

    Under torchrun, values and mask are this process's share of the batch, and the results of all processes add up to the
    mean over the batch.
    """
    return (values * mask).sum() / total(mask.sum()).clamp(min=1)
