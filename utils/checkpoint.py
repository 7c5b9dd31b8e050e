"""Checkpoints: what training needs to go on after a stop."""

import torch

from utils.config import UserError
from utils.files import write_whole


def trained_state(model):
    """The parameters that are trained, by name, and the buffers of normalisation layers that follow the data."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return {
        k: v
        for k, v in model.state_dict().items()
        if k in trained or k.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }


def save_checkpoint(path, model, optimizer, scaler=None, **rest):
    """Trained parameters, optimizer and `rest` (numbers, strings, tensors and plain containers of them)."""
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


def load_checkpoint(path, model, optimizer=None, scaler=None):
    """Put a checkpoint back into model, optimizer and scaler; returns its other entries."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        missing = trained_state(model).keys() ^ saved["model"].keys()
        if missing:
            raise ValueError(f"other parameters, e.g. {sorted(missing)[0]}")
        model.load_state_dict(saved.pop("model"), strict=False)
    except Exception as error:  # a truncated or foreign file fails in many ways
        raise UserError(f"{path}: not a checkpoint of this run ({error}); delete its folder to start afresh.") from None
    if optimizer:
        optimizer.load_state_dict(saved["optimizer"])
    if scaler:
        scaler.load_state_dict(saved["scaler"])
    return saved
