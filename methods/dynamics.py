"""Detectors on training dynamics: what a network thought of each label, epoch by epoch. Functions on arrays.

The records are margins (E, N), logit of the label minus the best other, and probabilities (E, N) of the label, of E
epochs and N images, made by a linear probe here or by any training that keeps them.
"""

import numpy as np
import torch
from tqdm import tqdm

from methods.selection import margins


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
    x = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    x, y = (x - mean) / std / x.shape[1] ** 0.5, torch.from_numpy(labels)
    weight, bias = (
        torch.zeros(num_classes, x.shape[1], requires_grad=True),
        torch.zeros(num_classes, requires_grad=True),
    )
    optimizer = torch.optim.SGD([weight, bias], lr=lr, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(seed)
    of_label, probabilities = (np.empty((epochs, len(labels)), dtype=np.float32) for _ in range(2))
    for epoch in tqdm(range(epochs), "linear probe", leave=False, disable=None):
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
        for index in torch.randperm(len(y), generator=generator).split(batch_size):
            loss = torch.nn.functional.cross_entropy(torch.nn.functional.linear(x[index], weight, bias), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            logits = torch.nn.functional.linear(x, weight, bias)
            of_label[epoch] = margins(logits, y).numpy()
            probabilities[epoch] = (-torch.nn.functional.cross_entropy(logits, y, reduction="none")).exp().numpy()
    return of_label, probabilities, logits.numpy()


def area_under_margin(of_label: np.ndarray) -> np.ndarray:
    """AUM (N,): the margin, averaged over the epochs (Pleiss et al., NeurIPS 2020)."""
    return of_label.mean(0)


def forgetting(of_label: np.ndarray) -> np.ndarray:
    """Epochs after which an image was still, or again, not given its label, as a share (N,) in [0, 1].

    Forgetting events (Toneva et al., ICLR 2019) count the changes from right to wrong and are infinite for an image that
    was never learnt; counting every epoch at which the label is not predicted orders those too.
    """
    return (of_label <= 0).mean(0)


def mean_probability(probabilities: np.ndarray, last: int = 5) -> np.ndarray:
    """Probability (N,) of the label, averaged over the last epochs."""
    return probabilities[-last:].mean(0)
