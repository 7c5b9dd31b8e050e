"""Detectors on training dynamics: what a network thought of each label, epoch by epoch.

The records are margins (E, N), logit of the label minus the best other, or probabilities (E, N) of the label, of E epochs
and N images. They come from a linear probe, for main_detect.py, or from fine-tuning, for main_baseline.py; the rules are
the same.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.special import logit
from torch import Tensor
from tqdm import tqdm

from methods.loops import learning_rate
from methods.losses import cross_entropy
from methods.method import Method, Training
from methods.selection import margins, two_groups
from utils.errors import UserError


def linear_probe_dynamics(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    seed: int,
    epochs: int = 20,
    lr: float = 0.1,
    batch_size: int = 128,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Train a linear classifier on fixed features (N, D) with cross-entropy; margins and probabilities (E, N), logits (N, K).

    SGD with momentum 0.9 on features of zero mean and unit variance, cosine schedule; each epoch is recorded after its
    last step, on all images. The same seed gives the same numbers.
    """
    if len(labels) < 2:
        raise UserError("detector: a linear probe needs two images or more.")
    x = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    x, y = (x - mean) / std / x.shape[1] ** 0.5, torch.from_numpy(labels)
    weight = torch.zeros(num_classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=lr, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(seed)
    of_label, probabilities = (np.empty((epochs, len(labels)), dtype=np.float32) for _ in range(2))
    for epoch in tqdm(range(epochs), "linear probe", leave=False, disable=None):
        optimizer.param_groups[0]["lr"] = learning_rate(lr, epoch + 1, epochs)
        for index in torch.randperm(len(y), generator=generator).split(batch_size):
            loss = torch.nn.functional.cross_entropy(torch.nn.functional.linear(x[index], weight, bias), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            logits = torch.nn.functional.linear(x, weight, bias)
            of_label[epoch] = margins(logits, y).numpy()
            probabilities[epoch] = label_probability(logits, y).numpy()
    return of_label, probabilities, logits.numpy()


def label_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax probability (B,) of the label, of logits (B, K) and labels (B,)."""
    return (-cross_entropy(logits, labels)).exp()


def area_under_margin(of_label: np.ndarray) -> np.ndarray:
    """AUM (N,): the margin, averaged over the epochs (Pleiss et al., NeurIPS 2020).

    All epochs of a cosine schedule count; the paper's schedule has steps, and its average ends at the first of them.
    """
    return of_label.mean(0)


def by_area_under_margin(records: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mask and p_clean (N,) from margins (E, N): the upper of `two_groups` of the AUM.

    The paper finds its threshold with samples of an extra class; the mixture needs none.
    """
    p_clean = two_groups(area_under_margin(records), seed)
    return p_clean > 0.5, p_clean


def by_forgetting(records: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mask and p_clean (N,) from margins (E, N): the fraction of the epochs that predicted the label, trusted above 0.5.

    Forgetting events (Toneva et al., ICLR 2019) count the changes from right to wrong, and are infinite for an image that
    was never learnt. Counting epochs ranks those as well.
    """
    p_clean = (records > 0).mean(0)
    return p_clean > 0.5, p_clean


def by_mean_probability(records: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mask and p_clean (N,) from probabilities (E, N): their mean over the last five epochs; trusted by `two_groups` of its logit.

    With many classes, probabilities crowd near zero; the logit keeps the two groups apart.
    """
    p_clean = records[-5:].mean(0)
    return two_groups(logit(p_clean.clip(1e-6, 1 - 1e-6)), seed) > 0.5, p_clean


class TrainingDynamics(Method):
    """Cross-entropy on all samples; the mask is made from what every epoch recorded of them, before each step."""

    selects = True
    epoch = 1  # being trained
    records: Tensor  # (epochs, N)
    record = staticmethod(margins)  # logits (B, K), labels (B,) -> (B,)
    rule = staticmethod(by_area_under_margin)

    def __init__(self, cfg: SimpleNamespace, num_samples: int, num_classes: int) -> None:
        super().__init__(cfg, num_samples, num_classes)
        self.register_buffer("records", torch.zeros(cfg.epochs, num_samples))

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        self.records[self.epoch - 1][index] = self.record(logits.detach(), labels)
        return cross_entropy(logits, labels)

    def train_epoch(self, epoch: int, training: Training) -> tuple[dict[str, Any], dict[str, Tensor]]:
        self.epoch = epoch
        result, selection = super().train_epoch(epoch, training)
        mask, p_clean = self.rule(self.records[:epoch].cpu().numpy(), self.cfg.seed)
        return result, {**(selection or {}), "mask": torch.from_numpy(mask), "p_clean": torch.from_numpy(p_clean)}


class AUM(TrainingDynamics):
    """Area under the margin (Pleiss et al., NeurIPS 2020); see `by_area_under_margin`."""


class Forgetting(TrainingDynamics):
    """Epochs that predicted the label (after Toneva et al., ICLR 2019); see `by_forgetting`."""

    rule = staticmethod(by_forgetting)


class MeanProbability(TrainingDynamics):
    """The label's probability, averaged over the last epochs; see `by_mean_probability`."""

    record = staticmethod(label_probability)
    rule = staticmethod(by_mean_probability)
