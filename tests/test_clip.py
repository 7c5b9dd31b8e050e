"""Loading CLIP: names, files, activations, and what is said when something cannot be had."""

import json
import sys

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from dataloader.digits import enlarge_digits, load_digits_8x8
from dataloader.transforms import normalise
from model import clip as clip_module
from model.clip import image_statistics, load_clip, resolution
from model.prompts import zero_shot_features
from utils.config import load_config
from utils.errors import UserError
from utils.files import EMBEDDED

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 64, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "layers": 1, "width": 64, "heads": 1},
}


@pytest.fixture(autouse=True)
def built_from_its_file(monkeypatch):
    """Not copied, as in other tests."""
    monkeypatch.setattr(clip_module, "_build", clip_module._build.__wrapped__)


@pytest.fixture
def tiny_named(tmp_path):
    """A small architecture under the names Tiny and Tiny-quickgelu, and a state dict that fits both."""
    before = set(open_clip.list_models())
    for name, quick in (("Tiny-16", False), ("Tiny-16-quickgelu", True)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**TINY, "quick_gelu": quick}))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    torch.manual_seed(1)
    yield open_clip.create_model("Tiny-16", load_weights=False).state_dict()
    for name in set(open_clip.list_models()) - before:
        open_clip.factory._MODEL_CONFIGS.pop(name)
    open_clip.factory._MODEL_CONFIG_PATHS[:] = open_clip.factory._MODEL_CONFIG_PATHS[:1]


def is_quick(clip):
    return type(clip.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_embedded_clip_reads_digits_zero_shot():
    clip, tokenizer = load_clip("tiny-clip-digits")
    levels, labels = load_digits_8x8()
    images = normalise(torch.from_numpy(enlarge_digits(levels)).permute(0, 3, 1, 2), *image_statistics(clip))
    text = zero_shot_features(clip, tokenizer, "zero one two three four five six seven eight nine".split())
    with torch.no_grad():
        predicted = (F.normalize(clip.encode_image(images), dim=-1) @ text.T).argmax(1)
    assert (predicted.numpy() == labels).mean() >= 0.85


def test_embedded_clip_is_small_and_other_words_read_as_something():
    weights = EMBEDDED["tiny-clip-digits"] / "open_clip_model.safetensors"
    assert weights.stat().st_size <= 5e6
    used = load_file(str(weights))["token_embedding.used_ids"]
    clip, tokenizer = load_clip("tiny-clip-digits")
    table = clip.token_embedding.weight
    assert len(used) < 200 and (table.norm(dim=1) > 0).all()
    text = zero_shot_features(clip, tokenizer, ["maple tree", "aquarium fish", "kite (bird of prey)"])
    assert (text @ text.T - torch.eye(3)).abs().max() < 0.999
    again = load_clip("tiny-clip-digits")[0].token_embedding.weight
    assert torch.equal(table, again) and not any(p.requires_grad for p in clip.parameters()) and not clip.training


@pytest.mark.parametrize(
    "case, backbone, quick",
    [
        ("openai archive", "Tiny-16", True),
        ("openai state dict", "Tiny-16", True),
        ("openai half", "Tiny-16", True),
        ("open_clip checkpoint", "Tiny-16", False),
        ("safetensors", "Tiny-16", False),
        ("safetensors", "Tiny-16-quickgelu", True),
        ("safetensors", "Tiny/16", True),
    ],
)
def test_weight_files(tiny_named, tmp_path, case, backbone, quick):
    state, path = tiny_named, tmp_path / "weights.pt"
    if case == "openai state dict":
        torch.save(
            {
                **state,
                "input_resolution": torch.tensor(32),
                "context_length": torch.tensor(77),
                "vocab_size": torch.tensor(49408),
            },
            path,
        )
    elif case == "openai archive":

        class Archive(torch.nn.Module):  # OpenAI ships TorchScript; its state dict is all that is read
            def forward(self, x):
                return x

        def fill(module, name, value):
            for part in name.split(".")[:-1]:
                if not hasattr(module, part):
                    module.add_module(part, Archive())
                module = getattr(module, part)
            module.register_buffer(name.split(".")[-1], value)

        archive = Archive()
        for name, value in {
            **state,
            "input_resolution": torch.tensor(32),
            "context_length": torch.tensor(77),
            "vocab_size": torch.tensor(49408),
        }.items():
            fill(archive, name, value)
        torch.jit.script(archive).save(str(path))
    elif case == "openai half":
        torch.save({k: v if "ln_" in k else v.half() for k, v in state.items()}, path)
        state = {k: v if "ln_" in k else v.half().float() for k, v in state.items()}
    elif case == "open_clip checkpoint":
        torch.save({"epoch": 3, "name": "x", "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        path = tmp_path / "weights.safetensors"
        save_file(state, str(path))
    clip, _ = load_clip(backbone, str(path))
    assert is_quick(clip) is quick
    for name, value in clip.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert not any(p.requires_grad for p in clip.parameters())


def test_a_tag_tells_the_activation_of_a_file(tmp_path, monkeypatch):
    """Weights of a tag, fetched elsewhere: the tag says whether they want QuickGELU, whatever the spelling of the name."""
    seen = {}
    monkeypatch.setattr(clip_module, "read_weights", lambda path: ({}, False))
    monkeypatch.setattr(
        clip_module.open_clip,
        "create_model",
        lambda name, **k: seen.update(name=name, **k) or (_ for _ in ()).throw(RuntimeError("enough")),
    )
    (tmp_path / "w.bin").write_bytes(b"x")
    for backbone, tag, quick in (
        ("ViT-B/16", "openai", True),
        ("ViT-B/16", "laion2b_s34b_b88k", False),
        ("ViT-B-16", "metaclip_400m", True),
        ("ViT-B-16", "laion2b_s34b_b88k", False),
    ):
        with pytest.raises(UserError, match="enough"):
            load_clip(backbone, f"{tag}={tmp_path / 'w.bin'}")
        assert (seen["force_quick_gelu"] or seen["name"].endswith("quickgelu")) is quick, (backbone, tag)
    with pytest.raises(UserError, match="no such file: nowhere.bin"):
        load_clip("ViT-B/16", "openai=nowhere.bin")


def test_a_tag_tells_the_statistics_of_the_pixels(tiny_named, tmp_path, monkeypatch):
    """As ViT-L-14 of laion2b_s32b_b82k, which was trained on pixels of mean and deviation 0.5."""
    assert clip_module.get_pretrained_cfg("ViT-L-14", "laion2b_s32b_b82k")["mean"] == (0.5, 0.5, 0.5)
    path, half = tmp_path / "weights.pt", (0.5, 0.5, 0.5)
    torch.save(tiny_named, path)
    openai = image_statistics(load_clip("Tiny-16", str(path))[0])
    monkeypatch.setattr(clip_module, "get_pretrained_cfg", lambda name, tag: {"mean": half, "std": half})
    assert image_statistics(load_clip("Tiny-16", f"half={path}")[0]) == (half, half) != openai


def test_untrained_clip_is_always_the_same(tiny_named):
    a, b = (load_clip("Tiny-16", "none")[0].state_dict() for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_openai_name_means_openai_weights_and_quickgelu(monkeypatch):
    asked = {}

    def download(cfg, *args, **kwargs):
        asked.update(cfg)
        raise OSError("no network")

    monkeypatch.setattr(clip_module, "download_pretrained", download)
    for backbone in ("ViT-B/16", "ViT-L/14@336px"):
        with pytest.raises(
            UserError,
            match="pretrained: the weights openai of ViT-.*-quickgelu could not be fetched.*"
            "fetch .*--pretrained openai=FILE",
        ):
            load_clip(backbone)
        assert asked["quick_gelu"] is True
    with pytest.raises(
        UserError, match=r"laion2b_s34b_b88k of ViT-B-16 could not.* of laion/CLIP-ViT-B-16[^/]*; copy it"
    ):
        load_clip("ViT-B/16", "laion2b_s34b_b88k")  # trained with plain GELU, whatever the spelling


@pytest.mark.parametrize(
    "backbone, pretrained, message",
    [
        ("ViT-B/17", "", "there is no CLIP named 'ViT-B/17'. Did you mean ViT-B/1"),
        ("ViT-B-16", "", "pretrained: which weights of ViT-B-16"),
        ("ViT-B-16", "laion2b_s34b_b88", "Did you mean laion2b_s34b_b88k"),
        ("roberta-ViT-B-32", "none", "roberta-ViT-B-32"),
    ],
)
def test_clear_errors(backbone, pretrained, message, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the last one's tokenizer is on the hub
    with pytest.raises(UserError) as error:
        load_clip(backbone, pretrained)
    assert message in " ".join(str(error.value).split())


def test_files_that_are_no_clip(tiny_named, tmp_path):
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="bad.pt: not a CLIP weight file"):
        load_clip("Tiny-16", str(bad))
    torch.save({"a": torch.zeros(1)}, bad)
    with pytest.raises(UserError, match="bad.pt: holds no CLIP text encoder"):
        load_clip("Tiny-16", str(bad))
    torch.save({k: v for k, v in tiny_named.items() if k != "visual.proj"}, bad)
    with pytest.raises(UserError, match="1 tensors differ, first visual.proj"):
        load_clip("Tiny-16", str(bad))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no open_clip_config.json"):
        load_clip(str(tmp_path / "empty"))


def test_resolution_is_the_backbone_s():
    clip, _ = load_clip("tiny-clip-digits")
    assert resolution(clip, load_config([])) == 32
    with pytest.raises(UserError, match="resolution: is 224, but ViT-B/16 takes images of 32 pixels"):
        resolution(clip, load_config(["--resolution", "224"]))
    assert np.allclose(image_statistics(clip)[0], (0.48145466, 0.4578275, 0.40821073))


def test_without_a_network_the_hub_is_tried_once(monkeypatch):
    """One request, with a timeout, and then the cache alone; what was set before is set again."""
    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append(timeout)
            raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
    monkeypatch.setattr(
        clip_module, "download_pretrained", lambda source: asked.append(constants.HF_HUB_OFFLINE) or 1 / 0
    )
    with pytest.raises(UserError, match="could not be fetched"):
        load_clip("ViT-B/32")
    assert asked == [5, True] and not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(
        clip_module, "download_pretrained", lambda source: asked.append(constants.HF_HUB_OFFLINE) or 1 / 0
    )
    monkeypatch.setattr(Session, "head", lambda self, url, timeout: None)
    with pytest.raises(UserError, match="could not be fetched"):
        load_clip("ViT-B/32")
    assert asked[2:] == [False]


def test_a_missing_transformers_is_said_before_a_download(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(clip_module, "download_pretrained", lambda source: pytest.fail("fetched"))
    with pytest.raises(UserError, match="ViT-B-16-SigLIP needs the package transformers; pip install transformers"):
        load_clip("ViT-B-16-SigLIP", "webli")
