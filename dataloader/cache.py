"""Decoded images kept on disk: memory-mapped, bounded, checked; a second run, or another process, decodes nothing."""
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch

from dataloader.files import images_identity
from dataloader.transforms import decode


def decoded_files(paths, size, folder, limit_gb):
    """DecodedFiles in a file below `folder`, or None where that does not fit into limit_gb GB, or on the disk.

    The file is named after the paths, sizes and times of all images. Those of other image sets give way, the least
    recently used first.
    """
    needed = len(paths) * 3 * size**2
    if needed > limit_gb * 2**30:
        return None
    file = Path(folder) / f"pixels-{images_identity(paths)[:16]}-{size}.npy"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        others = sorted(file.parent.glob("pixels-*[0-9].npy"), key=lambda p: p.stat().st_mtime)
        used = sum(p.stat().st_size for p in others)
        for other in others:
            if used + needed > limit_gb * 2**30:
                used -= other.stat().st_size
                other.unlink()
                other.with_suffix(".crc.npy").unlink(missing_ok=True)
        if shutil.disk_usage(file.parent).free < 1.05 * needed:
            return None
    return DecodedFiles(paths, size, file)


class DecodedFiles:
    """The images of `paths`, resized to squares: row(i) -> uint8 (3, size, size), decoded once and kept in a file.

    A row counts only with its checksum; missing and damaged ones are decoded when they are asked for. Threads and
    processes may share the file.
    """

    def __init__(self, paths, size, file):
        self.paths, self.size = paths, size
        self.pixels = _open(file, np.uint8, (len(paths), 3, size, size))
        self.sums = _open(file.with_suffix(".crc.npy"), np.uint32, (len(paths),))
        self.checked = np.zeros(len(paths), dtype=bool)  # once a process
        file.touch()

    def row(self, i):
        """uint8 (3, size, size) of image i."""
        if not self.checked[i]:
            if self.sums[i] == 0 or self.sums[i] != _checksum(self.pixels[i]):
                self.pixels[i] = decode(self.paths[i], self.size).numpy()
                self.sums[i] = _checksum(self.pixels[i])  # after the pixels: a kill in between leaves no match
            self.checked[i] = True
        return torch.from_numpy(self.pixels[i])


def _checksum(row):
    return zlib.crc32(np.ascontiguousarray(row)) or 1  # 0 is a row never written


def _open(file, dtype, shape):
    try:
        return np.lib.format.open_memmap(file, "r+", dtype, shape)
    except (OSError, ValueError):  # not there, or cut short
        return np.lib.format.open_memmap(file, "w+", dtype, shape)
