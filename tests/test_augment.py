"""Strong views on the device against torchvision's, image by image."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from torchvision.transforms import InterpolationMode

from dataloader.augment import OPS, POLICIES, augment, draw_operations, level_of

S = 24


def pictures(n=3):
    """Smooth coloured pictures with sharp squares in them: uint8 (n, 3, S, S)."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((n, 3, 4, 4), dtype=np.float32))
    x = torch.nn.functional.interpolate(coarse, (S, S), mode="bilinear") * 200
    x[:, :, 5:9, 8:13] += 50
    return x.to(torch.uint8)


def expected(image, op, level):
    """The operation by torchvision on one image (3, S, S)."""
    move = {"interpolation": InterpolationMode.BILINEAR, "fill": [128.0] * 3}
    if op in ("ShearX", "ShearY"):
        degrees = math.degrees(math.atan(level))
        shear = [degrees, 0.0] if op == "ShearX" else [0.0, degrees]
        return reference.affine(image, 0.0, [0, 0], 1.0, shear, center=[0, 0], **move)
    if op.startswith("Translate"):
        shift = round(level * S)
        return reference.affine(image, 0.0, [shift, 0] if op == "TranslateX" else [0, shift], 1.0, [0.0, 0.0], **move)
    if op == "Rotate":
        return reference.rotate(image, level, **move)
    blends = {"Brightness": "adjust_brightness", "Color": "adjust_saturation", "Contrast": "adjust_contrast",
              "Sharpness": "adjust_sharpness"}  # fmt: skip
    if op in blends:
        return getattr(reference, blends[op])(image, level)
    if op in ("Posterize", "Solarize"):
        return getattr(reference, op.lower())(image, level)
    return {"Identity": lambda x: x, "AutoContrast": reference.autocontrast, "Equalize": reference.equalize,
            "Invert": reference.invert}[op](image)  # fmt: skip


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("level", [(0.4, 1), (0.8, -1)])
def test_operations_are_those_of_torchvision(op, level):
    images, amount = pictures(), level_of(op, *level)
    if op.startswith("Translate"):
        amount = round(amount * S) / S  # torchvision moves by whole pixels
    out = augment(images, torch.full((3, 1), OPS.index(op)), torch.full((3, 1), float(amount)))
    for image, mine in zip(images, out):
        theirs = expected(image, op, amount)
        difference = (mine.int() - theirs.int()).abs()
        if op in ("ShearX", "ShearY", "Rotate"):  # they round the position of the corner
            assert difference.float().mean() < 3 and not torch.equal(mine, image)
        else:
            assert difference.max() <= 2, op  # torchvision cuts off greys where they are rounded here
            assert torch.equal(mine, image) == (op == "Identity")


def test_every_image_gets_its_own_operation():
    images = pictures(len(OPS)).clone()
    images[:] = images[0]
    ops = torch.arange(len(OPS))[:, None]
    levels = torch.tensor([[float(level_of(op, 0.7, 1))] for op in OPS])
    together = augment(images, ops, levels)
    for i in range(len(OPS)):
        assert torch.equal(together[i], augment(images[i : i + 1], ops[i : i + 1], levels[i : i + 1])[0])
    assert len({x.numpy().tobytes() for x in together}) == len(OPS)
    twice = augment(images[:1], torch.tensor([[OPS.index("Invert")] * 2]), torch.zeros(1, 2))
    assert torch.equal(twice[0], images[0])
    assert augment(images[:0], ops[:0], levels[:0]).shape == (0, 3, S, S)


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_draw_all_their_operations(policy):
    ops, levels = draw_operations(policy, 4000, np.random.default_rng(0))
    names = {OPS[k] for k in np.unique(ops)}
    assert ops.shape == levels.shape == (4000, 2)
    if policy == "randaugment":
        assert names == set(OPS) - {"Invert"}
        rotations = levels[ops == OPS.index("Rotate")]
        assert rotations.min() < -28 and rotations.max() > 28 and abs(rotations.mean()) < 2
    elif policy == "cifar10":
        assert {"Invert", "Equalize", "AutoContrast", "TranslateY"} <= names
        assert (ops == OPS.index("Equalize")).mean() > (ops == OPS.index("Rotate")).mean() * 4
    if policy != "randaugment":  # strengths are ninths of the largest
        tenths = np.abs(levels[ops == OPS.index("Contrast")] - 1) / 0.1
        assert tenths.max() > 0 and np.allclose(tenths, tenths.round(), atol=1e-4)
    bits = levels[ops == OPS.index("Posterize")]
    assert bits.size == 0 or (4 <= bits.min() and bits.max() <= 8)
    again = draw_operations(policy, 4000, np.random.default_rng(0))
    assert (again[0] == ops).all() and (again[1] == levels).all()
