"""CLIPCleaner's selection (Feng et al., ACM MM 2024): zero-shot and visual probabilities, two criteria on each.

Everything here is a function on arrays. p (N, K) are class probabilities, labels (N,) the given labels.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from tqdm import tqdm

TEMPERATURE = 0.07
CRITERIA = ("zero-gmm", "zero-consistency", "lr-gmm", "lr-consistency")


def zero_shot_probability(features, descriptions, owner, num_classes, temperature=TEMPERATURE):
    """p (N, K) by several descriptions a class: p_k is proportional to the sum of exp(cos / temperature) over those of k.

    features (N, D) and descriptions (P, D) are of unit length, owner (P,) says whose description each is; every class
    has one or more. A class with more descriptions so weighs more, as in the published code.
    """
    similarity = features @ descriptions.T / temperature  # (N, P)
    weight = np.exp(similarity - similarity.max(1, keepdims=True))
    p = np.stack([weight[:, owner == k].sum(1) for k in range(num_classes)], 1)
    return p / p.sum(1, keepdims=True)


def visual_probability(features, labels, num_classes):
    """p (N, K) of a logistic regression that is fitted to the given labels and predicts the same images.

    scikit-learn's, as published: random_state 0, max_iter 10000, class_weight balanced. A class without images has p 0.
    """
    p, classes = np.zeros((len(labels), num_classes), dtype=np.float32), np.unique(labels)
    if len(classes) == 1:
        p[:, classes] = 1
        return p
    for _ in tqdm(range(1), "logistic regression", leave=False, disable=None):  # it tells nothing of its progress
        regression = LogisticRegression(random_state=0, max_iter=10000, class_weight="balanced")
        p[:, classes] = regression.fit(features, labels).predict_proba(features)
    return p


def consistency(p, labels):
    """p_y / max_k p_k (N,), in [0, 1]; 1 where the label is the most probable class."""
    return p[np.arange(len(labels)), labels] / np.maximum(p.max(1), 1e-30)


def log_probability(p, labels):
    """log p_y (N,)."""
    return np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-30))


def scaled_within_class(scores, labels):
    """Scores (N,) scaled to [0, 1] within their class; 1 in a class of equal scores, or of one image."""
    scaled = np.ones(len(labels))
    for k in np.unique(labels):
        own = labels == k
        low, high = scores[own].min(), scores[own].max()
        if high > low:
            scaled[own] = (scores[own] - low) / (high - low)
    return scaled


def per_class_mixture(scores, labels, rng):
    """Chance (N,) that a score belongs to the upper of two normal distributions, fitted to the scores of its class.

    One mixture of scikit-learn's defaults a class, in the order of the classes, from one random state. A class of one
    image, or of equal scores, tells nothing: 1.
    """
    scaled, p_upper = scaled_within_class(scores, labels), np.ones(len(labels))
    for k in tqdm(np.unique(labels), "mixtures", leave=False, disable=None):
        own = labels == k
        if len(np.unique(scaled[own])) > 1:
            mixture = GaussianMixture(n_components=2, random_state=rng).fit(scaled[own, None])
            p_upper[own] = mixture.predict_proba(scaled[own, None])[:, mixture.means_.argmax()]
    return p_upper


def criterion_scores(zero_shot, visual, labels, seed):
    """{criterion: score (N,) in [0, 1]} of the four; `zero_shot` None leaves out its two."""
    rng, scores = np.random.RandomState(seed), {}
    for name, p in (("zero", zero_shot), ("lr", visual)):
        if p is not None:
            scores[f"{name}-gmm"] = per_class_mixture(log_probability(p, labels), labels, rng)
            scores[f"{name}-consistency"] = consistency(p, labels)
    return scores


def fill_empty_classes(selected, scores, labels, num_classes, official=False):
    """`selected` (N,) bool, where a class that has images but none selected gets some of them.

    As many as the smallest class among the selected has, and floor(N / K^2) at least: those of the highest `scores` (N,).
    `official` takes the lowest, as the published code does, which looks like a slip.
    """
    selected, counts = selected.copy(), np.bincount(labels[selected], minlength=num_classes)
    there = counts[counts > 0]
    wanted = max(there.min() if len(there) else 1, len(labels) // num_classes**2)
    for k in np.unique(labels):
        if not counts[k]:
            order = np.flatnonzero(labels == k)
            order = order[np.argsort(scores[order] if official else -scores[order], kind="stable")]
            selected[order[:wanted]] = True
    return selected


def select(scores, labels, num_classes, theta_gmm=0.5, theta_cons=0.8, rank_by=None, official=False):
    """The intersection (N,) of the criteria in `scores`, with empty classes filled by `rank_by` (N,)."""
    kept = [s >= (theta_gmm if name.endswith("gmm") else theta_cons) for name, s in scores.items()]
    selected = np.logical_and.reduce(kept)
    return fill_empty_classes(selected, rank_by, labels, num_classes, official) if rank_by is not None else selected
