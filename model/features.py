"""An encoder's features of a set of images, computed once and kept on disk for whoever asks next."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dataloader.dataset import Split, View
from dataloader.files import images_identity
from dataloader.loaders import Loader, make_loader
from utils.device import autocast, precision
from utils.distributed import gather_parts, in_order, rank
from utils.errors import UserError
from utils.files import write_whole

if TYPE_CHECKING:  # open_clip takes seconds to import, and who reads kept features does not need it
    from model.encoder import Encoder

PIECE = 10_000  # images of one file: what a stop may lose


def features_name(encoder: "Encoder", split: Split, view: View, cfg: SimpleNamespace, device: torch.device) -> str:
    """What the features of a split are kept as: the images, the encoder and its weights, the view and the precision."""
    what = (
        images_identity(split.images),
        *([split.noise, hashlib.sha256(split.keys).hexdigest()] if split.noise else []),
        _weights_identity(encoder.module),
        encoder.config,
        encoder.pixels,
        view,
        precision(device, cfg.prec),
        device.type,
    )
    return f"features-{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}"


def _files(folder: Path, name: str, num_images: int) -> dict[Path, range]:
    """{file: range of the images whose features it keeps}, PIECE images a file."""
    starts = range(0, num_images, PIECE)
    names = [f"{name}.npz" if len(starts) == 1 else f"{name}-{start}.npz" for start in starts]
    return {folder / file: range(start, min(start + PIECE, num_images)) for file, start in zip(names, starts)}


def read_features(folder: Path, name: str, num_images: int) -> np.ndarray | None:
    """Features (num_images, D) float32, numpy, that are kept in a folder under a name; None unless all are there."""
    files = _files(folder, name, num_images)
    pieces = [piece for path, rows in files.items() if (piece := _kept(path, len(rows))) is not None]
    return torch.cat(pieces).numpy() if len(pieces) == len(files) else None


@torch.no_grad()
def image_features(
    encoder: "Encoder", split: Split, view: View, cfg: SimpleNamespace, device: torch.device, name: str | None = None
) -> Tensor:
    """Unit-length features (N, D) float32, on the CPU, of the un-augmented images of a split, in order; of any Encoder.

    Kept in <output_dir>/cache/, PIECE images a file, named after all they depend on (name: see features_name). Only files
    that are missing, damaged or of another shape are made anew. UserError for features that are not finite.
    """
    name = name or features_name(encoder, split, view, cfg, device)
    folder, loader, pieces = Path(cfg.output_dir) / "cache", None, []
    files = _files(folder, name, len(split.labels))
    for path, rows in tqdm(files.items(), "image features", leave=False, disable=None if len(files) > 1 else True):
        features = _kept(path, len(rows))
        there = gather_parts(features is not None)
        if features is None or not all(there):  # all processes compute them, each its share
            loader = loader or make_loader(split, view, cfg, encoder.pixels, device, augmented=False)
            features = _compute(encoder, loader, rows, cfg, device)
            if rank() == 0:
                _keep(path, features.numpy())
        pieces.append(features)
    if loader is None:
        print(f"image features read from {folder / name}*")
    return torch.cat(pieces)


def _compute(encoder: "Encoder", loader: Loader, rows: range, cfg: SimpleNamespace, device: torch.device) -> Tensor:
    """Features (M, D) of the images in the range `rows`; UserError where one is not finite."""
    with autocast(device, cfg.prec):
        (features,) = in_order(
            [
                (index, F.normalize(encoder.encode(images).float(), dim=-1).cpu())
                for images, _, index in tqdm(loader.eval(rows), "images", leave=False, disable=None)
            ]
        )
    bad = ~features.isfinite().all(1)
    if bad.any():
        raise UserError(
            f"backbone: {cfg.backbone} gives features that are not finite for {int(bad.sum())} images, the first is image "
            f"{rows[int(bad.nonzero()[0])]}; --prec fp32 may help."
        )
    return features


def keep_features(folder: Path, features: np.ndarray) -> str:
    """Keep features (N, D) float32, numpy, of a person's own model as read_features reads them; returns their name."""
    name = f"features-{hashlib.sha256(features.tobytes()).hexdigest()[:16]}"
    for path, rows in _files(folder, name, len(features)).items():
        _keep(path, features[rows.start : rows.stop])
    return name


def _keep(path: Path, features: np.ndarray) -> None:
    with write_whole(path, shared=True) as file:
        np.savez(file, features=features)


def _kept(path: Path, num_images: int) -> Tensor | None:
    """The features in a file, (num_images, D) float32; None where there is none, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            features = file["features"]  # the zip's checksum is checked here
        if features.ndim == 2 and len(features) == num_images and features.dtype == np.float32:
            return torch.from_numpy(features)
    except FileNotFoundError:
        pass
    except Exception as error:  # a damaged zip fails in many ways
        print(f"image features: {path} cannot be read ({error}) and is computed again")
    return None


def _weights_identity(module: nn.Module) -> str:
    sha = hashlib.sha256()
    for name, value in module.state_dict().items():
        sha.update(name.encode())
        sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()
