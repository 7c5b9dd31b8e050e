"""How label-noise methods divide a training set into trusted labels and the rest: pure functions of losses and logits."""

import math

import numpy as np
import torch

from methods.selection import gmm_clean_probability


def label_divergence(probabilities, labels):
    """Jensen-Shannon divergence (N,) in [0, 1] (base 2) between probabilities (N, K) and the one-hot labels (N,).

    UNICON's disagreement (Karim et al., CVPR 2022): d = KL(p || m) / 2 + KL(y || m) / 2, m = (p + y) / 2.
    """
    onehot = torch.nn.functional.one_hot(labels, probabilities.shape[1]).to(probabilities.dtype)
    middle = (probabilities + onehot) / 2

    def kl(p):
        return torch.where(p > 0, p * (p.clamp(min=1e-30) / middle.clamp(min=1e-30)).log2(), 0).sum(1)

    return (kl(probabilities) + kl(onehot)) / 2


def uniform_selection(divergence, labels, num_classes, d_mu=0.7, tau=5.0):
    """UNICON's selection (N,) bool, numpy: of each class the same number of samples of lowest divergence (N,).

    The cut-off is the mean divergence, d_avg, lowered to d_avg - (d_avg - d_min) / tau where it lies above d_mu. With R the
    part of all samples below the cut-off, the int(R N / K) lowest of each class are kept, or all, if it has fewer.
    """
    cutoff = divergence.mean()
    if cutoff > d_mu:
        cutoff -= (cutoff - divergence.min()) / tau
    return lowest_of_each_class(divergence, labels, int((divergence < cutoff).sum() / num_classes))


def lowest_of_each_class(scores, labels, count):
    """(N,) bool, numpy: the `count` samples of lowest score in each class of labels (N,), or all of a smaller class."""
    kept = np.zeros(len(labels), dtype=bool)
    for k in np.unique(labels):
        members = np.flatnonzero(labels == k)
        kept[members[scores[members].argsort(kind="stable")[:count]]] = True
    return kept


def class_small_loss(losses, labels, num_classes, rho):
    """ProMix's class-wise small-loss selection (N,) bool, numpy: of each class the ceil(rho N / K) smallest losses (N,)."""
    return lowest_of_each_class(losses, labels, max(math.ceil(rho * len(labels) / num_classes), 1))


def label_guessing(selected, confidence, agreed, tau=0.99, share=0.9):
    """ProMix's label guessing by agreement (B,) bool: samples of a batch whose guessed label joins the selected (B,) bool.

    The networks agree (B,) bool, and the lower of their confidences (B,) lies above tau; the most confident come first, until
    `share` of the batch is selected.
    """
    candidates = agreed & (confidence > tau) & ~selected
    rank = torch.where(candidates, -confidence, torch.inf).argsort(stable=True).argsort(stable=True)
    return candidates & (rank < int(share * len(selected)) - selected.sum())


def centroid_logits(features, labels, num_classes, mask=None):
    """RoLT's prototypes: minus the distance (N, K) of each feature (N, D) to the centroid of each class.

    Features are centred and scaled to unit length (CL2N); the centroid of a class is the mean over its samples, of those in
    `mask` (N,) bool if given. A class without any lies infinitely far away.
    """
    x = torch.nn.functional.normalize(features - features.mean(0), dim=1)
    members = torch.nn.functional.one_hot(labels, num_classes).to(x.dtype)  # (N, K)
    if mask is not None:
        members = members * mask[:, None]
    counts = members.sum(0)
    centroids = (members.T @ x) / counts.clamp(min=1)[:, None]
    return torch.where(counts > 0, -torch.cdist(x, centroids), -torch.inf)


def class_mixtures(scores, labels, seed=0):
    """Chance (N,), numpy, that a sample belongs to the component of higher mean of its class's own two-component mixture.

    scores (N,), high where a label looks right, are min-max scaled within the class; the mixtures have scikit-learn's
    defaults (RoLT, Wei et al., 2021). A class of one score, or one that the mixture finds nobody clean in, is all clean.
    """
    p_clean = np.ones(len(labels))
    for k in np.unique(labels):
        members = np.flatnonzero(labels == k)
        if len(np.unique(scores[members])) > 1:
            p = gmm_clean_probability(-scores[members], seed, max_iter=100, tol=1e-3, reg_covar=1e-6)
            p_clean[members] = p if (p > 0.5).any() else 1.0
    return p_clean


def prototype_detection(features, labels, num_classes, seed=0):
    """RoLT's noise detection: (p_clean (N,) numpy, prototype logits (N, K)) of features (N, D) and labels (N,).

    Distances to the centroids of all samples give a first selection; distances to the centroids of the selected the second.
    """
    rows = torch.arange(len(labels))
    logits = centroid_logits(features, labels, num_classes)
    mask = torch.from_numpy(class_mixtures(logits[rows, labels].numpy(), labels.numpy(), seed) > 0.5)
    logits = centroid_logits(features, labels, num_classes, mask)
    return class_mixtures(logits[rows, labels].numpy(), labels.numpy(), seed), logits


def absorb_and_relabel(probabilities, labels, initial, theta_r, theta_r2):
    """MixFix's update (CLIPCleaner, ACM MM 2024): (labels to train on (N,) int64, which samples (N,) bool).

    From the network's probabilities (N, K), given labels (N,) and the initially selected (N,) bool: a sample whose prediction
    is its label joins where its confidence reaches theta_r; one whose prediction is another class is relabelled and joins
    where it reaches theta_r2. The initial samples stay in, relabelled as well where that holds for them.
    """
    confidence, predicted = probabilities.max(1)
    same = predicted == labels
    relabelled = ~same & (confidence >= theta_r2)
    return torch.where(relabelled, predicted, labels), initial | relabelled | (same & (confidence >= theta_r))


def class_balanced_order(labels, selected, length, rng):
    """`length` positions (int64, numpy) among the selected (N,) bool, every class of labels (N,) equally often, in random order.

    Each class is repeated, whole permutations one behind the other, up to the size of the largest (MixFix's sampler).
    """
    members = [np.flatnonzero(selected & (labels == k)) for k in np.unique(labels[selected])]
    largest = max(map(len, members))
    rounds = -(-length // (largest * len(members)))
    repeated = [
        np.concatenate([rng.permutation(m) for _ in range(-(-largest * rounds // len(m)))])[: largest * rounds]
        for m in members
    ]
    return rng.permutation(np.concatenate(repeated))[:length]
