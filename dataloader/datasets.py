"""Data sets: DATASETS[name](cfg) -> Dataset. `load_data` adds the class names, the label noise and the checks."""
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dataloader.noise import DRAWN, make_noise
from utils.config import UserError, nearest, pick, read_lines
from utils.safe_pickle import load_arrays

CLASSNAMES = Path(__file__).resolve().parents[1] / "config" / "classnames"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


@dataclass(frozen=True)
class View:
    """How pixels become a batch.

    Training: arrays are zero-padded by `pad` and cut back to their size at random; files are decoded `enlarge` times
    as large as needed and cut at random; both are flipped where `flip`. Mean and std in [0, 1] units; None takes the
    backbone's own.
    """
    pad: int = 0
    enlarge: float = 1.0
    flip: bool = True
    mean: tuple | None = None
    std: tuple | None = None


@dataclass
class Split:
    """images: uint8 (N, H, W, 3) or a list of N paths; labels (N,) int64."""
    images: object
    labels: np.ndarray


@dataclass
class Dataset:
    """What a run works on. train.labels are the given labels; true_labels (N,) what they should be, where known."""
    name: str
    train: Split
    test: Split
    classnames: list
    view: View
    trusted: bool = True  # the labels on disk are taken for the truth
    true_labels: np.ndarray | None = None
    noise_name: str = field(default="none")  # of the run's folder

    @property
    def num_classes(self):
        return len(self.classnames)


def label_hash(labels):
    """Eight hex digits that identify a list of labels."""
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()[:8]


def hold_out(labels, fraction, seed):
    """Indices of a stratified (train, test) split, both sorted."""
    from sklearn.model_selection import train_test_split
    try:
        train, test = train_test_split(np.arange(len(labels)), test_size=fraction, random_state=seed, stratify=labels)
    except ValueError as error:
        raise UserError(f"test_fraction: {fraction} of {len(labels)} images cannot be held out ({error})") from None
    return np.sort(train), np.sort(test)


# --- digits

def load_digits_8x8():
    """scikit-learn's 1,797 handwritten digits: grey levels 0..16 uint8 (1797, 8, 8) and labels int64."""
    from sklearn.datasets import load_digits
    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.int64)


def enlarge_digits(levels):
    """Grey levels 0..16 (N, 8, 8) -> uint8 RGB (N, 32, 32, 3): white ink on black, bicubic."""
    big = [np.asarray(Image.fromarray(np.minimum(lv * 16, 255).astype(np.uint8)).resize((32, 32), Image.BICUBIC))
           for lv in levels]
    return np.repeat(np.stack(big)[..., None], 3, axis=3)


def digits(cfg):
    """The 1,797 digits that come with scikit-learn, enlarged to 32x32; `test_fraction` of them held out by `seed`."""
    levels, labels = load_digits_8x8()
    images = enlarge_digits(levels)
    train, test = hold_out(labels, cfg.test_fraction, cfg.seed)
    return Dataset("digits", Split(images[train], labels[train]), Split(images[test], labels[test]),
                   classnames=[str(i) for i in range(10)], view=View(pad=2, flip=False))


# --- CIFAR

def _read_cifar(path, label_key):
    """Pixels uint8 (N, 32, 32, 3) and labels of one file of the python version of CIFAR; planar rows of 3,072."""
    try:
        batch = load_arrays(path)
        data, labels = np.asarray(batch["data"]), np.asarray(batch[label_key], dtype=np.int64)
        images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        if data.dtype != np.uint8 or len(images) != len(labels):
            raise ValueError(f"{len(images)} images of {data.dtype}, {len(labels)} labels")
    except Exception as error:  # a broken pickle can raise anything
        raise UserError(f"{path}: not a file of CIFAR's python version, or a damaged one ({error!r})") from None
    return images, labels


def _cifar(cfg, name, folder, files, label_key, mean, std):
    root = next((d for d in (Path(cfg.data_path), Path(cfg.data_path) / folder) if (d / files[0]).is_file()), None)
    if root is None:
        raise UserError(f"data_path: no {files[0]} in {cfg.data_path} or its folder {folder}; expected the files "
                        f"{', '.join(files)} of {name}'s python version.")
    missing = [f for f in files if not (root / f).is_file()]
    if missing:
        raise UserError(f"data_path: {root / missing[0]} is missing.")
    parts = [_read_cifar(root / f, label_key) for f in files]
    train = [np.concatenate(p) for p in zip(*parts[:-1])]
    return Dataset(name, Split(*train), Split(*parts[-1]), classnames=[], view=View(pad=4, mean=mean, std=std))


def cifar10(cfg):
    """CIFAR-10, python version, in data_path or its cifar-10-batches-py/; CIFAR's own image statistics."""
    files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    return _cifar(cfg, "cifar10", "cifar-10-batches-py", files, "labels",
                  (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def cifar100(cfg):
    """CIFAR-100, python version, in data_path or its cifar-100-python/; CIFAR's own image statistics."""
    return _cifar(cfg, "cifar100", "cifar-100-python", ["train", "test"], "fine_labels",
                  (0.507, 0.487, 0.441), (0.267, 0.256, 0.276))


# --- folders

def _class_folders(root):
    """Paths, labels and class names of <root>/<class>/**/*.jpg …, everything in sorted order."""
    classes = sorted(d.name for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))
    paths, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(str(p) for p in (root / name).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise UserError(f"data_path: the class folder {root / name} holds no image.")
        paths += files
        labels += [label] * len(files)
    return paths, np.array(labels, dtype=np.int64), classes


def imagefolder(cfg):
    """A folder of class folders; with train/ and test/ (or val/) inside, or `test_fraction` held out by `seed`."""
    root = Path(cfg.data_path)
    if not root.is_dir():
        raise UserError(f"data_path: there is no folder {root}.")
    view = View(enlarge=8 / 7)  # 256 pixels for a crop of 224
    has_train = (root / "train").is_dir()
    paths, labels, classes = _class_folders(root / "train" if has_train else root)
    if len(classes) < 2:
        raise UserError(f"data_path: {root} holds {len(classes)} class folders, expected two or more.")
    test_root = next((root / d for d in ("test", "val") if has_train and (root / d).is_dir()), None)
    if test_root is None:
        train, test = hold_out(labels, cfg.test_fraction, cfg.seed)
        splits = [Split([paths[i] for i in part], labels[part]) for part in (train, test)]
    else:
        test_paths, test_labels, test_classes = _class_folders(test_root)
        unknown = [c for c in test_classes if c not in classes]
        if unknown:
            raise UserError(f"data_path: {test_root / unknown[0]} is no class of {root / 'train'}."
                            f"{nearest(unknown[0], classes)}")
        to_train = np.array([classes.index(c) for c in test_classes])
        splits = [Split(paths, labels), Split(test_paths, to_train[test_labels])]
    return Dataset("imagefolder", *splits, classnames=classes, view=view, trusted=False)


DATASETS = {"digits": digits, "cifar10": cifar10, "cifar100": cifar100, "imagefolder": imagefolder}


def _classnames(cfg, dataset):
    """The words CLIP reads, from --classnames, class_names, config/classnames/<dataset>.txt or the data set itself."""
    source, names = CLASSNAMES / f"{dataset.name}.txt", dataset.classnames
    if cfg.classnames:
        source = Path(cfg.classnames)
        if not source.is_file():
            raise UserError(f"classnames: there is no file {source}.")
        names = read_lines(source)
    elif cfg.class_names:
        source, names = "class_names", cfg.class_names
    elif source.is_file():
        names = read_lines(source)
    if "" in [name.strip() for name in names]:
        raise UserError(f"{source}: line {[n.strip() for n in names].index('') + 1} is empty, expected a class name.")
    expected = len(dataset.classnames) or cfg.num_class
    if expected and len(names) != expected:
        raise UserError(f"{source}: holds {len(names)} class names, the data set has {expected} classes.")
    return names


def load_data(cfg):
    """The data set that `cfg` names, with class names and the labels to train on; pixels of files not yet decoded.

    Raises UserError for an unknown data set or noise, class names or labels that do not match, missing files.
    """
    dataset = pick(DATASETS, cfg.dataset, "dataset")(cfg)
    dataset.classnames = _classnames(cfg, dataset)
    K = dataset.num_classes
    if cfg.num_class and cfg.num_class != K:
        raise UserError(f"num_class: is {cfg.num_class}, but {cfg.dataset} has {K} classes.")
    for split, labels in (("training", dataset.train.labels), ("test", dataset.test.labels)):
        if len(labels) == 0:
            raise UserError(f"data_path: the {split} set of {cfg.dataset} in {cfg.data_path} is empty.")
        if labels.min() < 0 or labels.max() >= K:
            row = int(np.flatnonzero((labels < 0) | (labels >= K))[0])
            raise UserError(f"data_path: label {labels[row]} of {split} image {row} is out of range; "
                            f"{cfg.dataset} has {K} class names, so labels go from 0 to {K - 1}.")
    if dataset.trusted or cfg.noise_mode not in ("", "none"):
        dataset.true_labels = dataset.train.labels
    is_folder = not isinstance(dataset.train.images, np.ndarray)
    noisy = make_noise(cfg, dataset.train.labels, K, is_folder, lambda: raw_pixels(dataset.train.images))
    dataset.train = Split(dataset.train.images, noisy)
    dataset.noise_name = _noise_name(cfg, noisy)
    return dataset


def _noise_name(cfg, noisy):
    """The noise as part of a run's folder: with its ratio where it is drawn, with a hash of the labels where read."""
    if cfg.noise_mode in DRAWN:
        return f"{cfg.noise_mode}-{cfg.noise_ratio:g}" + ("-official" if cfg.noise_rng == "official" else "")
    if cfg.noise_mode in ("file", "transition"):
        return f"{cfg.noise_mode}-{label_hash(noisy)}"
    return cfg.noise_mode or "none"


def raw_pixels(images, size=64):
    """uint8 (N, 3 h w), channel first, as instance-dependent noise sees images; files are resized to size x size."""
    if isinstance(images, np.ndarray):
        return images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    from dataloader.loaders import decode
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        out = np.empty((len(images), 3 * size * size), dtype=np.uint8)
        for i, image in enumerate(pool.map(lambda path: decode(path, size), images)):
            out[i] = image.numpy().ravel()
    return out
