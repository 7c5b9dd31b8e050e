"""Save and load a trained classifier as two files that other programs can read: model.safetensors and model.json."""

import json
import zlib
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.nn.utils.parametrize import remove_parametrizations

from dataloader.dataset import Dataset
from dataloader.transforms import Pixels
from model.blocks import speed_up
from model.classifier import Classifier, TextClassifier
from model.clip import takes_prompts
from model.encoder import timm_name, untrained
from model.ensemble import Networks
from model.tuners import SIZES, TUNERS, tune
from utils.errors import UserError, brief, nearest
from utils.files import from_json, write_text, write_whole


class CosineHead(nn.Module):
    """features (B, D) -> s cos(feature, text feature) (B, K), as model.clip.cosine_logits."""

    weight: Tensor
    scale: Tensor

    def __init__(self, text_features: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", text_features)
        self.register_buffer("scale", scale)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.scale * F.normalize(features.float(), dim=-1) @ self.weight.T


@torch.no_grad()
def save_classifier(folder: str | Path, model: nn.Module, cfg: SimpleNamespace, data: Dataset, pixels: Pixels) -> None:
    """Write model.safetensors, all weights in fp32, and model.json, all that building and feeding the network takes.

    model is a classifier of model.classifier.build_classifier, or Networks of them, whose second heads are left out; pixels
    is what they take. LoRA and SSF are merged into the weights of `model` itself; of a text classifier the text features are
    saved, not the text tower.
    """
    for module in list(model.modules()):
        for name in list(getattr(module, "parametrizations", ())):
            remove_parametrizations(module, name)
    view = data.view
    info = {
        "classes": data.label_names,
        "backbone": cfg.backbone,
        "pretrained": cfg.pretrained,
        "pixels": pixels.size,
        "resize": round(pixels.size * view.test_enlarge),
        "short_side": view.short_side,
        "mean": list(view.mean or pixels.mean),
        "std": list(view.std or pixels.std),
    }
    if isinstance(model, Networks):
        info["networks"] = len(model.networks)
        model = Networks(model.networks)
    first = model.networks[0] if isinstance(model, Networks) else model
    if isinstance(first, Classifier):
        info |= {"head": "linear", "open_clip": first.backbone.config}
    elif isinstance(model, TextClassifier):
        detector = model.detector
        (text_features,) = detector.text_features(detector.prompts.pos_ctx)
        info |= {"head": "cosine", "open_clip": detector.clip.visual.config}
        model = _joined(detector.clip.visual, CosineHead(text_features, detector.clip.logit_scale.exp()))
    else:
        info["timm"] = timm_name(cfg)
    if "timm" not in info:
        info["tuners"] = {key: getattr(cfg, key) for key in (*TUNERS, *SIZES)}
    content = to_bytes({name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()})
    info["crc32"] = zlib.crc32(content)  # safetensors has no checksum of its own
    with write_whole(Path(folder) / "model.safetensors") as file:
        file.write(content)
    lines = ",\n ".join(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in info.items())
    write_text(Path(folder) / "model.json", f"{{\n {lines}\n}}\n")


def load_classifier(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """(model in eval mode on the CPU, content of model.json) of a run: images (B, 3, pixels, pixels) -> logits (B, K).

    Raises UserError where the files are missing or damaged.
    """
    folder = Path(folder)
    weights = folder / "model.safetensors"
    if not folder.is_dir():
        runs = [path.parent for path in sorted(folder.parent.glob("*/model.json"))]
        raise UserError(f"there is no folder {folder}.{nearest(folder, runs)}")
    for name in ("model.json", "model.safetensors"):
        if not (folder / name).is_file():
            detector = "; phase 2 with --adaptation none saves the classifier of phase 1"
            raise UserError(
                f"{folder}: holds no {name}; expected the folder of a finished run of phase 2 or a baseline"
                f"{detector if (folder / 'checkpoint.pt').is_file() and (folder / 'clean_mask.npz').is_file() else ''}."
            )
    try:
        info, content = from_json((folder / "model.json").read_text(encoding="utf-8")), weights.read_bytes()
        if info.get("crc32", zlib.crc32(content)) != zlib.crc32(content):
            raise ValueError("another checksum")
        networks = [_build(info) for _ in range(info.get("networks", 1))]
        model = Networks(networks) if "networks" in info else networks[0]
        model.load_state_dict(from_bytes(content))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: model.json and model.safetensors do not form a model ({brief(repr(error))})."
        ) from None
    return model.eval().requires_grad_(False), info


def _joined(visual: nn.Module, head: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(backbone=visual, head=head))


def _build(info: dict[str, Any]) -> nn.Module:
    """The untrained network that model.json describes; its state dict has the names of model.safetensors."""
    K = len(info["classes"])
    if "timm" in info:
        return untrained(info["timm"], K)
    visual = open_clip.CLIP(**info["open_clip"], text_cfg={"layers": 1}).visual  # the text tower is thrown away
    if takes_prompts(visual):
        speed_up(visual.transformer, class_token=True)
    merged = {"lora": False, "ssf": False}
    tune(visual, SimpleNamespace(**info["tuners"] | merged, backbone=info["backbone"]))
    if info["head"] == "cosine":
        return _joined(visual, CosineHead(torch.empty(K, visual.output_dim), torch.empty(())))
    visual.proj = None
    return _joined(visual, nn.Linear(visual.conv1.out_channels, K))
