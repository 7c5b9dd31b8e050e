import json
import os
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.clip import load_clip
from tests import recipe

GOLDEN = Path(__file__).parent / "golden"


def golden(name):
    """Arrays and meta data of one file of numbers that the official code gave."""
    arrays = dict(np.load(GOLDEN / f"{name}.npz", allow_pickle=False))
    return arrays, json.loads(str(arrays.pop("meta")))


def write_clip(folder, weights, cfg):
    """A folder in open_clip's format from weights in OpenAI's names."""
    model_cfg = {"embed_dim": cfg["embed_dim"], "quick_gelu": True,
                 "vision_cfg": {"image_size": cfg["image_resolution"], "patch_size": cfg["vision_patch_size"],
                                "layers": cfg["vision_layers"], "width": cfg["vision_width"], "head_width": 64},
                 "text_cfg": {"context_length": cfg["context_length"], "vocab_size": cfg["vocab_size"],
                              "layers": cfg["transformer_layers"], "width": cfg["transformer_width"],
                              "heads": cfg["transformer_width"] // 64}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    save_file({k: torch.from_numpy(v) for k, v in weights.items()}, str(folder / "open_clip_model.safetensors"))
    return str(folder)


@pytest.fixture(scope="session")
def random_clip(tmp_path_factory):
    """random_clip(meta) -> the small random CLIP of a golden file and its tokenizer, through load_clip."""
    folders = {}

    def build(meta):
        key = meta["state_dict_digest"]
        if key not in folders:
            weights = recipe.clip_weights(meta["clip_seed"], **meta["clip_config"])
            assert recipe.digest(weights) == key
            folders[key] = write_clip(tmp_path_factory.mktemp("clip"), weights, meta["clip_config"])
        return load_clip(folders[key])
    return build
