"""Scores -> clean masks, and how good a mask is."""

from typing import Any

import numpy as np
from torch import Tensor


def clean_probability(logits_pos: Tensor, logits_neg: Tensor) -> Tensor:
    """p_yes (B, K): softmax over the pair (stop_grad(logits_pos), logits_neg), first entry (DeFT, section 3)."""
    return (logits_pos.detach() - logits_neg).sigmoid()


def select_clean(p_yes: Tensor, labels: Tensor, require_agreement: bool = False) -> tuple[Tensor, Tensor]:
    """Samples that look correctly labelled, (B,) bool, and p_clean = p_yes[i, y_i], (B,).

    p_yes (B, K) is the probability that the positive rather than the negative prompt of a class fits the image.
    Clean: p_clean > 0.5, i.e. sim(I, T+_y) > sim(I, T-_y) (DeFT, section 3). With `require_agreement` (real-world
    noise) the label must also be the class of the largest p_yes, or one of them: several may round to 1.
    """
    p_clean = p_yes.gather(1, labels[:, None])[:, 0]
    selected = p_clean > 0.5
    if require_agreement:
        selected &= p_clean == p_yes.amax(1)
    return selected, p_clean


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the label minus the best other one, (B,), of logits (B, K) and labels (B,)."""
    own = labels[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -float("inf")).amax(1)


def precision_recall(mask: np.ndarray, is_clean: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of the samples kept, over the whole set; (N,) bool each, numpy.

    precision = kept and clean / kept, recall = kept and clean / clean, as fractions; 0 where undefined.
    """
    hits = int(np.sum(mask & is_clean))
    kept, clean = int(np.sum(mask)), int(np.sum(is_clean))
    return {"precision": hits / max(kept, 1), "recall": hits / max(clean, 1), "f1": 2 * hits / max(kept + clean, 1)}


def histograms(
    p_clean: np.ndarray, known: tuple[np.ndarray, np.ndarray] | None, bins: int = 20
) -> dict[str, list[int]]:
    """Counts of p_clean (N,), numpy, in equal bins of [0, 1], of the labels that are right and wrong, for a log.

    known: what Dataset.known gives; where it is None all labels are `not known`.
    """
    if known is None:
        parts = {"not known": p_clean}
    else:
        index, is_clean = known
        parts = {"right": p_clean[index[is_clean]], "wrong": p_clean[index[~is_clean]]}
    return {name: np.histogram(part, bins, (0, 1))[0].tolist() for name, part in parts.items()}


def detection_quality(mask: np.ndarray, p_clean: np.ndarray, is_clean: np.ndarray) -> dict[str, float | None]:
    """How well labels were told apart, for a summary; (N,) bool, float and bool, numpy.

    precision, recall, f1 are of the clean class, those that end in _mislabelled of the other; auroc and
    auprc_mislabelled are of p_clean as a score, None where there is only one class.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    wrong = precision_recall(~mask, ~is_clean)
    quality = precision_recall(mask, is_clean) | {f"{k}_mislabelled": v for k, v in wrong.items()}
    both = 0 < is_clean.sum() < len(is_clean)
    return quality | {
        "auroc": float(roc_auc_score(is_clean, p_clean)) if both else None,
        "auprc_mislabelled": float(average_precision_score(~is_clean, -p_clean)) if both else None,
    }


def gmm_clean_probability(losses: np.ndarray, seed: int | np.random.RandomState, **settings: Any) -> np.ndarray:
    """Chance (N,) that a sample belongs to the component of lower mean of a two-component mixture on its loss (N,).

    The losses are min-max scaled first; max_iter 10, tol 1e-2, reg_covar 5e-4 (as the official code), unless
    `settings` of scikit-learn's GaussianMixture say else. `seed` is an integer or a numpy RandomState.
    """
    from sklearn.mixture import GaussianMixture

    scaled = ((losses - losses.min()) / max(losses.max() - losses.min(), 1e-12)).reshape(-1, 1)
    settings = {"max_iter": 10, "tol": 1e-2, "reg_covar": 5e-4, **settings}
    mixture = GaussianMixture(n_components=2, random_state=seed, **settings).fit(scaled)
    return mixture.predict_proba(scaled)[:, mixture.means_.argmin()]


def class_mixtures(losses: np.ndarray, labels: np.ndarray, seed: int, **settings: Any) -> np.ndarray:
    """gmm_clean_probability (N,) of losses (N,) within each class of labels (N,); 1 where all losses of a class are equal."""
    p_clean = np.ones(len(labels))
    for k in np.unique(labels):
        members = labels == k
        if len(np.unique(losses[members])) > 1:  # two components need two distinct points
            p_clean[members] = gmm_clean_probability(losses[members], seed, **settings)
    return p_clean


def two_groups(scores: np.ndarray, seed: int) -> np.ndarray:
    """Chance (N,) that a score (N,) belongs to the upper of two normal distributions of one width, fitted to all.

    One width makes it grow with the score. Where nothing is wrong it still finds two groups; 1 where all are equal.
    It is computed in double precision: in single, the chances of half of the labels round to 1, and their order is lost.
    """
    if len(np.unique(scores)) < 2:
        return np.ones(len(scores))
    return gmm_clean_probability(-scores.astype(float), seed, covariance_type="tied", max_iter=100)


def lowest_of_each_class(scores: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Mask (N,) bool, numpy, of the `count` lowest scores in each class of labels (N,), or all of a smaller class."""
    kept = np.zeros(len(labels), dtype=bool)
    for k in np.unique(labels):
        members = np.flatnonzero(labels == k)
        kept[members[scores[members].argsort(kind="stable")[:count]]] = True
    return kept
