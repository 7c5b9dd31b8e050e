"""Several processes under torchrun, on PyTorch's own engine; in a single process all of that does nothing.

Each batch is shared out: process r takes its samples r, r + world_size, …; losses are sums over the own share divided by
counts over the whole batch, so that every step is that of one process with the whole batch.
"""

import os
import sys
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from utils.config import UserError
from utils.memory import keep_freed_memory


def run_main(main):
    """Run a script's main(); a UserError ends it with one line on stderr and exit code 2."""
    if not torch.cuda.is_available():  # there, host memory is filled once, not in every step
        keep_freed_memory()
    try:
        with processes():
            main()
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the last finished epoch", file=sys.stderr)
        sys.exit(130)


def world_size():
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def several_machines():
    """Whether there are processes on other machines, as far as the launcher tells."""
    return os.environ.get("WORLD_SIZE", "1") != os.environ.get("LOCAL_WORLD_SIZE", "1")


def rank():
    """Number of this process, from 0; process 0 alone writes files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def processes():
    """Join the processes that torchrun started, if it did; all but the first are silent from then on."""
    if "LOCAL_RANK" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        cuda, local_rank = torch.cuda.is_available(), int(os.environ["LOCAL_RANK"])
        if cuda and local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun: started process {local_rank} of this machine, which has {torch.cuda.device_count()} "
                "GPUs; --nproc_per_node says how many processes."
            )
        if cuda:
            torch.cuda.set_device(local_rank)
        # decoding a large image set once, while the others wait, may take hours
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(hours=12))
        if rank() > 0:
            sys.stdout = open(os.devnull, "w")
    yield
    if dist.is_initialized():  # not after an error: the others may be in the middle of a step
        dist.destroy_process_group()


def wait_for_all():
    """Return when every process has come here: what the first wrote before is there for all."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def first_alone():
    """Process 0 runs the block before the others do, which then find what it has left on the disk."""
    if rank() > 0:
        wait_for_all()
    yield
    if rank() == 0:
        wait_for_all()


def parallel(model):
    """The model with its gradients averaged over the processes after each backward pass."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def total(x):
    """Sum of a tensor over the processes."""
    if world_size() > 1:
        x = x.detach().clone()
        dist.all_reduce(x)
    return x


def gather_parts(x):
    """What each process holds for x, in the order of the processes; tensors on the CPU if there are several."""
    if world_size() == 1:
        return [x]
    parts = [None] * world_size()
    dist.all_gather_object(parts, x.cpu() if isinstance(x, torch.Tensor) else x)
    return parts


def gather(*columns):
    """Tensors of the processes, (n,) or (n, …) on the CPU, each column of all of them one behind the other."""
    return tuple(torch.cat(column) for column in zip(*gather_parts(columns)))


def in_order(seen):
    """Rows (index (B,), column (B, …), …) of every batch and process -> each column by index, on the CPU."""
    index, *columns = gather(*(torch.cat(column).cpu() for column in zip(*seen)))
    back = index.argsort()
    return [column[back] for column in columns]


@contextmanager
def merged_buffers(module):
    """Rows of float buffers that the processes change in the block, each in one of them, are the same in all behind it."""
    before = {k: b.clone() for k, b in module.named_buffers() if b.is_floating_point()} if world_size() > 1 else {}
    yield
    for name, buffer in module.named_buffers():
        if name in before:
            buffer.copy_(before[name] + total(buffer - before[name]))


def from_the_first(module):
    """Give the buffers of process 0 to all, where each has worked them out and could differ in the last digit."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def average_statistics(model):
    """Batch-norm statistics, which follow each process's own share, become their mean over the processes."""
    for name, buffer in model.named_buffers():
        if world_size() > 1 and name.endswith(("running_mean", "running_var")):
            buffer.copy_(total(buffer) / world_size())
