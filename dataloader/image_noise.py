"""Noise on the pixels of batches, on the device; each image has the same noise in every epoch, wherever it stands."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from utils.errors import UserError

LEVELS = {  # image_noise: meaning of its level, and the limits
    "gaussian": ("a standard deviation for pixels in [0, 1]", 0, 1),
    "blur": ("a standard deviation as a fraction of the image's side", 0, 0.5),
    "jpeg": ("a JPEG quality", 1, 100),
}


@dataclass(frozen=True)
class ImageNoise:
    """Noise of one kind (gaussian, blur, jpeg); the seed, the image's key and the size of its pixels determine it."""

    kind: str
    level: float
    seed: int

    def __call__(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, H, W) of the images with keys (B,), int64, both on the device -> uint8 of the same shape."""
        with torch.autocast(images.device.type, enabled=False):  # a caller's autocast holds while a loader reads, too
            if self.kind == "gaussian":
                noise = sample_normal(images.shape[1:], keys, self.seed)
                return _to_uint8(images + 255 * self.level * noise)
            if self.kind == "blur":
                return _to_uint8(blur(images.float(), self.level * images.shape[-1]))
            return jpeg(images, self.level)


def image_noise_of(cfg: SimpleNamespace, part: int) -> ImageNoise | None:
    """The ImageNoise of the training images (part 0) or of a test set (part 1, …) according to `cfg`, or None."""
    if cfg.image_noise == "none":
        return None
    meaning, low, high = LEVELS[cfg.image_noise]
    if not low <= cfg.image_noise_level <= high:
        raise UserError(
            f"image_noise_level: for {cfg.image_noise}, it is {meaning} from {low} to {high}, "
            f"not {cfg.image_noise_level:g}."
        )
    if cfg.image_noise_on not in ("both", "train" if part == 0 else "test"):
        return None
    return ImageNoise(cfg.image_noise, cfg.image_noise_level, cfg.seed)


def image_noise_name(cfg: SimpleNamespace) -> str:
    """The image noise as part of a run's folder name; empty for none."""
    return f"{cfg.image_noise}-{cfg.image_noise_level:g}-{cfg.image_noise_on}" if cfg.image_noise != "none" else ""


def _to_uint8(images: torch.Tensor) -> torch.Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser (Steele et al., OOPSLA 2014) on int64: well mixed bits, the same on every device."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor  # shifted without the sign
    return x


def sample_normal(shape: Sequence[int], keys: torch.Tensor, seed: int) -> torch.Tensor:
    """Standard normal (B, *shape) float32; those of image b depend on seed and keys[b], int64, alone (Box-Muller)."""
    n = math.prod(shape)
    mixed = _mix(_mix(keys + 1) ^ seed)  # (B,)
    bits = _mix(mixed[:, None] + _mix(torch.arange(1, (n + 1) // 2 + 1, device=keys.device)))  # (B, n / 2)
    u, v = (((b & 0xFFFFFF).float() + 0.5) / (1 << 24) for b in (bits >> 40, bits))  # in (0, 1], 24 bits each
    radius, angle = (-2 * u.log()).sqrt(), 2 * math.pi * v
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 2).flatten(1)[:, :n].reshape(-1, *shape)


def blur(images: torch.Tensor, std: float) -> torch.Tensor:
    """Gaussian blur of float (B, C, H, W) by `std` pixels: rows, then columns; the edge pixels are repeated outwards."""
    if std <= 0:
        return images
    radius = math.ceil(3 * std)
    kernel = torch.exp(-torch.arange(-radius, radius + 1, device=images.device).float().square() / (2 * std**2))
    kernel = kernel / kernel.sum()
    B, C, H, W = images.shape
    planes = F.pad(images.reshape(B * C, 1, H, W), (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).reshape(B, C, H, W)


# luminance and chrominance tables of the JPEG standard (ITU-T T.81, annex K)
LUMINANCE = """16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
    18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99"""
CHROMINANCE = """17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99
    99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99"""
TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def quantisation(quality: float) -> np.ndarray:
    """The two tables (2, 8, 8) at a quality 1 to 100, scaled as libjpeg does."""
    tables = np.array([text.split() for text in (LUMINANCE, CHROMINANCE)], dtype=np.float64).reshape(2, 8, 8)
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    return np.clip(np.floor((tables * scale + 50) / 100), 1, 255)


@cache
def _jpeg_constants(quality: float, device: torch.device) -> Any:
    """Cosine transform (8, 8), RGB to YCbCr and back (3, 3), and the tables (3, 1, 1, 8, 8), once for a device."""
    k = np.arange(8)
    dct = np.cos(np.pi * (2 * k[None] + 1) * k[:, None] / 16) * np.where(k == 0, np.sqrt(1 / 8), 0.5)[:, None]
    luminance, chrominance = quantisation(quality)
    tables = np.stack([luminance, chrominance, chrominance])[:, None, None]
    arrays = (dct, TO_YCC, np.linalg.inv(TO_YCC), tables)
    return [torch.as_tensor(a, dtype=torch.float32, device=device) for a in arrays]


def jpeg(images: torch.Tensor, quality: float) -> torch.Tensor:
    """What is left of uint8 (B, 3, H, W) after JPEG at a quality, without chroma subsampling.

    The coding of the coefficients loses nothing, so only the quantised 8x8 cosine transform is done, in batches.
    """
    H, W = images.shape[2:]
    dct, to_ycc, from_ycc, tables = _jpeg_constants(quality, images.device)
    x = F.pad(images.float(), (0, -W % 8, 0, -H % 8), mode="replicate")
    x = torch.einsum("ij,bjhw->bihw", to_ycc, x).round()  # as libjpeg, which works on whole numbers
    x[:, 0] -= 128
    blocks = x.unfold(2, 8, 8).unfold(3, 8, 8)  # (B, 3, H / 8, W / 8, 8, 8)
    blocks = dct.T @ ((dct @ blocks @ dct.T / tables).round() * tables) @ dct
    x = blocks.permute(0, 1, 2, 4, 3, 5).reshape(x.shape).round()
    x[:, 0] += 128
    return _to_uint8(torch.einsum("ij,bjhw->bihw", from_ycc, x))[:, :, :H, :W].contiguous()
