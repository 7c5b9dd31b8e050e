"""The device of a run, and the precision it computes in."""

import os

import numpy as np
import torch

from utils.config import UserError
from utils.distributed import world_size


def pick_device(cfg):
    """torch.device from `device` and `gpuid`; a gpuid in a YAML falls back to the CPU where there is no CUDA."""
    wanted = cfg.device
    if world_size() > 1 and wanted in ("auto", "cuda"):
        wanted = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    if wanted == "auto":
        if cfg.gpuid >= 0 and not torch.cuda.is_available():
            print(f"gpuid {cfg.gpuid}: no CUDA here, running on the CPU")
        mps = torch.backends.mps.is_available()
        wanted = f"cuda:{max(cfg.gpuid, 0)}" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(wanted)
        device = torch.empty(1, device=device).device  # cuda is cuda:0 from here on
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("not one of auto, cpu, cuda, cuda:1, mps")
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device: {wanted} cannot be used here ({str(error).splitlines()[0]}); auto takes what there is."
        ) from None
    return device


def torch_generator(seed, purpose):
    """A CPU generator of its own for one purpose (initial values, …)."""
    return torch.Generator().manual_seed(int(np.random.default_rng([seed, 7, purpose]).integers(2**62)))


def precision(device, prec):
    """What `prec: auto` means on a device: bf16 where its hardware multiplies it, else fp32; the others mean themselves."""
    if prec != "auto":
        return prec
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        has_bf16 = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bf16" if has_bf16 else "fp32"


def autocast(device, prec):
    """Context of a forward pass: bf16 or fp16 over fp32 weights, or fp32."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision(device, prec))
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


class Amp:
    """Mixed precision over fp32 weights: `with amp():` around a forward pass, `amp.step(loss, optimizer)` behind it.

    fp16 gradients are scaled so that they do not underflow; `scaler` is None for every other precision.
    """

    def __init__(self, device, prec="fp32"):
        self.device, self.prec = torch.device(device), prec
        self.scaler = torch.amp.GradScaler(self.device.type) if prec == "fp16" else None

    def __call__(self):
        return autocast(self.device, self.prec)

    def step(self, loss, optimizer):
        """Backward pass of a loss, of which each process has its share, and a step of the optimizer."""
        loss = loss * world_size()  # gradients are averaged over the processes, whose losses add up
        optimizer.zero_grad()
        if self.scaler is None:
            loss.backward()
            optimizer.step()
        else:
            self.scaler.scale(loss).backward()
            self.scaler.step(optimizer)
            self.scaler.update()
