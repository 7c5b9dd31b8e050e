"""Phase 2's network: an image tower with a linear head."""
import torch
import torch.nn as nn

from model.clip import image_statistics, load_clip, resolution
from model.tuners import tune


class Classifier(nn.Module):
    """images (B, 3, H, W) -> logits (B, K): the pooled feature before CLIP's projection, then a linear head.

    The head starts as nn.Linear does, uniform in ±1/sqrt(width).
    """

    def __init__(self, visual, num_classes, generator=None):
        super().__init__()
        visual.proj = None  # open_clip then returns the pooled feature after ln_post
        self.backbone = visual
        self.head = nn.Linear(visual.conv1.out_channels, num_classes)
        bound = self.head.in_features**-0.5
        for parameter in self.head.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, images):
        return self.head(self.backbone(images))


def build_classifier(cfg, num_classes, generator=None):
    """The classifier that `cfg` names with its trained parameters marked: (model, pixels, (mean, std))."""
    clip, _ = load_clip(cfg.backbone, cfg.pretrained)
    tune(clip.visual, cfg, generator)
    model = Classifier(clip.visual, num_classes, generator)
    return model, resolution(clip, cfg), image_statistics(clip)


def build_optimizer(model, cfg):
    """SGD over the trained parameters."""
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=cfg.lr,
                           momentum=cfg.momentum, weight_decay=cfg.weight_decay)
