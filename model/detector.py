"""The noisy-label detector: a frozen CLIP with a positive and a negative prompt per class and visual prompts."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Self

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Generator, Tensor

from model.blocks import in_pieces
from model.clip import Clip, Tokenizer, cosine_logits
from model.prompts import DualPrompts, encode_prompts

PROMPTS_AT_ONCE = 256  # with checkpoint_text; about as many tokens as 30 images, and enough to keep a large GPU busy


class Detector(nn.Module):
    """images (B, 3, H, W) -> logits_pos, logits_neg (B, K); DeFT, section 3.

    Trainable: pos_ctx, neg_ctx, and the parameters that model.tuners.tune added to the image encoder (in the paper: deep
    visual prompts). The negative logits use detached image features, so the negative loss trains neg_ctx only. At most
    micro_batch images (0: all) pass through the image encoder at once and, with checkpoint_text, PROMPTS_AT_ONCE prompts
    through the text encoder.
    """

    def __init__(self, clip: Clip, prompts: DualPrompts, micro_batch: int = 0, checkpoint_text: bool = False) -> None:
        """clip: a frozen CLIP; prompts: its DualPrompts."""
        super().__init__()
        self.clip, self.prompts = clip, prompts
        self.micro_batch, self.checkpoint_text = micro_batch, checkpoint_text

    def train(self, mode: bool = True) -> Self:
        """CLIP stays in eval mode: batch statistics of a frozen ResNet, drop path and patch dropout must not act."""
        super().train(mode)
        self.clip.eval()
        return self

    def image_features(self, images: Tensor) -> Tensor:
        """Unit-length image features (B, D)."""
        return F.normalize(in_pieces(self.clip.encode_image, self.micro_batch, images).float(), dim=-1)

    def text_features(self, *contexts: Tensor) -> tuple[Tensor, ...]:
        """Unit-length features (K, D) of the prompts around each context, encoded together."""
        prompts, eos = torch.cat([self.prompts(ctx) for ctx in contexts]), self.prompts.eos.repeat(len(contexts))
        at_once = PROMPTS_AT_ONCE if self.checkpoint_text else 0
        features = in_pieces(partial(encode_prompts, self.clip), at_once, prompts, eos)
        return F.normalize(features.float(), dim=-1).chunk(len(contexts))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """logits_pos = s f T+, logits_neg = s stop_grad(f) T- with s the checkpoint's logit scale; (B, K) each."""
        return self.pair_classifier()(images)

    def pair_classifier(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The forward pass as a function images -> (logits_pos, logits_neg) with text features computed once."""
        text_pos, text_neg = self.text_features(self.prompts.pos_ctx, self.prompts.neg_ctx)

        def predict(images: Tensor) -> tuple[Tensor, Tensor]:
            features = self.image_features(images)
            return cosine_logits(self.clip, features, text_pos), cosine_logits(self.clip, features.detach(), text_neg)

        return predict

    def classifier(self) -> Callable[[Tensor], Tensor]:
        """The positive prompts as a classifier, images -> logits_pos, with text features computed once."""
        (text_pos,) = self.text_features(self.prompts.pos_ctx)
        return lambda images: cosine_logits(self.clip, self.image_features(images), text_pos)


def with_prompts(
    clip: Clip, tokenizer: Tokenizer, cfg: SimpleNamespace, classnames: list[str], generator: Generator | None = None
) -> Detector:
    """The Detector of a CLIP, as tuned as it is, with the untrained prompts that `cfg` describes."""
    prompts = DualPrompts(clip, tokenizer, classnames, cfg.n_ctx, cfg.class_token_position, cfg.csc, generator)
    if cfg.ctx_init:
        prompts.start_from(clip, tokenizer, cfg.ctx_init)
    return Detector(clip, prompts, cfg.micro_batch, cfg.checkpoint_text)
