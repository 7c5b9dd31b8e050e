"""Batches (images (B, 3, H, W) float32, labels (B,) int64, index (B,) int64), all on the device."""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dataloader.cache import decoded_files
from dataloader.transforms import (
    centre_crop,
    decode,
    normalise,
    random_crop,
    random_flip,
    resize,
)
from utils.distributed import first_alone, rank, several_machines, world_size

ON_DEVICE_GB = 8  # decoded pixels up to this size live on the device


class EpochRandomness:
    """All that is random in one epoch, from (seed, epoch) alone: nothing depends on what ran before.

    order (N,) is the permutation the samples are visited in; the rest belongs to sample i whatever its batch:
    complementary (N,) a label other than labels[i], uniform over the K - 1; crop (N, 2) and flip (N,) uniform in [0, 1).
    """

    def __init__(self, seed, epoch, labels, num_classes):
        rng = np.random.default_rng([seed, epoch])
        n = len(labels)
        self.order = rng.permutation(n)
        shift = rng.integers(1, num_classes, size=n) if num_classes > 1 else np.zeros(n, dtype=np.int64)
        self.complementary = torch.from_numpy((labels + shift) % num_classes)
        self.crop = torch.from_numpy(rng.random((n, 2), dtype=np.float32))
        self.flip = torch.from_numpy(rng.random(n, dtype=np.float32))


@dataclass(frozen=True)
class Reading:
    """How image files are read: by how many threads, and into how many GB of which folder decoded pixels are kept."""

    num_workers: int = 8
    cache_gb: float = 0.0
    cache: Path | None = None


def make_loaders(data, cfg, pixels, device):
    """Loader of the training set, and {name: Loader} of the test sets, if any; pixels: what the backbone takes."""
    train = make_loader(data.train, data.view, cfg, pixels, device, augmented=True)
    return train, {
        name: make_loader(split, data.view, cfg, pixels, device, augmented=False) for name, split in data.tests.items()
    }


def make_loader(split, view, cfg, pixels, device, augmented):
    """Loader of one split, with the batch size, threads and cache that `cfg` names."""
    reading = Reading(cfg.num_workers, cfg.cache_gb, Path(cfg.output_dir) / "cache")
    return Loader(split, view, pixels, cfg.batch_size, device, augmented, reading)


class Loader:
    """One split: `train(randomness)` gives augmented batches in random order, `eval()` plain ones in order.

    Array data are one uint8 tensor, on the device up to ON_DEVICE_GB. Files are read by threads, a few batches ahead, and
    decoded once where their pixels fit into the cache of one machine; those resized by their short
    side, which have no one size, are decoded every time.
    """

    def __init__(self, split, view, pixels, batch_size, device, augmented, reading=Reading()):
        self.labels = torch.from_numpy(split.labels).to(device)
        self.view, self.batch_size, self.resolution = view, batch_size, pixels.size
        self.device = device = torch.empty(0, device=device).device  # cuda is cuda:0: compared below
        self.mean = torch.tensor(view.mean or pixels.mean, device=device)
        self.std = torch.tensor(view.std or pixels.std, device=device)
        self.is_array = isinstance(split.images, np.ndarray)
        self.size = round(pixels.size * (view.enlarge if augmented else view.test_enlarge))
        self.images = split.images
        if self.is_array:
            self.images = torch.from_numpy(np.ascontiguousarray(self.images.transpose(0, 3, 1, 2)))
        else:
            self.pool = ThreadPoolExecutor(max(1, min(reading.num_workers, os.cpu_count() or 1)))
            with first_alone():  # one process makes the file
                # one memory-mapped file cannot be written from several machines
                keep = reading.cache_gb > 0 and not view.short_side and not several_machines()
                self.decoded = decoded_files(self.images, self.size, reading.cache, reading.cache_gb) if keep else None
        if isinstance(self.images, torch.Tensor) and self.images.nbytes <= ON_DEVICE_GB * 2**30:
            self.images = self.images.to(device)

    def __len__(self):
        return len(self.labels)

    def _fetch(self, index, u):
        """uint8 pixels of the samples index (B,), numpy, from the host; u (N, 2) numpy: where crops lie, None: centre."""
        if isinstance(self.images, torch.Tensor):
            return self.images[torch.from_numpy(index)]
        crop = self.resolution if self.view.short_side else None
        if self.decoded:
            images = list(self.pool.map(self.decoded.row, index.tolist()))
        else:
            paths, places = [self.images[i] for i in index], [None] * len(index) if u is None else u[index]
            images = list(self.pool.map(lambda path, place: decode(path, self.size, crop, place), paths, places))
        return (
            torch.stack(images)
            if images
            else torch.empty(0, 3, crop or self.size, crop or self.size, dtype=torch.uint8)
        )

    def _pixels(self, splits, index, u):
        """uint8 pixels of each batch, on the device; host memory and files are read two batches ahead.

        splits: lists of numpy indices, for the host; index: the same on the device; u as for _fetch.
        """
        if isinstance(self.images, torch.Tensor) and self.images.device == self.device:
            yield from (self.images[here] for here in index)
            return

        def fetch(part):
            images = self._fetch(part, u)
            return images.pin_memory() if self.device.type == "cuda" else images

        ahead = deque()
        with ThreadPoolExecutor(2) as fetchers:
            for part in [*splits, None, None]:
                if part is not None:
                    ahead.append(fetchers.submit(fetch, part))
                if ahead and (len(ahead) > 2 or part is None):
                    yield ahead.popleft().result().to(self.device, non_blocking=True)

    def _augmented(self, images, u, flip):
        crop = images.shape[2] if self.is_array else self.resolution
        if self.view.pad or crop != images.shape[2]:
            images = random_crop(images, crop, self.view.pad, u)
        images = resize(images, self.resolution)
        return random_flip(images, flip) if self.view.flip else images

    def _plain(self, images):
        if self.view.test_enlarge > 1 and not self.is_array:
            return centre_crop(images, self.resolution)
        return resize(images, self.resolution)

    def train(self, randomness, keep=None):
        """Batches of one epoch, of which every process gets its share.

        With `keep` (N,) bool numpy, every batch holds only its kept samples; it may be empty. The batches, and so the
        number of steps, are those of the whole set.
        """
        splits = [randomness.order[i : i + self.batch_size] for i in range(0, len(self), self.batch_size)]
        if keep is not None:
            splits = [index[keep[index]] for index in splits]
        return _Sized(len(splits), self._batches([index[rank() :: world_size()] for index in splits], randomness))

    def eval(self):
        """Un-augmented batches of the whole split, in order; of several processes each has its share of each batch."""
        index = np.arange(len(self))
        splits = [index[i : i + self.batch_size][rank() :: world_size()] for i in range(0, len(self), self.batch_size)]
        return _Sized(len(splits), self._batches(splits, None))

    def _batches(self, splits, randomness):
        # everything random goes to the device once an epoch: a step waits for nothing
        index = torch.from_numpy(np.concatenate(splits)).to(self.device).split([len(part) for part in splits])
        crop, flip = (
            (None, None) if randomness is None else (u.to(self.device) for u in (randomness.crop, randomness.flip))
        )
        u = None if randomness is None else randomness.crop.numpy()
        for here, pixels in zip(index, self._pixels(splits, index, u)):
            pixels = self._plain(pixels) if randomness is None else self._augmented(pixels, crop[here], flip[here])
            yield normalise(pixels, self.mean, self.std), self.labels[here], here


class _Sized:
    """An iterator that knows how many batches it will give, for the progress bar."""

    def __init__(self, length, iterator):
        self.length, self.iterator = length, iterator

    def __len__(self):
        return self.length

    def __iter__(self):
        return self.iterator
