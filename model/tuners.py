"""Tuning of a frozen open_clip ViT: visual prompts, adapters, LoRA, SSF, biases or whole blocks, in any combination.

Prompts and adapters wrap modules of open_clip. LoRA and SSF re-parametrise weights, since open_clip's attention is fused.
`tune` applies the settings of a configuration.
"""

import math
from collections.abc import Iterable
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Generator, Tensor
from torch.nn.utils.parametrize import register_parametrization

from model.clip import takes_prompts
from utils.errors import UserError

# the settings that `tune` reads
TUNERS = ("finetune", "vpt_deep", "vpt_shallow", "lora", "adapter", "adaptformer", "ssf", "bias_tuning")
SIZES = ("partial", "vpt_len", "lora_dim", "adapter_dim")


def tune(visual: nn.Module, cfg: SimpleNamespace, generator: Generator | None = None) -> None:
    """Mark or add the trained parameters of an image tower according to `cfg`; everything else is frozen.

    finetune: all transformer blocks (embeddings, ln_pre and ln_post stay frozen, as in the official code);
    vpt_deep, vpt_shallow, adapter, adaptformer, lora, ssf: on the last `partial` blocks, or on all; bias_tuning: every
    bias of the tower, regardless of `partial`. UserError for settings that do not go together.
    """
    visual.requires_grad_(False)
    if cfg.vpt_shallow and cfg.vpt_deep:
        raise UserError(
            "vpt_shallow: vpt_deep is true as well; --vpt_deep false leaves prompts in the first block only."
        )
    if not takes_prompts(visual):
        asked = [key for key in (*TUNERS, "partial") if getattr(cfg, key)]
        if asked:
            raise UserError(
                f"{asked[0]}: the image encoder of {cfg.backbone} is no ViT with a class token, so that it can be used "
                f"only as it is; --{asked[0]} false trains the text prompts alone."
            )
        return
    blocks = visual.transformer.resblocks
    if cfg.finetune:
        blocks.requires_grad_(True)
    if cfg.bias_tuning:
        for name, parameter in visual.named_parameters():
            if name.endswith("bias"):
                parameter.requires_grad_(True)
    if cfg.partial > len(blocks):
        raise UserError(f"partial: is {cfg.partial}, but {cfg.backbone} has {len(blocks)} blocks.")
    first = len(blocks) - cfg.partial if cfg.partial else 0
    for block in blocks[first:]:
        if cfg.ssf:  # before LoRA, which the official code adds after scaling
            add_ssf(block, generator)
        if cfg.lora:
            add_lora(block, cfg.lora_dim, generator)
        if cfg.adapter:
            block.mlp = Adapter(block.mlp, block.ln_2.normalized_shape[0], cfg.adapter_dim, generator)
        if cfg.adaptformer:
            block.mlp = AdaptFormer(block.mlp, block.ln_2.normalized_shape[0], cfg.adapter_dim, generator)
    if cfg.vpt_deep or cfg.vpt_shallow:
        add_visual_prompts(
            visual, cfg.vpt_len, range(first, len(blocks)) if cfg.vpt_deep else [0], cfg.vpt_deep, generator
        )


# --- visual prompts


class PromptedBlock(nn.Module):
    """A transformer block with learned prompts appended to the image tokens (VPT, Jia et al., ECCV 2022).

    Deep prompts are removed after their block, so they act as keys and values only. Shallow prompts (`pass_on`) pass
    through all following blocks as additional tokens.
    """

    def __init__(self, block: ResidualAttentionBlock, prompts: nn.Parameter, pass_on: bool) -> None:
        super().__init__()
        self.block, self.prompts, self.pass_on = block, prompts, pass_on

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        if self.pass_on:
            return self.block(torch.cat([x, self.prompts.expand(len(x), -1, -1)], 1))
        return self.block(x, prompts=self.prompts)


def add_visual_prompts(
    visual: VisionTransformer,
    vpt_len: int,
    layers: Iterable[int],
    deep: bool = True,
    generator: Generator | None = None,
) -> None:
    """Add `vpt_len` learned prompts to each block in `layers` of an open_clip ViT, removed after the block if `deep`.

    Initialised uniformly in ±sqrt(6 / (3 patch_h patch_w + width)).
    """
    blocks, width, weight = visual.transformer.resblocks, visual.conv1.out_channels, visual.conv1.weight
    bound = math.sqrt(6 / (3 * math.prod(visual.patch_size) + width))
    for i in layers:
        prompts = _uniform((vpt_len, width), bound, generator).to(weight.device)
        blocks[i] = PromptedBlock(blocks[i], nn.Parameter(prompts), pass_on=not deep)


# --- adapters


class Adapter(nn.Module):
    """up(relu(down(LN(mlp(x))))), sequential and without an inner skip connection, as in the official code.

    `down` is Kaiming-normal with a = sqrt(5), as there; `up` is zero, so the block's MLP branch is zero at first.
    """

    def __init__(self, mlp: nn.Module, width: int, dim: int, generator: Generator | None = None) -> None:
        super().__init__()
        self.mlp, self.ln = mlp, nn.LayerNorm(width)
        self.down, self.up = _bottleneck(torch.randn((dim, width), generator=generator) * (3 * width) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.down(self.ln(self.mlp(x)))))


class AdaptFormer(nn.Module):
    """mlp(x) + s up(relu(down(x))), parallel to the MLP; x is already normalised (Chen et al., NeurIPS 2022, eq. 3).

    The scale s is learned, starting from the paper's 0.1; `down` is Kaiming-uniform with a = sqrt(5), `up` zero.
    """

    def __init__(self, mlp: nn.Module, width: int, dim: int, generator: Generator | None = None) -> None:
        super().__init__()
        self.mlp, self.scale = mlp, nn.Parameter(torch.tensor(0.1))
        self.down, self.up = _bottleneck(_uniform((dim, width), width**-0.5, generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x) + self.scale * self.up(F.relu(self.down(x)))


def _bottleneck(weight: Tensor) -> tuple[nn.Linear, nn.Linear]:
    """The linear layers down, with this weight (dim, width), and up, of zeros."""
    dim, width = weight.shape
    down, up = nn.Linear(width, dim), nn.Linear(dim, width)
    with torch.no_grad():
        down.weight.copy_(weight)
        for zero in (down.bias, up.weight, up.bias):
            zero.zero_()
    return down, up


def _uniform(shape: tuple[int, ...], bound: float, generator: Generator | None) -> Tensor:
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound


# --- re-parametrised weights


class LoRA(nn.Module):
    """in_proj_weight (3w, w) + (A B)^T / dim on the rows of q and v (Hu et al., ICLR 2022; scaling of the official code).

    One pair for q and one for v: A (w, dim) is Kaiming-uniform with a = sqrt(5), B (dim, w) is zero.
    """

    def __init__(self, width: int, dim: int, generator: Generator | None = None) -> None:
        super().__init__()
        self.q_A, self.v_A = (nn.Parameter(_uniform((width, dim), dim**-0.5, generator)) for _ in "qv")
        self.q_B, self.v_B = (nn.Parameter(torch.zeros(dim, width)) for _ in "qv")
        self.dim = dim

    def forward(self, weight: Tensor) -> Tensor:
        q, k, v = weight.chunk(3)
        return torch.cat([q + (self.q_A @ self.q_B).T / self.dim, k, v + (self.v_A @ self.v_B).T / self.dim])


def add_lora(block: ResidualAttentionBlock, dim: int, generator: Generator | None = None) -> None:
    """Add low-rank updates to the q and v projections of a block."""
    attn = block.attn
    register_parametrization(attn, "in_proj_weight", LoRA(attn.embed_dim, dim, generator).to(attn.in_proj_bias.device))


class _Scaled(nn.Module):
    """weight (out, in) -> scale weight; bias (out,) -> scale bias + shift, i.e. y -> scale y + shift of a linear layer."""

    def __init__(self, scale: nn.Parameter, shift: nn.Parameter | None = None) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, parameter: Tensor) -> Tensor:
        return self.scale[:, None] * parameter if self.shift is None else self.scale * parameter + self.shift


def add_ssf(block: ResidualAttentionBlock, generator: Generator | None = None) -> None:
    """Scale and shift the outputs of the four linear layers of a block (SSF, Lian et al., NeurIPS 2022).

    Initialised with N(1, 0.02) and N(0, 0.02).
    """
    attn, mlp = block.attn, block.mlp
    for module, prefix in ((attn, "in_proj_"), (attn.out_proj, ""), (mlp.c_fc, ""), (mlp.c_proj, "")):
        bias = getattr(module, f"{prefix}bias")
        scale, shift = (
            nn.Parameter((mean + 0.02 * torch.randn(len(bias), generator=generator)).to(bias.device)) for mean in (1, 0)
        )
        register_parametrization(module, f"{prefix}weight", _Scaled(scale))
        register_parametrization(module, f"{prefix}bias", _Scaled(scale, shift))
