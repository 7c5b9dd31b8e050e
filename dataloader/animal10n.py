"""ANIMAL-10N (Song et al., ICML 2019)."""

import re
from pathlib import Path
from types import SimpleNamespace

from dataloader.dataset import Dataset, View
from dataloader.files import image_files
from dataloader.listings import ENLARGE, need_folder, to_split
from utils.errors import UserError


def animal10n(cfg: SimpleNamespace) -> Dataset:
    """ANIMAL-10N, image version: training/<label>_<name>.jpg and testing/<label>_<name>.jpg, labels 0 to 9."""
    splits = []
    for part in ("training", "testing"):
        pairs = []
        for path in image_files(need_folder(Path(cfg.data_path) / part))[0]:
            label = Path(path).name.split("_")[0]
            if not re.fullmatch("[0-9]+", label):
                raise UserError(f"{path}: expected a name that begins with the label, as 3_000123.jpg.")
            pairs.append((path, int(label)))
        splits.append(to_split(pairs))
    train, test = splits
    return Dataset("animal10n", train, test, classnames=[], view=View(enlarge=ENLARGE), trusted=False)
