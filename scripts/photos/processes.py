"""Training in several processes of one thread each: on a CPU faster than one of two, and it does not mind other work.

Checkpoints and progress are those of the first process.
"""

import time

import torch
import torch.distributed as dist

from utils.files import write_whole


def average_gradients(parameters):
    """Average the gradients over all processes."""
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for g, mean in zip(grads, flat.split([g.numel() for g in grads])):
        g.copy_(mean.view_as(g))


def save_state(path, **state):
    """Save the state of the first process; when this returns, the file is there for all."""
    if dist.get_rank() == 0:
        with write_whole(path) as file:
            torch.save(state, file)
    dist.barrier()


class Progress:
    """Prints where a stage is: steps, loss, images a second, and the time it will take at this speed."""

    def __init__(self, stage, first, steps, batch_size):
        self.stage, self.first, self.steps, self.batch_size, self.began = stage, first, steps, batch_size, time.time()

    def show(self, step, loss, accuracy=()):
        if dist.get_rank() == 0:
            a_step = (time.time() - self.began) / max(step - self.first, 1)
            held = " ".join(f"{100 * a:.1f}" for a in accuracy)
            print(
                f"{self.stage} {step}/{self.steps}: loss {loss:.3f}, {self.batch_size / a_step:.0f} images/s, "
                f"{a_step * (self.steps - step) / 60:.0f} min left{held and ', held back % ' + held}",
                flush=True,
            )


def seed_of(step):
    """A number for this step and this process."""
    return step * dist.get_world_size() + dist.get_rank()


def autocast():
    return torch.autocast("cpu", torch.bfloat16)
