"""Files that are whole or not there: checkpoints, and the clean mask that phase 1 hands to phase 2."""
import csv
import hashlib
import io
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from utils.config import UserError, nearest
from utils.safe_pickle import load_arrays


@contextmanager
def write_whole(path, shared=False):
    """A binary file to write to; it takes the name `path` only when the block ends without an error.

    shared: other processes may be writing the same file, as those in the cache.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a name of its own: the next try writes over what a kill left
        temporary = path.parent / f".{path.name}{os.getpid() if shared else ''}.tmp"
        file = temporary.open("wb")
    except OSError as error:
        raise UserError(f"output_dir: {path.parent} cannot be written to ({error.strerror}).") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path, text):
    """A whole UTF-8 text file."""
    with write_whole(path) as file:
        file.write(text.encode("utf-8"))


def write_csv(path, rows):
    """A whole CSV file; the first of the rows is the heading."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def label_hash(labels):
    """Eight hex digits that identify a list of labels."""
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()[:8]


def trained_state(model):
    """The parameters that are trained, by name, and the buffers of normalisation layers that follow the data."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return {k: v for k, v in model.state_dict().items() if k in trained or k.endswith(("running_mean", "running_var",
                                                                                   "num_batches_tracked"))}


def save_checkpoint(path, model, optimizer, scaler=None, **rest):
    """Trained parameters, optimizer and `rest` (numbers, strings, tensors and plain containers of them)."""
    with write_whole(path) as file:
        torch.save({"model": trained_state(model), "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict() if scaler else None, **rest}, file)


def load_checkpoint(path, model, optimizer=None, scaler=None):
    """Put a checkpoint back into model, optimizer and scaler; returns its other entries."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        missing = trained_state(model).keys() ^ saved["model"].keys()
        if missing:
            raise ValueError(f"other parameters, e.g. {sorted(missing)[0]}")
        model.load_state_dict(saved.pop("model"), strict=False)
    except Exception as error:  # a truncated or foreign file fails in many ways
        raise UserError(f"{path}: not a checkpoint of this run ({error}); delete its folder to start afresh.") from None
    if optimizer:
        optimizer.load_state_dict(saved["optimizer"])
    if scaler:
        scaler.load_state_dict(saved["scaler"])
    return saved


def save_mask(path, mask, p_clean, predicted, confidence, labels, *, dataset, noise, seed):
    """The clean mask, npz: mask (N,) bool, p_clean (N,), the predicted class (N,) with the detector's probability of it,
    confidence (N,), and the given labels (N,) it was made for."""
    with write_whole(path) as file:
        np.savez_compressed(file, mask=mask, p_clean=p_clean, predicted=predicted, confidence=confidence, labels=labels,
                            dataset=dataset, noise=noise, seed=seed)


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
        raise UserError(f"{path}: made for other labels; {different} of {len(labels)} differ."
                        f"{' --mask names another run: ' + ', '.join(others) + '.' if others else ''}")
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
        raise UserError(f"mask: no clean mask at {path}; run phase 1 with the same data set, noise and seed first, or "
                        f"give --mask FILE.{' Masks there: ' + ', '.join(there) + '.' if there else ''}"
                        f"{nearest(mask, there)}")
    return path
