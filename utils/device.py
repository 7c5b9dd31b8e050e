"""The device and the numerical precision of a run."""

import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import torch

from utils.distributed import world_size
from utils.errors import UserError


def pick_device(cfg: SimpleNamespace) -> torch.device:
    """The torch.device that `device` and `gpuid` select; a gpuid falls back to the CPU if CUDA is not available.

    From here on, float32 is float32 on a GPU, too: nothing is rounded to TF32, as cuDNN does by default.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    wanted = cfg.device
    if world_size() > 1 and wanted.startswith("cuda:"):
        raise UserError(f"device: {wanted} is one GPU for {world_size()} processes; expected cuda, a GPU for each.")
    if world_size() > 1 and wanted in ("auto", "cuda"):
        none = wanted == "auto" and not torch.cuda.is_available()
        wanted = "cpu" if none else f"cuda:{os.environ['LOCAL_RANK']}"
    if wanted == "auto":
        if cfg.gpuid >= 0 and not torch.cuda.is_available():
            print(f"gpuid {cfg.gpuid}: CUDA is not available, running on the CPU")
        mps = torch.backends.mps.is_available()
        wanted = f"cuda:{max(cfg.gpuid, 0)}" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(wanted)
        device = torch.empty(1, device=device).device  # cuda is cuda:0 from here on
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("not one of auto, cpu, cuda, cuda:1, mps")
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device: {wanted} is not available ({str(error).splitlines()[0]}); auto uses what is available."
        ) from None
    return device


@contextlib.contextmanager
def tf32_as_before() -> Iterator[None]:
    """A context after which TF32 is as allowed as it was, for a process that goes on with other work."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def upload(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on the device. CUDA copies from pinned memory, so that the host need not wait for the copy."""
    cuda = device.type == "cuda"
    return (x.pin_memory() if cuda else x).to(device, non_blocking=cuda)


def torch_generator(seed: int, purpose: int) -> torch.Generator:
    """A separate CPU generator for one purpose (initial values, …), derived from the seed."""
    return torch.Generator().manual_seed(int(np.random.default_rng([seed, 7, purpose]).integers(2**62)))


def precision(device: torch.device, prec: str) -> str:
    """Resolve `prec: auto` for a device: bf16 if the hardware supports it natively, else fp32."""
    if prec != "auto":
        return prec
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        has_bf16 = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bf16" if has_bf16 else "fp32"


def autocast(device: torch.device, prec: str, cache_enabled: bool = True) -> torch.autocast:
    """Context manager for a forward pass: autocast to bf16 or fp16 over fp32 weights, or plain fp32."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision(device, prec))
    enabled, dtype = dtype is not None, dtype or torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)


class Amp:
    """Mixed precision over fp32 weights: `with amp():` around the forward pass, then `amp.step(loss, optimizer)`.

    fp16 gradients are scaled to prevent underflow; for other precisions `scaler` is None.
    """

    def __init__(self, device: torch.device | str, prec: str = "fp32") -> None:
        self.device, self.prec = torch.device(device), prec
        self.scaler = torch.amp.GradScaler(self.device.type) if prec == "fp16" else None

    def __call__(self, cache_enabled: bool = True) -> torch.autocast:
        return autocast(self.device, self.prec, cache_enabled)

    def step(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Backward pass and optimizer step for this process's share of the loss."""
        loss = loss * world_size()  # DDP averages gradients over processes, but the losses of the shares add up
        optimizer.zero_grad()
        if self.scaler is None:
            loss.backward()
            optimizer.step()
        else:
            self.scaler.scale(loss).backward()
            self.scaler.step(optimizer)
            self.scaler.update()
