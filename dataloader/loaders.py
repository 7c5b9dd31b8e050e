"""Loaders of batches (images (B, 3, H, W) float32, labels (B,) int64, index (B,) int64), all on the device."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from dataloader.augment import augment, draw_operations
from dataloader.cache import decoded_files
from dataloader.dataset import Dataset, Split, View
from dataloader.transforms import (
    Pixels,
    decode,
    normalise,
    random_crop,
    random_flip,
    resize,
)
from utils.distributed import first_alone, rank, several_machines, world_size

ON_DEVICE_GB = 8  # array data up to this size are kept on the device
EVAL_BATCHES = 4  # that a GPU evaluates at once, which is faster


class EpochRandomness:
    """All random numbers of one epoch, which depend on (seed, epoch) only.

    order (N,): the permutation in which samples are visited. The rest is indexed by sample, not by batch: complementary
    (N,), a label uniform over the K - 1 others than labels[i]; crop (N, 2) and flip (N,), uniform in [0, 1).
    """

    def __init__(self, seed: int, epoch: int, labels: np.ndarray, num_classes: int) -> None:
        rng = np.random.default_rng([seed, epoch])
        n = len(labels)
        self.order = rng.permutation(n)
        shift = rng.integers(1, num_classes, size=n) if num_classes > 1 else np.zeros(n, dtype=np.int64)
        self.complementary = torch.from_numpy((labels + shift) % num_classes)
        self.crop = torch.from_numpy(rng.random((n, 2), dtype=np.float32))
        self.flip = torch.from_numpy(rng.random(n, dtype=np.float32))


@dataclass(frozen=True)
class ViewBatch:
    """A batch in several views."""

    views: list[Tensor]  # (B, 3, H, W) each
    labels: Tensor  # (B,)
    index: Tensor  # (B,)
    samples: np.ndarray  # the index on the host


class Draws(NamedTuple):
    """The random numbers of one view of n images."""

    crop: Tensor  # (n, 2)
    flip: Tensor  # (n,)
    ops: Tensor | None  # (n, 2), as are the levels; None without strong operations
    levels: Tensor | None


def draw_view(n: int, rng: np.random.Generator, policy: str | None = None) -> Draws:
    """Draws of one view of n images from a numpy generator: a crop and a flip, and two strong operations each if there is
    a policy (dataloader.augment.POLICIES), else None."""
    ops, levels = (None, None) if policy is None else map(torch.from_numpy, draw_operations(policy, n, rng))
    crop, flip = rng.random((n, 2), dtype=np.float32), rng.random(n, dtype=np.float32)
    return Draws(torch.from_numpy(crop), torch.from_numpy(flip), ops, levels)


@dataclass(frozen=True)
class Reading:
    """How image files are read: number of threads, and size in GB and folder of the cache of decoded pixels."""

    num_workers: int = 8
    cache_gb: float = 0.0
    cache: Path | None = None


def make_loaders(
    data: Dataset, cfg: SimpleNamespace, pixels: Pixels, device: torch.device
) -> "tuple[Loader, dict[str, Loader]]":
    """Loader of the training set, and {name: Loader} of the test sets; pixels is the input format of the backbone."""
    train = make_loader(data.train, data.view, cfg, pixels, device, augmented=True)
    return train, {
        name: make_loader(split, data.view, cfg, pixels, device, augmented=False) for name, split in data.tests.items()
    }


def make_loader(
    split: Split, view: View, cfg: SimpleNamespace, pixels: Pixels, device: torch.device, augmented: bool
) -> "Loader":
    """Loader of one split, with batch size, threads and cache from `cfg`."""
    reading = Reading(cfg.num_workers, cfg.cache_gb, Path(cfg.output_dir) / "cache")
    return Loader(split, view, pixels, cfg.batch_size, device, augmented, reading)


class Loader:
    """One split: `train(randomness)` yields augmented batches in random order, `eval()` un-augmented ones in order.

    Array data are one uint8 tensor, on the device if not larger than ON_DEVICE_GB. Files are read by threads, a few
    batches ahead. They are decoded once if a single machine is used and their pixels fit into the cache. Files resized
    by their short side differ in size and are decoded every time.
    The split's noise acts on the pixels as they are read, before augmentation on the device.
    """

    def __init__(
        self,
        split: Split,
        view: View,
        pixels: Pixels,
        batch_size: int,
        device: torch.device | str,
        augmented: bool,
        reading: Reading = Reading(),
    ) -> None:
        self.labels = torch.from_numpy(split.labels).to(device)
        self.view, self.batch_size, self.resolution = view, batch_size, pixels.size
        self.device = device = torch.empty(0, device=device).device  # resolves cuda to cuda:0, compared below
        self.mean = torch.tensor(view.mean or pixels.mean, device=device)
        self.std = torch.tensor(view.std or pixels.std, device=device)
        self.is_array = isinstance(split.images, np.ndarray)
        self.size = round(pixels.size * (view.enlarge if augmented else view.test_enlarge))
        self.images, self.noise = split.images, split.noise
        self.keys: Any = None if split.keys is None else torch.from_numpy(split.keys.view(np.int64)).to(device)
        if self.is_array:
            self.images = torch.from_numpy(np.ascontiguousarray(self.images.transpose(0, 3, 1, 2)))
        else:
            self.pool = ThreadPoolExecutor(max(1, min(reading.num_workers, os.cpu_count() or 1)))
            with first_alone():  # one process creates the cache file
                # several machines cannot write to one memory-mapped file
                keep = reading.cache_gb > 0 and not view.short_side and not several_machines()
                self.decoded = None
                if reading.cache and keep:
                    self.decoded = decoded_files(self.images, self.size, reading.cache, reading.cache_gb)
        if isinstance(self.images, torch.Tensor) and self.images.nbytes <= ON_DEVICE_GB * 2**30:
            self.images = self.images.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def _fetch(self, index: np.ndarray, u: np.ndarray | None) -> Tensor:
        """uint8 pixels of samples index (B,) on the host; u (B, 2): crop positions, or None for centre crops."""
        if isinstance(self.images, torch.Tensor):
            return self.images[torch.from_numpy(index)]
        crop = self.resolution if self.view.short_side else None
        if self.decoded:
            images = list(self.pool.map(self.decoded.row, index.tolist()))
        else:
            paths, places = [self.images[i] for i in index], [None] * len(index) if u is None else u
            images = list(self.pool.map(lambda path, place: decode(path, self.size, crop, place), paths, places))
        return (
            torch.stack(images)
            if images
            else torch.empty(0, 3, crop or self.size, crop or self.size, dtype=torch.uint8)
        )

    def _pixels(
        self, splits: Sequence[np.ndarray], index: Sequence[Tensor], u: Sequence[np.ndarray | None]
    ) -> Iterator[Tensor]:
        """Yield the uint8 pixels of each batch, on the device; host memory and files are read two batches ahead.

        splits: numpy indices per batch; index: the same as tensors on the device; u: of each batch, see _fetch.
        """
        if isinstance(self.images, torch.Tensor) and self.images.device == self.device:
            yield from (self.images[here] for here in index)
            return

        def fetch(part: np.ndarray, places: np.ndarray | None) -> Tensor:
            images = self._fetch(part, places)
            return images.pin_memory() if self.device.type == "cuda" else images

        ahead: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(2) as fetchers:
            for part, places in [*zip(splits, u), (None, None), (None, None)]:
                if part is not None:
                    ahead.append(fetchers.submit(fetch, part, places))
                if ahead and (len(ahead) > 2 or part is None):
                    yield ahead.popleft().result().to(self.device, non_blocking=self.device.type == "cuda")

    def _noisy(self, images: Tensor, index: Tensor) -> Tensor:
        """The pixels of samples index (B,) with the split's noise, if it has one."""
        return images if self.noise is None else self.noise(images, self.keys[index])

    def _augmented(self, images: Tensor, u: Tensor, flip: Tensor) -> Tensor:
        crop = images.shape[2] if self.is_array else self.resolution
        if self.view.pad or crop != images.shape[2]:
            images = random_crop(images, crop, self.view.pad, u)
        images = resize(images, self.resolution)
        return random_flip(images, flip) if self.view.flip else images

    def _plain(self, images: Tensor) -> Tensor:
        if self.view.test_enlarge > 1 and not self.is_array:
            return center_crop(images, [self.resolution])
        return resize(images, self.resolution)

    def train(self, randomness: EpochRandomness, keep: np.ndarray | None = None) -> "Batches":
        """The augmented batches of one epoch; each process gets its share of every batch.

        With `keep` (N,) bool numpy, a batch contains only those of its samples that are kept, possibly none. The number
        of steps stays that of the whole training set.
        """
        splits = [randomness.order[i : i + self.batch_size] for i in range(0, len(self), self.batch_size)]
        if keep is not None:
            splits = [index[keep[index]] for index in splits]
        return Batches(len(splits), self._batches([index[rank() :: world_size()] for index in splits], randomness))

    def views(self, order: np.ndarray, draws: list[Draws]) -> "Batches":
        """Batches (ViewBatch) of the samples order (n,), any of them any number of times, in one view for each of `draws`.

        What a view draws belongs to the place in the order. Every process gets its share of each batch.
        """
        every = np.arange(len(order))
        places = [every[i : i + self.batch_size][rank() :: world_size()] for i in range(0, len(order), self.batch_size)]
        return Batches(len(places), self._views([order[part] for part in places], places, draws))

    def _views(self, splits: list[np.ndarray], places: list[np.ndarray], draws: list[Draws]) -> Iterator[ViewBatch]:
        index, where = (
            torch.from_numpy(np.concatenate(parts)).to(self.device).split([len(part) for part in parts])
            for parts in (splits, places)
        )
        # a file that is cut while it is decoded is decoded for each view
        again = self.view.short_side and not self.is_array
        crops = [one.crop.numpy() for one in (draws if again else draws[:1])]
        draws = [Draws._make(None if x is None else x.to(self.device) for x in one) for one in draws]
        pixels = zip(*(self._pixels(splits, index, [crop[part] for part in places]) for crop in crops))
        for here, there, samples, read in zip(index, where, splits, pixels):
            images = [self._noisy(x, here) for x in read]
            images = images if again else images * len(draws)
            views = [self._view(x, one, there) for x, one in zip(images, draws)]
            yield ViewBatch(views, self.labels[here], here, samples)

    def _view(self, images: Tensor, draws: Draws, where: Tensor) -> Tensor:
        """One view of a batch's pixels, whose draws stand at `where`."""
        images = self._augmented(images, draws.crop[where], draws.flip[where])
        if draws.ops is not None and draws.levels is not None:
            images = augment(images, draws.ops[where], draws.levels[where])
        return normalise(images, self.mean, self.std)

    def eval(self, rows: range | None = None) -> "Batches":
        """The un-augmented batches of the split, or of the range `rows`, in order; each process gets its share of each."""
        index = np.arange(len(self)) if rows is None else np.asarray(rows)
        size = self.batch_size * (EVAL_BATCHES if self.device.type == "cuda" else 1)
        splits = [index[i : i + size][rank() :: world_size()] for i in range(0, len(index), size)]
        splits = [split for split in splits if len(split)]  # the last batch may be too small for all processes
        return Batches(len(splits), self._batches(splits, None))

    def _batches(
        self, splits: list[np.ndarray], randomness: EpochRandomness | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        if not splits:  # np.concatenate takes no empty list
            return
        # copy random numbers to the device once per epoch, so that no step has to synchronise
        index = torch.from_numpy(np.concatenate(splits)).to(self.device).split([len(part) for part in splits])
        draws = None if randomness is None else [u.to(self.device) for u in (randomness.crop, randomness.flip)]
        u = [None if randomness is None else randomness.crop.numpy()[part] for part in splits]
        for here, pixels in zip(index, self._pixels(splits, index, u)):
            pixels = self._noisy(pixels, here)
            pixels = self._plain(pixels) if draws is None else self._augmented(pixels, *(x[here] for x in draws))
            yield normalise(pixels, self.mean, self.std), self.labels[here], here


class Batches:
    """An iterator over batches with a length, for the progress bar."""

    def __init__(self, length: int, iterator: Iterator[Any]) -> None:
        self.length, self.iterator = length, iterator

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return self.iterator
