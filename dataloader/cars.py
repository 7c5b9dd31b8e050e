"""Stanford Cars."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dataloader.dataset import Dataset, Split, View
from dataloader.listings import CLASSNAMES, ENLARGE, class_folders, need_folder, to_split
from utils.errors import UserError
from utils.files import read_lines


def stanford_cars(cfg: SimpleNamespace) -> Dataset:
    """Stanford Cars: train/<class>/* and test/<class>/*, or devkit/*.mat, cars_train/ and cars_test/ of the archive."""
    root, view = Path(cfg.data_path), View(enlarge=ENLARGE)
    if (root / "train").is_dir():
        paths, labels, classes = class_folders(root / "train")
        test_paths, test_labels, test_classes = class_folders(need_folder(root / "test"))
        if test_classes != classes:
            raise UserError(f"data_path: the class folders of {root / 'test'} differ from those of {root / 'train'}.")
        known = read_lines(CLASSNAMES / "stanford_cars.txt")  # which CLIP reads, in this order
        for name, folder in zip(known, classes):
            if folder.replace("_", " ") != name and not cfg.classnames:
                raise UserError(
                    f"data_path: {root / 'train' / folder}: expected the class folder '{name}'; folders of other names need "
                    "--classnames FILE, with a name for each of them in sorted order."
                )
        return Dataset("stanford_cars", Split(paths, labels), Split(test_paths, test_labels), classes, view)
    from scipy.io import loadmat

    parts = {
        "train": root / "devkit" / "cars_train_annos.mat",
        "test": root / "devkit" / "cars_test_annos_withlabels.mat",
    }
    if not parts["test"].is_file() and (root / parts["test"].name).is_file():
        parts["test"] = root / parts["test"].name
    meta, splits = root / "devkit" / "cars_meta.mat", []
    for path in (meta, *parts.values()):
        if not path.is_file():
            raise UserError(f"data_path: neither {root / 'train'} nor {path} exists.")
    path = meta
    try:
        # the devkit numbers the classes from 1, not in the order of their sorted names
        names = [str(n[0]).replace("/", "-") for n in loadmat(meta)["class_names"][0]]
        number = dict(zip(range(1, len(names) + 1), np.argsort(np.argsort(names))))
        for part, path in parts.items():
            splits.append(
                to_split(
                    [
                        (root / f"cars_{part}" / row["fname"].item(), number[int(row["class"].item())])
                        for row in loadmat(path)["annotations"][0]
                    ]
                )
            )
    except Exception as error:  # scipy raises many exceptions on damaged files
        raise UserError(f"{path}: not an annotation file of the devkit ({error!r})") from None
    train, test = splits
    return Dataset("stanford_cars", train, test, classnames=sorted(names), view=view)
