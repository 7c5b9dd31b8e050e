"""The moving average of a network's weights, which `ema` tests and saves instead of the network."""

import copy

import torch
import torch.nn as nn
from torch import Tensor
from torch.optim import Optimizer


class MovingAverage:
    """After each step of the optimizer, each trained weight of `network` is decay times itself plus 1 - decay times the model's.

    network begins as a copy of the model, with the weights that this has after the first step; its buffers are the model's.
    The same as torch's AveragedModel, whose update makes the host wait for a GPU in every step.
    """

    def __init__(self, model: nn.Module, decay: float, optimizer: Optimizer) -> None:
        self.network, self.decay, self.begun = copy.deepcopy(model), decay, False
        self.weights = [
            [p.detach() for p in module.parameters() if p.requires_grad] for module in (self.network, model)
        ]
        self.buffers = [list(module.buffers()) for module in (self.network, model)]
        optimizer.register_step_post_hook(lambda *_: self.update())

    def update(self) -> None:
        """Follow the model."""
        ours, theirs = self.weights
        torch._foreach_lerp_(ours, theirs, 1 - self.decay if self.begun else 1.0)
        for ours, theirs in zip(*self.buffers):
            ours.copy_(theirs)
        self.begun = True

    def resume(self, weights: dict[str, Tensor]) -> None:
        """Go on with the trained weights from a checkpoint."""
        self.network.load_state_dict(weights, strict=False)
        self.begun = True

    def start_again(self) -> None:
        """Begin anew with the model's weights after its next step."""
        self.begun = False
