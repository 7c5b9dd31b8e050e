"""PreAct ResNet-18 for small images, the network of the label-noise papers on CIFAR (timm has it for large images only)."""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class PreActBlock(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), 3 x 3 each (He et al., ECCV 2016); a change of shape is a 1 x 1 convolution."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False) if (inside, stride) != (outside, 1) else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        x = x if self.shortcut is None else self.shortcut(out)
        return x + self.conv2(F.relu(self.bn2(self.conv1(out))))


class PreActResNet18(nn.Module):
    """images (B, 3, H, W), small -> logits (B, K); eight blocks of widths 64 to 512, 11.2 M parameters.

    A 3 x 3 stem with batch norm and no norm behind the last block, as in the code of DivideMix and CLIPCleaner. The methods
    have timm's names.
    """

    pretrained_cfg = {
        "input_size": (3, 32, 32),
        "fixed_input_size": False,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
    }

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        sizes = [
            (64, 64, 1),
            (64, 64, 1),
            (64, 128, 2),
            (128, 128, 1),
            (128, 256, 2),
            (256, 256, 1),
            (256, 512, 2),
            (512, 512, 1),
        ]
        self.blocks = nn.Sequential(*(PreActBlock(*size) for size in sizes))
        self.fc = nn.Linear(512, num_classes)

    def get_classifier(self) -> nn.Linear:
        return self.fc

    def forward_features(self, images: Tensor) -> Tensor:
        return self.blocks(self.stem(images))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))
