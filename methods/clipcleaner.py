"""CLIPCleaner's selection (Feng et al., ACM MM 2024): two criteria on zero-shot and on visual probabilities.

All functions take arrays. p (N, K) are class probabilities, labels (N,) the given labels.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from tqdm import tqdm

TEMPERATURE = 0.07
BLOCK = 2**24  # cosines held at once, 64 MB
CRITERIA = ("zero-gmm", "zero-consistency", "lr-gmm", "lr-consistency")


def zero_shot_probability(
    features: np.ndarray,
    descriptions: np.ndarray,
    owner: np.ndarray,
    num_classes: int,
    temperature: float = TEMPERATURE,
) -> np.ndarray:
    """p (N, K) from several descriptions per class: p_k is proportional to the sum of exp(cos / temperature) over class k.

    features (N, D) and descriptions (P, D) have unit length; owner (P,) is the class of each description, and every class
    has at least one. Classes with more descriptions get more weight, as in the published code.
    """
    order = np.argsort(owner, kind="stable")
    descriptions, first = descriptions[order], np.searchsorted(owner[order], np.arange(num_classes))
    p, rows = np.empty((len(features), num_classes), dtype=features.dtype), max(1, BLOCK // len(owner))
    for start in range(0, len(features), rows):
        similarity = features[start : start + rows] @ descriptions.T / temperature  # (rows, P)
        weight = np.exp(similarity - similarity.max(1, keepdims=True))
        p[start : start + rows] = np.add.reduceat(weight, first, axis=1) / weight.sum(1, keepdims=True)
    return p


def visual_probability(features: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """p (N, K) of a logistic regression, fitted to the given labels and applied to the same images.

    scikit-learn's with the published settings: random_state 0, max_iter 10000, class_weight balanced. A class without
    images has p 0.
    """
    p, classes = np.zeros((len(labels), num_classes), dtype=np.float32), np.unique(labels)
    if len(classes) == 1:
        p[:, classes] = 1
        return p
    for _ in tqdm(range(1), "logistic regression", leave=False, disable=None):  # scikit-learn reports no progress
        regression = LogisticRegression(random_state=0, max_iter=10000, class_weight="balanced")
        p[:, classes] = regression.fit(features, labels).predict_proba(features)
    return p


def consistency(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """p_y / max_k p_k (N,), in [0, 1]; 1 if the label is the most probable class."""
    return p[np.arange(len(labels)), labels] / np.maximum(p.max(1), 1e-30)


def log_probability(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """log p_y (N,)."""
    return np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-30))


def scaled_within_class(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scores (N,) min-max scaled within their class; 1 if all scores of a class are equal."""
    scaled = np.ones(len(labels))
    for k in np.unique(labels):
        own = labels == k
        low, high = scores[own].min(), scores[own].max()
        if high > low:
            scaled[own] = (scores[own] - low) / (high - low)
    return scaled


def per_class_mixture(scores: np.ndarray, labels: np.ndarray, rng: int | np.random.RandomState) -> np.ndarray:
    """Posterior (N,) of the upper component of a two-component mixture, fitted to the scores of each class.

    The mixtures have scikit-learn's defaults and share one random state, in the order of the classes. Where all scores of a
    class are equal, it is 1.
    """
    scaled, p_upper = scaled_within_class(scores, labels), np.ones(len(labels))
    for k in tqdm(np.unique(labels), "mixtures", leave=False, disable=None):
        own = labels == k
        if len(np.unique(scaled[own])) > 1:
            mixture = GaussianMixture(n_components=2, random_state=rng).fit(scaled[own, None])
            p_upper[own] = mixture.predict_proba(scaled[own, None])[:, mixture.means_.argmax()]
    return p_upper


def criterion_scores(p: dict[str, np.ndarray], labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """{criterion: score (N,) in [0, 1]} of criteria in the order of CRITERIA, {criterion: the p (N, K) that it looks at}."""
    rng = np.random.RandomState(seed)
    return {
        name: per_class_mixture(log_probability(p[name], labels), labels, rng)
        if name.endswith("gmm")
        else consistency(p[name], labels)
        for name in p
    }


def fill_empty_classes(
    selected: np.ndarray, scores: np.ndarray, labels: np.ndarray, num_classes: int, official: bool = False
) -> np.ndarray:
    """`selected` (N,) bool, with samples added to classes that have images but none selected.

    Adds as many as the smallest selected class has, but at least floor(N / K^2), with the highest `scores` (N,).
    `official` takes the lowest instead, as the published code does, apparently by mistake.
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


def select(
    scores: dict[str, np.ndarray],
    thetas: dict[str, float],
    labels: np.ndarray,
    num_classes: int,
    rank_by: np.ndarray | None = None,
    official: bool = False,
) -> np.ndarray:
    """The intersection (N,) of criteria, {name: score (N,)} and {name: threshold}, with empty classes filled by `rank_by` (N,)."""
    selected = np.logical_and.reduce([score >= thetas[name] for name, score in scores.items()])
    return fill_empty_classes(selected, rank_by, labels, num_classes, official) if rank_by is not None else selected
