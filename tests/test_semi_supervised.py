"""Steps and divisions of the semi-supervised methods on constructed logits: each rule is worked out by hand beside it."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import main_baseline
from dataloader.load import load_data
from dataloader.loaders import ViewBatch, draw_view, make_loaders
from dataloader.transforms import Pixels
from methods import semi_supervised
from methods.baselines import METHODS
from methods.dividemix import contrastive_loss, even_prediction_penalty, mixmatch_targets
from methods.loops import evaluate_all
from methods.method import Training
from methods.moving_average import MovingAverage
from methods.rolt import soft_labels
from methods.semi_supervised import Outputs, mixup, ramp, sharpen
from model.classifier import build_classifier
from model.saved import load_classifier
from tests.helpers import checkpoint, copy_after_epoch_1, phase2, same, write_digits
from utils.config import load_config
from utils.device import torch_generator
from utils.errors import UserError

METHODS = {k: m for k, m in METHODS.items() if hasattr(m, "divide")}
N, K = 8, 3


class NoMix:
    """Random numbers that leave MixUp out: all of the larger part stays with the sample."""

    def beta(self, a, b):
        return 1.0

    def permutation(self, n):
        return np.arange(n)

    def random(self, n, dtype):
        return np.linspace(0, 0.9, n, dtype=dtype)


class Tables:
    """Stands for the networks: image i is filled with i, and network m has logits tables[m, i] for it."""

    def __init__(self, tables):
        self.tables = tables.clone().requires_grad_()

    def look_up(self, images):
        rows = images[:, 0, 0, 0].long()
        return [table[rows] for table in self.tables]

    def train(self, images):
        return [(self.look_up(x)[m],) * 2 for m, x in enumerate(images)]

    def guess(self, views):
        return torch.stack([torch.stack(self.look_up(view)) for view in views], 1).detach()


def method(name, *flags, epochs=12):
    cfg = load_config(["--epochs", str(epochs), "--warmup", "1", "--noise_ratio", "0.5", "--batch_size", "4", *flags])
    return METHODS[name](cfg, N, K)


def batch(labels, views):
    index = torch.arange(len(labels))
    images = index.float()[:, None, None, None].expand(-1, 3, 2, 2)
    return ViewBatch([images] * views, torch.tensor(labels), index, index.numpy())


def outputs(*tables):
    return Outputs(torch.stack(tables), None)


def confident(classes, sureness=5.0):
    return F.one_hot(torch.tensor(classes), K).float() * sureness


def test_text_classifiers_are_refused():
    with pytest.raises(UserError, match="is_coop: UNICON trains linear heads"):
        method("UNICON", "--is_coop")


def test_sharpen_ramp_and_mixup():
    np.testing.assert_allclose(sharpen(torch.tensor([0.2, 0.8])), [0.04 / 0.68, 0.64 / 0.68], atol=1e-6)
    assert [ramp(x, 16) for x in (-1, 0, 8, 16, 40)] == [0, 0, 0.5, 1, 1]
    rng, images, targets = np.random.default_rng(0), torch.arange(4.0)[:, None, None, None], torch.eye(4)
    mixed, soft = mixup(images, targets, 4.0, rng)
    assert (soft.diagonal() >= 0.5).all() and torch.allclose(soft.sum(1), torch.ones(4))
    assert torch.allclose((soft * torch.arange(4.0)).sum(1), mixed.flatten())  # images and targets mixed alike


def test_targets_are_refined_by_the_own_network_and_guessed_by_all():
    p = torch.tensor([[[0.6, 0.4], [0.6, 0.4]], [[0.2, 0.8], [0.2, 0.8]]])  # two networks, two samples
    weight, labelled = torch.tensor([[0.9, 0.1], [0.5, 0.2]]), torch.tensor([[True, False], [True, False]])
    targets = mixmatch_targets(p, torch.tensor([1, 1]), weight, labelled)
    np.testing.assert_allclose(targets[0, 0], sharpen(torch.tensor([0.06, 0.94])), atol=1e-6)
    np.testing.assert_allclose(targets[1, 0], sharpen(torch.tensor([0.1, 0.9])), atol=1e-6)
    for network in range(2):
        np.testing.assert_allclose(targets[network, 1], sharpen(torch.tensor([0.4, 0.6])), atol=1e-6)


def test_penalty_and_contrast():
    assert even_prediction_penalty(torch.eye(4) * 9).item() == pytest.approx(0, abs=1e-6)
    p = torch.tensor([[0.25, 0.75]])
    assert even_prediction_penalty(p.log()).item() == pytest.approx(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
    first, second = (
        torch.tensor([[1.0, 0], [0, 2]]),
        torch.tensor([[3.0, 0], [0, 1]]),
    )  # each other's pairs, else square
    assert contrastive_loss(first, second, 0.5).item() == pytest.approx(np.log(1 + 2 * np.exp(-2)), abs=1e-5)
    assert contrastive_loss(first, second.flip(0), 0.5) > contrastive_loss(first, second, 0.5) + 1
    assert contrastive_loss(first[:0], second[:0]) == 0


@pytest.mark.parametrize(
    "name, entropy", [("DivideMix", 1), ("UNICON", 1), ("ProMix", 1), ("LongReMix", 1), ("RoLT", 0)]
)
def test_the_warm_up_of_asymmetric_noise_keeps_predictions_uncertain_but_in_rolt(name, entropy):
    logits, labels = torch.tensor([[2.0, 0, 0], [0, 1, 0]]), [1, 1]
    ce, p = F.cross_entropy(logits, torch.tensor(labels)), logits.softmax(1)
    for noise, weight in (("sym", 0), ("asym", entropy)):
        of, rng = method(name, "--noise_mode", noise), np.random.default_rng(0)
        run = Tables(logits.expand(of.count, -1, -1))
        loss = of.warm_up_step(run, batch(labels, 1), 0.0, 1, rng).item()
        assert loss == pytest.approx(of.count * (ce + weight * (p * p.log()).sum(1).mean()).item(), rel=1e-5)


def test_dividemix_networks_divide_for_each_other():
    one = confident([0, 0, 0, 0, 1, 1, 1, 1])  # finds the first half right
    two = confident([1, 1, 1, 1, 0, 0, 0, 0])
    divide = method("DivideMix")
    mask, p_clean = divide.divide(outputs(one, two), torch.zeros(N, dtype=torch.int64), 2, np.random.default_rng(0))
    assert divide.plan["labelled"].tolist() == [[False] * 4 + [True] * 4, [True] * 4 + [False] * 4]
    assert torch.allclose(p_clean, torch.full((N,), 0.5), atol=1e-3)
    alone = method("DivideMix", "--networks", "1")
    mask, _ = alone.divide(outputs(one), torch.zeros(N, dtype=torch.int64), 2, np.random.default_rng(0))
    assert alone.plan["labelled"].tolist() == [mask.tolist()] == [[True] * 4 + [False] * 4]


@pytest.mark.parametrize("name, scale, lambda_u", [("DivideMix", 1, 25), ("DivideMix", 1, 7), ("LongReMix", 1, 25)])
def test_dividemix_loss_by_hand(name, scale, lambda_u):
    dividemix = method(name, *(["--lambda_u", str(lambda_u)] if lambda_u != 25 else []))
    tables, labels = torch.randn(2, N, K, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    weight = torch.tensor([[0.9, 0.8, 0.1, 0.2, 0, 0, 0, 0], [0.7, 0.3, 0.6, 0.1, 0, 0, 0, 0]])
    dividemix.plan = {"weight": weight, "labelled": weight > 0.5}
    loss = dividemix.step(Tables(tables), batch(labels.tolist(), 2), 0.5, 3, NoMix())
    expected, p = 0.0, tables[:, :4].softmax(-1)
    for m in range(2):
        known = weight[m, :4] > 0.5
        refined = sharpen(weight[m, :4, None] * torch.eye(K)[labels] + (1 - weight[m, :4, None]) * p[m])
        guessed = sharpen(p.mean(0))
        expected += -(refined * p[m].log()).sum(1)[known].mean()
        expected += lambda_u * (1.5 / 16) * ((p[m] - guessed) ** 2).mean(1)[~known].mean()
        expected += -(p[m].mean(0) * K).log().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_longremix_keeps_what_stays_clean_and_starts_again():
    labels, rng = torch.zeros(N, dtype=torch.int64), np.random.default_rng(0)
    longremix = method("LongReMix", epochs=20)
    assert [longremix.stage(e) for e in (1, 10, 11, 20)] == [(1, 10), (10, 10), (1, 10), (10, 10)]
    assert [e for e in range(1, 21) if longremix.is_warm(e)] == [1, 11]
    whole, half = confident([0] * 7 + [1]), confident([0] * 4 + [1] * 4)
    longremix.divide(outputs(half, half), labels, 1, rng)  # by untrained heads: does not count
    for epoch in range(2, 7):
        longremix.divide(outputs(whole, half), labels, epoch, rng)
    assert longremix.plan["labelled"].tolist() == [[True] * 4 + [False] * 4, [True] * 7 + [False]]
    longremix.divide(outputs(half, half), labels, 7, rng)  # once found wrong …
    for epoch in (8, 9, 10):
        longremix.divide(outputs(whole, half), labels, epoch, rng)
        assert longremix.plan["labelled"][1].tolist() == [True] * 4 + [False] * 4  # … out for five divisions
    assert longremix.core.tolist() == [True] * 7 + [False]  # the largest set of the second half: of epoch 6
    longremix.divide(outputs(half, half), labels, 12, rng)
    assert longremix.plan["labelled"].tolist() == [[True] * 7 + [False]] * 2  # now also for the second network
    assert longremix.plan["weight"][0, 5] == 1


@pytest.mark.parametrize("name", ["DivideMix", "LongReMix", "UNICON", "ProMix", "RoLT"])
def test_the_last_epoch_is_none_of_the_warm_up(name):
    last = 4 if name == "LongReMix" else 9  # its shorter stage has 5 of 10 epochs
    method(name, "--warmup", str(last), epochs=10)
    with pytest.raises(UserError, match=f"warmup: {last + 1} leaves {name} no epoch to select in"):
        method(name, "--warmup", str(last + 1), epochs=10)


def test_a_restart_forgets_momentum_and_moving_average():
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    averaged = MovingAverage(model, 0.9, optimizer)
    training = Training(model, model, None, optimizer, None, K, None, averaged)
    ended = []
    for _ in range(2):
        training.start_again({"weight": torch.zeros(1, 1)})
        for _ in range(3):
            model.weight.grad = torch.ones(1, 1)
            optimizer.step()
        ended.append((model.weight.item(), averaged.network.weight.item()))
    assert ended[0] == ended[1]


def test_unicon_weighs_by_divergence_and_contrasts_the_unlabelled():
    unicon = method("UNICON")
    p = torch.tensor([[0.9, 0.05, 0.05]] * 3 + [[0.05, 0.9, 0.05]] * 4 + [[0.1, 0.2, 0.7]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0])
    mask, p_clean = unicon.divide(outputs(p.log(), p.log()), labels, 2, np.random.default_rng(0))
    assert mask.tolist() == [True, True, False, True, True, False, False, False]  # int(6 / 3) = 2 of each class
    assert (unicon.plan["weight"][:, :6] == 1).all() and (unicon.plan["weight"][:, 6:] < 0.5).all()
    assert torch.equal(unicon.plan["weight"][1, 6:], p_clean[6:])
    views = batch([0] * 4, 2)
    (compared, _) = unicon.contrasted(views.views, np.array([0, 2, 5, 3]))
    assert compared[:, 0, 0, 0].tolist() == [1, 2]  # places of the samples 2 and 5


def test_promix_selects_matched_confident_labels_and_learns_only_from_them():
    promix = method("ProMix", "--debias", "0")
    promix.plan = {"small": torch.zeros(2, N, dtype=torch.bool)}
    promix.plan["small"][:, 1] = True
    tables = torch.stack([confident([0, 1, 2, 2], 9.0)] * 2)
    tables = F.pad(tables, (0, 0, 0, N - 4))
    run = Tables(tables)
    promix.step(run, batch([0, 0, 1, 2], 2), 0.0, 5, NoMix()).backward()
    # 0 and 3 are confident and match, 1 has a small loss, 2 is confident of another class than its label
    assert [bool(g.abs().sum() > 0) for g in run.tables.grad[0, :4]] == [True, True, False, True]
    guessing = Tables(tables)
    promix.step(guessing, batch([0, 0, 1, 2], 2), 0.0, 12, NoMix()).backward()  # the last epochs guess by agreement
    assert guessing.tables.grad[0, 2].abs().sum() == 0  # 3 of 4 are selected, 90 % of 4 is 3
    promix.share = 1.0
    promix.step(guessing, batch([0, 0, 1, 2], 2), 0.0, 12, NoMix()).backward()
    assert guessing.tables.grad[0, 2, 2] < 0 < guessing.tables.grad[0, 2, 1]  # towards the guess, not the label


@pytest.mark.parametrize(
    "num_classes, flags, expected",
    [
        (99, ["--noise_mode", "sym", "--noise_ratio", "0.2"], (0.7, 0.99, 0.8)),
        (100, ["--noise_mode", "sym", "--noise_ratio", "0.5"], (0.5, 0.95, 0.5)),
        (100, ["--noise_mode", "worse", "--noise_ratio", "0.1", "--tau", "0", "--rho", "0.3"], (0.3, 0.0, 0.5)),
    ],
)
def test_promix_takes_the_constants_of_the_released_commands(num_classes, flags, expected):
    promix = METHODS["ProMix"](load_config(["--lnl_methods", "ProMix", *flags]), 4, num_classes)
    assert (promix.rho, promix.tau, promix.debias) == expected


def test_promix_loss_by_hand_with_debiasing():
    promix = method("ProMix", "--debias", "0.5", "--networks", "1")
    promix.bias[1, 0], promix.bias[0, 0] = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.1, 0.8])
    promix.plan = {"small": torch.tensor([[True, False, True, False] + [False] * 4])}
    tables, labels = torch.randn(1, N, K, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0])
    before = promix.bias.clone()
    loss = promix.step(Tables(tables), batch(labels.tolist(), 2), 0.5, 1, NoMix())
    table, w, u = tables[0, :4], 0.5, 0.1 * 0.25  # half an epoch of 12 / 12, of 12 / 6
    on_selected = F.cross_entropy(table + 0.5 * before[1, 0].log(), labels, reduction="none")[[0, 2]].mean()
    soft = sharpen((table - 0.5 * before[0, 0].log()).softmax(1))
    on_others = -(soft * (table + 0.5 * before[0, 0].log()).log_softmax(1)).sum(1)[[1, 3]].mean()
    assert loss.item() == pytest.approx((2 * (1 + 2 * w) * on_selected + u * (1 + w) * on_others).item(), rel=1e-5)
    p = table.softmax(1)
    np.testing.assert_allclose(promix.bias[1, 0], 0.9999 * before[1, 0] + 1e-4 * p[[0, 2]].mean(0), atol=1e-7)
    np.testing.assert_allclose(promix.bias[0, 0], 0.9999 * before[0, 0] + 1e-4 * p[[1, 3]].mean(0), atol=1e-7)


def test_promix_mixes_with_selected_samples_only():
    promix, selected = method("ProMix"), torch.tensor([False, True, False, True, True, False])
    images, rng = torch.arange(6.0)[:, None, None, None], np.random.default_rng(0)
    _, targets = promix.mix_selected(images, torch.eye(6), selected, rng)
    assert (targets.diagonal() >= 0.5).all() and (
        targets[:, ~selected] - torch.diag(targets.diagonal())[:, ~selected] == 0
    ).all()


def test_coteaching_learns_the_small_losses_of_the_other():
    coteaching = method("Co-teaching")
    tables = torch.stack([confident([0, 0, 1, 1]), confident([1, 0, 0, 1])])
    run = Tables(F.pad(tables, (0, 0, 0, N - 4)))
    coteaching.step(run, batch([0] * 4, 1), 0.0, 5, None).backward()
    learned = [[bool(g.abs().sum() > 0) for g in grad[:4]] for grad in run.tables.grad]
    assert learned == [[False, True, True, False], [True, True, False, False]]  # half of 4, by the other's losses
    mask, _ = coteaching.divide(outputs(*F.pad(tables, (0, 0, 0, 4))), torch.zeros(N, dtype=torch.int64), 5, None)
    assert mask.sum() == 4 and mask[1]


def test_rolt_labels_the_rest_softly():
    targets = soft_labels(*(torch.tensor(x) for x in ([0, 0], [True, False], [1, 1], [2, 2])), 4)
    np.testing.assert_allclose(targets, [[1, 0, 0, 0], [0.25, 0.45, 0.25, 0.05]], atol=1e-6)
    rolt, rng = method("RoLT"), np.random.default_rng(0)
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    features = torch.from_numpy((np.eye(2)[truth] * 5 + rng.standard_normal((N, 2)) * 0.1).astype(np.float32))
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])  # two are wrong
    mask, _ = rolt.divide(Outputs(confident([2] * N)[None], features), labels, 2, rng)
    assert mask.tolist() == [True, True, True, False, True, True, True, False]
    np.testing.assert_allclose(rolt.plan["targets"][3], [0.2 + 0.2 / 3, 0.2 + 0.2 / 3, 0.4 + 0.2 / 3], atol=1e-6)
    for epoch, predicted, expected in (
        (3, 2, 2),
        (4, 2, 2),
        (5, 1, 2),
        (6, 1, 1),
    ):  # one prediction of four does not turn it
        rolt.divide(Outputs(confident([predicted] * N)[None], features), labels, epoch, rng)
        assert rolt.plan["targets"][3].argmax() == expected


def test_rolt_refuses_checkpoints_of_gigabytes():
    with pytest.raises(
        UserError, match="lnl_methods: RoLT keeps two logits .* 1,281,167 x 1,000 are more than 250,000,000"
    ):
        METHODS["RoLT"](load_config([]), 1_281_167, 1000)


def test_mixfix_starts_from_the_mask_and_grows():
    mixfix = method("MixFix", "--theta_r", "0.7", "--theta_r2", "0.9", "--batch_size", "3")
    mixfix.initial = torch.tensor([True] * 4 + [False] * 4)
    labels = torch.tensor([0, 1, 2, 0, 0, 1, 2, 0])
    sure = confident([0, 1, 2, 0, 0, 1, 2, 1], 9.0)
    mask, _ = mixfix.divide(outputs(sure), labels, 1, None)
    assert torch.equal(mask, mixfix.initial) and torch.equal(
        mixfix.plan["labels"], labels
    )  # the first epoch takes it as it is
    mask, _ = mixfix.divide(outputs(sure), labels, 2, None)
    assert mixfix.plan["labels"].tolist() == [0, 1, 2, 0, 0, 1, 2, 1] and mixfix.selected.all()
    assert mask.tolist() == [True] * 7 + [False]  # the relabelled one's own label is not trusted
    orders = np.stack([mixfix.order(labels.numpy(), np.random.default_rng(seed)) for seed in range(300)])
    assert orders.shape == (300, 6)  # two batches of 3
    shares = np.bincount(mixfix.plan["labels"].numpy()[orders].ravel()) / orders.size
    np.testing.assert_allclose(shares, 1 / 3, atol=0.03)


# --- views and whole runs


def small_run(out, *flags):
    cfg = load_config(phase2(out, *flags))
    return cfg, load_data(cfg)


def test_views_belong_to_the_place_in_the_order(tmp_path):
    cfg, data = small_run(tmp_path, "--batch_size", "5")
    _, pixels = build_classifier(cfg, data, torch_generator(0, 0))
    loader, _ = make_loaders(data, cfg, pixels, torch.device("cpu"))
    order = np.array([3, 3, 7, 3, 9, 1, 3])
    draws = [draw_view(7, np.random.default_rng(0)), draw_view(7, np.random.default_rng(1), "randaugment")]
    batches = list(loader.views(order, draws))
    assert [len(b.samples) for b in batches] == [5, 2] and len(loader.views(order, draws)) == 2
    weak, strong = (torch.cat([b.views[v] for b in batches]) for v in (0, 1))
    index = torch.cat([b.index for b in batches])
    assert index.tolist() == order.tolist() == np.concatenate([b.samples for b in batches]).tolist()
    assert torch.equal(torch.cat([b.labels for b in batches]), loader.labels[index])
    plain = torch.cat([images for images, _, _ in loader.eval()])
    assert torch.equal(weak, plain[index])  # digits have no weak augmentation
    assert not torch.equal(strong[0], strong[1])  # the same sample, other operations
    again = torch.cat([b.views[1] for b in loader.views(order, draws)])
    assert torch.equal(again, strong)
    loader.noise = lambda images, index: images // 2 + index[:, None, None, None].to(torch.uint8)
    noisy = torch.cat([b.views[0] for b in loader.views(order, draws[:1])])
    assert torch.equal(noisy, torch.cat([images for images, _, _ in loader.eval()])[index])


def test_two_networks_start_alike_with_other_heads_and_are_saved_as_one(tmp_path):
    cfg, data = small_run(tmp_path, "--lnl_methods", "DivideMix")
    model, _ = METHODS["DivideMix"](cfg, len(data.train.labels), 10).build(data)
    one, two = (dict(net.named_parameters()) for net in model.networks)
    different = {name for name in one if not torch.equal(one[name], two[name])}
    assert different == {"head.weight", "head.bias"}
    assert torch.equal(one["head.weight"], build_classifier(cfg, data, torch_generator(0, 0))[0].head.weight)
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(images), (model.networks[0](images) + model.networks[1](images)) / 2)
    empty = model([images[:0], images[:0]])
    assert [logits.shape for logits, _ in empty] == [(0, 10)] * 2 and model.training


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory):
    """Flags of the shortest run: 73 images to train on, 17 to test on, two epochs."""
    folder, _, _ = write_digits(tmp_path_factory.mktemp("digits"), 0.0, every=20)
    return ["--dataset", "own", "--data_path", str(folder), "--test_fraction", "0.2", "--epochs", "2"]


@pytest.mark.parametrize("name", METHODS)
def test_whole_runs_are_recorded_and_go_on_where_they_stopped(few_digits, tmp_path, monkeypatch, name):
    flags = [*few_digits, "--lnl_methods", name]
    if name == "MixFix":
        _, data = small_run(tmp_path, *flags)
        np.save(tmp_path / "mask.npy", data.true_labels == data.train.labels)
        flags += ["--mask", str(tmp_path / "mask.npy"), "--theta_r2", "0.2"]
    else:
        flags += ["--warmup", "0"]
    policies, strong = [], ["imagenet"] * METHODS[name].strong
    flags += ["--strong_view", "imagenet"] if strong else []
    with monkeypatch.context() as patch:
        patch.setattr(
            semi_supervised, "draw_view", lambda n, rng, policy: policies.append(policy) or draw_view(n, rng, policy)
        )
        copy_after_epoch_1(patch, tmp_path / "cut")
        whole = main_baseline.main(phase2(tmp_path / "whole", *flags))
    assert [policy for policy in policies if policy] == strong * 2  # in each epoch
    assert whole["epochs"] == 2 and 0 < whole["selected"] < 1 and {"precision", "auroc"} <= whole.keys()
    main_baseline.main(phase2(tmp_path / "cut", *flags))
    (run,) = (tmp_path / "whole").glob("*/sym-0.4/seed0/*")
    a, b = checkpoint(run), checkpoint(tmp_path / "cut" / run.relative_to(tmp_path / "whole"))
    assert same(a["model"], b["model"]) and same(a["method"], b["method"]) and same(a["selection"], b["selection"])
    if name == "UNICON":  # an exported pair answers as it did in training; its second heads are gone
        cfg, data = small_run(tmp_path, *flags)
        model, info = load_classifier(run)
        assert info["networks"] == 2 and not len(model.extra)
        _, tests = make_loaders(data, cfg, Pixels(info["pixels"], info["mean"], info["std"]), torch.device("cpu"))
        assert evaluate_all(model, tests, 10)["accs"]["acc_test"] == pytest.approx(whole["acc_last"], abs=0.1)


def loss_after_an_epoch(out, *flags):
    """Of ProMix."""
    main_baseline.main(phase2(out, *flags, "--lnl_methods", "ProMix", "--epochs", "1", "--warmup", "0"))
    (log,) = out.rglob("log.jsonl")
    return json.loads(log.read_text())["loss"]


def test_small_pieces(few_digits, tmp_path):
    plain, pieces = (
        loss_after_an_epoch(tmp_path / name, *few_digits, *more)
        for name, more in (("plain", []), ("pieces", ["--micro_batch", "40"]))
    )
    assert pieces == pytest.approx(plain, abs=1e-4)


def test_precision(tmp_path):
    """On a few images and one network: bf16 without hardware is slow."""
    folder, _, _ = write_digits(tmp_path / "digits", 0.0, every=60)
    few = ["--dataset", "own", "--data_path", str(folder), "--test_fraction", "0.4", "--networks", "1"]
    fp32, bf16 = (loss_after_an_epoch(tmp_path / prec, *few, "--prec", prec) for prec in ("fp32", "bf16"))
    assert bf16 == pytest.approx(fp32, rel=0.02) and bf16 != fp32
