"""Food-101N (Lee et al., CVPR 2018), tested on Food-101 (Bossard et al., ECCV 2014)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dataloader.dataset import Dataset, Split, View
from dataloader.listings import ENLARGE, read_words, to_split
from utils.errors import UserError


def food101n(cfg: SimpleNamespace) -> Dataset:
    """Food-101N_release/{images/, meta/} of the archive; food-101/{images/, meta/test.txt} next to it for testing.

    data_path is the folder of both, or Food-101N_release itself. Labels that people checked (meta/verified_train.tsv,
    verified_val.tsv) are `verified`.
    """
    base = Path(cfg.data_path)
    root = base / "Food-101N_release" if (base / "Food-101N_release").is_dir() else base
    keys = [words[0] for words in read_words(root / "meta" / "imagelist.tsv", 1)[1:]]  # after the heading
    classes = sorted(words[0] for words in read_words(root / "meta" / "classes.txt", 1)[1:])
    number = {name: i for i, name in enumerate(classes)}

    def label(key: str, listed: Path, row: int) -> int:
        if key.split("/")[0] not in number:
            raise UserError(f"{listed}: line {row} names {key}, whose class is not in {root / 'meta' / 'classes.txt'}.")
        return number[key.split("/")[0]]

    listed = root / "meta" / "imagelist.tsv"
    train = [(f"{root}/images/{key}", label(key, listed, row)) for row, key in enumerate(keys, 2)]
    checked = _checked(root / "meta" / "verified_train.tsv") | _checked(root / "meta" / "verified_val.tsv")
    return Dataset(
        "food101n",
        replace(to_split(train), verified=np.array([checked.get(key, -1) for key in keys], dtype=np.int8)),
        _food101_test(base, root, label),
        classnames=[name.replace("_", " ") for name in classes],
        label_names=classes,
        view=View(enlarge=ENLARGE),
        trusted=False,
    )


def _checked(path: Path) -> dict[str, int]:
    """{image: 1 if people found its label right, 0 if wrong}."""
    checked = {}
    for row, words in enumerate(read_words(path, 2)[1:], 2):
        if words[1] not in ("0", "1"):
            raise UserError(f"{path}: line {row} has the verification label '{words[1]}', expected 0 or 1.")
        checked[words[0]] = int(words[1])
    return checked


def _food101_test(base: Path, root: Path, label: Callable[[str, Path, int], int]) -> Split | None:
    """The test images of Food-101, if its folder is in data_path or next to it."""
    food = next((d for d in (base / "food-101", root.parent / "food-101") if d.is_dir()), None)
    if food is None:
        print(f"{base / 'food-101'} does not exist: running without a test set (Food-101)")
        return None
    listed = food / "meta" / "test.txt"
    keys = [words[0] for words in read_words(listed, 1)]
    return to_split([(food / "images" / f"{key}.jpg", label(key, listed, row)) for row, key in enumerate(keys, 1)])
