"""Read untrusted pickles without executing code: plain containers and numpy arrays only."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

ALLOWED = {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("_reconstruct", "scalar")
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("collections", "OrderedDict")}


class ArrayUnpickler(pickle.Unpickler):
    """Loads plain containers and numpy arrays; any other type raises an UnpicklingError."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED and not (module == "numpy.dtypes" and name.endswith("DType")):
            raise pickle.UnpicklingError(f"it contains {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load_arrays(path: str | Path) -> Any:
    """Load arrays or a container of arrays, written by torch.save or pickle; a single tensor becomes an array.

    Raises pickle.UnpicklingError, or any exception that a damaged file causes.
    """
    if not zipfile.is_zipfile(path):
        with Path(path).open("rb") as file:
            return ArrayUnpickler(file, encoding="latin1").load()
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)  # torch's own safe reader, if it suffices
        return np.asarray(value) if isinstance(value, torch.Tensor) else value
    except pickle.UnpicklingError:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            with archive.open(name) as file:
                return ArrayUnpickler(file, encoding="latin1").load()
