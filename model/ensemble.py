"""Several classifiers, trained together and evaluated as an ensemble."""

from collections.abc import Callable, Iterable

import torch
import torch.nn as nn
from torch import Tensor

from model.classifier import head_input, linear_head


class Networks(nn.Module):
    """images (B, 3, H, W) -> the mean of the networks' logits (B, K).

    A list of images, one batch per network, returns a list instead: (logits (B, K), output of the network's second head) in
    float32, or the logits twice without second heads. extra_head(width, num_classes) builds a second head; None: none.
    """

    def __init__(
        self,
        networks: Iterable[nn.Module],
        extra_head: Callable[[int, int], nn.Module] | None = None,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.extra = nn.ModuleList()
        if extra_head:
            self.extra.extend(extra_head(linear_head(net).in_features, num_classes) for net in self.networks)

    def forward(self, images: Tensor | list[Tensor]) -> Tensor | list[tuple[Tensor, Tensor]]:
        if isinstance(images, list):
            return [self._both(number, x) for number, x in enumerate(images)]
        return torch.stack([net(images) for net in self.networks]).mean(0)

    def _both(self, number: int, images: Tensor) -> tuple[Tensor, Tensor]:
        if not len(images):  # use a blank image, so that gradients are zero instead of None
            self.eval()  # the blank image must not affect batch statistics
            logits, extra = self._both(number, images.new_zeros(1, *images.shape[1:]))
            self.train()
            return logits[:0], extra[:0]
        features = head_input(self.networks[number], images)
        logits = linear_head(self.networks[number])(features).float()
        return logits, self.extra[number](features).float() if len(self.extra) else logits
