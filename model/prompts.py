"""Text prompts: a positive and a negative learned context (CoOp, Zhou et al., IJCV 2022), and fixed templates."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Generator, Tensor

from model.clip import Clip, Tokenizer, check_text_encoder, text_pool, text_tower
from utils.errors import UserError


def encode_prompts(clip: Clip, prompts: Tensor, eos: Tensor) -> Tensor:
    """Text features (P, D), not normalised, of token embeddings `prompts` (P, L, width) read at `eos` (P,).

    Equal to open_clip's encode_text when the embeddings are those of real tokens. Where attention is causal, L may be
    shorter than the context length: nothing behind the last end-of-text token is ever looked at.
    """
    text, length = text_tower(clip), prompts.shape[1]
    x = prompts + text.positional_embedding[:length]  # (P, L, width)
    *blocks, last = text.transformer.resblocks
    for block in blocks:
        x = block(x, text.attn_mask)
    x = text.ln_final(last(x, text.attn_mask, read=eos)[:, 0])  # (P, width)
    if text.text_projection is None:
        return x
    if isinstance(text.text_projection, nn.Linear):
        return text.text_projection(x)
    return x @ text.text_projection


def spoken(classname: str) -> str:
    """A class name as CLIP reads it: underscores are spaces."""
    return classname.replace("_", " ")


@torch.no_grad()
def text_features(clip: Clip, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Unit-length features (P, D) of P texts."""
    tokens = tokenizer(texts).to(clip.logit_scale.device)
    return F.normalize(clip.encode_text(tokens).float(), dim=-1)


@torch.no_grad()
def template_features(clip: Clip, tokenizer: Tokenizer, classnames: Iterable[str], templates: Sequence[str]) -> Tensor:
    """Unit-length text features (K, T, D) of every class name in every template. UserError for a template without {}."""
    for template in templates:
        if "{}" not in template:
            raise UserError(
                f"templates: '{template}' has no {{}}, where the class name stands. Flags are split at commas; a template with a "
                "comma must be in a YAML file."
            )
    names = [spoken(name) for name in classnames]
    return torch.stack([text_features(clip, tokenizer, [t.replace("{}", n) for n in names]) for t in templates], dim=1)


def zero_shot_features(
    clip: Clip, tokenizer: Tokenizer, classnames: Iterable[str], templates: Sequence[str] = ("a photo of a {}.",)
) -> Tensor:
    """Unit-length text features (K, D), one a class: the mean over the templates, as CLIP's ensembles (Radford et al., 2021)."""
    return mean_of_templates(template_features(clip, tokenizer, classnames, templates))


def mean_of_templates(features: Tensor) -> Tensor:
    """Unit-length mean (K, D) of text features (K, T, D)."""
    return features[:, 0] if features.shape[1] == 1 else F.normalize(features.mean(1), dim=-1)


class DualPrompts(nn.Module):
    """Positive and negative prompt of every class, `[SOS] ctx_1 … ctx_M name. [EOS]` (DeFT, section 3).

    pos_ctx and neg_ctx have shape (n_ctx, width), shared by all classes, or (K, n_ctx, width) with `csc`, and are
    initialised with N(0, 0.02). The class name is at the `end`, in the `middle` of the context or at the `front`. The
    features are read at the position of [EOS], `eos` (K,), which is the same for all three; or at the first or last
    token, where the text encoder does so. UserError for text encoders that take no contexts.
    """

    embedding: Tensor  # (K, L, width)
    order: Tensor  # (K, L)
    eos: Tensor

    def __init__(
        self,
        clip: Clip,
        tokenizer: Tokenizer,
        classnames: Iterable[str],
        n_ctx: int = 16,
        class_token_position: str = "end",
        csc: bool = False,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        check_text_encoder(clip, tokenizer)
        text = text_tower(clip)
        names = [spoken(name) for name in classnames]
        # tokenise name and full stop together: the tokenizer may merge them (`).` is a single token)
        tokens = tokenizer([" ".join(["X"] * n_ctx) + f" {name}." for name in names])  # (K, 77)
        eos = tokens.argmax(1)  # the end-of-text token has the highest id
        name_lens = torch.tensor([int(tokenizer([name])[0].argmax()) - 1 for name in names])
        if int(eos.max()) == tokens.shape[1] - 1:
            longest = names[int(eos.argmax())]
            raise UserError(
                f"n_ctx: {n_ctx} context vectors and the class name '{longest}' do not fit into the "
                f"{tokens.shape[1]} tokens that this CLIP reads."
            )
        # behind the end of the last text nothing is looked at, if attention is causal
        length = int(eos.max()) + 1 if text.attn_mask is not None else tokens.shape[1]
        pool = text_pool(clip)
        if pool != "argmax":
            length = tokens.shape[1]
            eos = torch.full_like(eos, 0 if pool == "first" else length - 1)
        order = torch.stack([_layout(n_ctx, int(n), length, class_token_position) for n in name_lens])  # (K, L)
        device = text.token_embedding.weight.device
        self.n_ctx = n_ctx
        with torch.no_grad():
            embedding = text.token_embedding(tokens[:, :length].to(device))  # (K, L, width)
        self.register_buffer("embedding", embedding, persistent=False)
        self.register_buffer("order", order.to(device), persistent=False)
        self.register_buffer("eos", eos.to(device), persistent=False)
        shape = (len(names), n_ctx, embedding.shape[2]) if csc else (n_ctx, embedding.shape[2])
        self.pos_ctx, self.neg_ctx = (
            nn.Parameter((0.02 * torch.randn(shape, generator=generator)).to(device)) for _ in range(2)
        )

    @torch.no_grad()
    def start_from(self, clip: Clip, tokenizer: Tokenizer, words: str) -> None:
        """Let the positive context start as the token embeddings of `words`; UserError unless they are n_ctx tokens."""
        tokens = tokenizer([words])[0]
        length = int(tokens.argmax()) - 1  # between the first token and the end of the text
        if length != self.n_ctx:
            raise UserError(f"ctx_init: '{words}' is {length} tokens long, but n_ctx is {self.n_ctx}.")
        embedding = text_tower(clip).token_embedding
        self.pos_ctx.copy_(embedding(tokens[1 : 1 + length].to(embedding.weight.device)).expand_as(self.pos_ctx))

    def forward(self, ctx: Tensor) -> Tensor:
        """Token embeddings (K, L, width) of all classes with one context, truncated after the last [EOS] of any class."""
        K, L, width = self.embedding.shape
        ctx = ctx.expand(K, self.n_ctx, width)
        prompts = torch.cat([self.embedding[:, :1], ctx, self.embedding[:, 1 + self.n_ctx :]], 1)  # name at the end
        return prompts.gather(1, self.order[..., None].expand(K, L, width))


def _layout(n_ctx: int, name_len: int, length: int, position: str) -> Tensor:
    """Permutation (length,) of the tokens of the `end` layout that gives the layout for `position`."""
    sos, ctx, name, rest = torch.arange(length).split([1, n_ctx, name_len, length - 1 - n_ctx - name_len])
    if position == "front":
        return torch.cat([sos, name, ctx, rest])
    if position == "middle":
        half = n_ctx // 2
        return torch.cat([sos, ctx[:half], name, ctx[half:], rest])
    return torch.arange(length)
