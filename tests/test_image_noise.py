"""Noise on images: its strength, that it belongs to the sample, and that it is part of what a run is."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from dataloader.dataset import Split, View
from dataloader.image_noise import ImageNoise, blur, jpeg, sample_normal
from dataloader.load import load_data
from dataloader.loaders import EpochRandomness, Loader
from dataloader.transforms import Pixels
from tests.helpers import detection, phase1, write_folder
from utils.config import load_config
from utils.errors import UserError

PLAIN = Pixels(32, (0.0,) * 3, (1.0,) * 3)


@pytest.fixture(scope="module")
def photo():
    """Something smooth with an edge and colours, uint8 (3, 40, 52)."""
    y, x = np.mgrid[:40, :52]
    planes = [127 + 90 * np.sin(x / 7), np.where(x > 25, 220, 40), 127 + 100 * np.cos((x + 2 * y) / 9)]
    return torch.from_numpy(np.stack(planes).astype(np.uint8))


def test_normal_noise_is_normal_and_belongs_to_the_sample():
    index = torch.tensor([5, 0, 123456, 7])
    noise = sample_normal((3, 32, 31), index, seed=3)
    assert noise.shape == (4, 3, 32, 31)
    for i, alone in zip(index.tolist(), noise):
        assert torch.equal(sample_normal((3, 32, 31), torch.tensor([i]), 3)[0], alone)  # whatever the batch
    many = sample_normal((3, 64, 64), torch.arange(64), 0).flatten(1)
    assert abs(many.mean()) < 0.005 and abs(many.std() - 1) < 0.005
    assert abs((many**4).mean() - 3) < 0.05  # the kurtosis of a normal
    together = torch.corrcoef(many).fill_diagonal_(0).abs().max()
    assert together < 0.05  # samples are independent …
    neighbours = torch.corrcoef(torch.stack([many[:, :-1].flatten(), many[:, 1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.01  # … and so are pixels
    assert not torch.equal(sample_normal((9,), index, 3), sample_normal((9,), index, 4))


def test_gaussian_strength_and_seeds():
    grey = torch.full((8, 3, 32, 32), 128, dtype=torch.uint8)
    index = torch.arange(8)
    for level in (0.01, 0.1):
        spoilt = ImageNoise("gaussian", level, 0)(grey, index)
        assert spoilt.dtype == torch.uint8
        assert (spoilt.float() - 128).std() == pytest.approx(255 * level, rel=0.03)
    assert torch.equal(ImageNoise("gaussian", 0, 0)(grey, index), grey)
    one, other = (ImageNoise("gaussian", 0.1, seed)(grey, index) for seed in (0, 1))
    assert not torch.equal(one, other)


def test_blur_is_pillow_s_far_from_edges(photo):
    theirs = Image.fromarray(photo.permute(1, 2, 0).numpy()).filter(
        ImageFilter.GaussianBlur(2)
    )  # boxes: an approximation
    ours = blur(photo[None].float(), 2.0)[0]
    difference = ours - torch.from_numpy(np.array(theirs)).permute(2, 0, 1)
    assert difference[:, 8:-8, 8:-8].abs().max() < 5
    flat = torch.full((1, 3, 9, 9), 77.0)
    assert torch.allclose(blur(flat, 3.0), flat)  # edges are repeated, nothing darkens
    impulse = torch.zeros(1, 1, 41, 41)
    impulse[0, 0, 20, 20] = 1
    spread = blur(impulse, 3.0)[0, 0].sum(0)
    places = torch.arange(41.0) - 20
    assert (spread * places**2).sum().sqrt() == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize("quality", [5, 30, 75, 95])
def test_jpeg_is_a_real_jpeg(photo, quality):
    buffer = io.BytesIO()
    Image.fromarray(photo.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality, subsampling=0)
    theirs = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).int()
    ours = jpeg(photo[None], quality)[0].int()
    lost = (theirs - photo).abs().float().mean()
    assert (ours - theirs).abs().float().mean() < 0.6 and (ours - theirs).abs().float().mean() < 0.4 * lost


def test_same_in_every_precision(photo):
    for kind, level in (("gaussian", 0.1), ("blur", 0.05), ("jpeg", 20)):
        noise, keys = ImageNoise(kind, level, 0), torch.arange(1)
        with torch.autocast("cpu", torch.bfloat16):
            low = noise(photo[None], keys)
        assert torch.equal(low, noise(photo[None], keys)), kind


def test_same_in_every_epoch_and_only_where_asked():
    images = np.random.default_rng(0).integers(60, 190, (10, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(10) % 2
    clean = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    keys = np.random.default_rng(1).integers(2**64, size=10, dtype=np.uint64)
    split = Split(images, labels, keys=keys, noise=ImageNoise("gaussian", 0.05, 0))
    seen = {}
    for epoch, batch_size in ((1, 4), (2, 3)):
        loader = Loader(split, View(flip=False), PLAIN, batch_size, torch.device("cpu"), augmented=True)
        for batch in (*loader.train(EpochRandomness(0, epoch, labels, 2)), *loader.eval()):
            for image, i in zip(batch[0], batch[2].tolist()):
                assert torch.equal(seen.setdefault(i, image), image) and not torch.equal(image, clean[i])
    for on, noisy in (("train", (True, False)), ("test", (False, True)), ("both", (True, True))):
        data = load_data(load_config(["--image_noise", "gaussian", "--image_noise_on", on]))
        assert (data.train.noise is not None, data.test.noise is not None) == noisy
        assert data.noise_name == f"none-gaussian-0.01-{on}"


def test_noise_belongs_to_the_image_wherever_it_stands(tmp_path):
    def noisy(folder, *flags):
        """{file name: pixels} as the evaluation pass reads them."""
        where = ["--dataset", "own", "--data_path", str(folder), "--output_dir", str(tmp_path / "runs")]
        split = load_data(load_config([*where, "--image_noise", "gaussian", "--test_fraction", "0", *flags])).train
        loader = Loader(split, View(), PLAIN, 4, torch.device("cpu"), augmented=False)
        return {Path(p).name: x for x, p in zip(torch.cat([batch[0] for batch in loader.eval()]), split.images)}

    folder = tmp_path / "images"
    write_folder(folder, {"a": 3, "b": 3})
    before, plain = noisy(folder), noisy(folder, "--image_noise", "none")
    Image.new("RGB", (8, 8)).save(folder / "a" / "00.png")  # the first of all
    after = noisy(folder)
    assert len(after) == 7 and all(torch.equal(after[name], pixels) for name, pixels in before.items())
    assert not any(torch.equal(plain[name], pixels) for name, pixels in before.items())
    differences = torch.stack([before[name] - plain[name] for name in before]).flatten(1)
    assert len(differences.unique(dim=0)) == 6


def test_is_part_of_the_run(tmp_path):
    plain, spoilt = (
        load_data(load_config(phase1(tmp_path, *flags)))
        for flags in ([], ["--image_noise", "jpeg", "--image_noise_level", "10"])
    )
    assert plain.place == "digits/sym-0.4" and spoilt.place == "digits/sym-0.4-jpeg-10-train"
    assert np.array_equal(plain.train.labels, spoilt.train.labels)  # the labels do not change with the pixels
    with pytest.raises(UserError, match="image_noise_level: for jpeg, it is a JPEG quality from 1 to 100, not 0.01"):
        load_data(load_config(["--image_noise", "jpeg"]))
    with pytest.raises(UserError, match="one of none, gaussian, blur, jpeg"):
        load_config(["--image_noise", "gausian"])


def test_features_of_noisy_images_are_their_own(tmp_path):
    import main_detect

    summaries = [
        main_detect.main(detection(tmp_path, *flags))
        for flags in ([], ["--image_noise", "gaussian", "--image_noise_level", "0.5"])
    ]
    assert (
        len(list((tmp_path / "cache").glob("features-*.npz"))) == 3
    )  # the test images, which have no noise, are shared
    assert summaries[0]["f1"] > summaries[1]["f1"] and summaries[0]["acc_last"] == summaries[1]["acc_last"]
