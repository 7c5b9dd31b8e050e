"""Label noise: pure functions (labels, ratio, num_classes, rng) -> noisy labels; the input is not modified.

labels (N,) int64; ratio in [0, 1]; rng is a numpy Generator used for noise only, so a seed always gives the same labels.
`ratio` is the requested fraction; the realised noise rate is np.mean(noisy != labels).
The `official_…` functions reproduce the labels that the official code draws for a seed.
"""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.special import softmax
from scipy.stats import truncnorm

from utils.errors import UserError, pick
from utils.files import from_json, read_lines
from utils.safe_pickle import load_arrays

# similar classes of CIFAR-10 (Patrini et al., CVPR 2017), and the superclass of each CIFAR-100 class
CIFAR10_PAIRS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
# fmt: off
CIFAR100_SUPERCLASS = np.array([
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11,
    6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5,
    5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17,
    10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13,
    16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
])
# fmt: on


def chosen(n: int, ratio: float, rng: Any) -> np.ndarray:
    """floor(ratio * n) distinct random indices."""
    return rng.permutation(n)[: int(ratio * n)]


def sym(labels: np.ndarray, ratio: float, num_classes: int, rng: Any) -> np.ndarray:
    """Symmetric noise: the chosen samples get a label drawn uniformly from all classes, including the true one.

    About ratio (K-1)/K of the labels actually change.
    """
    noisy, index = labels.copy(), chosen(len(labels), ratio, rng)
    noisy[index] = rng.integers(num_classes, size=len(index))
    return noisy


def asym(labels: np.ndarray, ratio: float, num_classes: int, rng: Any) -> np.ndarray:
    """Asymmetric noise of the official code: the chosen samples get the next class, (y + 1) mod K."""
    noisy, index = labels.copy(), chosen(len(labels), ratio, rng)
    noisy[index] = (labels[index] + 1) % num_classes
    return noisy


def similar_class(num_classes: int) -> np.ndarray:
    """The similar class that each class of CIFAR is conventionally flipped to, (K,).

    CIFAR-10: truck → automobile, bird → airplane, deer → horse, cat ↔ dog; the others stay. CIFAR-100: the next class
    within the same superclass, cyclically.
    """
    target = np.arange(num_classes)
    if num_classes == 10:
        target[list(CIFAR10_PAIRS)] = list(CIFAR10_PAIRS.values())
    else:
        for group in range(20):
            members = np.flatnonzero(CIFAR100_SUPERCLASS == group)
            target[members] = np.roll(members, -1)
    return target


def asym_similar(labels: np.ndarray, ratio: float, num_classes: int, rng: Any) -> np.ndarray:
    """Conventional asymmetric noise (DivideMix and most papers): the chosen samples get the similar class."""
    noisy, index = labels.copy(), chosen(len(labels), ratio, rng)
    noisy[index] = similar_class(num_classes)[labels[index]]
    return noisy


def structured(labels: np.ndarray, ratio: float, num_classes: int, rng: Any, to_next: bool = False) -> np.ndarray:
    """`str` noise: of the chosen samples, only those of a random half of the classes change.

    They get a uniformly drawn class or, with `to_next`, the next class.
    """
    noisy, index = labels.copy(), chosen(len(labels), ratio, rng)
    half = rng.permutation(num_classes)[: num_classes // 2]
    index = index[np.isin(labels[index], half)]
    noisy[index] = (labels[index] + 1) % num_classes if to_next else rng.integers(num_classes, size=len(index))
    return noisy


def transition(labels: np.ndarray, matrix: np.ndarray, rng: Any) -> np.ndarray:
    """Class-dependent noise: the new label of a sample of class k is drawn from row k of the matrix (K, K)."""
    return draw_rows(matrix[labels], rng.random(len(labels)))


def draw_rows(probabilities: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Draw one column per row of probabilities (N, K) by inverse transform sampling at u (N,)."""
    cdf = np.cumsum(probabilities, axis=1, dtype=np.float64)
    return (cdf / cdf[:, -1:] <= u[:, None]).sum(1)


def flip_probabilities(
    labels: np.ndarray,
    flip_rate: np.ndarray,
    num_classes: int,
    features: Any,
    class_weights: Callable[[int], np.ndarray],
) -> np.ndarray:
    """Label probabilities P (N, K) float32 of instance-dependent noise (part-dependent, Xia et al., NeurIPS 2020).

    a = x W_y with a[y] = -inf; P = q softmax(a), P[y] = 1 - q, for flip rates q (N,), features x (N, F) and
    class_weights(k) -> W_k (F, K) float32. class_weights is called once per class, in order, so that only one W is in
    memory at a time.
    """
    P = np.empty((len(labels), num_classes), dtype=np.float32)
    for k in range(num_classes):
        W = class_weights(k)
        of_class = np.flatnonzero(labels == k)
        for part in np.array_split(of_class, max(1, len(of_class) // 4096)):
            a = features[part].astype(np.float32) @ W  # (n, K)
            a[:, k] = -np.inf
            P[part] = flip_rate[part, None].astype(np.float32) * softmax(a, axis=1)
            P[part, k] = 1 - flip_rate[part]
    return P


def _truncated_rates(n: int, ratio: float, rng: Any, std: float = 0.1) -> np.ndarray:
    return truncnorm.rvs(-ratio / std, (1 - ratio) / std, loc=ratio, scale=std, size=n, random_state=rng)


def idn(labels: np.ndarray, ratio: float, num_classes: int, rng: Any, features: Any) -> np.ndarray:
    """Instance-dependent noise (part-dependent, Xia et al. 2020); features (N, F) are raw pixels 0..255, channel first.

    Flip rates q_i follow normal(ratio, 0.1) truncated to [0, 1]; the entries of W_k (F, K) are standard normal.
    """
    flip_rate, F = _truncated_rates(len(labels), ratio, rng), features.shape[1]
    P = flip_probabilities(
        labels, flip_rate, num_classes, features, lambda k: rng.standard_normal((F, num_classes), dtype=np.float32)
    )
    return draw_rows(P, rng.random(len(labels)))


def official_class_noise(
    mode: str, labels: np.ndarray, ratio: float, num_classes: int, rng: Any, folder: bool = False, cub: bool = False
) -> np.ndarray:
    """sym, asym or str noise exactly as in the official code; rng is `random.Random(seed)`.

    In `str`, samples of image folders (`folder`) get the next class; for CIFAR the class is drawn. The loader of CUB (`cub`)
    has sym alone, and does not shuffle the classes.
    """
    noisy, order, classes = labels.copy(), list(range(len(labels))), list(range(num_classes))
    rng.shuffle(order)
    if not cub:
        rng.shuffle(classes)  # drawn in every mode
    half = np.isin(np.arange(num_classes), classes[: num_classes // 2])
    for i in sorted(order[: int(ratio * len(labels))]):
        if mode == "sym" or (mode == "str" and half[labels[i]] and not folder):
            noisy[i] = rng.randint(0, num_classes - 1)
        elif mode == "asym" or (mode == "str" and half[labels[i]]):
            noisy[i] = (labels[i] + 1) % num_classes
    return noisy


def official_idn(labels: np.ndarray, ratio: float, num_classes: int, features: Any) -> np.ndarray:
    """Instance-dependent noise exactly as in the official code, which always uses numpy seed 1."""
    rng = np.random.RandomState(1)
    flip_rate, F = _truncated_rates(len(labels), ratio, rng), features.shape[1]
    P = flip_probabilities(
        labels, flip_rate, num_classes, features, lambda k: rng.randn(F, num_classes).astype(np.float32)
    )
    return draw_rows(P, rng.random_sample(len(labels)))


HUMAN = {  # noise_mode: {number of classes: entry of the file}; `real` is the official name
    "real": {10: "worse_label", 100: "noisy_label"},
    "worse": {10: "worse_label"},
    "aggre": {10: "aggre_label"},
    "random1": {10: "random_label1"},
    "random2": {10: "random_label2"},
    "random3": {10: "random_label3"},
}
DRAWN: dict[str, Callable[..., np.ndarray]] = {
    "sym": sym,
    "asym": asym,
    "asym_similar": asym_similar,
    "str": structured,
    "idn": idn,
}
OFFICIAL = ("sym", "asym", "str", "idn")  # of these, what the official code has
DISK_ORDER = ("tiny_imagenet", "stanford_cars")  # whose files it reads in the order of the disk; here they are sorted
NOISY = "clothing1m webvision animal10n food101n red_mini_imagenet blue_mini_imagenet".split()  # data sets as published
NOISE = ("none", *DRAWN, "transition", "file", *HUMAN)


def _check_labels(labels: np.ndarray, expected: int, num_classes: int, path: str | Path) -> np.ndarray:
    """Labels (N,) int64 read from a file, after checking their type, number and range."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{path}: expected one whole number per sample, found {labels.dtype} of shape {labels.shape}.")
    if len(labels) != expected:
        raise UserError(f"{path}: holds {len(labels)} labels, the training set has {expected} images.")
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        raise UserError(
            f"{path}: row {outside[0] + 1} is {labels[outside[0]]}, expected a label from 0 to {num_classes - 1}."
        )
    return labels.astype(np.int64)


def read_labels(path: str | Path, true_labels: np.ndarray | None = None) -> np.ndarray:
    """The content of a label file: .npy, a JSON list as in the official code, or text with one integer per line.

    A .csv with the columns label and label_noisy, as CIFAR-10's published instance-dependent labels (dependent0.4.csv;
    Chen et al., AAAI 2021), must have true_labels (N,) as its `label`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"noise_file: no such file: {path}.")
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        text = path.read_text(encoding="utf-8-sig").strip()
        if text.startswith("label,label_noisy"):
            clean, noisy = np.array([row.split(",") for row in read_lines(path)[1:]], dtype=np.int64).T
            if true_labels is not None and not np.array_equal(clean, true_labels):
                raise UserError(
                    f"{path}: its column `label` differs from the labels of this training set, so the order differs."
                )
            return noisy
        return np.array(from_json(text) if text.startswith("[") else [int(row) for row in read_lines(path)])
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a list of labels ({error})") from None


def read_human(data_path: str | Path, mode: str, labels: np.ndarray, num_classes: int) -> Any:
    """Human labels of CIFAR-10N or CIFAR-100N (Wei et al., ICLR 2022), from CIFAR-<K>_human.pt in data_path."""
    path = Path(data_path) / f"CIFAR-{num_classes}_human.pt"
    if num_classes not in HUMAN[mode]:
        raise UserError(f"noise_mode: {mode} labels exist for {' and '.join(f'CIFAR-{k}' for k in HUMAN[mode])} only.")
    if not path.is_file():
        raise UserError(f"noise_mode: {mode} needs the human labels of CIFAR-{num_classes}N at {path}.")
    entry = HUMAN[mode][num_classes]
    try:
        arrays = load_arrays(path)
        noisy, clean = arrays[entry], arrays["clean_label"]
    except Exception as error:  # damaged archives and missing entries raise many exceptions
        raise UserError(f"{path}: expected arrays {entry} and clean_label ({error!r})") from None
    if not np.array_equal(clean, labels):
        raise UserError(f"{path}: clean_label differs from the labels of this training set; is the order the same?")
    return _check_labels(noisy, len(labels), num_classes, path)


def read_transition(path: str | Path, num_classes: int) -> np.ndarray:
    """A row-stochastic matrix (K, K) float64 from .npy or .csv; row k has the probabilities of class k's new labels."""
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"noise_file: no such file: {path}; expected a {num_classes}x{num_classes} matrix (.npy or .csv)."
        )
    try:
        matrix = (
            np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path, delimiter=",", ndmin=2)
        )
        matrix = matrix.astype(np.float64)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a matrix of numbers ({error})") from None
    if matrix.shape != (num_classes, num_classes):
        raise UserError(f"{path}: expected a {num_classes}x{num_classes} matrix, found shape {matrix.shape}.")
    bad = np.flatnonzero((np.abs(matrix.sum(1) - 1) > 1e-6) | (matrix < 0).any(1) | ~np.isfinite(matrix).all(1))
    if len(bad):
        raise UserError(
            f"{path}: row {bad[0] + 1} sums to {matrix[bad[0]].sum():.6g}, expected probabilities that sum to 1."
        )
    return matrix


def make_noise(
    cfg: SimpleNamespace, labels: np.ndarray, num_classes: int, is_folder: bool = False, features: Any = None
) -> Any:
    """The labels to train on, (N,) int64, according to the noise_… keys of cfg.

    features() returns the pixels (N, F), needed for idn. Raises UserError for an unknown mode, or a file that is missing
    or does not match the data set.
    """
    mode, ratio, K = cfg.noise_mode, cfg.noise_ratio, num_classes
    pick(dict.fromkeys(NOISE), mode, "noise_mode")
    rng = np.random.default_rng([cfg.seed, 0])
    if mode in ("none", "file", "transition") and ratio and cfg.dataset not in NOISY:  # whose own noise it is
        print(f"warning: noise_ratio: {ratio:g} makes no noise, since noise_mode is {mode}")
    if mode == "none":
        return labels
    if mode == "file":
        if not cfg.noise_file:
            raise UserError("noise_file: noise_mode file needs a file with the labels.")
        official = Path(cfg.data_path) / "noise_file" / cfg.noise_file  # the folder the official code uses
        path = official if official.is_file() and not Path(cfg.noise_file).is_file() else cfg.noise_file
        return _check_labels(read_labels(path, labels), len(labels), K, path)
    if mode in HUMAN:
        return read_human(cfg.data_path, mode, labels, K)
    if mode == "transition":
        if not cfg.noise_file:
            raise UserError(f"noise_file: noise_mode transition needs a file with a {K}x{K} matrix (.npy or .csv).")
        return transition(labels, read_transition(cfg.noise_file, K), rng)
    if not ratio:
        print("noise_ratio: 0 changes no label")
    if mode == "asym_similar" and not cfg.dataset.startswith("cifar"):
        raise UserError(f"noise_mode: asym_similar is defined for cifar10 and cifar100, not for {cfg.dataset}.")
    if cfg.noise_rng == "official":
        return _official(cfg, labels, K, is_folder, features)
    drawn_from = labels.copy(), ratio, K, rng  # a copy: `labels` are the truth
    if mode == "idn":
        noisy = idn(*drawn_from, features())
    else:
        noisy = structured(*drawn_from, is_folder) if mode == "str" else DRAWN[mode](*drawn_from)
    return _check_labels(noisy, len(labels), K, f"noise_mode {mode}")


def _official(cfg: SimpleNamespace, labels: np.ndarray, num_classes: int, is_folder: bool, features: Any) -> Any:
    """Labels as in the official code: from its cache file if there is one, whatever the seed, else drawn."""
    mode, ratio = cfg.noise_mode, cfg.noise_ratio
    if mode not in OFFICIAL:
        raise UserError(f"noise_rng: the official code has no {mode}; use noise_rng numpy.")
    cub = cfg.dataset == "cub-200-2011"
    cache = Path(cfg.data_path) / "noise_file" / (f"{mode}_{ratio}" if is_folder else f"{cfg.dataset}_{mode}_{ratio}")
    if cfg.dataset in DISK_ORDER:
        print(
            "warning: noise_rng: the official code reads the files of a class in the order of the disk, here they are sorted, so "
            "its labels are of other images of the class"
        )
    if cache.is_file():
        print(f"labels from the official cache {cache}")
        return _check_labels(read_labels(cache), len(labels), num_classes, cache)
    if cub and mode != "sym":
        raise UserError(f"noise_rng: the official code has no {mode} for CUB; use noise_rng numpy.")
    if mode == "idn":
        return official_idn(labels, ratio, num_classes, features())
    return official_class_noise(mode, labels, ratio, num_classes, random.Random(cfg.seed), is_folder, cub)
