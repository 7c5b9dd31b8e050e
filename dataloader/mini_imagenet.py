"""Red and blue mini-ImageNet, the Controlled Noisy Web Labels (Jiang et al., ICML 2020)."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dataloader.dataset import Dataset, View
from dataloader.listings import ENLARGE, read_pairs, to_split
from utils.errors import UserError


def red_mini_imagenet(cfg: SimpleNamespace) -> Dataset:
    """A fraction `noise_ratio` of mini-ImageNet's images is replaced by mislabelled web images ("red" noise).

    The labels of web images are known to be wrong (`verified`); what they show is not known.
    """
    return _mini_imagenet(cfg, "red")


def blue_mini_imagenet(cfg: SimpleNamespace) -> Dataset:
    """A fraction `noise_ratio` of mini-ImageNet's labels is changed at random ("blue" noise); true labels are known."""
    return _mini_imagenet(cfg, "blue")


def _mini_imagenet(cfg: SimpleNamespace, color: str) -> Dataset:
    """split/<color>_noise_nl_<ratio> and split/clean_validation list names and labels; the images are in all_images/.

    data_path may be the folder that contains split/, or its parent. Test images are searched in validation/<label>/,
    validation/, all_validation/ and all_images/.
    """
    if cfg.noise_mode != "none":
        raise UserError(f"noise_mode: {color}_mini_imagenet has its own noise; noise_ratio selects its level.")
    root = Path(cfg.data_path)
    root = root / "mini-imagenet" if (root / "mini-imagenet" / "split").is_dir() else root
    listed = root / "split" / f"{color}_noise_nl_{cfg.noise_ratio}"
    if not listed.is_file():
        levels = sorted(path.name.split("_")[-1] for path in root.glob(f"split/{color}_noise_nl_*"))
        there = f"levels there: {', '.join(levels)}" if levels else f"there is no list in {root / 'split'}"
        raise UserError(f"noise_ratio: there is no {listed}; {there}.")
    pairs, test = read_pairs(listed), read_pairs(root / "split" / "clean_validation")
    truth = dict(read_pairs(root / "split" / f"{color}_noise_nl_0.0"))
    images = next(
        (d for d in (root / "all_images", Path(cfg.data_path) / "all_images") if d.is_dir()), root / "all_images"
    )
    name, label = test[0]
    places = [f"{root}/validation/{{label}}/", f"{root}/validation/", f"{root}/all_validation/", f"{images}/"]
    place = next((p for p in places if Path(p.format(label=label) + name).is_file()), places[0])
    labels = np.array([label for _, label in pairs])
    true_labels = np.array([truth.get(name, -1) for name, _ in pairs])  # -1: a web image
    if color == "blue" and (true_labels < 0).any():
        row = int(np.argmin(true_labels)) + 1
        raise UserError(f"{listed}: line {row} names {pairs[row - 1][0]}, which is not in blue_noise_nl_0.0.")
    known = {"true_labels": true_labels} if color == "blue" else {"verified": (true_labels == labels).astype(np.int8)}
    return Dataset(
        f"{color}_mini_imagenet",
        replace(to_split([(images / name, label) for name, label in pairs]), **known),
        to_split([(place.format(label=label) + name, label) for name, label in test]),
        classnames=[],
        view=View(enlarge=ENLARGE),
        trusted=False,
        noise_name=f"{color}-{cfg.noise_ratio:g}",
    )
