"""Neighbours and the detectors on them, against plain loops over small arrays."""

import sys
import tracemalloc

import numpy as np
import pytest
import torch

import main_detect
from dataloader.load import load_data
from methods import clipcleaner, dynamics, neighbours
from methods.detectors import DETECTORS
from methods.inputs import load_inputs, read_descriptions
from tests.helpers import clusters, detection, make_inputs, unit
from utils.config import load_config
from utils.errors import UserError


@pytest.mark.parametrize("block", [2**26, 1000])  # all at once, and blocks that cut through classes
def test_exact_neighbours(monkeypatch, block):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    features, labels, _, _ = clusters()
    features[10:30] = features[10]  # identical images
    found = neighbours.find_neighbours(features, labels, 7)
    cosine = features @ features.T
    np.fill_diagonal(cosine, -2)
    assert np.allclose(found.cosine, -np.sort(-cosine, axis=1)[:, :7], atol=1e-6)
    assert np.allclose(np.take_along_axis(cosine, found.index, 1), found.cosine, atol=1e-6)
    assert (found.index != np.arange(len(labels))[:, None]).all() and (np.diff(np.sort(found.index)) > 0).all()
    same = labels[:, None] == labels[None]
    assert np.allclose(found.same, np.where(same, cosine, -2).max(1), atol=1e-6)
    assert np.allclose(found.other, np.where(~same, cosine, -2).max(1), atol=1e-6)


def test_index_beyond_the_exact_size(monkeypatch, capsys):
    features, labels, _, _ = clusters(n=600)
    features[:50] = features[0]  # more than an index may reach from one of them
    exact = neighbours.find_neighbours(features, labels, 10)
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 100)
    found = neighbours.find_neighbours(features, labels, 10)
    assert "HNSW index of faiss" in capsys.readouterr().out
    assert (found.index != np.arange(600)[:, None]).all() and found.index.shape == (600, 10)
    assert np.mean([len(set(a) & set(b)) for a, b in zip(exact.index[50:], found.index[50:])]) > 9
    assert (np.isclose(found.other, exact.other, atol=1e-5) | (found.other == found.cosine[:, -1])).mean() > 0.95
    without = (labels[found.index] != labels[:, None]).all(1)  # any neighbour of their label: looked for in the class
    assert without.sum() > 10 and np.allclose(found.same[without], exact.same[without], atol=1e-5)
    assert np.isclose(found.same, exact.same, atol=1e-5).mean() > 0.95
    alone = np.where(np.arange(600) == 599, 4, labels)
    assert neighbours.find_neighbours(features, alone, 10).same[599] == -1
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="more than 100 images need faiss; pip install faiss-cpu"):
        neighbours.find_neighbours(features, labels, 10)


def test_images_that_an_index_does_not_reach(monkeypatch):
    faiss = pytest.importorskip("faiss")
    features, labels, _, _ = clusters(n=300)
    exact = neighbours.find_neighbours(features, labels, 10)
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 100)
    search = faiss.IndexHNSWFlat.search

    def cut_off(index, queries, k):
        cosine, found = search(index, queries, k)
        found[3], found[7, 4:], cosine[3], cosine[7, 4:] = -1, -1, -3.4e38, -3.4e38  # as faiss fills them up
        return cosine, found

    monkeypatch.setattr(faiss.IndexHNSWFlat, "search", cut_off)
    found = neighbours.find_neighbours(features, labels, 10)
    for i in (3, 7):
        assert np.allclose(found.cosine[i], exact.cosine[i], atol=1e-5) and set(found.index[i]) == set(exact.index[i])
    assert found.index.min() >= 0 and found.cosine.min() > -1.01


def test_few_images_and_small_classes():
    features, labels, _, text = clusters(n=9)
    found = neighbours.find_neighbours(features, labels, 30)  # k is cut to the other images
    assert found.index.shape == (9, 8)
    alone = np.array([0, 1, 2, 3, 3, 3, 3, 3, 3])
    found = neighbours.find_neighbours(features, alone, 3)
    assert found.same[0] == -1 and found.other[0] > -1
    with pytest.raises(UserError, match="two images or more"):
        neighbours.find_neighbours(features[:1], labels[:1], 3)
    inputs = make_inputs(features, alone * (alone != 2), 4, text)
    for name, detector in DETECTORS.items():  # one sample in a class, k larger than a class, an empty class
        mask, p_clean, predicted, confidence = detector.find(inputs)
        assert mask.shape == p_clean.shape == (9,) and mask.dtype == bool and predicted.max() < 4, name
        assert np.isfinite(p_clean).all() and np.isfinite(confidence).all(), name


def test_hundreds_of_identical_images():
    features = np.repeat(unit(np.eye(3, 8) + 0.1), 100, axis=0)
    labels = np.repeat([0, 1, 2], 100)
    labels[:5] = 1
    inputs = make_inputs(features, labels, 3, features[::100])
    for name, detector in DETECTORS.items():
        mask, p_clean, *_ = detector.find(inputs)
        assert np.isfinite(p_clean).all(), name
        if name not in ("simifeat-rank", "clipcleaner", "selfclean", "forgetting"):
            assert p_clean[:5].max() <= p_clean[5:].min(), name


def test_detectors_find_wrong_labels_with_and_without_text():
    features, labels, is_clean, text = clusters(n=400, spread=0.6)
    inputs, inputs_again = (make_inputs(features, labels, 4, text) for _ in range(2))
    without_text = make_inputs(features, labels, 4)
    for name, detector in DETECTORS.items():
        mask, p_clean, predicted, confidence = detector.find(inputs)
        assert (mask == is_clean).mean() > (0.7 if name in ("selfclean", "simifeat-rank") else 0.85), name
        assert p_clean[~is_clean].mean() < p_clean[is_clean].mean() - 0.1, name
        again = detector.find(inputs_again)
        assert np.array_equal(mask, again.mask) and np.array_equal(p_clean, again.p_clean), name
        if not detector.needs_text:  # the text changes nothing
            assert np.array_equal(mask, detector.find(without_text).mask), name


def test_arrays_of_images_by_classes_are_few(monkeypatch):
    """`auto` and CLIPCleaner's zero-shot criterion, on many classes, by the largest array there has to be."""
    N, K, rng = 4000, 400, np.random.default_rng(0)
    features, text = (unit(rng.standard_normal((n, 16))).astype(np.float32) for n in (N, K))
    labels = np.where(rng.random(N) < 0.5, (features @ text.T).argmax(1), rng.integers(0, K, N))
    inputs = make_inputs(features, labels, K, text)
    inputs.nearest  # found before
    size = N * K * 4
    logits = inputs.logits.copy()
    tracemalloc.start()
    DETECTORS["auto"].find(inputs)
    assert tracemalloc.get_traced_memory()[1] < 3.7 * size
    assert np.array_equal(inputs.logits, logits)
    descriptions, owner = np.repeat(text, 5, axis=0), np.tile(np.arange(K), 5)
    whole = clipcleaner.zero_shot_probability(features, descriptions, owner, K)
    monkeypatch.setattr(clipcleaner, "BLOCK", 200_000)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    pieces = clipcleaner.zero_shot_probability(features, descriptions, owner, K)
    assert tracemalloc.get_traced_memory()[1] - before < 2 * size
    tracemalloc.stop()
    assert np.allclose(pieces, whole, atol=1e-6) and np.allclose(pieces.sum(1), 1, atol=1e-5)


def test_simifeat_by_hand():
    cosine, index = np.float32([[0.9, 0.8, 0.5]] * 4), np.array([[1, 2, 3]] * 4)
    found, labels = neighbours.Neighbours(cosine, index, None, None), np.array([0, 1, 0, 1])
    shares = neighbours.simifeat_shares(found, labels, 3)
    assert np.allclose(shares[:1], [[(1.0 + 0.8) / 3.2, (0.9 + 0.5) / 3.2, 0]])  # its own weight: 2 x 0.9 - 0.8
    many = neighbours.Neighbours(np.full((12, 11), 0.5, np.float32), np.tile(np.arange(1, 12), (12, 1)), None, None)
    shares = neighbours.simifeat_shares(many, np.array([0] * 10 + [1] * 2), 2)
    assert np.allclose(shares[0], [1, 0])  # of itself and nine others, as published; the tenth and eleventh have no say
    shares = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.3, 0.7]])
    score, mask = neighbours.simifeat_rank(shares, np.array([0, 0, 0, 1]), np.array([0.6, 0.0]))
    assert np.allclose(score[:2], [0.9 / np.hypot(0.9, 0.1), 0.5**0.5])
    assert mask.tolist() == [True, True, False, True]  # ceil(3 x 0.6), and one at least
    one, sure = np.column_stack([np.linspace(0.5, 1, 100), np.linspace(0.5, 0, 100)]), np.zeros(100, dtype=np.int64)
    for rate, trusted in ((0.98, 98), (1.2, 95), (-0.1, 5)):  # rates that cannot be are replaced
        assert neighbours.simifeat_rank(one, sure, np.array([rate]))[1].sum() == trusted


def test_label_transitions_of_clean_clusters():
    """Of an image and its neighbours with one true label, HOC finds how many labels of each class are right."""
    rng = np.random.default_rng(0)
    true, flip = np.repeat(np.arange(3), 3000), np.array([0.4, 0.2, 0.0])
    labels = np.where(rng.random(9000) < flip[true], (true + 1) % 3, true)
    index = np.concatenate([k * 3000 + rng.permuted(np.tile(np.arange(3000), (2, 1)), axis=1).T for k in range(3)])
    keep = neighbours.right_given_label(neighbours.Neighbours(None, index, None, None), labels, 3)
    truth = [np.mean(true[labels == k] == k) for k in range(3)]
    assert np.allclose(keep, truth, atol=0.05)


def test_lemon_against_a_loop():
    features, labels, is_clean, text = clusters(n=60)
    found = neighbours.find_neighbours(features, labels, 5)
    beta, gamma, tau_1, tau_2 = 5, 3, 0.1, 2
    d_mm = [1 - features[i] @ text[labels[i]] for i in range(60)]
    expected = []
    for i in range(60):
        s_n = np.mean(
            [
                (1 - text[labels[i]] @ text[labels[j]])
                * np.exp(-tau_1 * (1 - features[i] @ features[j]) - tau_2 * d_mm[j])
                for j in found.index[i]
            ]
        )
        peers = [j for j in range(60) if labels[j] == labels[i] and j != i]
        s_m = np.mean([(1 - features[i] @ features[j]) * np.exp(-tau_2 * d_mm[j]) for j in peers])
        expected.append(d_mm[i] + beta * s_n + gamma * s_m)
    score = neighbours.lemon_score(found, features, labels, text, beta, gamma, tau_1, tau_2)
    assert np.allclose(score, expected, atol=1e-4) and score[~is_clean].mean() > score[is_clean].mean()


def test_selfclean_and_fine_by_hand():
    found = neighbours.Neighbours(None, None, np.float32([0.8, 1, 1]), np.float32([0.6, 0.5, 1]))
    assert np.allclose(neighbours.intra_extra_ratio(found), [0.16 / (0.04 + 0.16), 1, 0.5], atol=1e-5)
    features = unit(np.array([[1, 0.1], [1, -0.1], [0.1, 1], [0, 1]], dtype=float))
    alignment = neighbours.eigenvector_alignment(features, np.array([0, 0, 2, 2]), 3)
    assert np.allclose(alignment[:2, 0], features[:2, 0] ** 2, atol=1e-5) and (alignment[:, 1] == 0).all()
    assert (alignment[2:, 2] > 0.98).all() and (alignment[2:, 0] < 0.05).all()


# --- training dynamics


def test_dynamics_by_hand():
    margins = np.array([[1, -1, -1, 1], [2, 1, -1, -1], [3, -1, -1, 2]], dtype=np.float32)
    assert np.allclose(dynamics.area_under_margin(margins), [2, -1 / 3, -1, 2 / 3])
    mask, p_clean = dynamics.by_forgetting(margins, 0)
    assert np.allclose(p_clean, [1, 1 / 3, 0, 2 / 3]) and mask.tolist() == [True, False, False, True]
    chance = np.array([[0.9], [0.1], [0.2], [0.3], [0.4], [0.5]])  # the first epoch does not count
    assert np.allclose(dynamics.by_mean_probability(np.repeat(chance, 2, 1), 0)[1], [0.3, 0.3])
    rng = np.random.default_rng(0)  # of many classes: wrong labels near 0.001, right ones near 0.05
    chance = np.exp(np.concatenate([rng.normal(-7, 0.7, 30), rng.normal(-3, 0.7, 70)]))
    mask, p_clean = dynamics.by_mean_probability(chance[None], 0)
    assert np.array_equal(mask, np.arange(100) >= 30) and np.array_equal(p_clean, chance)


def test_linear_probe_dynamics():
    features, labels, is_clean, _ = clusters(n=300)
    margins, probabilities, logits = dynamics.linear_probe_dynamics(features, labels, 4, seed=0, epochs=6)
    assert margins.shape == probabilities.shape == (6, 300) and logits.shape == (300, 4)
    rows, others = np.arange(300), logits.copy()
    others[rows, labels] = -np.inf
    assert np.allclose(margins[-1], logits[rows, labels] - others.max(1), atol=1e-5)
    assert margins.mean(0)[is_clean].min() > np.median(margins.mean(0)[~is_clean])
    again = dynamics.linear_probe_dynamics(features, labels, 4, seed=0, epochs=6)
    assert np.array_equal(margins, again[0])


# --- CLIPCleaner beside the golden numbers, and what a user can get wrong


def test_empty_classes_are_filled_with_the_best():
    selected = np.zeros(12, dtype=bool)
    selected[:3] = True
    labels, scores = np.repeat([0, 1, 2], 4), np.arange(12)
    filled = clipcleaner.fill_empty_classes(selected, scores, labels, 4)  # class 3 has no images
    assert np.flatnonzero(filled).tolist() == [0, 1, 2, 5, 6, 7, 9, 10, 11]
    official = clipcleaner.fill_empty_classes(selected, scores, labels, 4, official=True)
    assert np.flatnonzero(official).tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert clipcleaner.fill_empty_classes(np.zeros(12, dtype=bool), scores, labels, 3).sum() == 3


def test_inputs_that_do_not_belong_together():
    features, labels, _, text = clusters(n=20)
    bad = features.copy()
    bad[7, 3] = np.nan
    for args, message in [
        ((bad, labels, 4, text), "those of 1 images are not finite, the first is image 7"),
        ((features, labels[:19], 4, text), "20 images, but 19 labels; they belong to another data set"),
        ((features, labels, 4, text[:, :8]), "16 numbers an image, but the texts are 4 of 8, expected 4 of 16"),
        ((features, labels, 3, text[:3]), "labels: must lie between 0 and 2"),
    ]:
        with pytest.raises(UserError, match=message):
            make_inputs(*args)


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--theta_gmm=-0.1", "theta_gmm must be between 0 and 1"),
        ("--theta_cons=1.5", "theta_cons must be between 0 and 1"),
        ("--neighbours=0", "neighbours must be >= 1"),
        ("--target_precision=90", "target_precision must be between 0 and 1"),
        ("--review_budget=-5", "review_budget must be >= 0"),
        ("--fill_empty=lowest", "fill_empty must be one of highest, official"),
        ("--detector=lemmon", "unknown name 'lemmon'.* Did you mean lemon"),
    ],
)
def test_settings_out_of_range(flag, message):
    with pytest.raises(UserError, match=message):
        main_detect.main(["--cfg", "config/PEFT/digits.yaml", flag])


def test_descriptions(tmp_path):
    path = tmp_path / "descriptions.yaml"
    path.write_text("Tabby_Cat: [with stripes, asleep]\ndog: []\n")
    cat = ["a photo of a tabby cat with stripes.", "a photo of a tabby cat asleep."]
    texts = read_descriptions(path, ["tabby cat", "dog", "Tabby cat", "Cow"])
    assert texts == [
        cat,
        ["a photo of a dog."],
        cat,
        ["a photo of a cow."],
    ]  # a list each, in order, for equal names too
    path.write_text("template: '{feature} {class}'\ndog: [big]\n")
    assert read_descriptions(path, ["dog", "Cow"], ["a {}, a pet"]) == [["big dog"], ["a cow, a pet"]]
    for content, message in [
        ("dgo: [big]", "there is no class 'dgo'. Did you mean dog"),
        ("dog: big", "'dog' must have a list of features"),
        ("- dog", "expected lines of the form"),
        ("template: big\ndog: [x]", "template must have {class} and {feature}"),
        ("a: [", "not a YAML file"),
    ]:
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_descriptions(path, ["dog"])


def test_several_templates_are_summed_by_clipcleaner_and_averaged_elsewhere(tmp_path):
    flags = detection(tmp_path, "--detector", "clipcleaner", "--templates")
    texts = ["a photo of a {}.", "a scan of the number {}."]
    first, second, both = (
        load_inputs(cfg, load_data(cfg), torch.device("cpu"))[0]
        for cfg in (load_config([*flags, t], script="main_detect") for t in (*texts, ",".join(texts)))
    )
    summed = sum(np.exp(x.features @ x.text_features.T / 0.07) for x in (first, second))
    np.testing.assert_allclose(both.zero_shot, summed / summed.sum(1, keepdims=True), rtol=1e-4)
    mean = first.text_features + second.text_features
    np.testing.assert_allclose(both.text_features, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)


def test_a_run_with_descriptions(tmp_path):
    """They change what CLIPCleaner sees of the classes named; the others keep the template."""
    path, flags = tmp_path / "descriptions.yaml", detection(tmp_path, "--detector", "clipcleaner-zero-consistency")
    path.write_text("zero: [with a hole, like a ring]\none: [like a stick]\n")
    plain = main_detect.main(flags)
    described = main_detect.main([*flags, "--descriptions", str(path), "--tag", "described"])
    assert plain["auroc"] > 0.95 and described["auroc"] > 0.9 and plain["auroc"] != described["auroc"]
    path.write_text("zero: [like a ring]\n")
    with pytest.raises(UserError, match="descriptions: the run .* used other descriptions. To keep it, use --tag"):
        main_detect.main([*flags, "--descriptions", str(path), "--tag", "described"])
    path.write_text("zerro: [with a hole]\n")
    with pytest.raises(UserError, match="there is no class 'zerro'. Did you mean zero"):
        main_detect.main([*flags, "--descriptions", str(path), "--tag", "wrong"])
    with pytest.raises(UserError, match="gone.yaml: no such file"):
        main_detect.main([*flags, "--descriptions", str(tmp_path / "gone.yaml"), "--tag", "gone"])
    assert not list(tmp_path.glob("digits/*/*/*-wrong/clean_mask.npz"))
