"""Division of a training set into trusted and untrusted labels by label-noise methods: functions of losses and logits."""

import math

import numpy as np
import torch
from torch import Tensor

from methods.losses import one_hot
from methods.selection import gmm_clean_probability


def label_divergence(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Jensen-Shannon divergence (N,) in [0, 1] (base 2) between probabilities (N, K) and the one-hot labels (N,).

    UNICON's disagreement (Karim et al., CVPR 2022): d = KL(p || m) / 2 + KL(y || m) / 2, m = (p + y) / 2.
    """
    onehot = one_hot(labels, probabilities.shape[1]).to(probabilities.dtype)
    middle = (probabilities + onehot) / 2

    def kl(p: Tensor) -> Tensor:
        return torch.where(p > 0, p * (p.clamp(min=1e-30) / middle.clamp(min=1e-30)).log2(), 0).sum(1)

    return (kl(probabilities) + kl(onehot)) / 2


def uniform_selection(
    divergence: np.ndarray, labels: np.ndarray, num_classes: int, d_mu: float = 0.7, tau: float = 5.0
) -> np.ndarray:
    """UNICON's selection (N,) bool, numpy: the samples with the lowest divergence (N,), equally many per class.

    The cut-off is the mean divergence d_avg, or d_avg - (d_avg - d_min) / tau if d_avg exceeds d_mu. If R is the
    fraction of all samples below the cut-off, the int(R N / K) lowest of each class are kept (or all of a smaller class).
    """
    cutoff = divergence.mean()
    if cutoff > d_mu:
        cutoff -= (cutoff - divergence.min()) / tau
    return lowest_of_each_class(divergence, labels, int((divergence < cutoff).sum() / num_classes))


def lowest_of_each_class(scores: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Mask (N,) bool, numpy, of the `count` lowest scores in each class of labels (N,), or all of a smaller class."""
    kept = np.zeros(len(labels), dtype=bool)
    for k in np.unique(labels):
        members = np.flatnonzero(labels == k)
        kept[members[scores[members].argsort(kind="stable")[:count]]] = True
    return kept


def class_small_loss(losses: np.ndarray, labels: np.ndarray, num_classes: int, rho: float) -> np.ndarray:
    """ProMix's class-wise small-loss selection (N,) bool, numpy: the ceil(rho N / K) smallest losses (N,) of each class."""
    return lowest_of_each_class(losses, labels, max(math.ceil(rho * len(labels) / num_classes), 1))


def label_guessing(
    selected: Tensor, confidence: Tensor, agreed: Tensor, tau: float = 0.99, share: float = 0.9
) -> Tensor:
    """ProMix's label guessing by agreement: which samples of a batch join the selected ones, (B,) bool.

    A sample joins if the networks agree (B,) bool and the lower of their confidences (B,) exceeds tau, the most confident
    first, until a fraction of `share` of the batch is selected.
    """
    candidates = agreed & (confidence > tau) & ~selected
    rank = torch.where(candidates, -confidence, torch.inf).argsort(stable=True).argsort(stable=True)
    return candidates & (rank < int(share * len(selected)) - selected.sum())


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


def class_mixtures(scores: np.ndarray, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Posterior (N,), numpy, of the component with the higher mean in a two-component mixture per class.

    scores (N,), high for labels that look right, are min-max scaled within the class; the mixtures have scikit-learn's
    defaults (RoLT, Wei et al., 2021). If all scores of a class are equal, or none would be clean, all get 1.
    """
    p_clean = np.ones(len(labels))
    for k in np.unique(labels):
        members = np.flatnonzero(labels == k)
        if len(np.unique(scores[members])) > 1:
            p = gmm_clean_probability(-scores[members], seed, max_iter=100, tol=1e-3, reg_covar=1e-6)
            p_clean[members] = p if (p > 0.5).any() else 1.0
    return p_clean


def prototype_detection(features: Tensor, labels: Tensor, num_classes: int, seed: int = 0) -> tuple[np.ndarray, Tensor]:
    """RoLT's noise detection: (p_clean (N,) numpy, prototype logits (N, K)) from features (N, D) and labels (N,).

    A first selection uses the centroids of all samples; the second uses the centroids of the selected samples. The mixtures
    start the same in every epoch and run.
    """
    rows = torch.arange(len(labels))
    logits = centroid_logits(features, labels, num_classes)
    mask = torch.from_numpy(class_mixtures(logits[rows, labels].numpy(), labels.numpy(), seed) > 0.5)
    logits = centroid_logits(features, labels, num_classes, mask)
    return class_mixtures(logits[rows, labels].numpy(), labels.numpy(), seed), logits


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
