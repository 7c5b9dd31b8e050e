"""The fast transformer blocks give what open_clip's own give, forward and backward."""

import copy

import open_clip
import pytest
import torch
import torch.nn.functional as F

from model.blocks import Block, attention, speed_up

B, L, WIDTH = 3, 7, 128


def transformer(act_layer):
    torch.manual_seed(0)
    return open_clip.transformer.Transformer(WIDTH, 2, 2, act_layer=act_layer)


@pytest.mark.parametrize("act_layer", [torch.nn.GELU, open_clip.transformer.QuickGELU])
@pytest.mark.parametrize("causal, num_prompts", [(False, 0), (False, 4), (True, 0)])  # text has no such prompts
@pytest.mark.parametrize("read", [None, 4, torch.tensor([2, 6, 0])], ids=["all", "one", "each"])
def test_a_block_computes_what_open_clips_does(act_layer, causal, num_prompts, read):
    theirs = transformer(act_layer)
    ours = copy.deepcopy(theirs)
    speed_up(ours)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x, prompts = torch.randn(B, L, WIDTH), torch.randn(num_prompts, WIDTH)
    mask = torch.full((L, L), float("-inf")).triu(1) if causal else None
    results = []
    for block in (theirs.resblocks[0], ours.resblocks[0]):
        x_, prompts_ = x.clone().requires_grad_(), prompts.clone().requires_grad_()
        if type(block) is Block:
            out = block(x_, mask, prompts_ if num_prompts else None, read)
        else:
            out = block(torch.cat([x_, prompts_.expand(B, -1, -1)], 1), attn_mask=mask)[:, :L]
            out = out if read is None else out[torch.arange(B), read][:, None]
        out.square().sum().backward()
        results.append([out, x_.grad, prompts_.grad if num_prompts else out, *(p.grad for p in block.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-5)


def test_attention_in_bf16_is_attention():
    torch.manual_seed(0)
    qkv = torch.randn(3, B, 2, 9, 64).bfloat16().requires_grad_()
    results = []
    for function, x in ((attention, qkv), (F.scaled_dot_product_attention, qkv.detach().float().requires_grad_())):
        out = function(*x)
        out.square().sum().backward()
        results.append((out, x.grad))
    for ours, exact in zip(*results):
        assert ours.dtype == torch.bfloat16
        assert 0 < (ours.float() - exact).norm() / exact.norm() < 0.003  # of bf16 itself


def test_the_last_image_block_gives_the_class_token():
    theirs = transformer(torch.nn.GELU)
    ours = copy.deepcopy(theirs)
    speed_up(ours, class_token=True)
    x = torch.randn(B, L, WIDTH)
    assert ours(x).shape == (B, 1, WIDTH)
    torch.testing.assert_close(ours(x)[:, 0], theirs(x)[:, 0], atol=1e-5, rtol=1e-5)
