"""A bounded, memory-mapped cache of decoded images on disk, with checksums, shared by runs and processes."""

import contextlib
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataloader.files import images_identity
from dataloader.transforms import decode

_in_use: set = set()  # files of this process, which must not be evicted


def decoded_files(paths: list[str], size: int, folder: Path, limit_gb: float) -> "DecodedFiles | None":
    """DecodedFiles in a file in `folder`, or None if it exceeds limit_gb GB or the disk is full.

    The file is named after the paths, sizes and modification times of all images. Files that this process does not use
    are evicted, the least recently used first.
    """
    needed = len(paths) * 3 * size**2
    if needed > limit_gb * 2**30:
        return None
    file = Path(folder) / f"pixels-{images_identity(paths)[:16]}-{size}.npy"
    _in_use.add(file)
    with contextlib.suppress(FileNotFoundError):  # another run may evict files at the same time
        others = sorted(set(file.parent.glob("pixels-*[0-9].npy")) - _in_use, key=lambda p: p.stat().st_mtime)
        used = sum(p.stat().st_size for p in _in_use if p != file and p.is_file()) + sum(
            p.stat().st_size for p in others
        )
        while others and used + needed > limit_gb * 2**30:
            used -= others[0].stat().st_size
            others[0].with_suffix(".crc.npy").unlink(missing_ok=True)
            others.pop(0).unlink()
        if used + needed > limit_gb * 2**30:
            return None
    try:
        return DecodedFiles(paths, size, file)
    except OSError as error:
        print(f"decoded images are not cached in {file.parent}: {error.strerror}")
        return None


class DecodedFiles:
    """The images of `paths` resized to squares: row(i) -> uint8 (3, size, size), decoded once and kept in a file.

    A row is valid if its checksum matches; missing and damaged rows are decoded on access. Threads and processes may
    share the file.
    """

    def __init__(self, paths: list[str], size: int, file: Path) -> None:
        self.paths, self.size = paths, size
        self.pixels = _open(file, np.uint8, (len(paths), 3, size, size))
        self.sums = _open(file.with_suffix(".crc.npy"), np.uint32, (len(paths),))
        self.checked = np.zeros(len(paths), dtype=bool)  # checksums are verified once per process
        file.touch()

    def row(self, i: int) -> torch.Tensor:
        """uint8 (3, size, size) of image i."""
        if not self.checked[i]:
            if self.sums[i] == 0 or self.sums[i] != _checksum(self.pixels[i]):
                self.pixels[i] = decode(self.paths[i], self.size).numpy()
                self.sums[i] = _checksum(self.pixels[i])  # after the pixels: if killed in between, it does not match
            self.checked[i] = True
        return torch.from_numpy(self.pixels[i])


def _checksum(row: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(row).data) or 1  # 0 means never written


def _open(file: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    """Memory-map the array in a file; if it is missing or truncated, create it with zeros and allocate the disk space."""
    try:
        return np.lib.format.open_memmap(file, "r+", dtype, shape)
    except (OSError, ValueError):
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.{os.getpid()}")  # another run may open the file at any time
        try:
            np.lib.format.open_memmap(new, "w+", dtype, shape)
            if hasattr(os, "posix_fallocate"):  # otherwise a full disk would kill the process on a page write
                with new.open("r+b") as whole:
                    os.posix_fallocate(whole.fileno(), 0, new.stat().st_size)
            new.replace(file)
        finally:
            new.unlink(missing_ok=True)
        return np.lib.format.open_memmap(file, "r+", dtype, shape)
