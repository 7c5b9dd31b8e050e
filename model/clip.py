"""CLIP models: `load_clip` gives a frozen open_clip model with its tokenizer, from a name, a hub, a folder or a file."""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP, convert_to_custom_text_state_dict
from open_clip.pretrained import (
    download_pretrained,
    get_pretrained_cfg,
    list_pretrained_tags_by_model,
)
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn

from dataloader.transforms import Pixels
from model.blocks import speed_up
from model.hub import one_try
from utils.errors import UserError, nearest
from utils.files import EMBEDDED

# what open_clip builds from its configurations; where the text tower is a module of its own it is `.text`
Clip: TypeAlias = CLIP | CustomTextCLIP
Tokenizer: TypeAlias = SimpleTokenizer | HFTokenizer


def text_tower(clip: Clip) -> Clip | TextTransformer:
    """The module with token_embedding, transformer, ln_final …: the model itself, or `.text` in newer models."""
    return getattr(clip, "text", clip)


def token_table(seed: int, vocab_size: int, width: int, std: float = 0.02) -> Tensor:
    """Token embeddings (vocab_size, width) from a seed alone: uniform, of the standard deviation CLIP starts from.

    Fills the rows of a compact token table: a class name the captions never used must still read as something.
    """
    u = np.random.Generator(np.random.PCG64(seed)).random((vocab_size, width), dtype=np.float32)
    return torch.from_numpy((u - 0.5) * np.float32(std * 12**0.5))


@cache
def _vocab_size() -> int:
    """Tokens that CLIP's own tokenizer knows."""
    return SimpleTokenizer().vocab_size


@cache
def _tokenizer(name: str, text_cfg: str) -> Tokenizer:
    """The tokenizer of an open_clip model with this `text_cfg`, as JSON; shared, since building one takes 0.1 s."""
    return open_clip.get_tokenizer(name)


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], bool]:
    """State dict of a weight file, float32, and whether it is OpenAI's own (and so was trained with QuickGELU).

    Reads safetensors, state dicts and checkpoints of open_clip, and OpenAI's TorchScript archives or state dicts.
    Nothing is unpickled but tensors and plain containers.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(str(path))
        else:
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except RuntimeError:  # a TorchScript archive, OpenAI's format, which weights_only refuses
                state = torch.jit.load(str(path), map_location="cpu").state_dict()
    except Exception as error:  # every reader has its own exceptions; none of them names the file
        raise UserError(f"{path}: not a CLIP weight file ({error})") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    state = {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not any(k.endswith("token_embedding.weight") or k == "token_embedding.used_rows" for k in state):
        raise UserError(f"{path}: holds no CLIP text encoder (expected a key token_embedding.weight).")
    # only OpenAI's files carry these three numbers, or half-precision weights beside single-precision norms
    numbers = [state.pop(k, None) for k in ("input_resolution", "context_length", "vocab_size")]
    proj, norm = state.get("visual.proj"), state.get("visual.ln_post.weight")
    mixed = proj is not None and norm is not None and proj.dtype == torch.float16 and norm.dtype == torch.float32
    from_openai = numbers[0] is not None or mixed
    if "token_embedding.used_rows" in state:
        rows = state.pop("token_embedding.used_rows").float()
        table = token_table(int(state.pop("token_embedding.seed")), _vocab_size(), rows.shape[1])
        table[state.pop("token_embedding.used_ids").long()] = rows
        state["token_embedding.weight"] = table
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, from_openai


def _resolve(backbone: str, pretrained: str) -> tuple[str, str | Path, dict[str, Any]]:
    """(open_clip model name, weight file or none for untrained, what open_clip says of the weights' tag, {} without one)."""
    folder = EMBEDDED.get(backbone, Path(backbone))
    if folder.is_dir():
        if not (folder / "open_clip_config.json").is_file():
            raise UserError(f"backbone: the folder {folder} has no open_clip_config.json.")
        files = sorted(f for f in folder.iterdir() if f.suffix in (".safetensors", ".bin", ".pt", ".pth"))
        if not pretrained and not files:
            raise UserError(
                f"backbone: the folder {folder} holds no weights (.safetensors, .bin, .pt); "
                "pretrained: none builds it untrained."
            )
        return f"local-dir:{folder}", pretrained or files[0], {}

    if backbone.startswith("hf-hub:"):
        return backbone, pretrained, {}
    tag, _, file = pretrained.partition("=")
    if file and not Path(file).is_file():
        raise UserError(f"pretrained: no such file: {file}.")
    pretrained = tag
    # OpenAI's own names (ViT-B/16, ViT-L/14@336px) have a slash and mean its weights and its activation
    name, of_openai = backbone.replace("/", "-").replace("@", "-").removesuffix("px"), "/" in backbone
    quick = f"{name}-quickgelu"
    if (
        of_openai
        and open_clip.get_model_config(quick)
        and not (get_pretrained_cfg(name, pretrained) and not get_pretrained_cfg(quick, pretrained))
    ):
        name = quick
    if open_clip.get_model_config(name) is None:
        known = [*EMBEDDED, "ViT-B/32", "ViT-B/16", "ViT-L/14", *open_clip.list_models()]
        raise UserError(
            f"backbone: there is no CLIP named '{backbone}'.{nearest(backbone, known)} Names are OpenAI's "
            "(ViT-B/16), open_clip's (ViT-B-16), hf-hub:org/name or a folder."
        )
    _check_packages(backbone, name)
    tags = list_pretrained_tags_by_model(name)
    if not pretrained:
        if "openai" not in tags or not of_openai:
            raise UserError(f"pretrained: which weights of {name}? One of {', '.join(tags)}, a file, or none.")
        pretrained = "openai"
    if pretrained == "none" or Path(pretrained).is_file():
        return name, pretrained, {}
    source = get_pretrained_cfg(name, pretrained)
    if source and file:
        return name, file, source
    if not source:
        raise UserError(
            f"pretrained: '{pretrained}' is neither a file nor weights of {name} "
            f"({', '.join(tags) or 'which has none'}).{nearest(pretrained, tags)}"
        )
    return name, _fetch(name, pretrained, source), source


def _fetch(name: str, pretrained: str, source: dict[str, Any]) -> str:
    """The file with the weights `pretrained` of an open_clip model, which open_clip describes in `source`."""
    try:
        with one_try():
            return download_pretrained(source)
    except Exception as error:  # offline: every hub client fails in its own way
        where = source.get("url") or f"open_clip_model.safetensors of {source.get('hf_hub', '').rstrip('/')}"
        raise UserError(
            f"pretrained: the weights {pretrained} of {name} could not be fetched "
            f"({_first_sentence(error)}). Where there is a network, fetch {where}; copy it to this machine "
            f"and pass --pretrained {pretrained}=FILE."
        ) from None


def _needs_the_hub(name: str) -> bool:
    """Whether the text encoder or the tokenizer of an open_clip model is fetched from the Hugging Face hub."""
    text = (open_clip.get_model_config(name) or {"text_cfg": {"hf_tokenizer_name": ""}})["text_cfg"]
    return "hf_tokenizer_name" in text or "hf_model_name" in text


def _check_packages(backbone: str, name: str) -> None:
    """UserError where an open_clip model reads texts by a package that is not installed: better than after a download."""
    if _needs_the_hub(name) and find_spec("transformers") is None:
        raise UserError(f"backbone: {backbone} needs the package transformers; pip install transformers.")


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ")[0].rstrip(".")


def takes_prompts(visual: nn.Module) -> TypeGuard[VisionTransformer]:
    """Whether an image encoder is a ViT with a class token and CLIP's blocks, as visual prompts and adapters need."""
    return (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and _has_clip_blocks(visual)
    )


def check_text_encoder(clip: Clip, tokenizer: Tokenizer) -> None:
    """UserError unless learned contexts can stand in the text encoder's input, with exactly its own result.

    It must be a transformer of CLIP's blocks, causal or not, that reads one token: at the end of the text, or the first or
    last of all; and the tokenizer CLIP's.
    """
    text = text_tower(clip)
    if getattr(text, "cls_emb", None) is not None or text_pool(clip) not in ("argmax", "first", "last"):
        raise UserError(
            "backbone: its text encoder does not read one of the text's own tokens; learned contexts need that."
        )
    if not _has_clip_blocks(text):
        raise UserError(
            "backbone: its text encoder has transformer blocks of its own make; learned contexts need CLIP's."
        )
    if not isinstance(tokenizer, SimpleTokenizer):
        raise UserError("backbone: its tokenizer is not CLIP's; learned contexts need to know where a text starts.")


def text_pool(clip: Clip) -> str | None:
    """Which token a text encoder reads: argmax (the end of the text), first, last, or anything else."""
    return getattr(text_tower(clip), "pool_type", getattr(clip, "text_pool_type", None))


def _has_clip_blocks(tower: nn.Module) -> bool:
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", [None])
    return all(isinstance(block, ResidualAttentionBlock) for block in blocks)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """open_clip logs and warns about things that `load_clip` settles itself (missing weights, QuickGELU)."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def load_clip(backbone: str, pretrained: str = "") -> tuple[Clip, Tokenizer]:
    """A frozen open_clip model in eval mode, on the CPU, and its tokenizer.

    backbone: OpenAI's name (ViT-B/16: open_clip's ViT-B-16-quickgelu with the weights `openai`), an open_clip name,
    `hf-hub:org/name`, a folder with open_clip_config.json and weights, or the name of an embedded one, `tiny-clip-digits` or
    `tiny-clip-photos`.
    pretrained: an open_clip tag, a weight file, `TAG=FILE` for a file that holds the weights of a tag, `none` for an
    untrained model; empty takes what the backbone implies.
    The model has QuickGELU where its weights were trained with it: by name, by tag, or because the file is OpenAI's.
    Of a file that says nothing of itself, only the name or the tag can tell; which it is is printed.
    Raises UserError for unknown names and weights that cannot be had or do not fit. Which prompts suit the model, say
    `takes_prompts` and `check_text_encoder`.
    """
    try:
        with _quiet():
            if backbone.startswith("hf-hub:") and not pretrained:  # weights and all from the hub
                name = backbone
                with one_try():
                    clip = open_clip.create_model(name, require_pretrained=True)
                    tokenizer = open_clip.get_tokenizer(name)
            else:
                name, weights, source = _resolve(backbone, pretrained)
                with one_try() if _needs_the_hub(name) else contextlib.nullcontext():
                    clip = _build(backbone, name, weights, source)
                    tokenizer = _tokenizer(name, json.dumps(open_clip.get_model_config(name)["text_cfg"]))
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"backbone: {backbone} needs a package that is missing ({error}); pip install transformers."
        ) from None
    except (RuntimeError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:  # of a damaged config too
        raise UserError(
            f"backbone: {backbone} could not be loaded ({_first_sentence(error)}). Without a network, copy the "
            "model's folder (open_clip_config.json and weights) here and pass --backbone FOLDER."
        ) from None
    config, text = open_clip.get_model_config(name), text_tower(clip)
    quick = any(isinstance(module, QuickGELU) for module in clip.visual.modules())
    # what rebuilds this tower (model/saved.py)
    clip.visual.config = {key: config[key] for key in ("embed_dim", "vision_cfg")} | {"quick_gelu": quick}
    weights = "untrained" if pretrained == "none" else f"weights: {pretrained}" if pretrained else "its own weights"
    print(f"CLIP: {name.removeprefix('local-dir:')} ({weights}, {'QuickGELU' if quick else 'GELU'})")
    if _has_clip_blocks(text) and text_pool(clip) in ("argmax", "first", "last"):
        speed_up(text.transformer)
    if takes_prompts(clip.visual):
        speed_up(clip.visual.transformer, class_token=True)
    return clip.eval().requires_grad_(False), tokenizer


def _build(backbone: str, name: str, weights: str | Path, source: dict[str, Any]) -> Clip:
    """source: what open_clip says of the tag of the weights, such as the pixels' mean and std; {} without a tag."""
    if str(weights) == "none":
        with torch.random.fork_rng(devices=[]):  # always the same untrained model: it is in no checkpoint
            torch.manual_seed(0)
            return open_clip.create_model(name, load_weights=False)
    state, from_openai = read_weights(weights)
    clip = open_clip.create_model(
        name,
        load_weights=False,
        force_quick_gelu=bool(from_openai or source.get("quick_gelu")),
        force_preprocess_cfg={key: source[key] for key in ("mean", "std") if source.get(key)},
    )
    if not hasattr(clip, "positional_embedding") and "positional_embedding" in state:
        state = convert_to_custom_text_state_dict(state)
    here = clip.state_dict()
    wrong = [k for k in here if k not in state or state[k].numel() != here[k].numel()] + [
        k for k in state if k not in here
    ]
    if wrong:
        raise UserError(
            f"pretrained: {weights} does not fit {backbone}: {len(wrong)} tensors differ, first {wrong[0]} "
            f"(file {tuple(state[wrong[0]].shape) if wrong[0] in state else 'has none'}, "
            f"model {tuple(here[wrong[0]].shape) if wrong[0] in here else 'has none'})."
        )
    clip.load_state_dict({k: v.reshape(here[k].shape) for k, v in state.items()})
    return clip


def cosine_logits(clip: Clip, image_features: Tensor, text_features: Tensor) -> Tensor:
    """s f T^T (B, K) of unit-length features (B, D) and (K, D), in fp32: bf16 steps at 20 to 30 would blur p_yes."""
    with torch.autocast(image_features.device.type, enabled=False):
        return clip.logit_scale.exp() * image_features.float() @ text_features.float().T


def image_statistics(clip: Clip) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels in [0, 1] that the model was trained with, three numbers each."""
    cfg = open_clip.get_model_preprocess_cfg(clip)
    return tuple(cfg["mean"]), tuple(cfg["std"])


def input_pixels(clip: Clip, cfg: SimpleNamespace) -> Pixels:
    """The Pixels that a CLIP takes; UserError if `cfg.resolution` asks for another size."""
    return Pixels(resolution(clip, cfg), *image_statistics(clip))


def resolution(clip: Clip, cfg: SimpleNamespace) -> int:
    """Pixels of the square input of a CLIP; UserError if `cfg.resolution` asks for another."""
    size = clip.visual.image_size
    size = size if isinstance(size, int) else size[0]
    if cfg.resolution not in (0, size):
        raise UserError(
            f"resolution: is {cfg.resolution}, but {cfg.backbone} takes images of {size} pixels; "
            "leave it out or choose another backbone."
        )
    return size
