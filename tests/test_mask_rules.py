"""Phase 1's mask by other rules than the published one, and `auto`."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

import main_detect
import main_phase1
from methods import deft
from methods.deft import final_selection, trusted_by_both
from methods.detectors import DETECTORS, discriminant_margin, text_tells, what_auto_uses
from methods.losses import negative_prompt_loss
from methods.selection import clean_probability, select_clean, two_groups
from model.clip import load_clip
from tests.helpers import clusters, detection, make_inputs, phase1, unit
from utils.config import load_config
from utils.errors import UserError


def by_rule(records, labels, **settings):
    default = {"mask_by": "pair", "require_agreement": False, "seed": 0}
    return final_selection(records, labels, SimpleNamespace(**default | settings))


def test_agreement_where_several_p_yes_round_to_1():
    """With a logit scale of 100 the pair may lie 20 apart: the label is not refused for its number."""
    logits = torch.tensor([[18.0, 25.0, 0.0], [25.0, 4.0, 0.0], [4.0, 5.0, 0.0]])
    selected, _ = select_clean(clean_probability(logits, torch.zeros(3, 3)), torch.tensor([1, 1, 0]), True)
    assert selected.tolist() == [True, False, False]


def test_neg_weight_is_of_the_term_of_the_given_label():
    weight = deft.epoch_rules(load_config(["--neg_weight", "0.5"]), 1).neg_weight
    loss = negative_prompt_loss(torch.tensor([[0.8, 0.1]]), torch.tensor([1]), torch.tensor([0]), weight)
    assert loss.item() == pytest.approx(-np.log(0.9) - 0.5 * np.log(0.8), abs=1e-6)


def test_rules_of_the_final_mask():
    rng, labels = np.random.default_rng(0), np.zeros(200, dtype=np.int64)
    right = np.arange(200) < 120
    margin = np.where(right, 4, -4) + rng.normal(0, 0.5, (3, 200))
    p_clean = 1 / (1 + np.exp(-margin - 6))  # well ordered, but all above 0.5
    predicted = np.where(right, 0, 1)[None].repeat(3, 0)
    predicted[:2] = 1  # the last epoch counts
    records = {"mask": p_clean > 0.5, "p_clean": p_clean, "predicted": predicted, "margin": margin}
    records["confidence"] = rng.random((3, 200))
    last = {k: v[-1:] for k, v in records.items()}
    published = by_rule(last, labels)
    assert np.array_equal(published["mask"], last["mask"][0]) and np.array_equal(published["p_clean"], p_clean[-1])
    assert np.array_equal(published["confidence"], records["confidence"][-1])
    for rule in ("margin", "threshold", "positive"):
        assert np.array_equal(by_rule(records, labels, mask_by=rule)["mask"], right), rule
    several = {
        **last,
        "p_clean": np.array([[0.9, 0.4], [0.3, 0.4], [0.4, 0.9]]),
        "mask": np.array([[1, 0], [0, 0], [0, 1]]) > 0,
    }
    assert by_rule(several, labels[:2])["mask"].tolist() == [True, True]  # means 0.53 and 0.57
    assert by_rule(several, labels[:2], require_agreement=True)["mask"].tolist() == [False, False]
    both = trusted_by_both(published, {"mask": right, "p_clean": np.ones(200)})
    assert np.array_equal(both["mask"], right) and np.allclose(both["p_clean"], (p_clean[-1] + 1) / 2)


def test_scored_labels_follow_the_same_rule(monkeypatch):
    records = {
        "mask": np.array([[True, True]]),
        "p_clean": np.array([[0.9, 0.8]]),
        "predicted": np.zeros((1, 2)),
        "confidence": np.ones((1, 2)),
    }
    asked = []
    monkeypatch.setattr(
        deft,
        "run_detector",
        lambda cfg, data, device: (
            asked.append(cfg.detector),
            {"mask": np.array([True, False]), "p_clean": np.ones(2)},
        )[1:],
    )
    monkeypatch.setattr(deft, "load_detector", lambda *args: torch.nn.Identity())
    monkeypatch.setattr(deft, "score_records", lambda *args: {k: torch.from_numpy(v[0]) for k, v in records.items()})
    data = SimpleNamespace(train=SimpleNamespace(labels=np.zeros(2, dtype=np.int64)), classnames=["a", "b"])
    run = SimpleNamespace(folder=Path("deft/score-test"), device=None)
    for name, mask in (("", [True, True]), ("knn", [True, False])):
        cfg = SimpleNamespace(mask_by="pair", require_agreement=False, seed=0, agree_with=name)
        assert deft.score_labels(cfg, data, run)["mask"].tolist() == mask
    assert asked == ["knn"]


def test_phase_1_with_every_rule(tmp_path, cell):
    """`mask_by` and `agree_with` change the mask, not the training; the default is the published mask."""
    out, summaries = cell
    flags = ["--mask_view", "eval", "--mask_epochs", "2", "--mask_by", "margin", "--agree_with", "knn"]
    other = main_phase1.main(phase1(tmp_path, *flags))
    assert other["acc_last"] == summaries["deft"]["acc_last"] and other["f1"] > summaries["deft"]["f1"]
    cfg = load_config(phase1(tmp_path, "--ctx_init", "a photo of a"))
    clip, tokenizer = load_clip(cfg.backbone)
    start = deft.build_detector(cfg, ["one", "two"], torch.device("cpu")).prompts.pos_ctx
    assert torch.equal(start, clip.token_embedding(tokenizer(["a photo of a"])[0, 1:5]))
    for more, message in [
        (("--ctx_init", "a photo"), "ctx_init: 'a photo' is 2 tokens long, but n_ctx is 4"),
        (("--agree_with", "kn"), "agree_with: unknown name 'kn'.*Did you mean knn"),
        (("--templates", "a photo,{}"), "templates: 'a photo' has no {}"),
    ]:
        with pytest.raises(UserError, match=message):
            main, flags = (main_detect.main, detection) if "templates" in more[0] else (main_phase1.main, phase1)
            main(flags(tmp_path, *more, "--tag", "wrong"))


def test_auto_gives_texts_more_weight_where_they_tell_more_than_the_neighbours():
    features, labels, is_clean, text = clusters(n=600, K=12, wrong=0.5, spread=1.3)
    inputs = make_inputs(features, labels, 12, text)
    right = {name: (DETECTORS[name].find(inputs).mask == is_clean).mean() for name in ("auto", "lemon", "knn")}
    assert what_auto_uses(inputs).startswith("LEMoN and zero-shot margins, then neighbours")
    assert right["auto"] > right["lemon"] + 0.02 > right["knn"] + 0.02


def test_auto_ranks_by_directions_that_tell_classes_apart():
    """Where features differ most in what says nothing of the class, a linear discriminant knows; cosines do not."""
    for n, D, seed, least in ((600, 16, 0, 0.985), (400, 12, 2, 0.9)):  # without it 0.97 and 0.87
        rng = np.random.default_rng(seed)
        centres = np.zeros((4, D))
        centres[:, :-4] = rng.normal(0, 1, (4, D - 4))
        true = rng.integers(0, 4, n)
        features = centres[true] + rng.normal(0, 0.25, (n, D))
        features[:, -4:] += rng.normal(0, 4, (n, 4))
        labels = np.where(rng.random(n) < 0.2, (true + rng.integers(1, 4, n)) % 4, true)
        found = DETECTORS["auto"].find(make_inputs(unit(features), labels, 4, unit(centres)))
        assert average_precision_score(labels != true, -found.p_clean) > least


def test_discriminant_margins():
    rng = np.random.default_rng(0)
    true, labels = np.repeat([0, 1, 3], 40), np.repeat([0, 1, 3], 40)
    features = np.eye(4, 5)[true] + rng.normal(0, 0.1, (120, 5))
    labels[:6], labels[40:44] = 1, 2  # 2 has no trusted image
    margin = discriminant_margin(features, labels, labels == true)
    assert np.array_equal(margin > 0, labels == true)
    two = np.arange(120) < 80
    assert np.array_equal(
        discriminant_margin(features[two], labels[two], (labels == true)[two]) > 0, (labels == true)[two]
    )
    assert not discriminant_margin(features, labels, labels == 0).any()  # one class
    assert not discriminant_margin(features, labels, np.isin(np.arange(120), (20, 60, 100))).any()  # an image of each
    single = (labels == true) & ((true != 1) | (np.arange(120) == 50))  # one trusted image of class 1
    assert np.isfinite(discriminant_margin(features, labels, single)).all()


def test_two_groups_keep_the_order_of_scores_in_single_precision():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0, 1, 100), rng.normal(5, 1, 900)]).astype(np.float32)
    assert np.array_equal(np.argsort(two_groups(scores, 0)), np.argsort(scores))


def test_auto_falls_back_where_the_texts_tell_nothing():
    features, labels, is_clean, text = clusters(n=400, wrong=0.4, spread=0.6)
    inputs = [make_inputs(features, labels, 4, *texts) for texts in ([text], [text[[1, 2, 3, 0]]], [])]
    good, shuffled, without = (DETECTORS["auto"].find(x) for x in inputs)
    for x, words in zip(inputs, ("LEMoN, then", "too little to use the texts", "this encoder has no texts")):
        assert words in what_auto_uses(x)
    assert (good.mask == is_clean).mean() > 0.97
    assert all(np.array_equal(a, b) for a, b in zip(shuffled, without)) and (without.mask == is_clean).mean() > 0.95
    predicted = np.eye(4)[(labels + 1) % 4]  # never right: below chance counts as chance
    for logits, tells in ((predicted, 0), (np.eye(4)[labels], 1)):
        zero_shot = SimpleNamespace(text_features=text, logits=logits, labels=labels)
        assert text_tells(zero_shot, np.eye(4)[labels]) == tells
