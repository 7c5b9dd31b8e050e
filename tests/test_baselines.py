"""Baselines against numbers of the official code."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from methods import sample_selection
from methods.baselines import METHODS
from methods.losses import (
    cross_entropy,
    generalized_cross_entropy,
    symmetric_cross_entropy,
)
from methods.robust_losses import ELR
from methods.sample_selection import forget_rates, smallest
from methods.selection import gmm_clean_probability, precision_recall
from model.classifier import Classifier
from tests.helpers import golden
from utils.config import load_config
from utils.errors import UserError

G, META = golden("baselines")


def tensor(name, grad=False):
    return torch.from_numpy(G[name]).requires_grad_(grad)


def test_sce():
    logits, labels = tensor("sce.logits", grad=True), tensor("sce.labels")
    losses = symmetric_cross_entropy(logits, labels)
    np.testing.assert_allclose(losses.detach(), G["sce.loss"], atol=1e-5)
    losses.mean().backward()
    np.testing.assert_allclose(logits.grad, G["sce.grad"], atol=1e-6)
    for a, b in ((0.1, 1.0), (6.0, 0.1)):
        np.testing.assert_allclose(
            symmetric_cross_entropy(logits, labels, a, b).detach(), G[f"sce.loss_{a}_{b}"], atol=1e-4
        )


def test_elr_targets_follow_the_sample():
    elr = ELR(load_config([]), META["elr"]["num_examples"], 10)
    index, labels = tensor("elr.index"), tensor("elr.labels")
    for call in range(4):
        logits = torch.from_numpy(G["elr.logits"][call]).requires_grad_()
        losses = elr(logits, labels, index)
        losses.mean().backward()
        np.testing.assert_allclose(losses.detach(), G["elr.loss"][call], atol=1e-5)
        np.testing.assert_allclose(logits.grad, G["elr.grad"][call], atol=1e-6)
        np.testing.assert_allclose(elr.target, G["elr.target_after_call"][call], atol=1e-6)


def test_selecting_needs_an_epoch_after_the_warm_up():
    for flags in ("--epochs 5 --warmup 5", "--epochs 1"):
        with pytest.raises(UserError, match="warmup: . leaves GMM no epoch to select in"):
            METHODS["GMM"](load_config(flags.split()), 4, 2)
    METHODS["GMM"](load_config(["--epochs", "2"]), 4, 2)
    METHODS["CE"](load_config(["--epochs", "1"]), 4, 2)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--adaptation", "none"], "adaptation: none is for phase 2 only; MixFix needs peft or fft"),
        (["--full_batch"], "full_batch: MixFix makes its batches itself"),
        (["--is_coop"], "is_coop: MixFix trains linear heads"),
    ],
)
def test_settings_that_a_method_cannot_follow(flags, message):
    with pytest.raises(UserError, match=message):
        METHODS["MixFix"](load_config(flags), 4, 2)


def test_small_loss_needs_an_estimate_where_labels_may_be_wrong():
    cfg = load_config(["--lnl_methods", "small-loss"])
    index = np.arange(2)
    unknown = SimpleNamespace(known=lambda: None)
    right = SimpleNamespace(known=lambda: (index, np.array([True, True])))
    wrong = SimpleNamespace(known=lambda: (index, np.array([True, False])))
    for data in (unknown, wrong):
        with pytest.raises(UserError, match="noise_ratio: small-loss needs an estimate"):
            METHODS["small-loss"](cfg, 2, 2).build(data)
        with pytest.raises(UserError, match="noise_ratio"):
            METHODS["Co-teaching"](cfg, 2, 2).build(data)
    sample_selection.require_estimate(cfg, right)
    cfg.noise_ratio = 0.2
    sample_selection.require_estimate(cfg, unknown)


@pytest.mark.parametrize("name", ["AUM", "forgetting", "mean-p"])
def test_dynamics_are_recorded_by_sample_and_epoch(name):
    labels = torch.tensor([0, 1, 0, 1])
    logits = torch.tensor(
        [[[2.0, 0.0], [3.0, 0.0], [1.0, 0.0], [0.0, 4.0]], [[1.0, 0.0], [0.0, 5.0], [0.0, 2.0], [0.0, 3.0]]]
    )
    method = METHODS[name](load_config(["--epochs", "2"]), 4, 2)
    for method.epoch, order in ((1, [2, 0, 3, 1]), (2, [1, 3, 0, 2])):
        method(logits[method.epoch - 1, order], labels[order], torch.tensor(order))
    expected = torch.tensor([[2.0, -3.0, 1.0, 4.0], [1.0, 5.0, -2.0, 3.0]])  # logit of the label minus the other
    np.testing.assert_allclose(method.records, expected.sigmoid() if name == "mean-p" else expected, atol=1e-6)
    mask, p_clean = method.rule(method.records.numpy(), 0)
    if name == "forgetting":  # trusted if predicted in more than half of the epochs
        assert mask.tolist() == [True, False, False, True] and p_clean.tolist() == [1, 0.5, 0.5, 1]


@pytest.mark.parametrize("case", ["gmm", "gmm_overlap"])
def test_gmm(case):
    """The mixture on the official (half-precision) losses; ours are float32 and select the same where it is decided."""
    seed = np.random.RandomState(META[case]["numpy_seed"])
    p = gmm_clean_probability(G[f"{case}.losses_normalised_half"], seed)
    np.testing.assert_allclose(p, G[f"{case}.prob_clean"], atol=1e-3)
    kept = G[f"{case}.idx_clean"].astype(bool)
    np.testing.assert_array_equal(p > 0.5, kept)
    losses = cross_entropy(tensor(f"{case}.logits"), tensor(f"{case}.labels")).numpy()
    scaled = (losses - losses.min()) / (losses.max() - losses.min())
    np.testing.assert_allclose(scaled, G[f"{case}.losses_normalised_float32"], atol=1e-5)
    ours = gmm_clean_probability(losses, np.random.RandomState(0)) > 0.5
    assert (ours == kept).mean() >= (1 if case == "gmm" else 0.97)
    quality = precision_recall(kept, ~G[f"{case}.noise_idx"].astype(bool))
    for key in ("precision", "recall"):
        official = float(G[f"{case}.{key}"][0])
        assert quality[key] == pytest.approx(official / (100 if official > 1 else 1), abs=1e-4)


@pytest.mark.parametrize("case", ["b64", "b10"])
def test_small_loss(case):
    losses, index = tensor(f"small.{case}.loss"), tensor(f"small.{case}.index")
    for i, rate in enumerate(G[f"small.{case}.rates"]):
        kept = G[f"small.{case}.kept_index"][i]
        mask = smallest(losses, float(rate))
        assert set(index[mask].tolist()) == set(kept[kept >= 0].tolist())
        if mask.any():
            assert losses[mask].mean().item() == pytest.approx(float(G[f"small.{case}.value"][i]), abs=1e-5)


def test_forget_rates():
    names = [k for k in G if k.startswith("rate.")]
    assert len(names) == 27
    for name in names:
        _, mode, ratio = name.split(".")[0], name.split(".")[1], ".".join(name.split(".")[2:4])
        epochs, warmup = map(int, name.split(".")[4:])
        np.testing.assert_allclose(forget_rates(mode, float(ratio), epochs, warmup), G[name], atol=1e-12)


def test_gce_lies_between_ce_and_mae():
    logits, labels = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5
    p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(generalized_cross_entropy(logits, labels), (1 - p**0.7) / 0.7)
    torch.testing.assert_close(generalized_cross_entropy(logits, labels, 1.0), 1 - p)
    ce = cross_entropy(logits, labels)
    torch.testing.assert_close(generalized_cross_entropy(logits, labels, 1e-3), ce, atol=1e-2, rtol=0)
    hopeless = torch.tensor([[200.0, -200.0]], requires_grad=True)  # p_y underflows: finite loss and gradient
    generalized_cross_entropy(hopeless, torch.tensor([1])).sum().backward()
    assert torch.isfinite(hopeless.grad).all()


def test_turn_probes_the_head_and_cleans_class_by_class(monkeypatch):
    rng, n = np.random.default_rng(0), 2000
    truth = np.arange(n) % 2
    given = np.where(rng.random(n) < 0.3, 1 - truth, truth)
    images = torch.from_numpy((np.eye(4)[truth] * 3 + 0.5 * rng.standard_normal((n, 4))).astype(np.float32))
    torch.manual_seed(0)
    model = Classifier(Body(), 2)
    before, sizes = [p.clone() for p in model.parameters()], []
    monkeypatch.setattr(
        "methods.selection.gmm_clean_probability",
        lambda losses, seed: (sizes.append(len(losses)), gmm_clean_probability(losses, seed))[1],
    )
    method = METHODS["TURN"](load_config([]), n, 2)
    loader = SimpleNamespace(
        labels=torch.from_numpy(given), device=torch.device("cpu"), eval=lambda: [(images, None, torch.arange(n))]
    )
    method.prepare(model, loader, nullcontext)
    assert sizes == np.bincount(given).tolist()  # a mixture of its own for every given class
    body, head = zip(*[(torch.equal(a, b), "head" in name) for a, (name, b) in zip(before, model.named_parameters())])
    assert body == tuple(not is_head for is_head in head)  # the head learned, the rest did not
    selection = method.epoch_selection(1, None)
    assert precision_recall(selection["mask"].numpy(), truth == given)["f1"] > 0.97
    assert (selection["predicted"].numpy() == truth).mean() > 0.97
    assert torch.equal(selection["mask"], selection["p_clean"] > 0.5)
    with pytest.raises(UserError, match="is_coop"):
        METHODS["TURN"](load_config(["--is_coop"]), n, 2)


class Body(torch.nn.Module):
    """A stand-in for a CLIP image tower of width 4."""

    def __init__(self):
        super().__init__()
        self.conv1, self.scale = SimpleNamespace(out_channels=4), torch.nn.Parameter(torch.ones(4))

    def forward(self, images):
        return images * self.scale


def test_every_method_gives_one_loss_a_sample():
    for name, method in METHODS.items():
        losses = method(load_config([]), 20, 4)(torch.randn(5, 4), torch.arange(5) % 4, torch.arange(5))
        assert losses.shape == (5,) and torch.isfinite(losses).all(), name
