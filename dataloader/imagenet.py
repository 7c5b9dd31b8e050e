"""ImageNet, and data sets with its layout: class folders, or lists of files with labels."""

from pathlib import Path
from types import SimpleNamespace

from dataloader.dataset import Dataset, Split, View
from dataloader.listings import CLASSNAMES, ENLARGE, class_folders, class_names, need_folder, read_pairs, to_split
from utils.errors import UserError
from utils.files import read_lines


def imagenet(cfg: SimpleNamespace) -> Dataset:
    """train/<class>/* and val/<class>/*; if train.txt or val.txt exist, with a file and its label per line, they win.

    The files of a list are relative to train/ and val/. Its labels are indices into the sorted class folders, or into the
    lines of `classnames`. The names of synset folders (n01440764) are read from config/classnames/imagenet-1k.txt; other
    folders are named by themselves.
    """
    root = Path(cfg.data_path)
    train, classes = _read(root, "train")
    test, test_classes = _read(root, "val")
    if classes and test_classes and classes != test_classes:
        raise UserError(f"data_path: the class folders of {root / 'val'} differ from those of {root / 'train'}.")
    classes = classes or test_classes
    names = dict(line.split(" ", 1) for line in read_lines(CLASSNAMES / "imagenet-1k.txt"))
    return Dataset(
        "imagenet",
        train,
        test,
        classnames=[names.get(c, c.replace("_", " ")) for c in classes],
        label_names=classes,
        view=View(enlarge=ENLARGE, test_enlarge=ENLARGE, short_side=True),
        trusted=not (root / "train.txt").is_file(),
    )


def _read(root: Path, part: str) -> tuple[Split, list[str]]:
    """The Split of train or val, and its sorted class folders, if any."""
    folder, listed = need_folder(root / part), root / f"{part}.txt"
    if not listed.is_file():
        paths, labels, classes = class_folders(folder)
        return Split(paths, labels), classes
    return to_split([(folder / name, label) for name, label in read_pairs(listed)]), class_names(folder)
