import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from dataloader import cache
from dataloader.dataset import Split, View
from dataloader.digits import enlarge_digits
from dataloader.load import load_data
from dataloader.loaders import EpochRandomness, Loader, Reading
from dataloader.transforms import Pixels, decode, normalise, random_crop, random_flip, resize
from tests.helpers import write_cifar
from utils.config import load_config
from utils.errors import UserError

CPU = torch.device("cpu")
HALF = ((0.5,) * 3, (0.5,) * 3)


# --- downloads


def test_cifar_is_downloaded(tmp_path, monkeypatch):
    def fetch(root, download):
        assert download
        write_cifar(Path(root) / "cifar-10-batches-py", "cifar10")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fetch)
    flags = ["--data_path", str(tmp_path / "data"), "--download"]
    data = load_data(load_config([*flags, "--dataset", "cifar10"]))
    assert len(data.train.labels) == 60 and len(data.test.labels) == 20
    with pytest.raises(UserError, match="download: only cifar10 and cifar100 can be fetched, not clothing1m"):
        load_data(load_config([*flags, "--dataset", "clothing1m"]))


def test_a_download_that_fails_says_where_the_files_are(tmp_path, monkeypatch):
    def fetch(root, download):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR100", fetch)
    with pytest.raises(
        UserError, match=r"download: cifar100 failed \(no network\). Get the Python version of cifar100 from"
    ):
        load_data(load_config(["--dataset", "cifar100", "--data_path", str(tmp_path), "--download"]))


# --- views


def test_resize_is_pillow_s():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    for size in (224, 24):
        ours = resize(images, size).int()
        theirs = torch.stack([T.functional.pil_to_tensor(T.Resize((size, size))(Image.fromarray(p))) for p in pixels])
        assert (ours - theirs).abs().max() <= 1  # Pillow rounds between its two passes


def test_crop_and_flip_are_per_sample():
    image = torch.arange(1, 37, dtype=torch.uint8).reshape(1, 1, 6, 6).expand(4, 3, 6, 6)
    u = torch.tensor([[0.0, 0.0], [0.999, 0.999], [0.5, 0.5], [0.0, 0.999]])
    out = random_crop(image, 6, 2, u)
    assert out[0, 0, :2].sum() == 0 and torch.equal(out[0, 0, 2:, 2:], image[0, 0, :4, :4])
    assert torch.equal(out[1, 0, :4, :4], image[0, 0, 2:, 2:]) and torch.equal(out[2], image[2])
    assert torch.equal(out[3, 0, 2:, :4], image[0, 0, :4, 2:])
    flipped = random_flip(image, torch.tensor([0.1, 0.9, 0.4, 0.6]))
    assert torch.equal(flipped[0], image[0].flip(2)) and torch.equal(flipped[1], image[1])
    x = normalise(image, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    expected = T.functional.normalize(image.float() / 255, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    torch.testing.assert_close(x, expected)


def test_every_sample_once_an_epoch_and_augmentation_follows_the_sample():
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(50) % 5
    randomness = EpochRandomness(1, 2, labels, 5)
    by_index = {}
    for batch_size, keep in ((16, None), (7, labels != 3)):
        loader = Loader(Split(images, labels), View(pad=2), Pixels(16, *HALF), batch_size, CPU, augmented=True)
        batches = list(loader.train(randomness, keep))
        assert len(batches) == -(-50 // batch_size)  # the steps are those of the whole set
        seen = torch.cat([index for _, _, index in batches])
        assert sorted(seen.tolist()) == [i for i in range(50) if keep is None or keep[i]]
        for x, y, index in batches:
            assert x.shape == (len(index), 3, 16, 16) and torch.equal(y, torch.from_numpy(labels)[index])
            for one, i in zip(x, index.tolist()):
                assert torch.equal(by_index.setdefault(i, one), one)
    assert (randomness.complementary != torch.from_numpy(labels)).all()
    again, other = EpochRandomness(1, 2, labels, 5), EpochRandomness(1, 3, labels, 5)
    assert np.array_equal(again.order, randomness.order) and torch.equal(again.crop, randomness.crop)
    assert not np.array_equal(other.order, randomness.order) and not torch.equal(other.flip, randomness.flip)


def test_files_kept_and_streamed_give_the_same_batches(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    paths = []
    for i in range(9):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(paths[-1])
    labels = np.arange(9) % 3
    randomness = EpochRandomness(0, 1, labels, 3)
    for augmented in (True, False):
        runs = []
        for gb, machines in ((1.0, 1), (0.0, 1), (1.0, 2)):
            monkeypatch.setenv("WORLD_SIZE", str(machines))  # with one process each; two must not write one file
            monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
            loader = Loader(
                Split(paths, labels),
                View(enlarge=8 / 7),
                Pixels(28, *HALF),
                4,
                CPU,
                augmented,
                Reading(cache_gb=gb, cache=tmp_path / "cache"),
            )
            assert (loader.decoded is None) == (gb == 0 or machines == 2)
            runs.append(list(loader.train(randomness, labels != 1) if augmented else loader.eval()))
        for batches in zip(*runs, strict=True):
            assert batches[0][0].shape[2:] == (28, 28)
            for column in zip(*batches, strict=True):
                assert all(torch.equal(column[0], other) for other in column[1:])


def test_decoded_files_are_kept_checked_and_bounded(tmp_path, monkeypatch):
    rng, paths, calls = np.random.default_rng(0), [], []
    for i in range(5):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(paths[-1])
    monkeypatch.setattr(cache, "decode", lambda path, size: calls.append(path) or decode(path, size))

    def read(limit_gb=1.0, paths=paths, size=16):
        calls.clear()
        decoded = cache.decoded_files(paths, size, tmp_path / "cache", limit_gb)
        if decoded is None:
            return None
        with ThreadPoolExecutor(2) as pool:
            rows = torch.stack(list(pool.map(decoded.row, range(len(paths)))))
        assert torch.equal(decoded.row(0), rows[0])  # the second time without a look at the checksum
        return rows

    expected = torch.stack([decode(path, 16) for path in paths])
    assert torch.equal(read(), expected) and sorted(calls) == paths
    assert torch.equal(read(), expected) and calls == []
    file = next(p for p in (tmp_path / "cache").glob("*-16.npy"))
    with file.open("r+b") as damaged:  # one pixel of the third image
        damaged.seek(file.stat().st_size - 2 * 3 * 16 * 16 - 7)
        damaged.write(bytes([int(expected[2].flatten()[-7]) ^ 1]))
    assert torch.equal(read(), expected) and calls == [paths[2]]
    file.write_bytes(file.read_bytes()[:500])
    assert torch.equal(read(), expected) and len(calls) == 5
    Image.new("RGB", (8, 8)).save(paths[0])  # another image under the same name is another set
    assert read()[0].sum() == 0 and len(list((tmp_path / "cache").glob("*-16.npy"))) == 2
    cache._in_use.clear()  # as in another process; those of this one stay
    room = 2.5 * 5 * 3 * 16 * 16 / 2**30  # a third set of this size makes the oldest give way
    assert read(room, paths[::-1]).shape == (5, 3, 16, 16) and not file.exists()
    assert len(list((tmp_path / "cache").glob("*-16.npy"))) == 2
    assert read(limit_gb=0) is None and read(1e-6) is None


# --- data sets


@pytest.mark.parametrize(
    "name, folder",
    [("cifar10", ""), ("cifar10", "cifar-10-batches-py"), ("cifar100", ""), ("cifar100", "cifar-100-python")],
)
def test_cifar_layouts(tmp_path, name, folder):
    labels = write_cifar(tmp_path / folder, name)
    data = load_data(load_config(["--dataset", name, "--data_path", str(tmp_path)]))
    assert data.train.images.shape == (60, 32, 32, 3) and len(data.test.labels) == 20
    assert np.array_equal(data.train.labels, labels)
    assert data.num_classes == (10 if name == "cifar10" else 100)
    assert data.train.images[0, :, :, 0].tolist() == data.train.images[0, :, :, 2].tolist()


def test_cifar_files_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("owned",))

    write_cifar(tmp_path, "cifar100")
    (tmp_path / "train").write_bytes(pickle.dumps({"data": Evil(), "fine_labels": []}))
    with pytest.raises(UserError, match="train: not a CIFAR pickle file.*builtins.print"):
        load_data(load_config(["--dataset", "cifar100", "--data_path", str(tmp_path)]))


def test_truncated_or_missing_cifar(tmp_path):
    cfg = load_config(["--dataset", "cifar100", "--data_path", str(tmp_path)])
    with pytest.raises(UserError, match="data_path: no train in .* or its folder cifar-100-python"):
        load_data(cfg)
    write_cifar(tmp_path, "cifar100")
    whole = (tmp_path / "test").read_bytes()
    (tmp_path / "test").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="test: not a CIFAR pickle file .Python version., or damaged"):
        load_data(cfg)


def test_unknown_data_set():
    with pytest.raises(UserError, match="dataset: unknown name 'cifar1O'.*Did you mean cifar10"):
        load_data(load_config(["--dataset", "cifar1O"]))


def test_full_ink_of_the_digits_is_white():
    levels = np.arange(17, dtype=np.uint8)
    enlarged = enlarge_digits(np.broadcast_to(levels[:, None, None], (17, 8, 8)))
    assert enlarged.shape == (17, 32, 32, 3) and (enlarged == enlarged[:, :1, :1]).all()
    assert enlarged[0, 0, 0, 0] == 0 and enlarged[16, 0, 0, 0] == 255 and (np.diff(enlarged[:, 0, 0, 0]) >= 15).all()


def test_digits_split_is_fixed_by_the_seed():
    a, b, c = (load_data(load_config(["--seed", s, "--noise_mode", "sym", "--noise_ratio", "0.4"])) for s in "001")
    assert len(a.train.labels) == 1437 and len(a.test.labels) == 360
    assert np.array_equal(a.train.images, b.train.images) and np.array_equal(a.train.labels, b.train.labels)
    assert not np.array_equal(a.train.images, c.train.images)
    assert json.dumps(a.classnames) == json.dumps("zero one two three four five six seven eight nine".split())
