"""The clean mask, the file that phase 1 hands to phase 2."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dataloader.dataset import Dataset, Split, image_keys
from dataloader.noise import DISK_ORDER, DRAWN
from dataloader.rows import shortened, written_by_report
from methods.decisions import LOG, UNDECIDED, WRONG, as_arrays, labels_to_train_on, say_contradictions, settle
from utils.errors import UserError, brief, nearest
from utils.files import slug, write_whole
from utils.safe_pickle import load_arrays
from utils.summaries import read_summary, usable, verdict_line

MASK_FILES = (".npz", ".npy", ".pt")


def save_mask(path: Path, selection: dict[str, np.ndarray], data: Dataset, seed: int) -> None:
    """The clean mask, npz: mask (N,) bool, p_clean (N,), the predicted class (N,) with the detector's probability of it,
    confidence (N,), which make up the selection, and what it was made for: the given labels (N,) and keys (N, 2) of the
    images (see dataset.image_keys); of own images, whose classes may become more, the names of the labels (K,) as well."""
    made_for = {"labels": data.train.labels, "images": image_keys(data.train, data.root)}
    if data.name.startswith("own-"):
        made_for["names"] = np.array(data.label_names)
    arrays: dict[str, Any] = {**selection, **made_for, "dataset": data.name, "noise": data.noise_name, "seed": seed}
    with write_whole(path) as file:
        np.savez_compressed(file, **arrays)


def read_arrays(path: str | Path, names: tuple[str, ...], newer: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """{name: array} of an .npz that save_mask wrote, and of those in `newer` that it has.

    UserError where one of `names` is not there or it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*names, *(set(newer) & set(file)))}
        N = len(arrays["mask"])
        for name in arrays.keys() - {"dataset", "noise", "seed", "names"}:
            if arrays[name].shape != ((N, 2) if name == "images" else (N,)):
                raise ValueError(f"{name} is of shape {arrays[name].shape}, for {N} samples")
    except Exception as error:  # a damaged zip, objects, a missing entry …
        raise UserError(
            f"{path}: not a mask file of this version ({brief(error)}); an older version's detector must run again."
        ) from None
    return arrays


def read_selection(path: str | Path) -> dict[str, np.ndarray]:
    """The selection of a detector's run, from its clean_mask.npz: {name: array (N, …)}, see save_mask."""
    return read_arrays(path, ("mask", "p_clean", "predicted", "confidence", "labels", "images"))


def load_mask(path: str | Path, data: Dataset, seed: int) -> np.ndarray:
    """The clean mask (N,) bool of the training images of a Dataset, from a file.

    Ours (.npz) finds each image by its name, and may be of more images; those it was made without, or before they changed,
    are not selected, and printed. An array (.npy) and the official .pt are in the order of the images. UserError says what
    differs from what the mask was made for.
    """
    path, labels = Path(path), data.train.labels
    if path.suffix == ".npz":
        saved = read_arrays(path, ("mask", "labels", "images", "dataset", "noise", "seed"), ("names",))
    else:
        try:
            saved = {
                "mask": np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.asarray(load_arrays(path))
            }
        except Exception as error:  # a pickle that asks for more than arrays, a damaged file …
            raise UserError(f"{path}: not a mask file ({brief(error)})") from None
    mask = saved["mask"]
    if mask.ndim != 1 or not np.isin(mask, (0, 1)).all():
        raise UserError(f"{path}: expected one true or false per sample, found {mask.dtype} of shape {mask.shape}.")
    for key, here in (("dataset", data.name), ("seed", seed), ("noise", data.noise_name)):
        if key in saved and str(saved[key]) != str(here):
            raise UserError(f"{path}: made for {key} {saved[key]}, this run has {here}.")
    if "images" in saved:
        rows = _rows_of(saved, data, path)
        if "names" in saved:  # labels are compared by these: numbers change with the classes that there are
            number = {name: k for k, name in enumerate(data.label_names)}
            saved["labels"] = np.array([number.get(str(name), -1) for name in saved["names"]])[saved["labels"]]
        mask, made_for = mask[rows] & (rows >= 0), np.where(rows >= 0, saved["labels"][rows], labels)
    elif len(mask) != len(labels):
        raise UserError(f"{path}: made for {len(mask)} samples, this run has {len(labels)}.")
    else:
        made_for = labels
    if not np.array_equal(made_for, labels):
        different = int((made_for != labels).sum())
        others = sorted(p.parent.name for p in path.parent.parent.glob("*/clean_mask.npz") if p != path)
        raise UserError(
            f"{path}: made for other labels; {different} of {len(labels)} differ."
            f"{' --mask names another run: ' + ', '.join(others) + '.' if others else ''}"
        )
    return mask.astype(bool)


def _rows_of(saved: dict[str, np.ndarray], data: Dataset, path: Path) -> np.ndarray:
    """Where the training images of a Dataset are in what a mask was made for, -1 for those that are not, or have changed.

    Such images come where some were added, replaced or deleted since, as who is held out for testing follows. They are
    printed; UserError where they are more than half: then the mask is of other data.
    """
    here = image_keys(data.train, data.root)
    rows = positions(saved["images"][:, 0], here[:, 0])
    new, changed = rows < 0, (rows >= 0) & (saved["images"][rows, 1] != here[:, 1])
    for which, what in ((new, "made without"), (changed, "made before a change of")):
        if which.any():
            names = shortened([data.path(i) or f"number {i}" for i in np.flatnonzero(which).tolist()], 5)
            text = f"{path}: {what} {which.sum()} of the {len(rows)} training images"
            if np.mean(new | changed) > 0.5:
                raise UserError(f"{text}: {names}.")
            print(f"{text}, which are not trained on unless you decided about them: {names}")
    return np.where(changed, -1, rows)


def positions(names: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions of the numbers `wanted` (M,) in `names` (N,): the k-th of equal ones at the k-th; -1 if absent."""
    order, places = np.argsort(names, kind="stable"), np.argsort(wanted, kind="stable")
    ranks = np.empty(len(wanted), dtype=np.int64)
    ranks[places] = np.arange(len(wanted)) - np.searchsorted(wanted[places], wanted[places])
    at = np.searchsorted(names[order], wanted) + ranks
    found = at < np.searchsorted(names[order], wanted, side="right")
    return np.where(found, order[np.minimum(at, len(names) - 1)], -1)


def default_mask(data_path: str) -> str:
    """The default of `mask`: all for a table that a report wrote, whose labels are all trusted, else deft."""
    if not written_by_report(data_path):
        return "deft"
    print(
        f"{data_path}: training on all labels, since a detector or a person trusts each; --mask NAME would use a mask"
    )
    _say_unusable(Path(data_path))
    return "all"


def _say_unusable(path: Path) -> None:
    """Repeat the verdict of the run whose folder holds `path`, a mask or a table of its labels, unless it is usable."""
    summary = read_summary(path.parent / "summary.json")
    if not usable(summary):
        print(f"warning: {path}: {verdict_line(summary)}")


def trusted_samples(
    cfg: SimpleNamespace, data: Dataset, seed_folder: Path
) -> tuple[Path | None, np.ndarray, Split, dict[str, Any]]:
    """(path of the clean mask, mask (M,) bool, M training images) that `cfg.mask` means for a Dataset; fills in an empty one.

    Fourth, what a summary says of them: the mask and, where there are any, how many `decisions` of a person were followed.

    What a person decided about labels, in the log beside a run's mask, counts for more than the mask: images have the new
    labels, and those whose label is wrong without a new one are left out, else pseudo-labels could give it back. The path is
    None where the mask is `all`. UserError where there is no mask, or it is one of other data.
    """
    train = data.train
    cfg.mask = cfg.mask or default_mask(cfg.data_path)
    if cfg.mask == "all":
        return None, np.ones(len(train.labels), dtype=bool), train, {"mask": cfg.mask}
    path = find_mask(cfg.mask, seed_folder)
    if path.suffix == ".pt" and cfg.dataset == "clothing1m":
        raise UserError(f"mask: {path}: an official mask is of other images: the official code draws its own subset.")
    if path.suffix == ".pt" and cfg.noise_mode in DRAWN and cfg.noise_rng != "official":
        raise UserError(
            f"mask: {path}: an official mask is of labels that the official code drew; --noise_rng official draws the same."
        )
    if path.suffix in (".pt", ".npy"):
        print(f"{path}: does not say which images and labels it was made for; only their number was checked")
    if path.suffix == ".pt" and cfg.dataset in DISK_ORDER:
        print(
            f"warning: mask: {path}: the official code reads the files of a class in the order of the disk, here they are sorted"
        )
    mask = load_mask(path, data, cfg.seed)
    _say_unusable(path)
    decision, new_labels = as_arrays(settle(path.parent, data), data)
    mask, labels = labels_to_train_on(mask, train.labels, decision, new_labels)
    say_contradictions(data, mask, labels, decision)
    train, kept = train.relabelled(labels), (decision != WRONG) | (new_labels >= 0)
    if not mask[kept].any():
        raise UserError(f"{path}: selects no sample, so there is nothing to train on.")
    used = {"mask": str(path)} | ({"decisions": int((decision != UNDECIDED).sum())} if decision.any() else {})
    return path, mask[kept], train if kept.all() else train.take(np.flatnonzero(kept)), used


def find_mask(mask: str, seed_folder: Path) -> Path:
    """The path that `--mask` means: a file, the detector whose run lies in `seed_folder`, or the folder of a run."""
    path = seed_folder / mask / "clean_mask.npz"
    for place in (Path(mask), path, Path(mask) / "clean_mask.npz"):
        if place.is_file():
            return place
    if Path(mask).suffix in MASK_FILES:
        raise UserError(f"mask: no such file: {mask}.")
    if (path.parent / "checkpoint.pt").is_file() and not (path.parent / "summary.json").is_file():
        raise UserError(f"mask: the run {path.parent} is not finished; the command that began it continues it.")
    there = [p.parent.name for p in sorted(seed_folder.glob("*/clean_mask.npz"))]
    there.sort(key=lambda name: not (seed_folder / name / LOG).is_file())  # first those with decisions
    renamed = []
    if not there and seed_folder.parts[-3].startswith("own-"):
        runs = seed_folder.parents[2].glob(f"own-*/*/*/{Path(mask).name}/clean_mask.npz")
        renamed = sorted(
            {run.parts[-5].removeprefix("own-") for run in runs} - {seed_folder.parts[-3].removeprefix("own-")}
        )
    raise UserError(
        f"mask: no clean mask at {path}; run phase 1 with the same data set, noise and seed first, or "
        f"give --mask FILE, or --mask all to trust every label.{' Masks there: ' + ', '.join(there) + '.' if there else ''}"
        f"{nearest(mask, there)}"
        + (
            f" If your images had another name when it ran, give that: --name {shortened(renamed, 5)}."
            if renamed
            else ""
        )
    )


def mask_name(mask: str) -> str:
    """The part of a run's name that stands for `--mask`: the detector, or the stem of the file."""
    path = Path(mask)
    if path.name == "clean_mask.npz":
        return slug(path.parent.name)
    return slug(path.stem if path.suffix in MASK_FILES else path.name)


def say_lost_classes(data: Dataset, mask: np.ndarray) -> None:
    """Print the classes of training labels of which the mask (N,) has none."""
    labels, K = data.train.labels, data.num_classes
    lost = np.flatnonzero((np.bincount(labels, minlength=K) > 0) & (np.bincount(labels[mask], minlength=K) == 0))
    if len(lost):
        names = shortened([data.label_names[k] for k in lost], 5)
        print(
            f"warning: the model will not know {names}: no label of {'this class' if len(lost) == 1 else 'these classes'} is trained on"
        )
