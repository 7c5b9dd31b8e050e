"""Training with several processes under torchrun; in a single process, all functions here are no-ops.

Each batch is split: process r gets samples r, r + world_size, …. Losses are sums over the process's share divided by
counts over the whole batch, so that every step equals that of a single process with the whole batch; in the
semi-supervised methods, which mix or compare the samples of a batch, it is like it (see methods/semi_supervised.py).
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def several_machines() -> bool:
    """Whether the launcher started processes on other machines too."""
    return os.environ.get("WORLD_SIZE", "1") != os.environ.get("LOCAL_WORLD_SIZE", "1")


def rank() -> int:
    """Number of this process, from 0. Only process 0 writes files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def processes() -> Iterator[None]:
    """Set up the process group if torchrun started several processes, and silence all but the first."""
    if "LOCAL_RANK" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        cuda, local_rank = torch.cuda.is_available(), int(os.environ["LOCAL_RANK"])
        if cuda and local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun: started process {local_rank} on this machine, which has {torch.cuda.device_count()} "
                "GPUs; --nproc_per_node sets the number of processes."
            )
        if cuda:
            torch.cuda.set_device(local_rank)
        # the first process may decode a large image set for hours while the others wait
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(hours=12))
        if rank() > 0:
            sys.stdout = open(os.devnull, "w")
    yield
    if dist.is_initialized():  # not after an error: other processes may be in the middle of a step
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Barrier: files that the first process wrote before it exist for all processes after it."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def first_alone() -> Iterator[None]:
    """Process 0 runs the block first; the others run it afterwards and find the files it has written."""
    if rank() > 0:
        wait_for_all()
    yield
    if rank() == 0:
        wait_for_all()


def parallel(model: nn.Module) -> nn.Module:
    """The model, wrapped so that gradients are averaged over the processes after each backward pass."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def total(x: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over the processes."""
    if world_size() > 1:
        x = x.detach().clone()
        dist.all_reduce(x)
    return x


def gather_parts(x: Any) -> list[Any]:
    """The values of x in all processes, by rank; with several processes, tensors are moved to the CPU."""
    if world_size() == 1:
        return [x]
    parts = [None] * world_size()
    dist.all_gather_object(parts, x.cpu() if isinstance(x, torch.Tensor) else x)
    return parts


def gather(seen: Iterable[tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    """From (column (B, …), …) of every batch and process to each column (N, …), on the CPU."""
    parts = gather_parts([torch.cat(column).cpu() for column in zip(*seen)])
    return [torch.cat(column) for column in zip(*filter(None, parts))]  # a process may have had no batch


def in_order(seen: Iterable[tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    """From (index (B,), column (B, …), …) of every batch and process to each column sorted by index, on the CPU."""
    index, *columns = gather(seen)
    back = index.argsort()
    return [column[back] for column in columns]


@contextmanager
def merged_buffers(module: nn.Module) -> Iterator[None]:
    """Merge the changes that the processes make in the block to float buffers that are saved; each row is changed by one
    process only."""
    state = module.state_dict() if world_size() > 1 else {}
    before = {name: x.clone() for name, x in state.items() if x.is_floating_point()}
    yield
    for name, x in before.items():
        state[name].copy_(x + total(state[name] - x))


def from_the_first(module: nn.Module) -> None:
    """Broadcast the buffers of process 0, since values computed in each process may differ in the last digit."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def average_statistics(model: nn.Module) -> None:
    """Average batch-norm statistics, which each process computes from its own share, over the processes."""
    for name, buffer in model.named_buffers():
        if world_size() > 1 and name.endswith(("running_mean", "running_var")):
            buffer.copy_(total(buffer) / world_size())
