"""CUB-200-2011."""

from pathlib import Path
from types import SimpleNamespace

from dataloader.dataset import Dataset, View
from dataloader.listings import ENLARGE, IMAGENET, read_pairs, read_words, to_split
from utils.errors import UserError


def cub_200_2011(cfg: SimpleNamespace) -> Dataset:
    """CUB-200-2011: images/, images.txt, image_class_labels.txt, train_test_split.txt."""
    root = Path(cfg.data_path)
    paths = {words[0]: words[1] for words in read_words(root / "images.txt", 2)}
    labels, is_train = (dict(read_pairs(root / name)) for name in ("image_class_labels.txt", "train_test_split.txt"))
    for i in paths:
        for name, column in (("image_class_labels.txt", labels), ("train_test_split.txt", is_train)):
            if i not in column:
                raise UserError(f"{root / name}: no line for image {i} ({paths[i]}).")
    train, test = [
        to_split([(root / "images" / paths[i], labels[i] - 1) for i in paths if is_train[i] == flag]) for flag in (1, 0)
    ]
    return Dataset("cub-200-2011", train, test, classnames=[], view=View(enlarge=ENLARGE, **IMAGENET))
