"""Every family of encoders, untrained and as small as it can be built: features, detectors, contexts where they fit."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models import register_model
from timm.models.eva import _create_eva

import main_detect
import main_phase1
import main_phase2
from dataloader.dataset import Split, View
from methods.baselines import METHODS
from model import features
from model.classifier import build_classifier
from model.clip import load_clip
from model.detector import Detector
from model.encoder import load_encoder
from model.prompts import DualPrompts, text_features
from tests.helpers import phase1, phase2, write_digits
from utils.config import load_config
from utils.device import Amp
from utils.errors import UserError

TEXT = {"context_length": 24, "vocab_size": 49408, "layers": 1, "width": 64, "heads": 1}
VIT = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 64}
SIGLIP_TEXT = {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_type": "none"}


def by_timm(name, pool, proj, size):
    return {
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": proj,
        "image_size": size,
    }


@register_model
def tiny_eva(pretrained=False, **kwargs):
    """EVA-02 with one block; timm has no small one."""
    small = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2, "ref_feat_shape": (2, 2)}
    rules = {"swiglu_mlp": True, "qkv_fused": False, "use_rot_pos_emb": True}  # what makes it EVA-02
    return _create_eva("eva02_tiny_patch14_224", pretrained, **small, **rules, **kwargs)


FAMILIES = {
    "resnet": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    },
    "convnext": {"embed_dim": 16, "vision_cfg": by_timm("test_convnext", "", "linear", 64)},
    "eva": {"embed_dim": 32, "custom_text": True, "vision_cfg": by_timm("tiny_eva", "token", None, 32)},
    "siglip": {
        "embed_dim": 64,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": by_timm("test_vit", "map", "none", 64),
        "text_cfg": SIGLIP_TEXT,
    },
    "not causal": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": {**TEXT, "no_causal_mask": True}},
    "coca": {
        "embed_dim": 64,
        "custom_text": True,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 1, "output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "attn_pooler_heads": 1},
    },
}


@pytest.fixture
def family(tmp_path):
    """family(name) -> a folder in open_clip's format that builds one of FAMILIES."""

    def write(name):
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        config = {"text_cfg": TEXT, **FAMILIES[name]}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        return str(folder)

    return write


@pytest.mark.parametrize("name", [*FAMILIES, "timm:test_vit"])
def test_detectors_on_every_family(name, family, tmp_path, capsys):
    """Detectors that need only features work with all, those that need texts with all that have them."""
    folder = name if name.startswith("timm:") else family(name)
    path, _, _ = write_digits(tmp_path / "data", 0.3, every=10, table=True)
    flags = [
        "--cfg",
        "config/PEFT/own.yaml",
        "--data_path",
        str(path),
        "--output_dir",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    flags += ["--backbone", folder, "--pretrained", "none", "--detector"]
    summary = main_detect.main([*flags, "knn"])
    assert summary["num_train"] == 180 and summary["auroc"] > 0.55  # neighbours tell something where nothing was learnt
    if name.startswith("timm:"):
        assert "an image encoder without texts" in capsys.readouterr().out and "acc_last" not in summary
        with pytest.raises(UserError, match="lemon needs texts, which timm:test_vit has not; auto, .* need none"):
            main_detect.main([*flags, "lemon"])
        auto = main_detect.main([*flags, "auto"])
        assert auto["auroc"] > 0.55 and "since this encoder has no texts" in capsys.readouterr().out
    else:
        main_detect.main([*flags, "lemon"])


@pytest.mark.parametrize("name", ["resnet", "convnext", "eva", "siglip", "not causal"])
def test_contexts_equal_the_text_encoder(name, family):
    """With real words as contexts, the prompts are what open_clip's encode_text makes of the same text."""
    clip, tokenizer = load_clip(family(name), "none")
    prompts = DualPrompts(clip, tokenizer, ["cat", "polar bear"], n_ctx=4)
    prompts.start_from(clip, tokenizer, "a photo of a")
    with torch.no_grad():
        learned = Detector(clip, prompts).text_features(prompts.pos_ctx)[0]
    texts = text_features(clip, tokenizer, ["a photo of a cat.", "a photo of a polar bear."])
    assert torch.allclose(learned, F.normalize(texts, dim=-1), atol=1e-5)
    assert not torch.allclose(texts[0], texts[1], atol=1e-3)


def test_phase_1_where_the_image_side_takes_no_prompts(family, tmp_path):
    flags = ["--backbone", family("resnet"), "--pretrained", "none", "--epochs", "1"]
    with pytest.raises(
        UserError, match="vpt_deep: the image encoder of .*resnet is no ViT with a class token.*--vpt_deep f"
    ):
        main_phase1.main(phase1(tmp_path, *flags))
    off = [*flags, "--vpt_deep", "false"]
    with pytest.raises(UserError, match="^lora: the image encoder"):
        main_phase1.main(phase1(tmp_path, *off, "--lora"))
    summary = main_phase1.main(phase1(tmp_path, *off))
    saved = torch.load(tmp_path / "digits/sym-0.4/seed0/deft/checkpoint.pt", weights_only=True)
    assert {k for k in saved["model"] if not k.startswith("clip.visual")} == {"prompts.pos_ctx", "prompts.neg_ctx"}
    clip, _ = load_clip(flags[1], "none")
    before = clip.visual.state_dict()  # batch statistics of the frozen encoder stay as they are
    assert all(
        torch.equal(v, before[k.removeprefix("clip.visual.")]) for k, v in saved["model"].items() if "visual" in k
    )
    assert summary["num_train"] == 359
    with pytest.raises(UserError, match="is no ViT with a class token, which a linear head on CLIP needs"):
        main_phase2.main(phase2(tmp_path, "--backbone", flags[1], "--pretrained", "none"))


def test_text_encoders_that_take_no_contexts(family, tmp_path):
    flags = ["--backbone", family("coca"), "--pretrained", "none", "--vpt_deep", "false"]
    with pytest.raises(UserError, match="does not read one of the text's own tokens; learned contexts need that"):
        main_phase1.main(phase1(tmp_path, *flags))


def test_features_are_kept_in_pieces(tmp_path, monkeypatch):
    """A stop loses the piece at work; a damaged piece is made anew alone; together they are the features of one go."""
    cfg = load_config(["--backbone", "timm:test_vit", "--pretrained", "none", "--output_dir", str(tmp_path / "whole")])
    device, images = torch.device("cpu"), np.random.default_rng(0).integers(0, 256, (25, 16, 16, 3), dtype=np.uint8)
    split, encoder = Split(images, np.zeros(25, dtype=np.int64)), load_encoder(cfg, device)
    whole = features.image_features(encoder, split, View(), cfg, device)
    assert torch.allclose(whole.norm(dim=1), torch.ones(25), atol=1e-5)
    monkeypatch.setattr(features, "PIECE", 10)
    cfg.output_dir, compute, seen = str(tmp_path / "pieces"), features._compute, []

    def stopping(encoder, loader, rows, cfg, device):
        seen.append(rows.start)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return compute(encoder, loader, rows, cfg, device)

    monkeypatch.setattr(features, "_compute", stopping)
    with pytest.raises(KeyboardInterrupt):
        features.image_features(encoder, split, View(), cfg, device)
    again = features.image_features(encoder, split, View(), cfg, device)
    assert seen == [0, 10, 20, 20] and torch.allclose(again, whole, atol=1e-5)
    files = sorted((tmp_path / "pieces/cache").glob("features-*"))
    assert len(files) == 3
    files[1].write_bytes(files[1].read_bytes()[:-50])
    features.image_features(encoder, split, View(), cfg, device)
    assert len(seen) == 5


def test_features_that_are_not_finite(tmp_path):
    cfg = load_config(["--backbone", "timm:test_vit", "--pretrained", "none", "--output_dir", str(tmp_path)])
    encoder = load_encoder(cfg, torch.device("cpu"))
    with torch.no_grad():
        next(encoder.module.parameters()).fill_(torch.nan)
    split = Split(np.zeros((3, 16, 16, 3), dtype=np.uint8), np.zeros(3, dtype=np.int64))
    with pytest.raises(
        UserError, match="timm:test_vit gives features that are not finite for 3 images, the first is image 0"
    ):
        features.image_features(encoder, split, View(), cfg, torch.device("cpu"))
    assert not list(tmp_path.rglob("features-*"))


@pytest.mark.parametrize("backbone", ["timm:test_vit", "preact_resnet18"])
def test_logits_are_float32_under_autocast(backbone):
    """Rounded to bf16 they would tie. A CLIP's linear head is the same layer."""
    cfg = load_config(["--backbone", backbone, "--pretrained", "none" * backbone.startswith("timm")])
    model, pixels = build_classifier(cfg, SimpleNamespace(num_classes=3))
    second = METHODS["ProMix"].extra_head(4, 3)
    with Amp("cpu", "bf16")():
        assert (
            model(torch.zeros(2, 3, pixels.size, pixels.size)).dtype == second(torch.zeros(2, 4)).dtype == torch.float32
        )
