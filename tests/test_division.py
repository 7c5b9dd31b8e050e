"""How the label-noise methods divide a training set, on constructed losses, probabilities and features."""

import numpy as np
import torch

from methods.dividemix import uniform_selection
from methods.mixfix import absorb_and_relabel, class_balanced_order
from methods.promix import class_small_loss, label_guessing
from methods.rolt import centroid_logits, prototype_detection
from methods.selection import class_mixtures


def test_uniform_selection_takes_as_many_of_each_class():
    labels = np.repeat([0, 1, 2], [6, 6, 2])
    d = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.05, 0.9, 0.95, 0.96, 0.97, 0.98, 0.99, 0.92])
    # the mean is 0.587 and lies below d_mu: 7 of 14 are below it, so int(7 / 3) = 2 of each class
    assert np.flatnonzero(uniform_selection(d, labels, 3)).tolist() == [0, 1, 6, 7, 12, 13]
    # above d_mu the cut-off falls to 0.587 - 0.587 / 1.5 = 0.196: 3 below it, one of each class
    assert np.flatnonzero(uniform_selection(d, labels, 3, d_mu=0.5, tau=1.5)).tolist() == [0, 6, 13]


def test_class_small_loss_is_a_share_of_an_even_class():
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    losses = np.array([5.0, 1, 4, 2, 3, 9, 7, 8])
    assert np.flatnonzero(class_small_loss(losses, labels, 2, 0.5)).tolist() == [1, 3, 6, 7]  # ceil(0.5 * 8 / 2) each
    assert np.flatnonzero(class_small_loss(losses, labels, 2, 1.0)).tolist() == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
    ]  # all of a small class
    assert class_small_loss(losses, labels, 2, 0.0).sum() == 2  # never none


def test_label_guessing_fills_up_to_a_share_with_the_most_confident():
    selected = torch.tensor([True, False, False, False, False, False, True, False, False, False])
    confidence = torch.tensor([1.0, 0.995, 0.999, 0.98, 0.997, 0.996, 1.0, 0.998, 0.5, 0.9999])
    agreed = torch.tensor([True] * 9 + [False])
    assert label_guessing(selected, confidence, agreed, 0.99, share=0.5).nonzero().flatten().tolist() == [2, 4, 7]
    assert label_guessing(selected, confidence, agreed, 0.99, share=0.9).nonzero().flatten().tolist() == [1, 2, 4, 5, 7]
    assert not label_guessing(~selected, confidence, agreed, 0.99, share=0.5).any()  # already more than that


def test_centroids_are_of_centred_unit_features_and_of_the_mask():
    features = torch.tensor([[3.0, 0.0], [0.0, 5.0], [-3.0, 0.0], [0.0, -5.0]]) + 7  # the mean is (7, 7)
    labels = torch.tensor([0, 0, 1, 1])
    logits = centroid_logits(features, labels, 3)
    # unit features (1, 0), (0, 1), …; centroids (1/2, 1/2) and (-1/2, -1/2)
    np.testing.assert_allclose(logits[0, :2], [-(0.5**0.5), -(2.5**0.5)], atol=1e-6)
    assert torch.isneginf(logits[:, 2]).all()
    masked = centroid_logits(features, labels, 3, torch.tensor([True, False, True, True]))
    np.testing.assert_allclose(masked[:2, 0], [0, -(2**0.5)], atol=1e-6)


def test_class_mixtures_judge_each_class_by_itself():
    rng = np.random.default_rng(0)
    # what is high in one class is low in the other
    scores = np.concatenate(
        [rng.normal(0, 0.1, 60), rng.normal(1, 0.1, 40), rng.normal(5, 0.1, 50), rng.normal(9, 0.1, 50)]
    )
    labels = np.repeat([0, 1, 2], [100, 100, 1])
    p_clean = class_mixtures(-np.append(scores, 3.0), labels, 0)
    assert (p_clean[:60] < 0.5).all() and (p_clean[60:100] > 0.5).all()
    assert (p_clean[100:150] < 0.5).all() and (p_clean[150:200] > 0.5).all() and p_clean[200] == 1


def test_prototypes_find_wrong_labels_by_their_features():
    rng = np.random.default_rng(0)
    truth = np.arange(600) % 3
    labels = np.where(rng.random(600) < 0.3, (truth + 1) % 3, truth)
    features = torch.from_numpy((np.eye(3)[truth] * 4 + rng.standard_normal((600, 3)) * 0.4 + 10).astype(np.float32))
    p_clean, logits = prototype_detection(features, torch.from_numpy(labels), 3)
    assert ((p_clean > 0.5) == (truth == labels)).mean() > 0.98
    assert (logits.argmax(1).numpy() == truth).mean() > 0.98
    # the second centroids are cleaner than the first: true samples lie nearer to them
    first = centroid_logits(features, torch.from_numpy(labels), 3)
    rows = torch.arange(600)
    assert logits[rows, truth].mean() > first[rows, truth].mean()


def test_mixfix_absorbs_by_one_threshold_and_relabels_by_another():
    p = torch.tensor([[0.75, 0.25], [0.65, 0.35], [0.95, 0.05], [0.85, 0.15], [0.1, 0.9], [0.5, 0.5]])
    labels = torch.tensor([0, 0, 1, 1, 1, 0])
    initial = torch.tensor([False, False, False, False, False, True])
    fixed, selected = absorb_and_relabel(p, labels, initial, theta_r=0.7, theta_r2=0.9)
    assert fixed.tolist() == [0, 0, 0, 1, 1, 0]  # only the third is surely another class
    assert selected.tolist() == [True, False, True, False, True, True]
    fixed, selected = absorb_and_relabel(p, labels, initial | True, theta_r=1.0, theta_r2=1.0)
    assert fixed.tolist() == labels.tolist() and selected.all()
    assert absorb_and_relabel(p, labels, initial, 0.7, 0.85)[0].tolist() == [0, 0, 0, 0, 1, 0]


def test_class_balanced_order_repeats_small_classes():
    labels = np.array([0] * 30 + [1] * 10 + [2] * 5)
    selected = np.ones(45, dtype=bool)
    selected[:10] = selected[44] = False
    order = class_balanced_order(labels, selected, 60, np.random.default_rng(0))  # 20 of each class
    assert selected[order].all() and np.bincount(labels[order]).tolist() == [20, 20, 20]
    counts = np.bincount(order, minlength=45)
    assert (counts[10:40].reshape(3, 10)[:2] == 1).all() and (counts[30:40] == 2).all() and (counts[40:44] == 5).all()
    assert len(class_balanced_order(labels, selected, 64, np.random.default_rng(0))) == 64
    assert np.bincount(labels[class_balanced_order(labels, selected, 30, np.random.default_rng(0))]).min() > 3
