"""scikit-learn's handwritten digits, the data set of the demo."""

from types import SimpleNamespace

import numpy as np
from PIL import Image

from dataloader.dataset import Dataset, Split, View, hold_out
from utils.config import default_values
from utils.errors import UserError


def load_digits_8x8() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits: grey levels 0..16, uint8 (1797, 8, 8), and labels int64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.int64)


def enlarge_digits(levels: np.ndarray) -> np.ndarray:
    """Grey levels 0..16, uint8 (N, 8, 8), -> uint8 RGB (N, 32, 32, 3), 0..255, bicubic."""
    small = (Image.fromarray(image) for image in np.rint(levels * (255 / 16)).astype(np.uint8))
    big = [np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) for image in small]
    return np.repeat(np.stack(big)[..., None], 3, axis=3)


def digits(cfg: SimpleNamespace) -> Dataset:
    """The 1,797 digits of scikit-learn, enlarged to 32x32; a fraction of `test_fraction` is held out, by `seed`."""
    if cfg.data_path != default_values()["data_path"]:
        raise UserError(
            f"data_path: the data set digits reads no files, but data_path is {cfg.data_path}; for your own "
            "images use --cfg config/PEFT/own.yaml (phase 2: config/FFT/own.yaml)."
        )
    levels, labels = load_digits_8x8()
    images = enlarge_digits(levels)
    train, test = hold_out(labels, cfg.test_fraction, cfg.seed)
    return Dataset(
        "digits",
        Split(images[train], labels[train]),
        Split(images[test], labels[test]) if len(test) else None,
        classnames=[str(i) for i in range(10)],
        view=View(flip=False),
        held_out=test if len(test) else None,
    )
