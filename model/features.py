"""CLIP's features of a set of images, computed once and kept on disk for whoever asks next."""

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from dataloader.files import images_identity
from dataloader.loaders import make_loader
from model.clip import input_pixels
from utils.device import autocast, precision
from utils.distributed import gather_parts, in_order, rank
from utils.files import write_whole


@torch.no_grad()
def image_features(clip, split, view, cfg, device):
    """Unit-length features (N, D) float32, on the CPU, of the un-augmented images of a split, in order.

    Kept in <output_dir>/cache/, in a file named after all they depend on: the images, the image tower and its weights,
    the view and the precision. A file that is damaged or of another shape is made anew.
    """
    pixels = input_pixels(clip, cfg)
    what = (
        images_identity(split.images),
        *([split.noise] if split.noise else []),  # files made before images had noise keep their names
        _weights_identity(clip.visual),
        clip.visual.config,
        pixels,
        view,
        precision(device, cfg.prec),
        device.type,
    )
    identity = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
    path = Path(cfg.output_dir) / "cache" / f"features-{identity}.npz"
    features = _kept(path, len(split.labels))
    if all(gather_parts(features is not None)):  # else all processes compute them, each its share
        print(f"image features: {path}")
        return features
    loader = make_loader(split, view, cfg, pixels, device, augmented=False)
    with autocast(device, cfg.prec):
        (features,) = in_order(
            [
                (index, F.normalize(clip.encode_image(images).float(), dim=-1).cpu())
                for images, _, index in tqdm(loader.eval(), "image features", leave=False, disable=None)
            ]
        )
    if rank() == 0:
        with write_whole(path, shared=True) as file:
            np.savez(file, features=features.numpy())
    return features


def _kept(path, num_images):
    """The features in a file, (N, D) float32; None where there is none, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            features = file["features"]  # the zip's checksum is checked here
        if features.ndim == 2 and len(features) == num_images and features.dtype == np.float32:
            return torch.from_numpy(features)
    except FileNotFoundError:
        pass
    except Exception as error:  # a damaged zip fails in many ways
        print(f"image features: {path} cannot be read ({error}), made anew")
    return None


def _weights_identity(module):
    sha = hashlib.sha256()
    for name, value in module.state_dict().items():
        sha.update(name.encode())
        sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()
