"""The noisy-label detector: a frozen CLIP with a positive and a negative prompt per class and visual prompts."""
import torch
import torch.nn as nn
import torch.nn.functional as F

from model.prompts import DualPrompts, encode_prompts
from model.tuners import add_visual_prompts


class Detector(nn.Module):
    """images (B, 3, H, W) -> logits_pos, logits_neg (B, K); DeFT, section 3.

    Trainable: pos_ctx, neg_ctx and the visual prompts. The negative logits see the image features detached, so the
    negative loss trains neg_ctx alone.
    """

    def __init__(self, clip, tokenizer, classnames, n_ctx=16, class_token_position="end", vpt_len=20, vpt_deep=True,
                 generator=None):
        super().__init__()
        self.clip = clip.requires_grad_(False)
        self.prompts = DualPrompts(clip, tokenizer, classnames, n_ctx, class_token_position, generator)
        if vpt_len:
            add_visual_prompts(clip.visual, vpt_len, vpt_deep, generator)

    def image_features(self, images):
        """Unit-length image features (B, D)."""
        return F.normalize(self.clip.encode_image(images), dim=-1)

    def text_features(self):
        """Unit-length features of the positive and of the negative prompts, (K, D) each, from one batch."""
        features = F.normalize(encode_prompts(self.clip, self.prompts(), self.prompts.eos), dim=-1)
        return features.chunk(2)

    def forward(self, images):
        """logits_pos = s f T+, logits_neg = s stop_grad(f) T- with s the checkpoint's logit scale; (B, K) each."""
        image_features, (text_pos, text_neg) = self.image_features(images), self.text_features()
        scale = self.clip.logit_scale.exp()
        return scale * image_features @ text_pos.T, scale * image_features.detach() @ text_neg.T

    def classifier(self):
        """The positive prompts as a classifier, images -> logits_pos, its text features computed once."""
        text_pos, scale = self.text_features()[0], self.clip.logit_scale.exp()
        return lambda images: scale * self.image_features(images) @ text_pos.T


def clean_probability(logits_pos, logits_neg):
    """p_yes (B, K): softmax over the pair (stop_grad(logits_pos), logits_neg), first entry (DeFT, section 3)."""
    return torch.sigmoid((logits_pos.detach() - logits_neg).float())
