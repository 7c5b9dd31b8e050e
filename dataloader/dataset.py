"""The data of a run: images with labels (Split), how pixels become a batch (View), and both together (Dataset)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from dataloader.files import below, file_identity, pixel_digests
from dataloader.image_noise import ImageNoise
from dataloader.rows import tidy_names
from utils.files import as_text, slug


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


@dataclass
class Split:
    """Labelled images, row by row.

    images: uint8 (N, H, W, 3) or a list of N paths or Pillow images. labels (N,) int64 are the given ones, numbers of
    Dataset.label_names; true_labels (N,) int64, where known, are numbers of Dataset.true_names. ids: N names that a table
    gives. digests: N hashes, in hex, of the files' contents, where they have been read, or of the pixels. keys (N,) uint64:
    the images' names, see image_keys.
    """

    images: Any
    labels: np.ndarray
    true_labels: np.ndarray | None = None
    # (N,) int8, where people checked labels without giving true ones: 1 right, 0 wrong, -1 not checked
    verified: np.ndarray | None = None
    ids: list | None = None
    digests: list | None = None
    keys: Any = None  # an array once `identified` has set it
    noise: ImageNoise | None = None  # on the images, where asked for

    def take(self, index: Sequence[int] | np.ndarray) -> "Split":
        """The rows of index (M,), in that order."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        taken: dict[str, Any] = {name: [x[i] for i in index] for name, x in columns.items() if isinstance(x, list)}
        taken |= {name: x[index] for name, x in columns.items() if isinstance(x, np.ndarray)}
        return replace(self, **taken)

    def relabelled(self, labels: np.ndarray) -> "Split":
        """The same with other given labels (N,); whether those that changed were right no longer counts."""
        verified = self.verified
        if verified is not None:
            verified = np.where(labels == self.labels, verified, -1).astype(np.int8)
        return replace(self, labels=labels, verified=verified)


@dataclass
class Dataset:
    """What a run works on: the images to train on or to judge, and those to test on."""

    name: str
    train: Split
    test: Split | None  # None: nothing to test on
    classnames: list  # as CLIP reads them
    view: View
    label_names: list = field(default_factory=list)  # the classes as the data's own files call them
    other_names: list = field(default_factory=list)  # true labels that are no class: no training image was given them
    root: str = ""  # folder that paths in lists are relative to; "" where the images are no files
    trusted: bool = True  # the labels on disk are taken for the truth
    truth_on_disk: bool = False  # they are not, but noise was made: the true labels are what it was made from
    more_tests: dict = field(default_factory=dict)  # further test sets, name -> Split
    skipped: list = field(default_factory=list)  # rows that were left out, (path, why)
    duplicates: list = field(default_factory=list)  # same files, (group, path, split, label, whether labels differ)
    fingerprint: str = ""  # of the images, by name and content
    tested: str = ""  # of the test images alone
    source: str = ""  # of all images and labels before any were held out or made wrong: see source_identity
    held_out: np.ndarray | None = None  # where the test images stood among all, of which they were held out
    all_judged: bool = False  # they are among the training images as well: see whole
    noise_name: str = field(default="none")  # of the run's folder

    @property
    def num_classes(self) -> int:
        return len(self.classnames)

    @property
    def true_labels(self) -> np.ndarray | None:
        """Of the training images, (N,) int64, numbers of true_names; None where the truth is not known."""
        return self.train.true_labels

    @property
    def true_names(self) -> list[str]:
        """Names of the true labels: the classes, then true labels that are no class."""
        return self.label_names + self.other_names

    @property
    def shown_names(self) -> list[str]:
        """The classes for a person to read: what CLIP reads is added to a label that says something else, as 3 or n01443537."""
        same = zip(self.label_names, tidy_names(self.label_names), self.classnames)
        return [label if name in (label, tidy) else f"{label} ({name})" for label, tidy, name in same]

    @property
    def ids(self) -> list[str] | None:
        """Names of the training images, where a table gives them."""
        return self.train.ids

    @property
    def digests(self) -> list[str] | None:
        """Hashes of the training images' contents, where they have been read."""
        return self.train.digests

    def path(self, i: int) -> str:
        """The path of training image i relative to `root` (see files.below); "" where it is no file."""
        image = self.train.images[i]
        return as_text(below(self.root, image)) if self.root and isinstance(image, str) else ""

    @property
    def given_tests(self) -> dict[str, Split]:
        """All test sets with their given labels, name -> Split; the first is `test`, where there is one."""
        return ({"test": self.test} if self.test else {}) | self.more_tests

    @property
    def tests(self) -> dict[str, Split]:
        """The test sets, name -> Split, with true labels if known; images whose label is no class are left out."""
        by_truth = {name: _by_truth(split, self.num_classes) for name, split in self.given_tests.items()}
        return {name: split for name, split in by_truth.items() if len(split.labels)}

    @property
    def place(self) -> str:
        """The folder of runs on these data below output_dir: <dataset>/<noise>."""
        return f"{slug(self.name)}/{slug(self.noise_name)}"

    def whole(self) -> "Dataset":
        """The same with the images that were held out among the training images again, where they stood.

        For detectors that train no network: they judge every label.
        """
        if self.held_out is None:
            return self
        columns: dict[str, Any] = {}
        for name in (f.name for f in fields(Split)):
            x, y = getattr(self.train, name), getattr(self.test, name)
            columns[name] = x if x is None else x + y if isinstance(x, list) else np.concatenate([x, y])
        both = Split(**columns)
        rest = np.setdiff1d(np.arange(len(both.labels)), self.held_out)
        return replace(self, train=both.take(np.argsort(np.concatenate([rest, self.held_out]))), all_judged=True)

    @property
    def identity(self) -> dict[str, str]:
        """What a result on these data depends on, {what: hash}, for utils.runs.Run."""
        names = "\n".join(map(str, [*self.classnames, *self.label_names])).encode("utf-8", "backslashreplace")
        found = {
            "images": self.fingerprint,
            "labels": label_hash(self.train.labels),
            "class names": hashlib.sha256(names).hexdigest()[:8],
        }
        if tests := [split.labels for split in self.tests.values()]:
            found |= {"test images": self.tested, "test labels": label_hash(np.concatenate(tests))}
        truth = self.train.verified if self.true_labels is None else self.true_labels
        return found if truth is None else found | {"true labels": label_hash(truth)}

    def known(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The training labels known to be right or wrong: their index (M,), and whether each is right, (M,) bool.

        None where nothing is known.
        """
        if self.true_labels is not None:
            return np.arange(len(self.train.labels)), self.true_labels == self.train.labels
        if self.train.verified is None:
            return None
        index = np.flatnonzero(self.train.verified >= 0)
        return index, self.train.verified[index] == 1

    def facts(self) -> dict[str, Any]:
        """Name, sizes and, where the truth is known, the realised noise, for a summary."""
        facts = {
            "dataset": self.name,
            "noise": self.noise_name,
            "source": self.source,
            "num_train": len(self.train.labels),
            "num_test": len(self.test.labels) if self.test else 0,
            "num_classes": self.num_classes,
        }
        if self.held_out is not None and not self.all_judged:
            facts["held_out"] = len(self.held_out)
        if self.all_judged:
            facts["all_judged"] = True  # the test images are among the training images
        if self.skipped:
            facts["skipped"] = len(self.skipped)
        if (known := self.known()) is not None:
            index, is_clean = known
            facts["noise_rate"] = float(np.mean(~is_clean))
            if len(index) < len(self.train.labels):
                facts["num_known"] = len(index)
        if self.truth_on_disk:
            facts["truth"] = "labels on disk"  # which may be wrong themselves
        return facts

    def tables(self) -> dict[str, list]:
        """The lists that a run writes: {file name: rows}, a heading first. Paths are relative to `root`, see below."""
        tables: dict[str, list] = {}
        if self.skipped:
            tables["skipped.csv"] = [("path", "reason"), *((below(self.root, path), why) for path, why in self.skipped)]
        if self.duplicates:
            rows = [(group, below(self.root, path), *rest) for group, path, *rest in self.duplicates]
            tables["duplicates.csv"] = [("group", "path", "split", "label", "labels_differ"), *rows]
        return tables


def _by_truth(split: Split, num_classes: int) -> Split:
    """The split with its true labels, if known, and without images whose true label is no class."""
    if split.true_labels is None:
        return split
    known = split.true_labels < num_classes
    split = replace(split, labels=split.true_labels)
    return split if known.all() else split.take(np.flatnonzero(known))


def label_hash(labels: np.ndarray) -> str:
    """Eight hex digits that identify a list of labels."""
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()[:8]


def array_hash(x: np.ndarray) -> str:
    """Eight hex digits that identify an array."""
    return hashlib.sha256(f"{x.dtype}{x.shape}".encode() + np.ascontiguousarray(x).tobytes()).hexdigest()[:8]


def content_numbers(split: Split) -> np.ndarray:
    """(N,) uint64 that identify the contents of the images; for files that have not been read, their sizes."""
    if split.digests is not None:
        return np.array([int(digest[:16], 16) for digest in split.digests], dtype=np.uint64)
    return np.array([(file_identity(path) or [0])[0] for path in split.images], dtype=np.uint64)


def image_keys(split: Split, root: str) -> np.ndarray:
    """(N, 2) uint64: the name of each image, and its content, as numbers.

    The name of a file is its path below the folder `root`; an image that is no file is what its pixels are.
    """
    content = content_numbers(split)
    if not isinstance(split.images[0], str):
        return np.stack([content, content], axis=1)
    names = [below(root, path).encode("utf-8", "surrogateescape") for path in split.images]
    numbers = [int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) for name in names]
    return np.stack([np.array(numbers, dtype=np.uint64), content], axis=1)


def fingerprint(keys: np.ndarray) -> str:
    """Eight hex digits of images in their order, by their keys (N, 2)."""
    return hashlib.sha256(keys.astype("<u8").tobytes()).hexdigest()[:8]


def source_identity(data: Dataset, keys: np.ndarray) -> str:
    """Eight hex digits of all images of a Dataset, with their keys (N, 2), and their labels, given and true.

    The same whatever their order and whichever of them are held out for testing, so that seeds of one data set share it.
    """
    splits = [data.train, *data.given_tests.values()]
    part = np.repeat(np.arange(len(splits)), [len(split.labels) for split in splits])
    if data.held_out is not None:
        part[part == 1] = 0
    labels = np.concatenate([split.labels for split in splits])
    truth = np.concatenate([s.labels if s.true_labels is None else s.true_labels for s in splits])
    rows = np.zeros(len(labels), dtype=np.uint64)
    for column in (*keys.T, labels, truth, part):  # one number a row, scrambled column by column
        rows = (rows ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        rows ^= rows >> np.uint64(32)
    names = "\n".join(map(str, data.true_names)).encode("utf-8", "backslashreplace")
    return hashlib.sha256(names + np.sort(rows).astype("<u8").tobytes()).hexdigest()[:8]


def identified(data: Dataset, root: str) -> Dataset:
    """The Dataset with the fields that identify its images; root: the folder of its files."""
    splits = [data.train, *data.given_tests.values()]
    is_files = isinstance(data.train.images[0], str)
    for split in splits:
        if not is_files:
            split.digests = split.digests or pixel_digests(split.images)
    by_split = [image_keys(split, root) for split in splits]
    for split, keys in zip(splits, by_split):
        split.keys = np.ascontiguousarray(keys[:, 0])
    keys = np.concatenate(by_split)
    source = data.source or source_identity(data, keys)
    tested = fingerprint(np.concatenate(by_split[1:])) if by_split[1:] else ""
    root = root if is_files else ""
    return replace(data, root=root, fingerprint=fingerprint(keys), tested=tested, source=source)


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a stratified (train, test) split, both sorted; a class too small to be split stays in training."""
    from sklearn.model_selection import train_test_split

    # within a class `fraction` and the rest must come to one image or more
    splittable = np.flatnonzero(min(fraction, 1 - fraction) * np.bincount(labels)[labels] >= 1 - 1e-9)
    if not len(splittable):
        return np.arange(len(labels)), splittable
    _, test = train_test_split(splittable, test_size=fraction, random_state=seed, stratify=labels[splittable])
    return np.setdiff1d(np.arange(len(labels)), test), np.sort(test)
