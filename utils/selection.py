"""Scores -> clean masks, and how good a mask is."""
import numpy as np
import torch


def clean_probability(logits_pos, logits_neg):
    """p_yes (B, K): softmax over the pair (stop_grad(logits_pos), logits_neg), first entry (DeFT, section 3)."""
    return torch.sigmoid(logits_pos.detach() - logits_neg)


def select_clean(p_yes, labels, require_agreement=False):
    """Samples that look correctly labelled, (B,) bool, and p_clean = p_yes[i, y_i], (B,).

    p_yes (B, K) is the probability that the positive rather than the negative prompt of a class fits the image.
    Clean: p_clean > 0.5, i.e. sim(I, T+_y) > sim(I, T-_y) (DeFT, section 3). With `require_agreement` (real-world
    noise) the label must also be the class of the largest p_yes.
    """
    p_clean = p_yes.gather(1, labels[:, None])[:, 0]
    selected = p_clean > 0.5
    if require_agreement:
        selected &= p_yes.argmax(1) == labels
    return selected, p_clean


def precision_recall(mask, is_clean):
    """Precision, recall and F1 of the samples kept, over the whole set; (N,) bool each, numpy.

    precision = kept and clean / kept, recall = kept and clean / clean, as fractions; 0 where undefined.
    """
    hits = int(np.sum(mask & is_clean))
    kept, clean = int(np.sum(mask)), int(np.sum(is_clean))
    return {"precision": hits / max(kept, 1), "recall": hits / max(clean, 1), "f1": 2 * hits / max(kept + clean, 1)}


def gmm_clean_probability(losses, seed=None):
    """Chance (N,) that a sample belongs to the component of lower mean of a two-component mixture on its loss (N,).

    The losses are min-max scaled first; max_iter 10, tol 1e-2, reg_covar 5e-4 (as the official code). `seed` is an
    integer or a numpy RandomState.
    """
    from sklearn.mixture import GaussianMixture
    scaled = ((losses - losses.min()) / max(losses.max() - losses.min(), 1e-12)).reshape(-1, 1)
    mixture = GaussianMixture(n_components=2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed).fit(scaled)
    return mixture.predict_proba(scaled)[:, mixture.means_.argmin()]
