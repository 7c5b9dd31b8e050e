"""Parameter-efficient tuning of a frozen ViT image tower: each tuner wraps or marks what open_clip built."""
import math

import torch
import torch.nn as nn


class PromptedBlock(nn.Module):
    """A transformer block that sees its own learned prompts behind the image's tokens (VPT, Jia et al., ECCV 2022).

    The sequence (B, tokens + …, width) is first cut back to the class token and the patches, which drops the prompts
    of the block before.
    """

    def __init__(self, block, prompts, num_tokens):
        super().__init__()
        self.block, self.prompts, self.num_tokens = block, prompts, num_tokens

    def forward(self, x, attn_mask=None):
        x = torch.cat([x[:, :self.num_tokens], self.prompts.expand(len(x), -1, -1)], 1)
        return self.block(x, attn_mask=attn_mask)


def add_visual_prompts(visual, vpt_len, deep=True, generator=None):
    """Give every block (or, not `deep`, the first) of an open_clip ViT `vpt_len` learned prompts.

    They start uniform in ±sqrt(6 / (3 patch_h patch_w + width)). Shallow prompts pass through all blocks.
    """
    blocks, width = visual.transformer.resblocks, visual.conv1.out_channels
    bound = math.sqrt(6 / (3 * math.prod(visual.patch_size) + width))
    device = visual.conv1.weight.device
    for i in range(len(blocks) if deep else 1):
        prompts = (torch.rand(vpt_len, width, generator=generator) * 2 - 1) * bound
        blocks[i] = PromptedBlock(blocks[i], nn.Parameter(prompts.to(device)), len(visual.positional_embedding))


def tune_blocks(visual):
    """Full fine-tuning as DeFT does it: all transformer blocks; embeddings, ln_pre and ln_post stay frozen."""
    visual.requires_grad_(False)
    visual.transformer.requires_grad_(True)
