"""A straightforward implementation of the same computation, as in the published code, for comparison only.

Prompts are padded to 77 tokens and encoded for every batch, in training and evaluation, separately for each context.
Attention is two batched products and a softmax over the whole sequence, including prompts. Every block computes every
token. Phase 2 runs all samples of a batch and discards the loss of unselected ones.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock

from model.clip import cosine_logits, text_tower
from model.detector import Detector
from model.tuners import PromptedBlock


class PlainBlock(ResidualAttentionBlock):
    """A block with explicit attention."""

    def forward(self, x, attn_mask=None):
        attn, (B, L, width), h = self.attn, x.shape, self.ln_1(x)
        q, k, v = F.linear(h, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=2)
        q, k, v = (
            t.reshape(B, L, attn.num_heads, -1).transpose(1, 2).reshape(B * attn.num_heads, L, -1) for t in (q, k, v)
        )
        scores = torch.bmm(q * q.shape[2] ** -0.5, k.transpose(1, 2))
        if attn_mask is not None:
            scores = scores + attn_mask[:L, :L]
        out = torch.bmm(scores.softmax(-1), v).view(B, attn.num_heads, L, -1).transpose(1, 2).reshape(B, L, width)
        x = x + attn.out_proj(out)
        return x + self.mlp(self.ln_2(x))


class PlainPromptedBlock(PromptedBlock):
    """Visual prompts as additional tokens of the sequence, removed by the next block."""

    def forward(self, x, attn_mask=None):
        return self.block(torch.cat([x[:, : self.num_tokens], self.prompts.expand(len(x), -1, -1)], 1))


class PlainDetector(Detector):
    """The detector with 77 tokens per prompt and one pass per context; its classifier encodes text for every batch."""

    def text_features(self, *contexts):
        text, prompts = text_tower(self.clip), self.prompts
        tail = text.token_embedding.weight[:1].expand(
            len(prompts.eos), text.context_length - prompts.embedding.shape[1], -1
        )
        features = []
        for ctx in contexts:
            x = torch.cat([prompts(ctx), tail], 1) + text.positional_embedding
            x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask))
            features.append(F.normalize(x[torch.arange(len(x)), prompts.eos] @ text.text_projection, dim=-1))
        return features

    def classifier(self):
        return lambda images: cosine_logits(
            self.clip, self.image_features(images), self.text_features(self.prompts.pos_ctx)[0]
        )


def plain(model):
    """Convert a Detector, or a Classifier with a CLIP image tower, in place; weights and results stay the same."""
    visual = model.clip.visual if isinstance(model, Detector) else model.backbone
    for module in list(model.modules()):
        if isinstance(module, PromptedBlock):
            module.__class__ = PlainPromptedBlock
            module.num_tokens = len(visual.positional_embedding)
        elif isinstance(module, ResidualAttentionBlock):
            module.__class__ = PlainBlock
            module.mlp.__class__ = nn.Sequential
    if isinstance(model, Detector):
        model.__class__ = PlainDetector
    return model
