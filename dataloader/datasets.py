"""Data sets: DATASETS[name](cfg) -> Dataset. `load_data` adds the class names, the label noise and the checks."""
import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dataloader.files import images_identity, inspect_files
from dataloader.noise import DRAWN, make_noise
from dataloader.own import IMAGE_SUFFIXES, read_rows, say_names, shortened, tidy_names
from dataloader.transforms import decode
from utils.checkpoint import label_hash
from utils.config import UserError, default_values, nearest, pick, read_lines
from utils.distributed import first_alone
from utils.safe_pickle import load_arrays

CLASSNAMES = Path(__file__).resolve().parents[1] / "config" / "classnames"


@dataclass(frozen=True)
class View:
    """How pixels become a batch.

    Training: arrays are zero-padded by `pad` and cut back to their size at random; files are decoded `enlarge` times
    as large as needed and cut at random; both are flipped where `flip`. Test files are decoded `test_enlarge` times as
    large and cut in the centre. `short_side`: it is the short side of a file that is resized, else both. Mean and std
    in [0, 1] units; None takes the backbone's own.
    """
    pad: int = 0
    enlarge: float = 1.0
    test_enlarge: float = 1.0
    short_side: bool = False
    flip: bool = True
    mean: tuple | None = None
    std: tuple | None = None


ENLARGE = 8 / 7  # 256 pixels for a crop of 224
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass
class Split:
    """images: uint8 (N, H, W, 3) or a list of N paths or Pillow images; labels (N,) int64."""
    images: object
    labels: np.ndarray


@dataclass
class Dataset:
    """What a run works on. train.labels are the given labels; true_labels (N,) what they should be, where known."""
    name: str
    train: Split
    test: Split | None  # None: nothing to test on
    classnames: list  # the words CLIP reads
    view: View
    label_names: list = field(default_factory=list)  # the classes as the data's own files call them
    ids: list | None = None  # names of the training images, where a table gives them
    trusted: bool = True  # the labels on disk are taken for the truth
    more_tests: dict = field(default_factory=dict)  # further test sets, name -> Split
    skipped: dict = field(default_factory=dict)  # files that were left out, path -> why
    duplicates: list = field(default_factory=list)  # identical files, (group, path, label, whether labels differ)
    fingerprint: str = ""  # of the images: their pixels, or their paths below data_path
    true_labels: np.ndarray | None = None
    noise_name: str = field(default="none")  # of the run's folder

    @property
    def num_classes(self):
        return len(self.classnames)


def hold_out(labels, fraction, seed):
    """Indices of a stratified (train, test) split, both sorted; a class too small to be split stays in training."""
    from sklearn.model_selection import train_test_split
    # within a class `fraction` and the rest must come to one image or more
    splittable = np.flatnonzero(min(fraction, 1 - fraction) * np.bincount(labels)[labels] >= 1 - 1e-9)
    if not len(splittable):
        return np.arange(len(labels)), splittable
    _, test = train_test_split(splittable, test_size=fraction, random_state=seed, stratify=labels[splittable])
    return np.setdiff1d(np.arange(len(labels)), test), np.sort(test)


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
    if cfg.data_path != default_values()["data_path"]:
        raise UserError(f"data_path: the data set digits reads no files, but data_path is {cfg.data_path}; for your own "
                        "images say --cfg config/PEFT/own.yaml (phase 2: config/FFT/own.yaml).")
    levels, labels = load_digits_8x8()
    images = enlarge_digits(levels)
    train, test = hold_out(labels, cfg.test_fraction, cfg.seed)
    return Dataset("digits", Split(images[train], labels[train]), Split(images[test], labels[test]) if len(test) else None,
                   classnames=[str(i) for i in range(10)], view=View(flip=False))


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
    if cfg.download:
        from torchvision import datasets as torchvision_sets
        try:
            {"cifar10": torchvision_sets.CIFAR10, "cifar100": torchvision_sets.CIFAR100}[name](cfg.data_path, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(f"download: {name} could not be fetched ({error}). Get {SOURCES[name]}.") from None
    root = next((d for d in (Path(cfg.data_path), Path(cfg.data_path) / folder) if (d / files[0]).is_file()), None)
    if root is None:
        raise UserError(f"data_path: no {files[0]} in {cfg.data_path} or its folder {folder}; expected the files "
                        f"{', '.join(files)} of {name}'s python version; --download fetches them where there is a network.")
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
    if not classes:
        raise UserError(f"data_path: {root} holds no class folder.")
    paths, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(str(p) for p in (root / name).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise UserError(f"data_path: the class folder {root / name} holds no image.")
        paths += files
        labels += [label] * len(files)
    return paths, np.array(labels, dtype=np.int64), classes


# --- a person's own

OWN_VIEW = View(flip=False)  # neither cut nor mirrored: what fills the frame stays whole, and letters what they are


def own(cfg):
    """A folder of class folders or a table (dataloader/own.py); without a test split `test_fraction` is held out by `seed`.

    Where true labels are given, those of the training images are true_labels, and those of the test images its labels.
    """
    rows, skipped, duplicates = _sound_rows(cfg.data_path, cfg)
    train, test = ([row for row in rows if (row.split == "train") == is_train] for is_train in (True, False))
    classes = sorted({row.label for row in train} | {row.true_label for row in train} - {""})
    if len({row.label for row in train}) < 2:
        raise UserError(f"data_path: {cfg.data_path} holds training images of {len(classes)} class, expected two or more.")
    labels, true_labels = _numbers(train, classes)
    if not test:
        kept, held_out = hold_out(labels, cfg.test_fraction, cfg.seed)
        few = [classes[k] for k in np.setdiff1d(labels, labels[held_out])]
        if few and cfg.test_fraction:
            print(f"too few images to hold one out for testing: {shortened(few)}")
        train, test = [train[i] for i in kept], [train[i] for i in held_out]
        labels, true_labels = labels[kept], None if true_labels is None else true_labels[kept]
    test_split = None
    if test:
        test_split = Split([row.path for row in test], _numbers([_corrected(row) for row in test], classes)[0])
    print(f"{cfg.data_path}: {len(train)} training images of {len(classes)} classes, {len(test)} for testing")
    return Dataset("own", Split([row.path for row in train], labels), test_split, classnames=tidy_names(classes),
                   label_names=classes, view=OWN_VIEW, trusted=False, true_labels=true_labels,
                   ids=[row.id for row in train] if train[0].id else None, skipped=skipped, duplicates=duplicates)


def _corrected(row):
    """The row with its true label, where it has one, for its label: what a classifier should say."""
    return replace(row, label=row.true_label or row.label)


def _numbers(rows, classes):
    """labels and true_labels of rows, (N,) int64; None for the latter unless every row has one."""
    number = {name: i for i, name in enumerate(classes)}
    for row in rows:
        for label in (row.label, row.true_label or row.label):
            if label not in number:
                raise UserError(f"{row.where}: {label!r} is no class of the training images.{nearest(label, classes)}")
    labels = np.array([number[row.label] for row in rows], dtype=np.int64)
    known = [row.true_label for row in rows if row.true_label]
    if len(known) < len(rows):
        if known:
            print(f"true labels: given for {len(known)} of {len(rows)} images only, not used")
        return labels, None
    return labels, np.array([number[name] for name in known], dtype=np.int64)


def _sound_rows(source, cfg, key="data_path"):
    """The rows of a folder or table whose files can be read, {path: reason} of the others, and the identical files.

    Of these, which stay, (group, path, label, whether the labels of the group differ).
    """
    rows = read_rows(source, cfg, key)
    digests, reasons = inspect_files([row.path for row in rows], _inspection_cache(cfg))
    skipped = {row.path: reason for row, reason in zip(rows, reasons) if reason}
    groups = {}
    for row, digest, reason in zip(rows, digests, reasons):
        if not reason:
            groups.setdefault(digest, []).append(row)
    twins = [group for group in groups.values() if len(group) > 1]
    duplicates = [(i, row.path, row.label, len({r.label for r in group}) > 1)
                  for i, group in enumerate(twins, 1) for row in group]
    if skipped:
        reasons_given = [f"{path} ({reason})" for path, reason in skipped.items()]
        print(f"left out {len(skipped)} of {len(rows)} images: {shortened(reasons_given, 5)}")
    if len(skipped) == len(rows):
        raise UserError(f"{key}: none of the {len(rows)} images of {source} can be read.")
    if duplicates:
        differ = sum(len({row.label for row in group}) > 1 for group in twins)
        print(f"{len(duplicates)} images are {len(twins)} files more than once"
              + (f", {differ} of them with different labels" if differ else "") + "; all are kept")
    return [row for row in rows if row.path not in skipped], skipped, duplicates


def in_memory(images, labels, classnames=None):
    """A Dataset without a test split from what a notebook has: paths, Pillow images or uint8 (N, H, W, 3); N labels.

    classnames are in the order of the sorted labels; with whole numbers as labels, label k is classnames[k].
    """
    is_array, labels = isinstance(images, np.ndarray), np.asarray(labels)
    if is_array and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3):
        raise UserError(f"images: expected uint8 (N, H, W, 3), found {images.dtype} of shape {images.shape}.")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iuU":
        raise UserError(f"labels: expected {len(images)} strings or whole numbers, one an image, found {labels.dtype} of "
                        f"shape {labels.shape}.")
    images = images if is_array else [x if isinstance(x, Image.Image) else str(x) for x in images]
    names = np.arange(len(classnames)) if classnames and labels.dtype.kind != "U" else np.unique(labels)
    unknown = np.setdiff1d(labels, names)
    if len(unknown) or len(names) < 2 or (classnames and len(classnames) != len(names)):
        raise UserError(f"labels: {len(np.union1d(labels, names))} classes, expected two or more, with a name in classnames "
                        f"each, of which there are {len(classnames or names)}.")
    words = list(classnames) if classnames else tidy_names([str(name) for name in names])
    say_names(words, names.tolist())
    return Dataset("own", Split(images, np.searchsorted(names, labels).astype(np.int64)), None, words,
                   OWN_VIEW, names.tolist(), trusted=False, fingerprint=images_identity(images)[:8])


def _scored(cfg, data):
    """The labelled images that `score` names, a test set or a folder or table, in place of the training images."""
    tests = ({"test": data.test} if data.test else {}) | data.more_tests
    if cfg.score in tests:
        split = tests[cfg.score]
        rest = {"true_labels": split.labels if data.trusted else None, "ids": None, "skipped": {}, "duplicates": []}
    elif cfg.score == "test":
        raise UserError("score: this data set has no test split.")
    else:
        rows, skipped, duplicates = _sound_rows(cfg.score, cfg, "score")
        labels, true_labels = _numbers(rows, data.label_names)
        split = Split([row.path for row in rows], labels)
        rest = {"true_labels": true_labels, "ids": [row.id for row in rows] if rows[0].id else None, "skipped": skipped,
                "duplicates": duplicates}
    return replace(data, train=split, test=None, more_tests={}, fingerprint=_fingerprint([split], cfg.data_path), **rest)


def _inspection_cache(cfg):
    """Where what was found out about the files of data_path is kept."""
    return Path(cfg.output_dir) / "cache" / f"{cfg.dataset}-files.json"


# --- the paper's image sets, each in its official layout

def _rows(path, expected):
    """The words of every line of a list file, `expected` or more; UserError if it is missing, empty or has a short line."""
    if not path.is_file():
        raise UserError(f"data_path: {path} is missing.")
    rows = [line.split() for line in read_lines(path)]
    for row, words in enumerate(rows):
        if len(words) < expected:
            raise UserError(f"{path}: line {row + 1} has {len(words)} words, expected {expected}.")
    return rows


def _whole_number(word, path, row):
    if not word.lstrip("-").isdigit():
        raise UserError(f"{path}: line {row + 1} has the label '{word}', expected a whole number.")
    return int(word)


def _pairs(path):
    """(name, label) of every line `name label`."""
    return [(words[0], _whole_number(words[1], path, row)) for row, words in enumerate(_rows(path, 2))]


def _split(pairs):
    return Split([str(path) for path, _ in pairs], np.array([label for _, label in pairs], dtype=np.int64))


def _need(folder):
    if not folder.is_dir():
        raise UserError(f"data_path: there is no folder {folder}.")
    return folder


def tiny_imagenet(cfg):
    """Tiny-ImageNet: train/<wnid>/images/*, and test/<wnid>/images/* (official code) or the archive's own val/."""
    root = Path(cfg.data_path)
    paths, labels, wnids = _class_folders(_need(root / "train"))
    if (root / "val" / "val_annotations.txt").is_file() and not (root / "test" / wnids[0]).is_dir():
        number = {wnid: i for i, wnid in enumerate(wnids)}
        listed = root / "val" / "val_annotations.txt"
        pairs = []
        for row, words in enumerate(_rows(listed, 2)):
            if words[1] not in number:
                raise UserError(f"{listed}: line {row + 1} names {words[1]}, which is no folder of {root / 'train'}.")
            pairs.append((root / "val" / "images" / words[0], number[words[1]]))
        test = _split(sorted(pairs))
    else:
        test_paths, test_labels, test_wnids = _class_folders(_need(root / "test"))
        if test_wnids != wnids:
            raise UserError(f"data_path: {root / 'test'} has other class folders than {root / 'train'}.")
        test = Split(test_paths, test_labels)
    return Dataset("tiny_imagenet", Split(paths, labels), test, classnames=wnids, view=View(enlarge=ENLARGE))


def stanford_cars(cfg):
    """Stanford Cars: train/<class>/* and test/<class>/*, or the archive's devkit/*.mat with cars_train/ and cars_test/."""
    root, view = Path(cfg.data_path), View(enlarge=ENLARGE)
    if (root / "train").is_dir():
        paths, labels, classes = _class_folders(root / "train")
        test_paths, test_labels, test_classes = _class_folders(_need(root / "test"))
        if test_classes != classes:
            raise UserError(f"data_path: {root / 'test'} has other class folders than {root / 'train'}.")
        return Dataset("stanford_cars", Split(paths, labels), Split(test_paths, test_labels), classes, view)
    from scipy.io import loadmat
    parts = {"train": root / "devkit" / "cars_train_annos.mat", "test": root / "devkit" / "cars_test_annos_withlabels.mat"}
    if not parts["test"].is_file() and (root / parts["test"].name).is_file():
        parts["test"] = root / parts["test"].name
    meta, splits = root / "devkit" / "cars_meta.mat", []
    for path in (meta, *parts.values()):
        if not path.is_file():
            raise UserError(f"data_path: neither {root / 'train'} nor {path} is there.")
    path = meta
    try:
        # the devkit numbers the classes, from 1, in another order than their sorted names
        names = [str(n[0]).replace("/", "-") for n in loadmat(meta)["class_names"][0]]
        number = dict(zip(range(1, len(names) + 1), np.argsort(np.argsort(names))))
        for part, path in parts.items():
            splits.append(_split([(root / f"cars_{part}" / row["fname"].item(), number[int(row["class"].item())])
                                  for row in loadmat(path)["annotations"][0]]))
    except Exception as error:  # scipy raises anything on a damaged file
        raise UserError(f"{path}: not an annotation file of the devkit ({error!r})") from None
    return Dataset("stanford_cars", *splits, classnames=sorted(names), view=view)


def cub_200_2011(cfg):
    """CUB-200-2011: images/, images.txt, image_class_labels.txt, train_test_split.txt."""
    root = Path(cfg.data_path)
    paths = {words[0]: words[1] for words in _rows(root / "images.txt", 2)}
    labels, is_train = (dict(_pairs(root / name)) for name in ("image_class_labels.txt", "train_test_split.txt"))
    for i in paths:
        for name, column in (("image_class_labels.txt", labels), ("train_test_split.txt", is_train)):
            if i not in column:
                raise UserError(f"{root / name}: has no line for image {i} ({paths[i]}).")
    splits = [_split([(root / "images" / paths[i], labels[i] - 1) for i in paths if is_train[i] == flag])
              for flag in (1, 0)]
    return Dataset("cub-200-2011", *splits, classnames=[], view=View(enlarge=ENLARGE, **IMAGENET))


def clothing1m(cfg):
    """Clothing1M: key lists and label files; a class-balanced subset of the noisy images, fixed by `seed`.

    Walking the shuffled list, an image is taken while its class has fewer than num_samples / 14. Keys begin with
    `images/`; that folder may be there on disk or not.
    """
    root = Path(cfg.data_path)
    n = cfg.num_samples or 1000 * cfg.batch_size

    def read(keys_file, labels_file):
        labels, pairs = dict(_pairs(root / labels_file)), []
        for row, words in enumerate(_rows(root / keys_file, 1)):
            if words[0] not in labels:
                raise UserError(f"{root / keys_file}: line {row + 1}, {words[0]}, has no label in {root / labels_file}.")
            pairs.append((words[0], labels[words[0]]))
        return pairs

    train, counts, taken = read("noisy_train_key_list.txt", "noisy_label_kv.txt"), {}, []
    for i in np.random.default_rng([cfg.seed, 0, 2]).permutation(len(train)):
        label = train[i][1]
        if counts.get(label, 0) < n / 14 and len(taken) < n:
            taken.append(train[i])
            counts[label] = counts.get(label, 0) + 1
    keeps_prefix = (root / taken[0][0]).is_file()
    splits = [_split([(root / (key if keeps_prefix else key.removeprefix("images/")), label) for key, label in part])
              for part in (taken, read("clean_test_key_list.txt", "clean_label_kv.txt"))]
    view = View(enlarge=ENLARGE, test_enlarge=ENLARGE, short_side=True, mean=(0.6959, 0.6537, 0.6371),
                std=(0.3113, 0.3192, 0.3214))
    return Dataset("clothing1m", *splits, classnames=[], view=view, trusted=False)


def webvision(cfg):
    """WebVision 1.0, Google part, first 50 classes (num_class); ILSVRC12 validation is a second test set, if there."""
    root, K = Path(cfg.data_path), cfg.num_class or 50
    train, test = ([(f"{root}/{folder}{path}", label) for path, label in _pairs(root / "info" / name) if label < K]
                   for folder, name in (("", "train_filelist_google.txt"), ("val_images_256/", "val_filelist.txt")))
    more, imagenet = {}, root / "imagenet" / "val"
    if imagenet.is_dir():
        more["imagenet"] = _split([(path, k) for k in range(K) for path in sorted(_need(imagenet / str(k)).iterdir())
                                   if path.suffix.lower() in IMAGE_SUFFIXES])
    else:
        print(f"no {imagenet}: running without the second test set (ILSVRC12 validation)")
    view = View(enlarge=ENLARGE, test_enlarge=ENLARGE, **IMAGENET)
    return Dataset("webvision", _split(train), _split(test), classnames=[], view=view, trusted=False, more_tests=more)


DATASETS = {"digits": digits, "cifar10": cifar10, "cifar100": cifar100, "tiny_imagenet": tiny_imagenet,
            "stanford_cars": stanford_cars, "cub-200-2011": cub_200_2011, "clothing1m": clothing1m,
            "webvision": webvision, "own": own}
SOURCES = {  # where to get each
    "cifar10": "CIFAR-10, python version, from cs.toronto.edu/~kriz/cifar.html (or by --download)",
    "cifar100": "CIFAR-100, python version, from cs.toronto.edu/~kriz/cifar.html (or by --download)",
    "tiny_imagenet": "tiny-imagenet-200.zip from cs231n.stanford.edu",
    "stanford_cars": "Stanford Cars from ai.stanford.edu/~jkrause/cars/car_dataset.html",
    "cub-200-2011": "CUB-200-2011 from vision.caltech.edu/datasets/cub_200_2011",
    "clothing1m": "Clothing1M from github.com/Cysu/noisy_label (on request)",
    "webvision": "WebVision 1.0 from data.vision.ee.ethz.ch/cvl/webvision/dataset2017.html"}
PUBLISHED = {  # (training, test) images as the data sets' authors give them
    "digits": (1437, 360), "cifar10": (50000, 10000), "cifar100": (50000, 10000), "tiny_imagenet": (100000, 10000),
    "stanford_cars": (8144, 8041), "cub-200-2011": (5994, 5794), "clothing1m": (None, 10526), "webvision": (65944, 2500)}


def _without_broken(split, cfg):
    """The split without files that cannot be decoded, and {path: reason} of those."""
    _, reasons = inspect_files(split.images, _inspection_cache(cfg))
    good = np.array([not reason for reason in reasons])
    kept = [path for path, ok in zip(split.images, good) if ok]
    return Split(kept, split.labels[good]), {path: reason for path, reason in zip(split.images, reasons) if reason}


def check_data(cfg):
    """What is there of a data set, as text: images found against the published sizes, files missing or broken."""
    dataset = DATASETS[cfg.dataset](cfg)
    published = PUBLISHED.get(cfg.dataset, (None, None))
    lines = [f"{cfg.dataset} in {cfg.data_path}"]
    for name, split, expected in (("training", dataset.train, published[0]), ("test", dataset.test, published[1]),
                                  *((n, s, None) for n, s in dataset.more_tests.items())):
        if split is None:
            continue
        found = f"{name}: {len(split.labels)} images of {len(np.unique(split.labels))} classes"
        found += f", published {expected}" if expected else ""
        if not isinstance(split.images, np.ndarray):
            _, broken = _without_broken(split, cfg)
            missing = [path for path, reason in broken.items() if reason == "missing"]
            found += f"; {len(missing)} files missing, {len(broken) - len(missing)} broken"
            found += f", first {(missing or list(broken))[0]}" if broken else ""
        lines.append(found)
    return "\n".join(lines)


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

    With `score`, the images it names stand in place of the training images.
    Raises UserError for an unknown data set or noise, class names or labels that do not match, missing files.
    """
    read = pick(DATASETS, cfg.dataset, "dataset")
    if cfg.download and cfg.dataset not in ("cifar10", "cifar100"):
        raise UserError(f"download: only cifar10 and cifar100 can be fetched, not {cfg.dataset}.")
    if cfg.dataset in SOURCES and not cfg.download and not Path(cfg.data_path).is_dir():
        raise UserError(f"data_path: there is no folder {cfg.data_path}. Get {SOURCES[cfg.dataset]}.")
    if cfg.check_data:
        print(check_data(cfg))
        sys.exit(0)
    with first_alone():  # which downloads, or looks through all files, once
        dataset = read(cfg)
    if cfg.skip_broken and not isinstance(dataset.train.images, np.ndarray) and cfg.dataset != "own":
        dataset.train, dataset.skipped = _without_broken(dataset.train, cfg)
        dataset.test, broken = _without_broken(dataset.test, cfg)
        dataset.skipped |= broken
        for name, split in dataset.more_tests.items():
            dataset.more_tests[name], broken = _without_broken(split, cfg)
            dataset.skipped |= broken
    dataset.classnames = _classnames(cfg, dataset)
    dataset.label_names = dataset.label_names or dataset.classnames
    if cfg.dataset == "own":
        say_names(dataset.classnames, dataset.label_names)
    K = dataset.num_classes
    if cfg.num_class and cfg.num_class != K:
        raise UserError(f"num_class: is {cfg.num_class}, but {cfg.dataset} has {K} classes.")
    tests = {"test": dataset.test, **dataset.more_tests} if dataset.test else dataset.more_tests
    for split, labels in (("training", dataset.train.labels), *((name, more.labels) for name, more in tests.items())):
        if len(labels) == 0:
            raise UserError(f"data_path: the {split} set of {cfg.dataset} in {cfg.data_path} is empty.")
        if labels.min() < 0 or labels.max() >= K:
            row = int(np.flatnonzero((labels < 0) | (labels >= K))[0])
            raise UserError(f"data_path: label {labels[row]} of {split} image {row} is out of range; "
                            f"{cfg.dataset} has {K} class names, so labels go from 0 to {K - 1}.")
    if dataset.true_labels is None and (dataset.trusted or cfg.noise_mode not in ("", "none")):
        dataset.true_labels = dataset.train.labels
    is_folder = not isinstance(dataset.train.images, np.ndarray)
    noisy = make_noise(cfg, dataset.train.labels, K, is_folder, lambda: raw_pixels(dataset.train.images))
    dataset.train = Split(dataset.train.images, noisy)
    dataset.noise_name = _noise_name(cfg, noisy)
    dataset.fingerprint = _fingerprint([dataset.train, *([dataset.test] if dataset.test else [])], cfg.data_path)
    return _scored(cfg, dataset) if cfg.score else dataset


def _fingerprint(splits, data_path):
    """Eight hex digits of the images of the splits: of arrays their pixels, of files their paths below data_path."""
    sha, root = hashlib.sha256(), f"{data_path}/"
    for split in splits:
        if isinstance(split.images, np.ndarray):
            sha.update(np.ascontiguousarray(split.images))
        else:
            sha.update("\n".join(path[len(root):] if path.startswith(root) else os.path.relpath(path, data_path)
                                 for path in split.images).encode())  # relpath is slow for a million
    return sha.hexdigest()[:8]


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
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        out = np.empty((len(images), 3 * size * size), dtype=np.uint8)
        for i, image in enumerate(pool.map(lambda path: decode(path, size), images)):
            out[i] = image.numpy().ravel()
    return out
