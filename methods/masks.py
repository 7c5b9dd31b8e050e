"""The clean mask, the file that phase 1 hands to phase 2."""

from pathlib import Path

import numpy as np

from utils.config import UserError, nearest
from utils.files import slug, write_whole
from utils.safe_pickle import load_arrays


def save_mask(path, selection, labels, dataset, noise, seed):
    """The clean mask, npz: mask (N,) bool, p_clean (N,), the predicted class (N,) with the detector's probability of it,
    confidence (N,), which make up the selection, and the given labels (N,) it was made for."""
    with write_whole(path) as file:
        np.savez_compressed(file, **selection, labels=labels, dataset=dataset, noise=noise, seed=seed)


def load_mask(path, labels, dataset, noise, seed):
    """The clean mask (N,) bool of a file: ours (.npz, identity checked), an array (.npy), or the official .pt.

    labels (N,), dataset, noise and seed are those of the run that wants to train on it. UserError says what differs.
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                saved = {k: file[k] for k in ("mask", "labels", "dataset", "noise", "seed")}
        elif path.suffix == ".npy":
            saved = {"mask": np.load(path, allow_pickle=False)}
        else:
            saved = {"mask": np.asarray(load_arrays(path))}
    except Exception as error:  # a damaged zip, a pickle that asks for more than arrays, a missing entry …
        raise UserError(f"{path}: not a mask file ({' '.join(str(error).split())[:300]})") from None
    mask = saved["mask"]
    if mask.ndim != 1 or not np.isin(mask, (0, 1)).all():
        raise UserError(f"{path}: expected one true or false per sample, found {mask.dtype} of shape {mask.shape}.")
    if len(mask) != len(labels):
        raise UserError(f"{path}: made for {len(mask)} samples, this run has {len(labels)}.")
    for key, here in (("dataset", dataset), ("seed", seed), ("noise", noise)):
        if key in saved and str(saved[key]) != str(here):
            raise UserError(f"{path}: made for {key} {saved[key]}, this run has {here}.")
    if "labels" in saved and not np.array_equal(saved["labels"], labels):
        different = int((saved["labels"] != labels).sum())
        others = sorted(p.parent.name for p in path.parent.parent.glob("*/clean_mask.npz") if p != path)
        raise UserError(
            f"{path}: made for other labels; {different} of {len(labels)} differ."
            f"{' --mask names another run: ' + ', '.join(others) + '.' if others else ''}"
        )
    if not mask.any():
        raise UserError(f"{path}: selects no sample, there is nothing to train on.")
    return mask.astype(bool)


def find_mask(mask, seed_folder):
    """The path that `--mask` means: a file, or the detector whose run lies in `seed_folder`."""
    if Path(mask).is_file():
        return Path(mask)
    if Path(mask).suffix in (".npz", ".npy", ".pt"):
        raise UserError(f"mask: there is no file {mask}.")
    path = Path(seed_folder) / mask / "clean_mask.npz"
    if not path.is_file():
        there = [p.parent.name for p in Path(seed_folder).glob("*/clean_mask.npz")]
        raise UserError(
            f"mask: no clean mask at {path}; run phase 1 with the same data set, noise and seed first, or "
            f"give --mask FILE.{' Masks there: ' + ', '.join(there) + '.' if there else ''}"
            f"{nearest(mask, there)}"
        )
    return path


def mask_name(mask):
    """The part of a run's name that stands for `--mask`: the detector, or the stem of the file."""
    path = Path(mask)
    return slug(path.parent.name if path.name == "clean_mask.npz" else path.stem if path.suffix else mask)
