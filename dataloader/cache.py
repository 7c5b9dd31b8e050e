"""Decoded images kept on disk: memory-mapped, bounded, checked; a second run, or another process, decodes nothing."""
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dataloader.files import images_identity
from dataloader.transforms import decode


def decoded_files(paths, size, folder, limit_gb, pool):
    """The images of `paths`, resized to squares: uint8 (N, 3, size, size), a tensor over a file below `folder`.

    The file is named after the paths, sizes and times of all images, and holds only rows whose checksum is right;
    missing and damaged rows are decoded, in the threads of `pool`. The caches of other image sets give way, the least
    recently used first, until all fit into limit_gb GB; None where this one does not fit, there or on the disk.
    """
    shape = (len(paths), 3, size, size)
    if np.prod(shape) > limit_gb * 2**30:
        return None
    file = Path(folder) / f"pixels-{images_identity(paths)[:16]}-{size}.npy"
    if not file.is_file() and not _make_room(file.parent, int(np.prod(shape)), limit_gb):
        return None
    pixels, sums = _open(file, np.uint8, shape), _open(file.with_suffix(".crc.npy"), np.uint32, shape[:1])

    def fill(i):
        if sums[i] == 0 or sums[i] != _checksum(pixels[i]):
            pixels[i] = decode(paths[i], size).numpy()
            sums[i] = _checksum(pixels[i])  # after the pixels: a kill in between leaves a row that does not match

    for _ in tqdm(pool.map(fill, range(len(paths))), "decoding", len(paths), leave=False, disable=None):
        pass
    pixels.flush()
    sums.flush()
    file.touch()
    return torch.from_numpy(pixels)


def _checksum(row):
    return zlib.crc32(np.ascontiguousarray(row)) or 1  # 0 is a row never written


def _make_room(folder, size, limit_gb):
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(folder.glob("pixels-*[0-9].npy"), key=lambda p: p.stat().st_mtime)
    used = sum(p.stat().st_size for p in others)
    for other in others:
        if used + size > limit_gb * 2**30:
            used -= other.stat().st_size
            other.unlink()
            other.with_suffix(".crc.npy").unlink(missing_ok=True)
    return shutil.disk_usage(folder).free > 1.05 * size


def _open(file, dtype, shape):
    try:
        return np.lib.format.open_memmap(file, "r+", dtype, shape)
    except (OSError, ValueError):  # not there, or cut short
        return np.lib.format.open_memmap(file, "w+", dtype, shape)
