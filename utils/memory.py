"""Memory of this process: keep what is freed for the next step, and the peak."""

import ctypes
import resource
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3)
_libc = ctypes.CDLL(None)
glibc = _libc if hasattr(_libc, "gnu_get_libc_version") else None


def keep_freed_memory():
    """Let glibc keep freed tensors for the next ones; nothing where the C library is another.

    By default it gives every tensor of more than 32 MB back to the system and the next one begins with a page fault for
    every 4 KB: a tenth to a third of a ViT-B/16 training step on two cores.
    """
    if glibc:
        glibc.mallopt(M_MMAP_MAX, 0)
        glibc.mallopt(M_TRIM_THRESHOLD, -1)


def give_back_freed_memory():
    """Let glibc give what is freed to the system after all; for pieces of work that are computed again to save memory.

    What a piece frees lies between small objects of the graph, which live on, in holes that the next piece's tensors do
    not fit into: without this they add up to several times of what is in use.
    """
    if glibc:
        glibc.malloc_trim(0)


def peak_gb(device="cpu"):
    """Peak memory so far in GB: of the card, or of this process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
