"""Tiny-ImageNet."""

from pathlib import Path
from types import SimpleNamespace

from dataloader.dataset import Dataset, Split, View
from dataloader.listings import ENLARGE, class_folders, need_folder, read_words, to_split
from utils.errors import UserError


def tiny_imagenet(cfg: SimpleNamespace) -> Dataset:
    """Tiny-ImageNet: train/<wnid>/images/*, and test/<wnid>/images/* (official code) or val/ of the archive."""
    root = Path(cfg.data_path)
    paths, labels, wnids = class_folders(need_folder(root / "train"))
    if (root / "val" / "val_annotations.txt").is_file() and not (root / "test" / wnids[0]).is_dir():
        number = {wnid: i for i, wnid in enumerate(wnids)}
        listed = root / "val" / "val_annotations.txt"
        pairs = []
        for row, words in enumerate(read_words(listed, 2)):
            if words[1] not in number:
                raise UserError(
                    f"{listed}: line {row + 1} names {words[1]}, which is not a folder in {root / 'train'}."
                )
            pairs.append((root / "val" / "images" / words[0], number[words[1]]))
        test = to_split(sorted(pairs))
    else:
        test_paths, test_labels, test_wnids = class_folders(need_folder(root / "test"))
        if test_wnids != wnids:
            raise UserError(f"data_path: the class folders of {root / 'test'} differ from those of {root / 'train'}.")
        test = Split(test_paths, test_labels)
    return Dataset("tiny_imagenet", Split(paths, labels), test, classnames=wnids, view=View(enlarge=ENLARGE))
