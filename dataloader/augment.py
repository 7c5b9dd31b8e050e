"""Strong augmentation of a batch on the device: AutoAugment and RandAugment, with separate operations for every image.

torchvision draws one operation for a whole batch. Here, operations and levels are tensors with a row per image, so there is
no loop over images, and random draws belong to the sample rather than to the batch.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
BLENDS = ("Brightness", "Contrast", "Color", "Sharpness")
OTHERS = ("Posterize", "Solarize", "AutoContrast", "Equalize", "Invert")
OPS = ("Identity", *GEOMETRIC, *BLENDS, *OTHERS)
RANDAUGMENT = tuple(op for op in OPS if op != "Invert")  # the 14 operations of Cubuk et al., CVPR workshops 2020
LARGEST = {"ShearX": 0.3, "ShearY": 0.3, "TranslateX": 150 / 331, "TranslateY": 150 / 331, "Rotate": 30.0}
FILL = 128.0  # grey for pixels outside the moved image

POLICIES = ("cifar10", "imagenet", "randaugment")


def level_of(op: str, strength: float, sign: float) -> float:
    """The level of an operation for `augment`, given its strength in [0, 1] (ranges of Cubuk et al., CVPR 2019).

    Shears are tangents, translations fractions of the side, rotations degrees, blends factors around 1 (0.1 to 1.9), all
    with `sign` 1 or -1; posterize is the number of bits kept, 8 to 4; solarize is a threshold, 255 to 0.
    """
    if op in LARGEST:
        return sign * strength * LARGEST[op]
    if op in BLENDS:
        return 1 + sign * 0.9 * strength
    if op == "Posterize":
        return 8 - round(4 * strength)
    return 255 * (1 - strength) if op == "Solarize" else 0.0


def draw_operations(policy: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw two operations for each of n images: indices into OPS (n, 2) int64 and levels (n, 2) float32, numpy.

    policy: cifar10 or imagenet are AutoAugment's policies, with one of 25 pairs drawn per image; randaugment draws
    operations and levels uniformly (levels as in FixMatch, Sohn et al., NeurIPS 2020).
    """
    signs = rng.choice([-1, 1], (n, 2))
    if policy == "randaugment":
        names = [[RANDAUGMENT[k] for k in row] for row in rng.integers(len(RANDAUGMENT), size=(n, 2))]
        strengths = rng.random((n, 2))
    else:
        pairs = AutoAugment(AutoAugmentPolicy(policy)).policies
        drawn, applied = rng.integers(len(pairs), size=n), rng.random((n, 2))
        names = [
            [op if u < p else "Identity" for (op, p, _), u in zip(pairs[k], row)] for k, row in zip(drawn, applied)
        ]
        strengths = np.array([[(level or 0) / 9 for _, _, level in pairs[k]] for k in drawn])
    levels = [[level_of(*one) for one in zip(*rows)] for rows in zip(names, strengths, signs)]
    ops = [[OPS.index(op) for op in row] for row in names]
    return np.array(ops, dtype=np.int64), np.array(levels, dtype=np.float32)


def augment(images: Tensor, ops: Tensor, levels: Tensor) -> Tensor:
    """Apply OPS[ops[i, 0]], OPS[ops[i, 1]], … at their levels (B, n) to image i; uint8 (B, 3, S, S) -> uint8."""
    if not len(images):  # a process's share of a batch may be empty
        return images
    x = images.float()
    for op, level in zip(ops.unbind(1), levels.unbind(1)):
        x = _one_each(x, op, level).round().clamp(0, 255)
    return x.to(torch.uint8)


def _one_each(x: Tensor, op: Tensor, level: Tensor) -> Tensor:
    """Apply operation op (B,) at its level (B,) to each image; float pixels (B, 3, S, S) in 0..255."""
    column = level[:, None, None, None]

    def chosen(*names: str) -> Tensor:  # compared with one number at a time: a tensor of them would have to be uploaded
        return torch.stack([op == OPS.index(name) for name in names]).any(0)[:, None, None, None]

    grey = 0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    reference = torch.zeros_like(x)  # brightness
    for name, value in (("Contrast", grey.mean((2, 3), keepdim=True)), ("Color", grey), ("Sharpness", _blurred(x))):
        reference = torch.where(chosen(name), value, reference)
    out = torch.where(chosen(*BLENDS), column * x + (1 - column) * reference, x)
    out = torch.where(chosen(*GEOMETRIC), _moved(x, op, level), out)
    step = torch.exp2(8 - column)
    out = torch.where(chosen("Posterize"), (x / step).floor() * step, out)
    out = torch.where(chosen("Solarize") & (x >= column) | chosen("Invert"), 255 - x, out)
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    out = torch.where(chosen("AutoContrast") & (high > low), (x - low) * 255 / (high - low).clamp(min=1), out)
    return torch.where(chosen("Equalize"), _equalised(x), out)


def _moved(x: Tensor, op: Tensor, level: Tensor) -> Tensor:
    """Bilinear shears (from the top left corner), translations and rotations (around the centre), one per image."""
    matrix = x.new_zeros(len(x), 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1

    def amount(name: str) -> Tensor:
        return torch.where(op == OPS.index(name), level, 0)

    shear_x, shear_y = amount("ShearX"), amount("ShearY")
    matrix[:, 0, 1], matrix[:, 1, 0] = shear_x, shear_y
    matrix[:, 0, 2] = shear_x - 2 * amount("TranslateX")
    matrix[:, 1, 2] = shear_y - 2 * amount("TranslateY")
    angle = amount("Rotate").deg2rad()
    matrix[:, 0, 0] *= angle.cos()
    matrix[:, 1, 1] *= angle.cos()
    matrix[:, 0, 1] -= angle.sin()
    matrix[:, 1, 0] += angle.sin()
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x - FILL, grid, mode="bilinear", align_corners=False) + FILL


def _blurred(x: Tensor) -> Tensor:
    """Smooth each pixel inside the border with its eight neighbours, the pixel itself weighted five times."""
    kernel = x.new_ones(3, 3)
    kernel[1, 1].fill_(5)  # assigning a number would upload it
    inside = F.conv2d(x, (kernel / 13).expand(3, 1, 3, 3), groups=3)
    out = x.clone()
    out[:, :, 1:-1, 1:-1] = inside
    return out


def _equalised(x: Tensor) -> Tensor:
    """Histogram equalisation of every channel of every image, as in Pillow; constant channels stay the same."""
    flat = x.long().flatten(2)  # (B, 3, S * S)
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.long, device=x.device).scatter_add_(
        2, flat, torch.ones_like(flat)
    )
    last = counts.gather(2, flat.amax(2, keepdim=True))
    step = (counts.sum(2, keepdim=True) - last) // 255
    table = (counts.cumsum(2) - counts + step // 2) // step.clamp(min=1)
    return torch.where(step > 0, table.clamp(0, 255).gather(2, flat), flat).reshape(x.shape).to(x.dtype)
