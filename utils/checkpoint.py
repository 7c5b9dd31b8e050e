"""Checkpoints: what is needed to resume training."""

import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch.optim import Optimizer

from utils.errors import UserError, brief
from utils.files import from_json, write_whole


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """{name: tensor} of the trained parameters and of the running statistics of normalisation layers."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return {
        k: v
        for k, v in model.state_dict().items()
        if k in trained or k.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler | None = None, **rest: Any
) -> None:
    """Save trained parameters, optimizer state and `rest` (numbers, strings, tensors and plain containers of these)."""
    with write_whole(path) as file:
        torch.save(
            {
                "model": trained_state(model),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
                **rest,
            },
            file,
        )


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer | None = None, scaler: torch.amp.GradScaler | None = None
) -> dict[str, Any]:
    """Restore model, optimizer and scaler from a checkpoint; returns its remaining entries. UserError if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not compare checksums
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} has another checksum")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        missing = trained_state(model).keys() ^ saved["model"].keys()
        if missing:
            raise ValueError(f"different parameters, e.g. {sorted(missing)[0]}")
        model.load_state_dict(saved.pop("model"), strict=False)
        if optimizer:
            for group in saved["optimizer"]["param_groups"]:  # the run may have begun on another device
                group["fused"] = optimizer.defaults["fused"]
            optimizer.load_state_dict(saved["optimizer"])
            saved["history"] = from_json(saved["history"])
            saved["identity"].keys()
        if scaler:
            scaler.load_state_dict(saved["scaler"])
    except Exception as error:  # a truncated or foreign file fails in many ways
        raise UserError(
            f"{path}: not a checkpoint of this run ({brief(error)}); delete its folder to start over."
        ) from None
    return saved
