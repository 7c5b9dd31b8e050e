"""Image transforms. All but the readers work on batches on the device: uint8 (B, 3, H, W) until `normalise`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps

from utils.errors import UserError

try:  # photos as phones take them; an optional package
    from pillow_heif import register_heif_opener

    register_heif_opener()
    READS_HEIF = True
except ImportError:
    READS_HEIF = False


class Pixels(NamedTuple):
    """The square input of a network: side length in pixels, and mean and std of the channels, pixels in [0, 1]."""

    size: int
    mean: tuple
    std: tuple


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image to upright RGB: EXIF rotation applied, transparency on white, first frame of an animation.

    Greyscale images with more than 8 bits, or with floating-point values, are rescaled from their minimum to maximum.
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # exif_transpose always copies
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        levels = np.nan_to_num(np.asarray(image, dtype=np.float64))
        levels = (levels - levels.min()) / max(np.ptp(levels), 1e-12) * 255
        image = Image.fromarray(levels.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def open_image(source: Any, enough: int | None = None) -> Image.Image:
    """Read an image file, or take a Pillow image, and apply to_rgb.

    A JPEG much larger than `enough` pixels square is decoded at a half, a quarter or an eighth of its size, but never
    smaller than `enough`.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    with Image.open(source) as image:
        if enough:
            image.draft("RGB", (enough, enough))
        return to_rgb(image)


def decode(path: str | Path, size: int, crop: int | None = None, u: np.ndarray | None = None) -> torch.Tensor:
    """An image file (or Pillow image) as uint8 RGB (3, size, size), resized bilinearly to a square.

    With `crop`, the short side is resized to `size` and a square of `crop` pixels is cut out: at position u (2,),
    uniform in [0, 1), or at the centre.
    """
    try:
        image = open_image(path, 2 * size)
        scale = size / min(image.size)
        width, height = (size if crop is None else max(size, int(side * scale)) for side in image.size)
        pixels = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    except Exception as error:  # Pillow's plugins raise many exceptions on damaged files
        raise UserError(f"{path}: not a readable image ({error}); --skip_broken skips such files.") from None
    if crop is not None:
        room = np.array(pixels.shape[:2]) - crop
        top, left = np.round(room / 2).astype(int) if u is None else (np.asarray(u) * (room + 1)).astype(int)
        pixels = pixels[top : top + crop, left : left + crop]
    return torch.from_numpy(pixels).permute(2, 0, 1)


def random_crop(images: torch.Tensor, size: int, pad: int, u: torch.Tensor) -> torch.Tensor:
    """Zero-pad every image by `pad` and crop a square of `size` pixels at its own random position.

    images (B, 3, H, W); u (B, 2) uniform in [0, 1): relative position of the crop, top and left.
    Returns (B, 3, size, size).
    """
    images = F.pad(images, (pad,) * 4) if pad else images
    top = (u[:, 0] * (images.shape[2] - size + 1)).long()  # (B,)
    left = (u[:, 1] * (images.shape[3] - size + 1)).long()
    windows = images.unfold(2, size, 1).unfold(3, size, 1)  # (B, 3, places, places, size, size), a view
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def random_flip(images: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Flip the images with u (B,) below one half horizontally."""
    return torch.where((u < 0.5)[:, None, None, None], images.flip(3), images)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 (B, 3, H, W) -> uint8 (B, 3, size, size), bilinear with antialiasing, as in PIL and torchvision."""
    if images.shape[2:] == (size, size):
        return images
    shrinks = images.shape[2] > size or images.shape[3] > size
    out = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=shrinks, align_corners=False)
    return out.round_().clamp_(0, 255).to(torch.uint8)


def normalise(
    images: torch.Tensor, mean: Sequence[float] | torch.Tensor, std: Sequence[float] | torch.Tensor
) -> torch.Tensor:
    """uint8 (B, 3, H, W) -> float32 (x / 255 - mean) / std, with three entries each in mean and std."""
    shift, scale = (torch.as_tensor(x, device=images.device)[:, None, None] * 255 for x in (mean, std))
    return images.float().sub_(shift).div_(scale)
