"""`load_data(cfg)` gives the data set that a configuration names; DATASETS has one reader for each."""

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dataloader.animal10n import animal10n
from dataloader.archives import source_root
from dataloader.cars import stanford_cars
from dataloader.cifar import SOURCE as CIFAR
from dataloader.cifar import cifar10, cifar100
from dataloader.clothing1m import clothing1m
from dataloader.cub import cub_200_2011
from dataloader.dataset import Dataset, Split, array_hash, identified, label_hash
from dataloader.digits import digits
from dataloader.files import below, data_root, inspect_files, inspection_cache
from dataloader.food101n import food101n
from dataloader.image_noise import image_noise_name, image_noise_of
from dataloader.imagenet import imagenet
from dataloader.listings import CLASSNAMES
from dataloader.mini_imagenet import blue_mini_imagenet, red_mini_imagenet
from dataloader.noise import DRAWN, make_noise, read_transition
from dataloader.own import find_duplicates, other_names, own, sound_rows, split_of_rows
from dataloader.rows import read_csv, say_equal_names, say_names
from dataloader.tiny_imagenet import tiny_imagenet
from dataloader.transforms import decode
from dataloader.webvision import webvision
from utils.distributed import first_alone
from utils.errors import UserError, nearest, pick
from utils.files import image_list, read_lines, write_whole

DATASETS = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "tiny_imagenet": tiny_imagenet,
    "stanford_cars": stanford_cars,
    "cub-200-2011": cub_200_2011,
    "clothing1m": clothing1m,
    "webvision": webvision,
    "animal10n": animal10n,
    "red_mini_imagenet": red_mini_imagenet,
    "blue_mini_imagenet": blue_mini_imagenet,
    "food101n": food101n,
    "imagenet": imagenet,
    "own": own,
}
CNWL = "Controlled Noisy Web Labels from google.github.io/controlled-noisy-web-labels, and mini-ImageNet's own images"
SOURCES = {  # where to get each
    "cifar10": CIFAR.format("CIFAR-10") + " (or by --download)",
    "cifar100": CIFAR.format("CIFAR-100") + " (or by --download)",
    "tiny_imagenet": "tiny-imagenet-200.zip from cs231n.stanford.edu",
    "stanford_cars": "Stanford Cars from ai.stanford.edu/~jkrause/cars/car_dataset.html",
    "cub-200-2011": "CUB-200-2011 from vision.caltech.edu/datasets/cub_200_2011",
    "clothing1m": "Clothing1M from github.com/Cysu/noisy_label (on request)",
    "webvision": "WebVision 1.0 from data.vision.ee.ethz.ch/cvl/webvision/dataset2017.html",
    "animal10n": "ANIMAL-10N, image version, from dm.kaist.ac.kr/datasets/animal-10n",
    "red_mini_imagenet": CNWL,
    "blue_mini_imagenet": CNWL,
    "food101n": "Food-101N from kuanghuei.github.io/Food-101N and Food-101 from data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
    "imagenet": "ILSVRC2012 from image-net.org",
}
PUBLISHED = {  # (training, test) images as the data sets' authors give them
    "digits": (1437, 360),
    "cifar10": (50000, 10000),
    "cifar100": (50000, 10000),
    "tiny_imagenet": (100000, 10000),
    "stanford_cars": (8144, 8041),
    "cub-200-2011": (5994, 5794),
    "clothing1m": (None, 10526),
    "webvision": (65944, 2500),
    "animal10n": (50000, 5000),
    "red_mini_imagenet": (None, 5000),  # 49,962 to 50,010 by level
    "blue_mini_imagenet": (50000, 5000),
    "food101n": (310009, 25250),
    "imagenet": (1281167, 50000),
}


def load_data(cfg: SimpleNamespace) -> Dataset:
    """The data set that `cfg` names, with class names and the labels to train on; pixels of files not yet decoded.

    With `score`, the images that it names replace the training images.
    Raises UserError for an unknown data set or noise, class names or labels that do not match, missing files.
    """
    read = pick(DATASETS, cfg.dataset, "dataset")
    cfg.noise_mode = cfg.noise_mode or "none"
    if cfg.download and cfg.dataset not in ("cifar10", "cifar100"):
        raise UserError(f"download: only cifar10 and cifar100 can be fetched, not {cfg.dataset}.")
    if cfg.dataset in SOURCES and not cfg.download and not Path(cfg.data_path).is_dir():
        raise UserError(f"data_path: there is no folder {cfg.data_path}. Get {SOURCES[cfg.dataset]}.")
    if cfg.check_data:
        report, is_whole = check_data(cfg)
        print(report)
        sys.exit(0 if is_whole else 1)
    with first_alone():  # which downloads, or looks through all files, once
        dataset = read(cfg)
    if cfg.skip_broken and not isinstance(dataset.train.images, np.ndarray) and cfg.dataset != "own":
        dataset = _without_broken(dataset, cfg)
    dataset.classnames = _classnames(cfg, dataset)
    dataset.label_names = dataset.label_names or dataset.classnames
    (say_names if cfg.dataset == "own" else say_equal_names)(dataset.classnames, dataset.label_names)
    _check_labels(cfg, dataset)
    truth = dataset.true_labels
    if truth is None and (dataset.trusted or cfg.noise_mode != "none"):
        truth, dataset.truth_on_disk = dataset.train.labels, not dataset.trusted
    if dataset.trusted:
        for split in dataset.given_tests.values():
            split.true_labels = split.labels
    dataset = identified(dataset, dataset.root or data_root(cfg.data_path))
    is_folder = not isinstance(dataset.train.images, np.ndarray)
    noisy = make_noise(
        cfg, dataset.train.labels, dataset.num_classes, is_folder, lambda: raw_pixels(dataset.train.images)
    )
    if cfg.noise_mode != "none":
        dataset.noise_name, dataset.train.verified = _noise_name(cfg, noisy, dataset.num_classes), None
    dataset.noise_name = "-".join(filter(None, [dataset.noise_name, image_noise_name(cfg)]))
    dataset.train = replace(dataset.train, labels=noisy, true_labels=truth)
    for part, split in enumerate([dataset.train, *dataset.given_tests.values()]):
        split.noise = image_noise_of(cfg, part)
    if getattr(cfg, "score", ""):
        return to_score(cfg, dataset)
    _list_images(cfg, dataset)
    return dataset


def _check_labels(cfg: SimpleNamespace, dataset: Dataset) -> None:
    """UserError unless every split has images, and labels that are class numbers."""
    K = dataset.num_classes
    if cfg.num_class and cfg.num_class != K:
        raise UserError(f"num_class: is {cfg.num_class}, but {cfg.dataset} has {K} classes.")
    for split, labels in (
        ("training", dataset.train.labels),
        *((name, more.labels) for name, more in dataset.given_tests.items()),
    ):
        if len(labels) == 0:
            raise UserError(f"data_path: the {split} set of {cfg.dataset} in {cfg.data_path} is empty.")
        if labels.min() < 0 or labels.max() >= K:
            row = int(np.flatnonzero((labels < 0) | (labels >= K))[0])
            raise UserError(
                f"data_path: label {labels[row]} of {split} image {row} is out of range; "
                f"{cfg.dataset} has {K} class names, so labels go from 0 to {K - 1}."
            )


def to_score(cfg: SimpleNamespace, data: Dataset) -> Dataset:
    """A Dataset with the labelled images that `score` names, a test set, folder or table, instead of the training images."""
    if cfg.score in data.given_tests:
        split = data.given_tests[cfg.score]
        rest: dict[str, Any] = {"skipped": [], "duplicates": []}
    elif cfg.score == "test":
        raise UserError("score: this data set has no test split.")
    else:
        with first_alone():  # which unpacks an archive
            (rows, skipped), root = sound_rows(cfg.score, cfg, "score"), source_root(cfg.score, cfg)
        others = other_names(rows, data.label_names)
        split = split_of_rows(rows, data.label_names, others)
        rest = {
            "root": root,
            "source": "",
            "other_names": others,
            "skipped": [(row.path, reason) for row, reason in skipped],
            "duplicates": find_duplicates(rows),
        }
    scored = replace(data, train=split, test=None, more_tests={}, held_out=None, **rest)
    scored = identified(scored, scored.root)
    _list_images(cfg, scored)
    return scored


def _list_images(cfg: SimpleNamespace, data: Dataset) -> None:
    """Record the files of a Dataset and their contents, so that a run can name those that have changed."""
    path, splits = image_list(Path(cfg.output_dir), data.fingerprint), [data.train, *data.given_tests.values()]
    if data.root and all(split.digests for split in splits) and not path.is_file():
        content = {
            below(data.root, p): digest for split in splits for p, digest in zip(split.images, split.digests or [])
        }
        with write_whole(path, shared=True) as file:
            file.write(json.dumps(content).encode())


def _classnames(cfg: SimpleNamespace, dataset: Dataset) -> list[str]:
    """The class names for CLIP, from --classnames, class_names, config/classnames/<dataset>.txt or the data set itself."""
    source, names = CLASSNAMES / f"{dataset.name}.txt", dataset.classnames
    if cfg.classnames:
        source = Path(cfg.classnames)
        if not source.is_file():
            raise UserError(f"classnames: no such file: {source}.")
        table = source.suffix.lower() in (".csv", ".tsv")
        names = _names_by_label(source, dataset.label_names or [], names) if table else read_lines(source)
        firsts = {re.split("[,;\t]", name)[0].strip() for name in names}
        if not table and firsts == set(dataset.label_names or []) and firsts.isdisjoint(names):
            print(
                f"warning: classnames: every line of {source} begins with a label; lines of label,name are read in a .csv file"
            )
    elif cfg.class_names:
        source, names = Path("class_names"), cfg.class_names
    elif source.is_file():
        names = read_lines(source)
    if "" in [name.strip() for name in names]:
        raise UserError(f"{source}: line {[n.strip() for n in names].index('') + 1} is empty, expected a class name.")
    expected = len(dataset.classnames) or cfg.num_class
    if expected and len(names) != expected:
        raise UserError(f"{source}: holds {len(names)} class names, the data set has {expected} classes.")
    return names


def _names_by_label(source: Path, labels: list[str], usual: list[str]) -> list[str]:
    """The class names (K,) of the labels (K,) by a CSV or TSV file with the columns label and name; `usual` where it has none.

    UserError for a label that is no class, is there twice or has no name.
    """
    names: dict[str, str] = {}
    for line, row in read_csv(source):
        if row.keys() != {"label", "name"}:
            raise UserError(f"classnames: {source}: expected the columns label and name, found {', '.join(row)}.")
        label, name = row["label"].strip(), row["name"].strip()
        if label not in labels or label in names or not name:
            why = "there twice" if label in names else "without a name" if label in labels else "no label of the data"
            hint = nearest(label, labels) if label not in labels else ""
            raise UserError(f"classnames: {source}: line {line}: '{label}' is {why}.{hint}")
        names[label] = name
    return [names.get(label, name) for label, name in zip(labels, usual)]


def _noise_name(cfg: SimpleNamespace, noisy: np.ndarray, num_classes: int) -> str:
    """The noise as part of a run's folder: with its ratio, or a hash of the labels or transition matrix in noise_file."""
    if cfg.noise_mode in DRAWN:
        return f"{cfg.noise_mode}-{cfg.noise_ratio:g}" + ("-official" if cfg.noise_rng == "official" else "")
    if cfg.noise_mode == "transition":
        return f"transition-{array_hash(read_transition(cfg.noise_file, num_classes))}"
    if cfg.noise_mode == "file":
        return f"file-{label_hash(noisy)}"
    return cfg.noise_mode


def raw_pixels(images: Any, size: int = 64) -> np.ndarray:
    """uint8 (N, 3 h w), channel first, as instance-dependent noise sees images; files are resized to size x size."""
    if isinstance(images, np.ndarray):
        return images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        out = np.empty((len(images), 3 * size * size), dtype=np.uint8)
        for i, image in enumerate(pool.map(lambda path: decode(path, size), images)):
            out[i] = image.numpy().ravel()
    return out


def _without_broken(dataset: Dataset, cfg: SimpleNamespace) -> Dataset:
    """The Dataset without files that cannot be decoded, which are listed in `skipped`."""
    skipped: list[tuple[str, str]] = []

    def sound(split: Split) -> Split:
        _, reasons = inspect_files(split.images, inspection_cache(cfg))
        skipped.extend((path, reason) for path, reason in zip(split.images, reasons) if reason)
        good = [i for i, reason in enumerate(reasons) if not reason]
        return split.take(good)  # without digests, so that images are the same with and without `skip_broken`

    train, test = sound(dataset.train), sound(dataset.test) if dataset.test else None
    more = {name: sound(split) for name, split in dataset.more_tests.items()}
    return replace(dataset, train=train, test=test, more_tests=more, skipped=skipped)


def check_data(cfg: SimpleNamespace) -> tuple[str, bool]:
    """A report on a data set: numbers of images against the published ones, missing and broken files; and if it is whole."""
    dataset = DATASETS[cfg.dataset](cfg)
    published = PUBLISHED.get(cfg.dataset, (None, None))
    lines, is_whole = [f"{cfg.dataset} in {cfg.data_path}"], True
    for name, split, expected in (
        ("training", dataset.train, published[0]),
        ("test", dataset.test, published[1]),
        *((n, s, None) for n, s in dataset.more_tests.items()),
    ):
        if split is None:
            continue
        found = f"{name}: {len(split.labels)} images of {len(np.unique(split.labels))} classes"
        found += f", published {expected}" if expected else ""
        if not isinstance(split.images, np.ndarray):
            _, reasons = inspect_files(split.images, inspection_cache(cfg))
            broken = {path: reason for path, reason in zip(split.images, reasons) if reason}
            missing = [path for path, reason in broken.items() if reason == "missing"]
            found += f"; {len(missing)} files missing, {len(broken) - len(missing)} broken"
            found += f", first {(missing or list(broken))[0]}" if broken else ""
            is_whole &= not broken
        is_whole &= not expected or len(split.labels) >= expected
        lines.append(found)
    return "\n".join(lines), is_whole
