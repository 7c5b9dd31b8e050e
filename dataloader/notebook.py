"""Make a Dataset of what a notebook has: images and labels, data sets of torchvision and Hugging Face, features."""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from dataloader.archives import saved_rows
from dataloader.dataset import Dataset, Split, fingerprint, identified, image_keys
from dataloader.files import inspect_files, inspection_cache, pixel_digests
from dataloader.own import OWN_VIEW
from dataloader.rows import COLUMNS, say_names, sorted_labels, tidy_names
from dataloader.transforms import to_rgb
from utils.errors import UserError, brief
from utils.files import slug, write_whole


def from_dataset(dataset: Any, cfg: SimpleNamespace) -> tuple[Any, list, list[str] | None]:
    """(images, labels, class names or None) of a data set of torchvision or of Hugging Face, as detect() takes them.

    Images are paths where the data set reads files. Those of Hugging Face become files below output_dir, called by their
    keys; others are Pillow images. Names are None where the data set has none, or its target_transform makes other labels.
    UserError where it is no such data set.
    """
    is_hugging_face = hasattr(dataset, "features") or isinstance(dataset, Mapping)  # and not a person's own datasets.py
    if type(dataset).__module__.partition(".")[0] == "datasets" and is_hugging_face:
        return _from_hugging_face(dataset, cfg)
    if not (
        hasattr(dataset, "__getitem__")
        and hasattr(dataset, "__len__")
        and isinstance(dataset, torch.utils.data.Dataset)
    ):
        raise UserError("labels: missing; only a data set of torchvision or of Hugging Face brings its own.")
    dataset, images, labels = _bare(dataset), [], []
    for i in range(len(dataset)):
        item = dataset[i]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise UserError(f"images: item {i} of the data set is {type(item).__name__}, expected (image, label).")
        if not isinstance(item[0], (str, os.PathLike, Image.Image)):
            raise UserError(
                f"images: item {i} of the data set has {type(item[0]).__name__} as its image, expected a Pillow image; "
                "leave the transform out."
            )
        images.append(item[0])
        labels.append(item[1].item() if isinstance(item[1], (torch.Tensor, np.generic)) else item[1])
    while hasattr(dataset, "dataset") and not hasattr(dataset, "classes"):  # a Subset
        dataset = dataset.dataset
    classes = getattr(dataset, "classes", ())  # torchvision's ImageNet has a tuple of synonyms for each
    names = [str(name[0] if isinstance(name, (tuple, list)) else name) for name in classes]
    if getattr(dataset, "target_transform", None):  # its labels are no longer numbers of `classes`
        names = []
    return images, labels, names if labels and all(isinstance(k, int) and k < len(names) for k in labels) else None


def _bare(dataset: Any) -> Any:
    """A shallow copy of a torchvision data set, or a Subset of one, that gives images as they are, and files as their paths."""
    dataset = copy.copy(dataset)
    if hasattr(dataset, "dataset"):
        dataset.dataset = _bare(dataset.dataset)
    for name in ("transform", "transforms"):
        if hasattr(dataset, name):
            setattr(dataset, name, None)
    if hasattr(dataset, "samples") and hasattr(dataset, "loader"):  # DatasetFolder and ImageFolder
        dataset.loader = str
    return dataset


def _from_hugging_face(dataset: Any, cfg: SimpleNamespace) -> tuple[list[str], list, list[str] | None]:
    if not hasattr(dataset, "features"):
        splits = ", ".join(dataset) if isinstance(dataset, Mapping) else "one of its splits"
        raise UserError(f"images: is a {type(dataset).__name__}; expected one of its splits: {splits}.")
    features = dataset.features
    usual = [cfg.label_column] if cfg.label_column else COLUMNS["label_column"]
    classes = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    column = next((name for name in usual if name in features), None) or (classes[0] if len(classes) == 1 else None)
    if column is None or (cfg.label_column and column != cfg.label_column):
        raise UserError(
            f"labels: which of the columns {', '.join(features)} has them is not clear; label_column=NAME says so."
        )
    names = list(features[column].names) if column in classes else None
    return saved_rows(dataset, cfg), list(dataset[column]), names


def own_arrays(**arrays: Any) -> dict[str, np.ndarray]:
    """{name: (N, …) numpy array} of what a person's own model gave, from anything that numpy takes; None is left out."""
    found = {}
    for name, x in arrays.items():
        if x is not None:
            try:
                found[name] = np.asarray(x)
            except (TypeError, ValueError, RuntimeError) as error:  # rows of different lengths, tensors on a GPU
                raise UserError(f"{name}: cannot be made a numpy array ({brief(error)}).") from None
            if found[name].ndim != 2 or found[name].dtype.kind not in "fiu":
                raise UserError(
                    f"{name}: expected numbers, one row an image, found {found[name].dtype} of shape {found[name].shape}."
                )
    return found


def in_memory(
    images: Any,
    labels: Any,
    classnames: Sequence[str] | None,
    cfg: SimpleNamespace,
    keep: bool = False,
    given: Mapping[str, np.ndarray] | None = None,
) -> tuple[Dataset, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """(Dataset without a test split, values (K,) of its labels, rows (M,) of the N images, `given` of these rows) of what
    a notebook has.

    images: an iterable of N paths or Pillow images, or uint8 (N, H, W, 3). labels: N strings or whole numbers. classnames,
    where given, are in the order of the sorted labels, see rows.sorted_labels; with whole numbers, label k is classnames[k]. The
    columns of pred_probs come in the order of np.unique of the labels, as scikit-learn's classes_, and are returned in that
    of the classes. Files that cannot be read are a UserError, or with `skip_broken` not among the rows. keep: images that
    are no files are written below output_dir. given: arrays (N, …) about the images, see own_arrays; without images, they
    tell the rows apart.
    """
    name, given = f"own-{cfg.name or 'notebook'}", given or {}
    if isinstance(classnames, (str, os.PathLike, Mapping)):
        raise UserError(f"classnames: expected a list of names, not a {type(classnames).__name__}.")
    classnames = None if classnames is None else [str(name) for name in classnames]
    keep = keep and images is not None
    images = _checked_images(images) if images is not None else next(iter(given.values()), None)
    if images is None:
        raise UserError("images: missing; expected images, features or pred_probs.")
    for other, x in given.items():
        if len(x) != len(images):
            raise UserError(f"{other}: has {len(x)} rows, but there are {len(images)} images.")
    values, labels = _checked_labels(labels, len(images), classnames)
    if "pred_probs" in given:
        columns = given["pred_probs"].shape[1]
        if columns != len(values):
            raise UserError(
                f"pred_probs: has {columns} columns, expected {len(values)}, one a class, in the order of np.unique."
            )
        given = {**given, "pred_probs": given["pred_probs"][:, values.argsort().argsort()]}
    words = tidy_names([str(value) for value in values]) if classnames is None else classnames
    if keep and not all(isinstance(image, str) for image in images):
        images = save_images(images, Path(cfg.output_dir) / slug(name) / "images")
    if not given:  # else no text is read
        say_names(words, [str(value) for value in values])
    split, root, rows = Split(images, labels), "", np.arange(len(labels))
    if all(isinstance(image, str) for image in images):
        root = os.path.commonpath([os.path.dirname(path) for path in images])
        split, rows = _readable(split, cfg)
    data = Dataset(
        name,
        split,
        None,
        words,
        OWN_VIEW,
        label_names=[str(value) for value in values],
        trusted=False,
    )
    return identified(data, root), values, rows, {other: x[rows] for other, x in given.items()}


def _readable(split: Split, cfg: SimpleNamespace) -> tuple[Split, np.ndarray]:
    """(those of a Split of files that can be read, with their digests; their rows (M,)). UserError, unless `skip_broken`,
    if there are others."""
    digests, reasons = inspect_files(split.images, inspection_cache(cfg))
    broken = [f"{path} ({reason})" for path, reason in zip(split.images, reasons) if reason]
    if len(broken) == len(reasons) or (broken and not cfg.skip_broken):
        hint = "" if len(broken) == len(reasons) else "; skip_broken=True leaves them out"
        raise UserError(f"images: {len(broken)} of {len(reasons)} files cannot be read, first {broken[0]}{hint}.")
    rows = np.array([i for i, reason in enumerate(reasons) if not reason])
    return replace(split, digests=digests).take(rows), rows


def _checked_images(images: Any) -> Any:
    """A uint8 array (N, H, W, 3) as it is; anything else as a list of absolute paths and Pillow images."""
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OU":
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise UserError(f"images: expected uint8 (N, H, W, 3), found {images.dtype} of shape {images.shape}.")
        return images
    if isinstance(images, (str, os.PathLike, Mapping)):
        raise UserError(f"images: expected a list of paths or Pillow images, not a {type(images).__name__}.")
    try:
        images = [x if isinstance(x, Image.Image) else os.fsdecode(os.path.abspath(x)) for x in images]
    except TypeError as error:
        raise UserError(f"images: expected paths or Pillow images, or uint8 (N, H, W, 3) ({error}).") from None
    if len({isinstance(x, str) for x in images}) > 1:
        raise UserError("images: some are paths and some are Pillow images; expected one or the other.")
    return images


def _checked_labels(labels: Any, count: int, classnames: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """(values (K,) of the classes in order, labels (N,) int64 as numbers of them)."""
    labels, kinds = list(labels), []
    for i, label in enumerate(labels):
        whole = isinstance(label, (int, np.integer)) and not isinstance(label, bool)
        if not whole and not isinstance(label, str):
            missing = "is missing" if label is None or str(label) in ("<NA>", "nan", "NaT") else f"is {label!r}"
            raise UserError(f"labels: number {i} {missing}; expected strings or whole numbers.")
        kinds.append(whole)
    if len(labels) != count or len(set(kinds)) != 1:
        raise UserError(
            f"labels: expected {count} strings or whole numbers, one an image, found {sum(kinds)} numbers and "
            f"{len(labels) - sum(kinds)} strings."
        )
    labels = np.array(labels)
    values: np.ndarray
    if kinds[0]:
        values = np.unique(labels) if classnames is None else np.arange(len(classnames))
    else:
        values = np.array(sorted_labels(set(labels.tolist())))
    unknown = np.setdiff1d(labels, values)
    named = len(values if classnames is None else classnames)
    if len(unknown) or len(values) < 2 or named != len(values):
        raise UserError(
            f"labels: {len(np.union1d(labels, values))} classes, expected two or more, with a name in classnames "
            f"each, of which there are {named}."
        )
    number = {value: k for k, value in enumerate(values.tolist())}
    return values, np.array([number[label] for label in labels.tolist()], dtype=np.int64)


def save_images(images: Any, folder: Path) -> list[str]:
    """The paths of PNG files, below a folder, of a uint8 array (N, H, W, 3) or of Pillow images; those there are kept."""
    folder = Path(os.path.abspath(folder)) / fingerprint(
        image_keys(Split(images, np.empty(0), digests=pixel_digests(images)), "")
    )
    paths = [folder / f"{i:06d}.png" for i in range(len(images))]
    for path, image in zip(paths, images):
        if not path.is_file():
            with write_whole(path) as file:
                (Image.fromarray(image) if isinstance(image, np.ndarray) else to_rgb(image)).save(file, "PNG")
    return [str(path) for path in paths]
