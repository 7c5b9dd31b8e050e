"""Shared by the readers of image files: list files (a name and a label per line) and class folders."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dataloader.dataset import Split
from dataloader.files import image_files, is_system
from utils.errors import UserError
from utils.files import read_lines

CLASSNAMES = Path(__file__).resolve().parents[1] / "config" / "classnames"
ENLARGE = 8 / 7  # resize to 256 pixels for a crop of 224
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def read_words(path: Path, expected: int) -> list[list[str]]:
    """The words of every line of a list file; UserError if it is missing or a line has fewer than `expected` words."""
    if not path.is_file():
        raise UserError(f"data_path: {path} is missing.")
    rows = [line.split() for line in read_lines(path)]
    for row, words in enumerate(rows):
        if len(words) < expected:
            raise UserError(f"{path}: line {row + 1} has {len(words)} words, expected {expected}.")
    return rows


def _whole_number(word: str, path: Path, row: int) -> int:
    if not re.fullmatch("-?[0-9]+", word):
        raise UserError(f"{path}: line {row + 1} has the label '{word}', expected a whole number.")
    return int(word)


def read_pairs(path: Path) -> list[tuple[str, int]]:
    """(name, label) of every line `name label` of a list file."""
    return [(words[0], _whole_number(words[1], path, row)) for row, words in enumerate(read_words(path, 2))]


def to_split(pairs: Iterable[tuple[str | Path, int]]) -> Split:
    """A Split of (path, label) pairs, in their order."""
    return Split([str(path) for path, _ in pairs], np.array([label for _, label in pairs], dtype=np.int64))


def need_folder(folder: Path) -> Path:
    """The folder; UserError if there is none."""
    if not folder.is_dir():
        raise UserError(f"data_path: there is no folder {folder}.")
    return folder


def class_names(root: Path) -> list[str]:
    """The names of the folders in root, sorted, without those of systems."""
    return sorted(d.name for d in root.iterdir() if d.is_dir() and not is_system(d.name))


def class_folders(root: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """Paths, labels and class names of <root>/<class>/**/*.jpg …, sorted."""
    classes = class_names(root)
    if not classes:
        raise UserError(f"data_path: {root} contains no class folder.")
    paths, labels = [], []
    for label, name in enumerate(classes):
        files, _ = image_files(root / name)
        if not files:
            raise UserError(f"data_path: the class folder {root / name} contains no image.")
        paths += files
        labels += [label] * len(files)
    return paths, np.array(labels, dtype=np.int64), classes
