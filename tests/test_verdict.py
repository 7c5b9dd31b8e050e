"""Whether a detector's result can be used: said in its record, on the screen, in the page, in tables, and before phase 2."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import main_detect
import main_phase2
from methods.masks import say_lost_classes
from methods.verdict import agreement, contrast, evidence, judge, trained_evidence
from report import page, tables
from tests import recipe
from tests.helpers import detection, golden, phase2, write_clip
from utils.errors import UserError


@pytest.fixture(scope="module")
def blind_run(tmp_path_factory):
    """Label-match with a random CLIP, which knows nothing of the classes; its output_dir, flags, folder and screen."""
    _, meta = golden("detector_forward_end")
    out = tmp_path_factory.mktemp("blind")
    clip = write_clip(out / "clip", recipe.clip_weights(meta["clip_seed"], **meta["clip_config"]), meta["clip_config"])
    main_detect.main(detection(out / "runs", "--backbone", clip))
    return out / "runs", out / "runs/digits/sym-0.4/seed0/label-match"


def test_a_clip_that_knows_nothing_is_not_usable_and_says_so_everywhere(blind_run, capsys):
    out, folder = blind_run
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["verdict"]["level"] == "not usable" and "no better than guessing" in summary["verdict"]["why"]
    assert "confident-learning" in summary["verdict"]["instead"]
    page.main([str(folder)])
    screen = capsys.readouterr().out
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert screen.startswith("not usable: zero-shot predictions agree with") and "labels look wrong" not in html
    assert html.index("<h1>Not usable") < html.index("no better than guessing") < html.index("<section")
    assert [row[3] for row in tables.make_table([summary])] == ["verdict", "not usable"]
    with pytest.raises(
        UserError, match="none takes the classifier of phase 1"
    ):  # after the warning, nothing to wait for
        main_phase2.main(phase2(out, "--mask", "label-match", "--adaptation", "none"))
    assert f"warning: {folder}/clean_mask.npz: not usable: " in capsys.readouterr().out


def test_the_digits_are_usable(cell, capsys):
    out, summaries = cell
    assert summaries["label-match"]["verdict"]["level"] == "usable"
    main_detect.main(detection(out))
    first = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(first) if line.startswith("already finished"))
    assert (
        first[at + 1].startswith("usable: zero-shot predictions agree with") and "(guessing: 10.0 %)" in first[at + 1]
    )
    assert "verdict" not in summaries["ce-tiny-clip-digits"]  # selects nothing


LABELS = np.repeat(np.arange(4), 500)
DATA = SimpleNamespace(train=SimpleNamespace(labels=LABELS), num_classes=4, label_names=list("abcd"), tests={})
TRUSTED = np.random.default_rng(0).random(2000) < 0.8


def known(part):
    """Evidence of predictions that agree with that part of each class's labels."""
    return agreement("predictions", np.where(np.arange(2000) % 500 < 500 * part, LABELS, (LABELS + 1) % 4), LABELS)


@pytest.mark.parametrize(
    "part, level", [(0.26, "not usable"), (0.3, "doubtful"), (0.36, "usable"), (0.6, "usable"), (1.0, "usable")]
)
def test_predictions_against_guessing(part, level):
    assert judge(DATA, TRUSTED, {"trained": known(part)}, {})["level"] == level


def test_a_constant_prediction_is_guessing_whatever_the_shares():
    labels = np.repeat(np.arange(4), (900, 50, 30, 20))
    assert np.mean(labels == 0) == 0.9
    constant = agreement("predictions", np.zeros(1000, dtype=int), labels)
    assert constant["accuracy"] == constant["chance"] == 0.25
    data = SimpleNamespace(**vars(DATA) | {"train": SimpleNamespace(labels=labels)})
    verdict = judge(data, labels == 0, {"neighbours": constant}, {})
    assert verdict["level"] == "not usable"  # though it agrees with 90 % of all labels
    assert "agree with 25.0 % of 1,000 labels, averaged over the classes (guessing: 25.0 %)" in verdict["why"]


def test_guessing_passes_its_bound_rarely():
    rng, passed = np.random.default_rng(0), 0
    for _ in range(1000):
        known = agreement("", rng.choice(4, 2000, p=[0.4, 0.3, 0.2, 0.1]), LABELS)
        passed += known["lower"] > known["chance"]
    assert 0 < passed <= 20


def test_classes_of_few_labels_say_nothing():
    rng, passed = np.random.default_rng(0), 0
    labels = np.repeat(np.arange(5), (100, 100, 1, 1, 1))
    for _ in range(1000):
        known = agreement("", rng.integers(5, size=len(labels)), labels)
        passed += known["lower"] > known["chance"]
    assert passed <= 20 and known["images"] == 200
    for counts in ([4, 3, 3, 3], [4, 4, 4, 4, 4, 6], [500, 4], [6, 6, *[4] * 9]):  # where too little would be left
        labels = np.repeat(np.arange(len(counts)), counts)
        known = agreement("", labels, labels)
        assert known["images"] == sum(counts) and known["lower"] > known["chance"] == 1 / len(counts)


def test_the_other_reasons():
    good = {"trained": known(0.9)}
    collapsed = judge(DATA, TRUSTED, good, {"acc_best": 80.0, "acc_last": 60.0})
    assert collapsed["level"] == "not usable" and collapsed["why"] == "the test accuracy fell from 80.0 % to 60.0 %"
    assert judge(DATA, TRUSTED, good, {"acc_best": 80.0, "acc_last": 65.0})["level"] == "usable"
    for kept, level in ((0.05, "not usable"), (0.25, "doubtful"), (0.35, "usable")):
        found = judge(DATA, np.arange(2000) % 500 < 500 * kept, good, {})
        assert found["level"] == level and ("suspect" in found["why"]) == (level != "usable")
    none_of_half = judge(DATA, TRUSTED & (LABELS % 2 == 0), good, {})
    assert none_of_half["level"] == "not usable" and "confident-learning" in none_of_half["instead"]
    none_of_b = judge(DATA, TRUSTED & (LABELS != 1), good, {})
    assert none_of_b["level"] == "doubtful" and none_of_b["why"] == "no label of the class b is trusted"
    poor_names = judge(DATA, TRUSTED, {"zero-shot": known(0.5), "neighbours": known(0.9)}, {})
    assert poor_names["level"] == "doubtful" and "poorly by name" in poor_names["why"]
    assert judge(DATA, TRUSTED, {"zero-shot": known(0.8), "neighbours": known(0.9)}, {})["level"] == "usable"


def test_a_training_is_judged_by_its_test_images_else_by_its_own_predictions():
    selection = {"predicted": LABELS, "mask": TRUSTED}
    tested = SimpleNamespace(**vars(DATA) | {"tests": {"test": SimpleNamespace(labels=LABELS[::2])}})
    by_test = trained_evidence(tested, selection, [100.0, 50.0, 0.0, 50.0])["trained"]
    assert by_test["accuracy"] == 0.5 and by_test["images"] == 1000 and by_test["chance"] == 0.25
    own = trained_evidence(DATA, selection, None)
    assert own["trained"]["accuracy"] == 1  # as of a network that learnt any labels by heart
    verdict = judge(DATA, TRUSTED, own, {})
    assert (
        verdict["level"] == "doubtful"
        and "but the network was trained on them, and there are no test images" in verdict["why"]
    )
    scored = trained_evidence(DATA, selection, None, scored=True)
    assert judge(DATA, TRUSTED, scored, {})["level"] == "usable"
    wrong = np.arange(2000) % 5 == 0
    predicted, expected = np.where(wrong, (LABELS + 1) % 4, LABELS), {"usable": ~wrong, "not usable": TRUSTED}
    for level, mask in expected.items():  # a mask that has to do with the predictions, and one that has not
        of_mask = trained_evidence(tested, {"predicted": predicted, "mask": mask}, [100.0, 90.0, 90.0, 90.0])
        assert judge(DATA, mask, of_mask, {})["level"] == level
    for mask in (np.ones(2000, bool), np.zeros(2000, bool), np.arange(2000) > 10):  # too few of one kind to tell
        assert trained_evidence(DATA, {"predicted": predicted, "mask": mask}, None)["trained"]["contrast"] is None
    for mask, level in (
        (~wrong, "usable"),
        (wrong, "not usable"),
    ):  # without training, the mask of a detector upside down
        known_of = {"neighbours": known(0.9) | {"contrast": contrast(mask, predicted, LABELS)}}
        assert judge(DATA, mask, known_of, {})["level"] == level
    assert evidence("", np.array([0, 3, 0]), np.array([0, 4, 4]))["chance"] == 0.5  # of the classes that are there


def test_classes_that_phase_2_does_not_know_are_named(capsys):
    data = SimpleNamespace(**vars(DATA) | {"num_classes": 5, "label_names": list("abcde")})  # e has no label at all
    say_lost_classes(data, TRUSTED)
    assert capsys.readouterr().out == ""
    say_lost_classes(data, TRUSTED & (LABELS != 1) & (LABELS != 3))
    assert "warning: the model will not know b, d: no label of these classes is trained on" in capsys.readouterr().out
