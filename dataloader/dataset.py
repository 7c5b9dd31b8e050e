"""What a run works on: images with their labels (Split), how they are viewed (View), and both together (Dataset)."""

import hashlib
import os
from dataclasses import dataclass, field

import numpy as np

from utils.files import slug


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
    # (N,) int8, where people checked labels without giving true ones: 1 right, 0 wrong, -1 not checked
    verified: np.ndarray | None = None
    noise_name: str = field(default="none")  # of the run's folder

    @property
    def num_classes(self):
        return len(self.classnames)

    @property
    def tests(self):
        """All test sets, name -> Split; the first is `test`, where there is one."""
        return ({"test": self.test} if self.test else {}) | self.more_tests

    @property
    def place(self):
        """Where runs on these data lie below output_dir: <dataset>/<noise>."""
        return f"{slug(self.name)}/{slug(self.noise_name)}"

    @property
    def identity(self):
        """What tells these images and labels from all others, for utils.runs.Run."""
        return {"images": self.fingerprint, "labels": label_hash(self.train.labels)}

    def known(self):
        """The training labels known to be right or wrong: their index (M,), and whether each is right, (M,) bool.

        None where nothing is known.
        """
        if self.true_labels is not None:
            return np.arange(len(self.train.labels)), self.true_labels == self.train.labels
        if self.verified is None:
            return None
        index = np.flatnonzero(self.verified >= 0)
        return index, self.verified[index] == 1

    def facts(self):
        """Name, sizes and, where the truth is known, the realised noise, for a summary."""
        facts = {
            "dataset": self.name,
            "noise": self.noise_name,
            "num_train": len(self.train.labels),
            "num_test": len(self.test.labels) if self.test else 0,
            "num_classes": self.num_classes,
        }
        if self.skipped:
            facts["skipped"] = len(self.skipped)
        if self.known() is not None:
            index, is_clean = self.known()
            facts["noise_rate"] = 1 - float(np.mean(is_clean))
            if len(index) < len(self.train.labels):
                facts["num_known"] = len(index)
        if self.true_labels is not None:
            counts = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)
            np.add.at(counts, (self.true_labels, self.train.labels), 1)
            facts["noise_counts"] = counts.tolist()  # [true][given]
        return facts

    def tables(self):
        """What a run lists of its files: {file name: rows}, a heading first."""
        tables = {}
        if self.skipped:
            tables["skipped.csv"] = [("path", "reason"), *self.skipped.items()]
        if self.duplicates:
            tables["duplicates.csv"] = [("group", "path", "label", "labels_differ"), *self.duplicates]
        return tables


def label_hash(labels):
    """Eight hex digits that identify a list of labels."""
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()[:8]


def fingerprint(splits, data_path):
    """Eight hex digits of the images of the splits: of arrays their pixels, of files their paths below data_path."""
    sha, root = hashlib.sha256(), f"{data_path}/"
    for split in splits:
        if isinstance(split.images, np.ndarray):
            sha.update(np.ascontiguousarray(split.images))
        else:
            sha.update(
                "\n".join(
                    path[len(root) :] if path.startswith(root) else os.path.relpath(path, data_path)
                    for path in split.images
                ).encode()
            )  # relpath is slow for a million
    return sha.hexdigest()[:8]


def hold_out(labels, fraction, seed):
    """Indices of a stratified (train, test) split, both sorted; a class too small to be split stays in training."""
    from sklearn.model_selection import train_test_split

    # within a class `fraction` and the rest must come to one image or more
    splittable = np.flatnonzero(min(fraction, 1 - fraction) * np.bincount(labels)[labels] >= 1 - 1e-9)
    if not len(splittable):
        return np.arange(len(labels)), splittable
    _, test = train_test_split(splittable, test_size=fraction, random_state=seed, stratify=labels[splittable])
    return np.setdiff1d(np.arange(len(labels)), test), np.sort(test)
