"""Image encoders of any kind, for their features: open_clip's models, with texts, and timm's, without."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
import torch.nn as nn
from torch import Tensor

from dataloader.transforms import Pixels
from model.clip import Clip, Tokenizer, input_pixels, load_clip
from model.hub import one_try
from model.preact_resnet import PreActResNet18
from utils.config import BACKBONES, is_timm
from utils.errors import UserError, brief, nearest

OWN_NETWORKS = {"preact_resnet18": PreActResNet18}


@dataclass(frozen=True)
class Encoder:
    """A frozen image encoder: encode(images (B, 3, H, W)) -> features (B, D), not normalised.

    module holds its weights; `config` is what else tells it apart. clip and tokenizer are None where it has no texts.
    """

    encode: Callable[[Tensor], Tensor]
    module: nn.Module
    pixels: Pixels
    config: object
    clip: Clip | None = None
    tokenizer: Tokenizer | None = None


def load_encoder(cfg: SimpleNamespace, device: torch.device) -> Encoder:
    """The Encoder that `backbone` and `pretrained` name, in eval mode on the device: see load_clip and load_timm."""
    if is_timm(cfg.backbone):
        if timm_name(cfg) in OWN_NETWORKS:
            raise UserError(f"backbone: {cfg.backbone} has no pre-trained weights, so its features are meaningless.")
        model, pixels = load_timm(cfg, num_classes=0, seed=0)
        model.eval().requires_grad_(False).to(device)
        print(f"{cfg.backbone}: an image encoder without texts")
        return Encoder(model, model, pixels, timm_name(cfg))
    clip, tokenizer = load_clip(cfg.backbone, cfg.pretrained)
    clip.to(device)
    return Encoder(clip.encode_image, clip.visual, input_pixels(clip, cfg), clip.visual.config, clip, tokenizer)


def timm_name(cfg: SimpleNamespace) -> str:
    """timm's name of the backbone."""
    return BACKBONES[cfg.backbone][0] if cfg.backbone in BACKBONES else cfg.backbone.removeprefix("timm:")


def load_timm(cfg: SimpleNamespace, num_classes: int, seed: int) -> tuple[nn.Module, Pixels]:
    """A timm network, or one of OWN_NETWORKS, and its input format (Pixels); with num_classes 0 timm's give the feature.

    Weights from timm, from a file (`pretrained`), or none, then drawn from `seed`. Raises UserError.
    """
    name = timm_name(cfg)
    if name not in OWN_NETWORKS and not timm.is_model(name):
        raise UserError(f"backbone: timm has no model '{name}'.{nearest(name, timm.list_models())}")
    is_file = bool(cfg.pretrained) and cfg.pretrained != "none"
    if is_file and name in OWN_NETWORKS:
        raise UserError(f"pretrained: {cfg.backbone} starts untrained; expected none or empty, not {cfg.pretrained}.")
    if is_file and not Path(cfg.pretrained).is_file():
        raise UserError(
            f"pretrained: there is no weight file {cfg.pretrained}; for {cfg.backbone} it is a file, none, or "
            "empty to let timm fetch the weights."
        )
    fetched = cfg.pretrained == "" and name not in OWN_NETWORKS
    # the same initial weights whenever the run is started
    with torch.random.fork_rng(devices=[]), one_try() if fetched else nullcontext():
        torch.manual_seed(seed)
        try:
            if name in OWN_NETWORKS or cfg.pretrained == "none":
                model = untrained(name, num_classes)
            else:
                overlay = {"file": cfg.pretrained} if is_file else None
                model = timm.create_model(
                    name, pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=overlay
                )
        except Exception as error:  # missing networks and unsuitable files raise many exceptions
            if is_file:
                raise UserError(
                    f"pretrained: {cfg.pretrained} does not contain weights of {name} ({brief(error)})."
                ) from None
            raise UserError(
                f"backbone: the weights of {name} could not be loaded ({brief(error)}). Without a network, download timm's "
                f"{name} elsewhere, copy the file to this machine and pass --pretrained FILE."
            ) from None
    needs: Any = model.pretrained_cfg  # a dict
    pixels = needs["input_size"][1]
    if cfg.resolution not in (0, pixels) and needs.get("fixed_input_size", True):
        raise UserError(f"resolution: is {cfg.resolution}, but {name} takes images of {pixels} pixels.")
    return model, Pixels(cfg.resolution or pixels, needs["mean"], needs["std"])


def untrained(name: str, num_classes: int) -> nn.Module:
    """The network of a name, timm's or our own, without pre-trained weights."""
    if name in OWN_NETWORKS:
        return OWN_NETWORKS[name](num_classes)
    return timm.create_model(name, pretrained=False, num_classes=num_classes)
