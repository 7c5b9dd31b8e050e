"""Scores -> clean masks, and how good a mask is."""
import numpy as np


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
