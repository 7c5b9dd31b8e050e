"""What the scripts that pre-train the embedded CLIPs share: the loss, and weights with a compact token table."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save

from utils.files import write_whole

TOKEN_SEED = 0  # of the rows of the token table that no caption uses


def contrastive_loss(scale, image_features, text_features, match, ignore=None):
    """CLIP's loss both ways, with equal shares for all matches.

    image_features (B, D) and text_features (C, D) of unit length; match (B, C) bool; ignore (B, C) bool marks pairs that
    are neither match nor mismatch, as a dog of unknown breed and "a poodle". An image without a match does not count.
    """
    logits, target = scale * image_features @ text_features.T, match.float()
    if ignore is not None:
        logits = logits.masked_fill(ignore & ~match, -1e4)
    loss = -(F.log_softmax(logits, 1) * target / target.sum(1, keepdim=True).clamp(min=1)).sum(1).mean() / 2
    return loss - (F.log_softmax(logits, 0) * target / target.sum(0).clamp(min=1)).sum(0).mean() / 2


def save_compact(clip, folder, used_ids):
    """Half precision; of the token table only the rows the captions used (model.clip fills in the others)."""
    state = {k: v.half().contiguous() for k, v in clip.state_dict().items() if k != "token_embedding.weight"}
    state["token_embedding.used_ids"] = used_ids.int()
    state["token_embedding.used_rows"] = clip.token_embedding.weight.detach()[used_ids].half()
    state["token_embedding.seed"] = torch.tensor(TOKEN_SEED)
    with write_whole(Path(folder) / "open_clip_model.safetensors") as file:
        file.write(save(state))
