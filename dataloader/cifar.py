"""CIFAR-10 and CIFAR-100, from the pickle files of the Python version."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dataloader.dataset import Dataset, Split, View
from utils.errors import UserError
from utils.safe_pickle import load_arrays

SOURCE = "the Python version of {} from cs.toronto.edu/~kriz/cifar.html"


def _read_cifar(path: Path, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (N, 32, 32, 3) and labels of one pickle file, which stores planar rows of 3,072 bytes."""
    try:
        batch = load_arrays(path)
        data, labels = np.asarray(batch["data"]), np.asarray(batch[label_key], dtype=np.int64)
        images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        if data.dtype != np.uint8 or len(images) != len(labels):
            raise ValueError(f"{len(images)} images of {data.dtype}, {len(labels)} labels")
    except Exception as error:  # a damaged pickle can raise any exception
        raise UserError(f"{path}: not a CIFAR pickle file (Python version), or damaged ({error!r})") from None
    return images, labels


def _cifar(
    cfg: SimpleNamespace,
    name: str,
    folder: str,
    files: list[str],
    label_key: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    if cfg.download:
        from torchvision import datasets as torchvision_sets

        try:
            {"cifar10": torchvision_sets.CIFAR10, "cifar100": torchvision_sets.CIFAR100}[name](
                cfg.data_path, download=True
            )
        except (OSError, RuntimeError) as error:
            raise UserError(f"download: {name} failed ({error}). Get {SOURCE.format(name)}.") from None
    root = next((d for d in (Path(cfg.data_path), Path(cfg.data_path) / folder) if (d / files[0]).is_file()), None)
    if root is None:
        raise UserError(
            f"data_path: no {files[0]} in {cfg.data_path} or its folder {folder}; expected the files "
            f"{', '.join(files)} of the Python version of {name}. --download fetches them."
        )
    missing = [f for f in files if not (root / f).is_file()]
    if missing:
        raise UserError(f"data_path: {root / missing[0]} is missing.")
    parts = [_read_cifar(root / f, label_key) for f in files]
    images, labels = (np.concatenate(p) for p in zip(*parts[:-1]))
    return Dataset(name, Split(images, labels), Split(*parts[-1]), classnames=[], view=View(pad=4, mean=mean, std=std))


def cifar10(cfg: SimpleNamespace) -> Dataset:
    """CIFAR-10, Python version, in data_path or its cifar-10-batches-py/; normalised with CIFAR-10's statistics."""
    files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    return _cifar(
        cfg, "cifar10", "cifar-10-batches-py", files, "labels", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    )


def cifar100(cfg: SimpleNamespace) -> Dataset:
    """CIFAR-100, Python version, in data_path or its cifar-100-python/; normalised with CIFAR-100's statistics."""
    return _cifar(
        cfg,
        "cifar100",
        "cifar-100-python",
        ["train", "test"],
        "fine_labels",
        (0.507, 0.487, 0.441),
        (0.267, 0.256, 0.276),
    )
