"""Tuners of the image tower against numbers of the official code, and what each of them trains."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.classifier import Classifier
from model.tuners import Adapter, AdaptFormer, tune
from tests import recipe
from tests.helpers import golden
from utils.config import load_config
from utils.errors import UserError

META = golden("tuners_forward")[1]


def settings(**flags):
    return SimpleNamespace(**vars(load_config([])) | flags)


def own_name(official):
    """Where a parameter of the official code lies here: a list of names (SSF is stored with weight and bias)."""
    kind, layer, *rest = official.split(".")
    block = f"transformer.resblocks.{layer}"
    if kind == "vpt_list":
        return [f"{block}.prompts"]
    if kind == "adapter_list":
        return [f"{block}.mlp.{rest[0].removesuffix('_proj')}.{rest[1]}"]
    if kind == "lora_list":
        return [f"{block}.attn.parametrizations.in_proj_weight.*.{rest[0]}_{rest[1][-1]}"]
    module, weight, bias = {
        "attn_in": ("attn", "in_proj_weight", "in_proj_bias"),
        "attn_out": ("attn.out_proj", "weight", "bias"),
        "mlp_in": ("mlp.c_fc", "weight", "bias"),
        "mlp_out": ("mlp.c_proj", "weight", "bias"),
    }[rest[0]]
    names = [f"{block}.{module}.parametrizations.{bias}.0.{rest[1]}"]
    return names + ([f"{block}.{module}.parametrizations.{weight}.0.scale"] if rest[1] == "scale" else [])


def find(parameters, name):
    """A parameter by name, with or without the wrappers that other tuners add."""
    plain = {k.replace(".block.", ".").replace(".mlp.mlp.", ".mlp."): p for k, p in parameters.items()}
    if "*" in name:
        name = next(k for k in plain if k.startswith(name.split("*")[0]) and k.endswith(name.split("*")[1]))
    return plain[name]


@pytest.mark.parametrize("case", META["cases"])
def test_golden_forward(random_clip, case):
    g, _ = golden("tuners_forward")
    spec = META["images"]
    images = recipe.images(spec["seed"], spec["n"], 32, None)
    assert recipe.digest(images) == spec["digest"]
    clip, _ = random_clip(META)
    tune(clip.visual, settings(**META["cases"][case]["flags"]))
    parameters = {k: p for k, p in clip.visual.named_parameters(remove_duplicate=False)}
    trained = {id(p) for p in parameters.values() if p.requires_grad}
    with torch.no_grad():
        for official in META["cases"][case]["params"]:
            for name in own_name(official):
                parameter = find(parameters, name)
                parameter.copy_(torch.from_numpy(g[f"{case}/{official}"]))
                trained.discard(id(parameter))
    assert not trained  # nothing is trained that the official code does not have
    features = Classifier(clip.visual, 3).backbone
    for mode in (True, False):
        np.testing.assert_allclose(
            features.train(mode)(torch.from_numpy(images)).detach(), g[f"{case}/features"], atol=1e-5
        )


@pytest.mark.parametrize(
    "flags",
    [
        {"vpt_deep": True, "vpt_len": 3},
        {"vpt_shallow": True, "vpt_len": 3},
        {"lora": True},
        {"ssf": True},
        {"adapter": True},
        {"adaptformer": True},
        {"bias_tuning": True},
        {"finetune": True},
        {
            "vpt_deep": True,
            "vpt_len": 3,
            "lora": True,
            "ssf": True,
            "adapter": True,
            "adaptformer": True,
            "bias_tuning": True,
        },
    ],
)
def test_every_trained_parameter_learns_and_nothing_else(random_clip, flags):
    clip, _ = random_clip(META)
    before = {k: p.clone() for k, p in clip.visual.state_dict().items()}
    tune(clip.visual, settings(**flags), torch.Generator().manual_seed(0))
    model = Classifier(clip.visual, 4)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    start = {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}
    images = torch.from_numpy(recipe.images(1, 8, 32, np.arange(8) % 4))
    for _ in range(3):  # zero-initialised halves let the other half learn from the second step on
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), torch.arange(8) % 4).backward()
        optimizer.step()
    after = dict(model.named_parameters())
    unmoved = [k for k in start if torch.equal(after[k], start[k]) and "in_proj_bias" not in k]
    assert not unmoved, unmoved
    frozen = {k: p for k, p in model.named_parameters() if not p.requires_grad}
    for name in ("conv1.weight", "positional_embedding", "class_embedding", "ln_post.weight"):
        assert torch.equal(frozen[f"backbone.{name}"], before[name])
    if "finetune" not in flags:
        weights = [p for k, p in frozen.items() if "c_fc" in k and k.endswith(("c_fc.weight", "weight.original"))]
        originals = [p for k, p in before.items() if k.endswith("c_fc.weight")]
        assert len(weights) == 2 and all(any(torch.equal(w, o) for o in originals) for w in weights)


def test_prompts_are_deep_or_shallow(random_clip):
    """The YAML files of phase 1 set vpt_deep, so that --vpt_shallow alone must not train deep prompts."""
    with pytest.raises(UserError, match="vpt_shallow: vpt_deep is true as well; --vpt_deep false"):
        tune(random_clip(META)[0].visual, settings(vpt_deep=True, vpt_shallow=True))


def test_partial_touches_the_last_blocks_and_biases_ignore_it(random_clip):
    def layers(**flags):
        clip, _ = random_clip(META)
        tune(clip.visual, settings(partial=1, **flags))
        names = [k for k, p in clip.visual.named_parameters() if p.requires_grad]
        return {k.split(".")[2] for k in names if "resblocks" in k}, names

    for flags in (
        {"lora": True},
        {"ssf": True},
        {"adapter": True},
        {"adaptformer": True},
        {"vpt_deep": True, "vpt_len": 2},
    ):
        assert layers(**flags)[0] == {"1"}
    found, names = layers(bias_tuning=True)
    assert found == {"0", "1"} and "ln_pre.bias" in names and "ln_post.bias" in names


@pytest.mark.parametrize("kind, beyond", [(Adapter, 0.083), (AdaptFormer, 0.0)])  # Kaiming-normal and -uniform
def test_initial_bottleneck(kind, beyond):
    down = kind(torch.nn.Identity(), 64, 50, torch.Generator().manual_seed(0)).down.weight.detach() * 64**0.5
    assert down.std().item() == pytest.approx(3**-0.5, rel=0.05)
    assert (down.abs() > 1).float().mean().item() == pytest.approx(beyond, abs=0.02)


def test_adaptformer_starts_as_the_mlp_and_runs_beside_it():
    mlp = torch.nn.Linear(8, 8)
    adapted, x = AdaptFormer(mlp, 8, 3), torch.randn(2, 5, 8)
    torch.testing.assert_close(adapted(x), mlp(x))
    with torch.no_grad():
        adapted.up.weight.fill_(1.0)
        expected = mlp(x) + 0.1 * adapted.down(x).relu().sum(-1, keepdim=True)
    torch.testing.assert_close(adapted(x), expected)
