"""The classifiers of phase 2 and the baselines: an image encoder with a linear head, or with text prompts."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn as nn
from open_clip.transformer import VisionTransformer
from torch import Generator, Tensor
from torch.optim import Optimizer

from dataloader.dataset import Dataset
from dataloader.loaders import Loader
from dataloader.transforms import Pixels
from model.blocks import in_pieces
from model.clip import input_pixels, load_clip, takes_prompts
from model.detector import Detector, with_prompts
from model.encoder import load_timm
from model.tuners import TUNERS, tune
from utils.config import is_timm
from utils.device import Amp
from utils.distributed import in_order
from utils.errors import UserError


class Head(nn.Linear):
    """nn.Linear in float32, under autocast, too: logits rounded to bf16 tie, and argmax takes the first class of a tie."""

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


class Classifier(nn.Module):
    """images (B, 3, H, W) -> logits (B, K): a linear head on the pooled feature before CLIP's projection.

    The head is initialised as nn.Linear, uniformly in ±1/sqrt(width). At most micro_batch images (0: all) pass through the
    encoder at once.
    """

    def __init__(
        self, visual: VisionTransformer, num_classes: int, generator: Generator | None = None, micro_batch: int = 0
    ) -> None:
        super().__init__()
        self.micro_batch = micro_batch
        visual.proj = None  # open_clip then returns the pooled feature after ln_post
        self.backbone = visual
        self.head = Head(visual.conv1.out_channels, num_classes)
        bound = self.head.in_features**-0.5
        for parameter in self.head.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(head_input(self, images))


class TextClassifier(nn.Module):
    """images (B, 3, H, W) -> logits_pos (B, K): learned positive prompts instead of a linear head (`is_coop`)."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        detector.prompts.neg_ctx.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.detector.classifier()(images)


@torch.no_grad()
def frozen(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model in eval mode as a function images -> logits; text features, if any, are computed once."""
    model.eval()
    return model.detector.classifier() if isinstance(model, TextClassifier) else model


def build_classifier(
    cfg: SimpleNamespace, data: Dataset, generator: Generator | None = None
) -> tuple[nn.Module, Pixels]:
    """The classifier selected by `cfg`, with its trained parameters marked, and its input format (Pixels)."""
    if is_timm(cfg.backbone):
        return _timm_classifier(cfg, data.num_classes, generator)
    clip, tokenizer = load_clip(cfg.backbone, cfg.pretrained)
    if not cfg.is_coop and not takes_prompts(clip.visual):
        raise UserError(
            f"backbone: the image encoder of {cfg.backbone} is no ViT with a class token, which a linear head on CLIP "
            "needs; is_coop classifies by its texts, timm:NAME trains a network of timm's."
        )
    tune(clip.visual, cfg, generator)
    if cfg.is_coop:
        model: nn.Module = TextClassifier(with_prompts(clip, tokenizer, cfg, data.classnames, generator))
    else:
        model = Classifier(clip.visual, data.num_classes, generator, cfg.micro_batch)
    return model, input_pixels(clip, cfg)


def _timm_classifier(cfg: SimpleNamespace, num_classes: int, generator: Generator | None) -> tuple[nn.Module, Pixels]:
    """A timm network with a new head, fully trained; see load_timm."""
    ignored = [key for key in (*TUNERS, "is_coop", "micro_batch") if getattr(cfg, key) and key != "finetune"]
    if ignored:
        raise UserError(f"{ignored[0]}: works with CLIP backbones only, not with {cfg.backbone}.")
    model, pixels = load_timm(cfg, num_classes, generator.initial_seed() if generator else cfg.seed)
    if type(head := linear_head(model)) is nn.Linear:
        head.__class__ = Head  # in place: its name and its initial weights stay
    return model, pixels


def linear_head(model: Any) -> nn.Linear:
    """The linear layer that produces the logits: `.head` of a CLIP classifier, or timm's classifier."""
    return model.head if isinstance(model, Classifier) else model.get_classifier()


def head_input(model: Any, images: Tensor) -> Tensor:
    """The input (B, width) of the linear head for images (B, 3, H, W)."""
    if isinstance(model, Classifier):
        return in_pieces(model.backbone, model.micro_batch, images)
    return model.forward_head(model.forward_features(images), pre_logits=True)


@torch.no_grad()
def head_inputs(model: nn.Module, loader: Loader, amp: Amp) -> Tensor:
    """The input (N, width) float32 of the linear head for the un-augmented images of a loader, in order."""
    model.eval()
    with amp():
        seen = [(index, head_input(model, images).float()) for images, _, index in loader.eval()]
    return in_order(seen)[0].to(loader.device)


def build_optimizer(model: nn.Module, cfg: SimpleNamespace) -> Optimizer:
    """The optimizer of the trained parameters: SGD or AdamW."""
    trained = [p for p in model.parameters() if p.requires_grad]
    rest = {"lr": cfg.lr, "weight_decay": cfg.weight_decay, "fused": trained[0].is_cuda}
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(trained, **rest)
    optimizer = torch.optim.SGD(trained, momentum=cfg.momentum, **rest)
    begin(optimizer)
    return optimizer


def begin(optimizer: Optimizer) -> None:
    """Forget the optimizer's state. Momentum of SGD begins at 0, so that the first step is the gradient, as without.

    PyTorch would begin it in the first step, and leaves it uninitialised where a fused step is skipped, since a scaled fp16
    gradient overflows.
    """
    optimizer.state.clear()
    for group in optimizer.param_groups:
        if group.get("momentum"):
            optimizer.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in group["params"]})
