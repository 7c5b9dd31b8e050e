"""Batches (images (B, 3, H, W) float32, labels (B,) int64, index (B,) int64), all on the device."""
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tqdm import tqdm

from dataloader.transforms import (
    centre_crop,
    decode,
    normalise,
    random_crop,
    random_flip,
    resize,
)

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


def make_loaders(data, cfg, resolution, statistics, device):
    """Loader of the training set, and {name: Loader} of the test sets, if any; statistics: the backbone's (mean, std)."""
    rest = (data.view, cfg.batch_size, resolution, statistics, device)
    splits = {"test": data.test, **data.more_tests} if data.test else data.more_tests
    return (Loader(data.train, *rest, True, cfg.num_workers, cfg.cache_gb),
            {name: Loader(split, *rest, False, cfg.num_workers, cfg.cache_gb) for name, split in splits.items()})


class Loader:
    """One split: `train(randomness)` gives augmented batches in random order, `eval()` plain ones in order.

    Array data and files whose decoded pixels fit into `cache_gb` are held as one uint8 tensor, on the device up to
    ON_DEVICE_GB; larger file sets, and those resized by their short side, are decoded by threads, a few batches ahead.
    """

    def __init__(self, split, view, batch_size, resolution, statistics, device, augmented, num_workers=8, cache_gb=4.0):
        self.labels = torch.from_numpy(split.labels).to(device)
        self.view, self.batch_size, self.resolution, self.device = view, batch_size, resolution, device
        self.mean = torch.tensor(view.mean or statistics[0], device=device)
        self.std = torch.tensor(view.std or statistics[1], device=device)
        self.is_array = isinstance(split.images, np.ndarray)
        self.size = round(resolution * (view.enlarge if augmented else view.test_enlarge))
        self.images = split.images
        if self.is_array:
            self.images = torch.from_numpy(np.ascontiguousarray(self.images.transpose(0, 3, 1, 2)))
        else:
            self.pool = ThreadPoolExecutor(max(1, min(num_workers, os.cpu_count() or 1)))
            if not view.short_side and len(self.images) * 3 * self.size**2 <= cache_gb * 2**30:
                self.images = self._decode_all()
        if isinstance(self.images, torch.Tensor) and self.images.nbytes <= ON_DEVICE_GB * 2**30:
            self.images = self.images.to(device)

    def __len__(self):
        return len(self.labels)

    def _decode_all(self):
        out = torch.empty(len(self.images), 3, self.size, self.size, dtype=torch.uint8)
        decoded = self.pool.map(lambda path: decode(path, self.size), self.images)
        for i, image in enumerate(tqdm(decoded, "decoding", len(out), leave=False, disable=None)):
            out[i] = image
        return out

    def _pixels(self, batches, randomness):
        """uint8 pixels of each batch of indices, on the device."""
        if isinstance(self.images, torch.Tensor):
            for index in batches:
                yield self.images[torch.from_numpy(index).to(self.images.device)].to(self.device, non_blocking=True)
            return
        crop = self.resolution if self.view.short_side else None
        empty = torch.empty(0, 3, crop or self.size, crop or self.size, dtype=torch.uint8)
        ahead, batches = deque(), iter(batches)
        while True:
            while len(ahead) < 4 and (index := next(batches, None)) is not None:
                u = [None] * len(index) if randomness is None else randomness.crop[torch.from_numpy(index)].numpy()
                ahead.append([self.pool.submit(decode, self.images[i], self.size, crop, u_i) for i, u_i in zip(index, u)])
            if not ahead:
                return
            images = [future.result() for future in ahead.popleft()]
            yield (torch.stack(images) if images else empty).to(self.device, non_blocking=True)

    def _augmented(self, images, randomness, index):
        crop = images.shape[2] if self.is_array else self.resolution
        if self.view.pad or crop != images.shape[2]:
            images = random_crop(images, crop, self.view.pad, randomness.crop[index].to(self.device))
        images = resize(images, self.resolution)
        return random_flip(images, randomness.flip[index].to(self.device)) if self.view.flip else images

    def _plain(self, images):
        if self.view.test_enlarge > 1 and not self.is_array:
            return centre_crop(images, self.resolution)
        return resize(images, self.resolution)

    def train(self, randomness, keep=None):
        """Batches of one epoch. With `keep` (N,) bool numpy, every batch holds only its kept samples; it may be empty.

        The batches, and so the number of steps, are those of the whole set.
        """
        splits = [randomness.order[i:i + self.batch_size] for i in range(0, len(self), self.batch_size)]
        if keep is not None:
            splits = [index[keep[index]] for index in splits]
        return _Sized(len(splits), self._batches(splits, randomness))

    def eval(self):
        """Un-augmented batches of the whole split, in order."""
        index = np.arange(len(self))
        splits = [index[i:i + self.batch_size] for i in range(0, len(self), self.batch_size)]
        return _Sized(len(splits), self._batches(splits, None))

    def _batches(self, splits, randomness):
        for index, pixels in zip(splits, self._pixels(splits, randomness)):
            index = torch.from_numpy(index)
            pixels = self._plain(pixels) if randomness is None else self._augmented(pixels, randomness, index)
            index = index.to(self.device, non_blocking=True)
            yield normalise(pixels, self.mean, self.std), self.labels[index], index


class _Sized:
    """An iterator that knows how many batches it will give, for the progress bar."""

    def __init__(self, length, iterator):
        self.length, self.iterator = length, iterator

    def __len__(self):
        return self.length

    def __iter__(self):
        return self.iterator
