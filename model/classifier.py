"""The classifiers of phase 2 and the baselines: an image encoder with a linear head, or with text prompts."""

from pathlib import Path

import timm
import torch
import torch.nn as nn

from dataloader.transforms import Pixels
from model.blocks import in_pieces
from model.clip import input_pixels, load_clip
from model.detector import Detector
from model.preact_resnet import PreActResNet18
from model.prompts import DualPrompts
from model.tuners import tune
from utils.config import BACKBONES, UserError, nearest
from utils.distributed import in_order

OWN_NETWORKS = {"preact_resnet18": PreActResNet18}


class Classifier(nn.Module):
    """images (B, 3, H, W) -> logits (B, K): a linear head on the pooled feature before CLIP's projection.

    The head is initialised as nn.Linear, uniformly in ±1/sqrt(width). At most micro_batch images (0: all) pass through the
    encoder at once.
    """

    def __init__(self, visual, num_classes, generator=None, micro_batch=0):
        super().__init__()
        self.micro_batch = micro_batch
        visual.proj = None  # open_clip then returns the pooled feature after ln_post
        self.backbone = visual
        self.head = nn.Linear(visual.conv1.out_channels, num_classes)
        bound = self.head.in_features**-0.5
        for parameter in self.head.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, images):
        return self.head(head_input(self, images))


class TextClassifier(nn.Module):
    """images (B, 3, H, W) -> logits_pos (B, K): learned positive prompts instead of a linear head (`is_coop`)."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector
        detector.prompts.neg_ctx.requires_grad_(False)

    def forward(self, images):
        return self.detector.classifier()(images)


@torch.no_grad()
def frozen(model):
    """The model in eval mode as a function images -> logits; text features, if any, are computed once."""
    model.eval()
    return model.detector.classifier() if isinstance(model, TextClassifier) else model


def build_classifier(cfg, data, generator=None):
    """The classifier selected by `cfg`, with its trained parameters marked, and its input format (Pixels)."""
    if cfg.backbone in BACKBONES or cfg.backbone.startswith("timm:"):
        return _timm_classifier(cfg, data.num_classes, generator)
    clip, tokenizer = load_clip(cfg.backbone, cfg.pretrained)
    tune(clip.visual, cfg, generator)
    if cfg.is_coop:
        prompts = DualPrompts(clip, tokenizer, data.classnames, cfg.n_ctx, cfg.class_token_position, cfg.csc, generator)
        model = TextClassifier(Detector(clip, prompts, cfg.micro_batch, cfg.checkpoint_text))
    else:
        model = Classifier(clip.visual, data.num_classes, generator, cfg.micro_batch)
    return model, input_pixels(clip, cfg)


def timm_name(cfg):
    """timm's name of the backbone."""
    return BACKBONES[cfg.backbone][0] if cfg.backbone in BACKBONES else cfg.backbone.removeprefix("timm:")


def _timm_classifier(cfg, num_classes, generator):
    """A timm network with a new head, fully trained; weights from timm, from a file (`pretrained`), or none.

    Or one of OWN_NETWORKS, which have no weights.
    """
    name = timm_name(cfg)
    if name not in OWN_NETWORKS and not timm.is_model(name):
        raise UserError(f"backbone: timm has no model '{name}'.{nearest(name, timm.list_models())}")
    ignored = [
        k
        for k in (
            "vpt_deep",
            "vpt_shallow",
            "lora",
            "adapter",
            "adaptformer",
            "ssf",
            "bias_tuning",
            "is_coop",
            "micro_batch",
        )
        if getattr(cfg, k)
    ]
    if ignored:
        raise UserError(f"{ignored[0]}: works with CLIP backbones only, not with {cfg.backbone}.")
    is_file = bool(cfg.pretrained) and cfg.pretrained != "none"
    if is_file and not Path(cfg.pretrained).is_file():
        raise UserError(
            f"pretrained: there is no weight file {cfg.pretrained}; for {cfg.backbone} it is a file, none, or "
            "empty to let timm fetch the weights."
        )
    with torch.random.fork_rng(devices=[]):  # the same initial weights whenever the run is started
        torch.manual_seed(generator.initial_seed() if generator else cfg.seed)
        try:
            model = (
                untrained(name, num_classes)
                if name in OWN_NETWORKS
                else timm.create_model(
                    name,
                    pretrained=cfg.pretrained != "none",
                    num_classes=num_classes,
                    pretrained_cfg_overlay={"file": cfg.pretrained} if is_file else None,
                )
            )
        except Exception as error:  # missing networks and unsuitable files raise many exceptions
            raise UserError(
                f"backbone: the weights of {name} could not be loaded ({error}). Without a network, download timm's "
                f"{name} elsewhere, copy the file to this machine and pass --pretrained FILE."
            ) from None
    needs = model.pretrained_cfg
    pixels = needs["input_size"][1]
    if cfg.resolution not in (0, pixels) and needs.get("fixed_input_size", True):
        raise UserError(f"resolution: is {cfg.resolution}, but {name} takes images of {pixels} pixels.")
    return model, Pixels(cfg.resolution or pixels, needs["mean"], needs["std"])


def untrained(name, num_classes):
    """The network of a name, timm's or our own, without pre-trained weights."""
    if name in OWN_NETWORKS:
        return OWN_NETWORKS[name](num_classes)
    return timm.create_model(name, pretrained=False, num_classes=num_classes)


def linear_head(model):
    """The linear layer that produces the logits: `.head` of a CLIP classifier, or timm's classifier."""
    return model.head if isinstance(model, Classifier) else model.get_classifier()


def head_input(model, images):
    """The input (B, width) of the linear head for images (B, 3, H, W)."""
    if isinstance(model, Classifier):
        return in_pieces(model.backbone, model.micro_batch, images)
    return model.forward_head(model.forward_features(images), pre_logits=True)


@torch.no_grad()
def image_features(model, loader, amp):
    """The input (N, width) float32 of the linear head for the un-augmented images of a loader, in order."""
    model.eval()
    with amp():
        seen = [(index, head_input(model, images).float()) for images, _, index in loader.eval()]
    return in_order(seen)[0].to(loader.device)


def build_optimizer(model, cfg):
    """The optimizer of the trained parameters: SGD or AdamW."""
    trained = [p for p in model.parameters() if p.requires_grad]
    rest = {"lr": cfg.lr, "weight_decay": cfg.weight_decay, "fused": trained[0].is_cuda}
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(trained, **rest)
    return torch.optim.SGD(trained, momentum=cfg.momentum, **rest)
