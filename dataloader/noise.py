"""Label noise: pure functions (labels, ratio, num_classes, rng) -> noisy labels; the input is never changed.

labels (N,) int64; ratio in [0, 1]; rng a numpy Generator of the noise alone, so the same seed gives the same labels
whatever ran before. `ratio` is what is asked for; the realised rate is np.mean(noisy != labels).
"""
import json
from pathlib import Path

import numpy as np

from utils.config import UserError, pick, read_lines


def chosen(n, ratio, rng):
    """floor(ratio * n) different indices at random."""
    return rng.permutation(n)[: int(ratio * n)]


def sym(labels, ratio, num_classes, rng):
    """Symmetric: the chosen samples get a label uniform over all classes, the true one included.

    About ratio (K-1)/K of the labels really change.
    """
    noisy, index = labels.copy(), chosen(len(labels), ratio, rng)
    noisy[index] = rng.integers(num_classes, size=len(index))
    return noisy


def asym(labels, ratio, num_classes, rng):
    """Asymmetric: the chosen samples move to the next class, (y + 1) mod K."""
    noisy, index = labels.copy(), chosen(len(labels), ratio, rng)
    noisy[index] = (labels[index] + 1) % num_classes
    return noisy


NOISE = {"sym": sym, "asym": asym}


def read_labels(path):
    """Labels (N,) int64 from a file: .npy, the official code's JSON list, or text with one whole number a line."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"noise_file: there is no file {path}.")
    try:
        if path.suffix == ".npy":
            labels = np.load(path, allow_pickle=False)
        else:
            text = path.read_text(encoding="utf-8-sig").strip()
            labels = np.array(json.loads(text) if text.startswith("[") else [int(row) for row in read_lines(path)])
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a list of labels ({error})") from None
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{path}: expected one whole number per sample, found {labels.dtype} of shape {labels.shape}.")
    return labels.astype(np.int64)


def make_noise(mode, labels, num_classes, ratio=0.0, seed=0, noise_file=""):
    """The labels to train on, (N,) int64. Raises UserError for an unknown mode or a file that does not match."""
    if mode == "none":
        return labels
    if mode != "file":
        noise = pick({**NOISE, "none": None, "file": None}, mode, "noise_mode")
        return noise(labels, ratio, num_classes, np.random.default_rng([seed, 0]))
    noisy = read_labels(noise_file)
    if len(noisy) != len(labels):
        raise UserError(f"{noise_file}: holds {len(noisy)} labels, the training set has {len(labels)} images.")
    if noisy.min() < 0 or noisy.max() >= num_classes:
        row = int(np.flatnonzero((noisy < 0) | (noisy >= num_classes))[0])
        raise UserError(f"{noise_file}: row {row + 1} is {noisy[row]}, labels go from 0 to {num_classes - 1}.")
    return noisy
