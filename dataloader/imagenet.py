"""ImageNet, and what is laid out like it: class folders, or lists of files with their labels."""

from pathlib import Path

from dataloader.dataset import Dataset, Split, View
from dataloader.listings import ENLARGE, class_folders, need_folder, read_pairs, to_split
from utils.config import UserError
from utils.files import read_lines

SYNSETS = Path(__file__).resolve().parents[1] / "config" / "classnames" / "imagenet-1k.txt"


def imagenet(cfg):
    """train/<class>/* and val/<class>/*; train.txt and val.txt, with a file and its label a line, come first if there.

    The files of a list are relative to train/ and val/; its labels are the numbers of the sorted class folders, or of
    the lines of `classnames`. Class folders named after the 1,000 synsets (n01440764) take their names from
    config/classnames/imagenet-1k.txt; other folders are their own names.
    """
    root = Path(cfg.data_path)
    train, classes = _read(root, "train")
    test, test_classes = _read(root, "val")
    if classes and test_classes and classes != test_classes:
        raise UserError(f"data_path: {root / 'val'} has other class folders than {root / 'train'}.")
    classes = classes or test_classes
    names = dict(line.split(" ", 1) for line in read_lines(SYNSETS))
    return Dataset(
        "imagenet",
        train,
        test,
        classnames=[names.get(c, c.replace("_", " ")) for c in classes],
        label_names=classes,
        view=View(enlarge=ENLARGE, test_enlarge=ENLARGE, short_side=True),
        trusted=not (root / "train.txt").is_file(),
    )


def _read(root, part):
    """The Split of a part, and its class folders, sorted, where it has any."""
    folder, listed = need_folder(root / part), root / f"{part}.txt"
    if not listed.is_file():
        paths, labels, classes = class_folders(folder)
        return Split(paths, labels), classes
    classes = sorted(d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    return to_split([(folder / name, label) for name, label in read_pairs(listed)]), classes
