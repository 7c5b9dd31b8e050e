"""Estimates of wrong labels, against the truth of scores that are drawn."""

import csv
import re
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import expit

import main_detect
from dataloader.load import load_data
from methods import estimates
from methods.decisions import RIGHT, UNDECIDED, WRONG
from methods.estimates import calibration, estimate
from report import estimate as command
from report.suspects import read_run
from scripts import detector_table
from scripts.estimate_table import by_noise
from tests.helpers import CELL, FAST, detection
from utils.config import load_config
from utils.errors import UserError
from utils.files import write_csv


def drawn(n=3000, share=0.3, seed=0):
    """p_clean of two overlapping groups, and which labels are wrong."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < share
    return expit(rng.normal(np.where(wrong, -3, 3), 1.5)), wrong


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_estimates_from_the_scores_alone(share):
    p_clean, wrong = drawn(share=share)
    found = estimate(p_clean)
    expected, low, high = found.wrong()
    assert low <= wrong.sum() <= high and abs(expected - wrong.sum()) < 0.05 * len(wrong)
    assert found.source == "from the scores alone" and np.array_equal(found.order, np.argsort(p_clean))
    n = found.suspects_for(0.9)
    assert wrong[found.order[:n]].mean() > 0.85 and n > 0.7 * wrong.sum() and found.suspects_for(0.0) == len(wrong)
    among, _, _ = found.wrong_among(100)
    assert 85 < among <= 100


def test_checked_labels_mend_misleading_scores():
    """Half of what the scores call surely wrong is right: labels checked throughout the list say so, where they are."""
    p_clean, wrong = drawn()
    wrong = wrong & (np.random.default_rng(1).random(len(wrong)) < 0.5)
    blind = estimate(p_clean)
    spread = blind.order[np.linspace(0, len(wrong) - 1, 120).astype(int)]
    found = estimate(p_clean, {int(i): bool(wrong[i]) for i in spread})
    assert found.source == "from 120 checked labels and the scores"
    _, low, high = found.wrong()
    assert low <= wrong.sum() <= high and abs(found.wrong()[0] - wrong.sum()) < 0.3 * abs(
        blind.wrong()[0] - wrong.sum()
    )
    assert high - low < 0.5 * (blind.wrong()[2] - blind.wrong()[1])
    assert found.suspects_for(0.9) < 100 < 600 < blind.suspects_for(0.9)
    assert np.array_equal(found.p_wrong[spread], wrong[spread])
    top = estimate(p_clean, {int(i): bool(wrong[i]) for i in blind.order[:50]})  # says much of its own group alone
    assert 0.3 < top.p_wrong[blind.order[50:250]].mean() < 0.7
    assert abs(top.p_wrong[blind.order[1000:]].mean() - blind.p_wrong[blind.order[1000:]].mean()) < 0.02


@pytest.mark.parametrize("n", [100, 500, 1500])
def test_a_review_from_the_top_leaves_the_rest_uncertain(n):
    """Scores that the mixture misjudges: a third of what looks wrong is right, and one in 20 of what looks right is wrong."""
    held = 0
    for seed in range(10):
        p_clean, group = drawn(seed=seed)
        wrong = np.random.default_rng(seed + 100).random(len(group)) < np.where(group, 0.67, 0.05)
        found = estimate(p_clean, {int(i): bool(wrong[i]) for i in np.argsort(p_clean)[:n]})
        held += found.wrong()[1] <= wrong.sum() <= found.wrong()[2]
    assert held >= 8


@pytest.mark.parametrize("share", [0, 0.02])
def test_a_sample_says_that_few_labels_are_wrong(share):
    """The scores of right labels fall into two groups as well: what a sample says of all outweighs them."""
    p_clean, group = drawn()
    wrong = group & (np.random.default_rng(1).random(len(group)) < share / 0.3)
    blind = estimate(p_clean)
    assert 800 < blind.wrong()[0]
    found = estimate(p_clean, {int(i): bool(wrong[i]) for i in estimates.spread(p_clean)})
    expected, low, high = found.wrong()
    assert round(low) <= wrong.sum() <= high < 0.06 * len(wrong) and abs(expected - wrong.sum()) < 0.015 * len(wrong)
    assert found.suspects_for(0.9) <= wrong[estimates.spread(p_clean)].sum()


def test_decisions_about_copies_with_different_labels_say_nothing_of_the_rest(monkeypatch):
    """One of each pair is wrong: known of these, and no sample of all labels."""
    p_clean, wrong = drawn(share=0.05)
    sample, rest = estimates.spread(p_clean), np.setdiff1d(np.arange(3000), estimates.spread(p_clean))
    pairs = rest[np.argsort(p_clean[rest])][::50].reshape(-1, 2)
    monkeypatch.setattr(estimates, "differing_copies", lambda data: pairs.tolist() + [sample[:2].tolist()])
    decision = np.full(3000, UNDECIDED)
    decision[sample] = np.where(wrong[sample], WRONG, RIGHT)
    before = estimates.of_run({"p_clean": p_clean, "decision": decision}, None)
    decision[pairs] = [WRONG, RIGHT]
    found = estimates.of_run({"p_clean": p_clean, "decision": decision}, None)
    others = np.setdiff1d(rest, pairs)
    assert np.array_equal(found.p_wrong[others], before.p_wrong[others])
    assert (found.p_wrong[pairs] == [1, 0]).all() and found.source == "from 100 checked labels and the scores"


@pytest.mark.parametrize("share", [0.0, 0.02, 0.4])
def test_the_sample_holds_the_truth_whatever_the_scores_are(share):
    rng, held = np.random.default_rng(0), 0
    for _ in range(100):
        p_clean, decision = rng.random(2000), np.zeros(2000, dtype=np.int64)
        wrong, of_sample = rng.random(2000) < share, estimates.spread(p_clean)
        decision[of_sample] = np.where(wrong[of_sample], WRONG, RIGHT)
        bad, n, low, high = estimates.of_sample({"p_clean": p_clean, "decision": decision})
        assert n == 100 and bad == wrong[of_sample].sum()
        held += low <= wrong.mean() <= high
    assert held >= 90
    assert share or (bad, low, round(high, 4)) == (0, 0, 0.0295)  # 1 - 0.05 ** (1 / 100)
    decision[of_sample[-20:]] = UNDECIDED  # the worst of a sample alone would say too much
    assert estimates.of_sample({"p_clean": p_clean, "decision": decision}) is None


def test_what_was_skipped_in_the_sample_may_be_right_or_wrong():
    p_clean, decision = np.arange(1000) / 1000, np.zeros(1000, dtype=np.int64)
    sample = estimates.spread(p_clean)
    decision[sample[:90]] = np.where(np.arange(90) < 30, WRONG, RIGHT)
    wrong, checked, low, high = estimates.of_sample({"p_clean": p_clean, "decision": decision})
    bounds = []
    for others in (RIGHT, WRONG):
        decision[sample[90:]] = others
        bounds.append(estimates.of_sample({"p_clean": p_clean, "decision": decision}))
    assert (wrong, checked) == (30, 90) and (low, high) == (bounds[0][2], bounds[1][3])


def test_the_worst_label_of_a_long_list_is_not_always_in_the_sample():
    """A few wrong labels, all ranked first: one of them in each sample would say that there are ten times as many."""
    p_clean, wrong = np.arange(100_000) / 1e5, np.arange(100_000) < 10
    decision = np.where(wrong, WRONG, RIGHT)
    found, checked, low, high = estimates.of_sample({"p_clean": p_clean, "decision": decision})
    assert (found, checked) == (0, 100) and low <= wrong.mean() <= high
    assert np.array_equal(estimates.spread(p_clean[:7]), np.arange(7))


def test_decisions_that_the_estimate_leaves_out_are_not_what_it_is_from(monkeypatch):
    p_clean, _ = drawn(share=0.05)
    pair = np.setdiff1d(np.arange(3000), estimates.spread(p_clean))[:2]
    monkeypatch.setattr(estimates, "differing_copies", lambda data: [pair.tolist()])
    decision = np.full(3000, UNDECIDED)
    decision[pair] = [WRONG, RIGHT]
    assert estimates.of_run({"p_clean": p_clean, "decision": decision}, None).source == "from the scores alone"


def test_limits_of_the_suspects(capsys):
    p_clean, wrong = drawn()
    selection = {"mask": p_clean > 0.5, "p_clean": p_clean}

    def limit_suspects(selection, review_budget=0, target_precision=0.0):
        cfg = SimpleNamespace(review_budget=review_budget, target_precision=target_precision)
        return estimates.limit_suspects(selection, cfg)

    assert limit_suspects(selection) is selection
    limited = limit_suspects(selection, review_budget=50)["mask"]
    assert np.array_equal(np.flatnonzero(~limited), np.sort(np.argsort(p_clean)[:50]))
    precise = limit_suspects(selection, target_precision=0.95)["mask"]
    assert 300 < (~precise).sum() < 900 and wrong[~precise].mean() > 0.95
    assert (~limit_suspects(selection, 50, 0.95)["mask"]).sum() == 50
    assert limit_suspects(selection, review_budget=10_000)["mask"].sum() == 0
    capsys.readouterr()
    assert limit_suspects(selection, target_precision=1.0)["mask"].all()  # nothing is expected to be that good: said
    assert re.match(
        r"suspects: none; the first 100, of which 9\d \(9\d %\) .* from the scores alone", capsys.readouterr().out
    )


def test_calibration_by_hand_and_degenerate_scores():
    rows, error = calibration(np.array([0.05, 0.05, 0.95, 1.0]), np.array([False, True, True, True]))
    assert rows == [(0.05, 0.5, 2), (pytest.approx(0.975), 1.0, 2)] and error == pytest.approx(
        (2 * 0.45 + 2 * 0.025) / 4
    )
    p_clean, wrong = np.random.default_rng(0).random((2, 20_000))
    wrong = wrong < 0.5
    with np.errstate(invalid="raise"):  # of so many labels the likelihood itself is 0
        half = estimate(p_clean, dict(enumerate(wrong[:10_000].tolist())))
    assert abs(half.wrong()[0] - wrong.sum()) < 200
    for p_clean in (np.full(20, 0.7), np.array([0.3]), np.array([0.0, 1.0])):
        found = estimate(p_clean)
        assert np.isfinite(found.p_wrong).all() and 0 <= found.wrong()[1] <= found.wrong()[2] <= len(p_clean)


def test_the_table_of_noises_has_each_noise_of_all_seeds():
    """Cells are in the order of the seeds, rows in that of the noises; with scores that mislead, the interval misses."""
    honest = [drawn(share=share, seed=seed) for seed in (0, 1) for share in (0.1, 0.2)]
    noises = (("digits", "sym", 0.1), ("cifar10", "aggre", 0.09))
    places = [(noise, seed) for seed in (0, 1) for noise in noises]
    cells = {
        place: {"good": p_clean, "bad": 1 - p_clean, "wrong": wrong} for place, (p_clean, wrong) in zip(places, honest)
    }
    rows = [line.strip("| ").split(" | ") for line in by_noise(("good", "bad"), noises, cells).splitlines()[2:]]
    for (dataset, noise, true, good, bad), (place, name, share) in zip(
        rows, (("digits", "sym 0.1", 10), ("cifar10", "aggre", 20)), strict=True
    ):
        assert (dataset.strip(), noise.strip()) == (place, name) and abs(float(true) - share) < 3
        assert good.endswith("(2 of 2)") and bad.endswith("(0 of 2)")
        assert abs(float(good.split()[0]) - share) < 5 and abs(float(bad.split()[0]) - (100 - share)) < 6


def test_the_command_and_the_settings(tmp_path, capsys):
    summary = main_detect.main(detection(tmp_path, "--detector", "lemon"))
    run, wrong = tmp_path / "digits/sym-0.4/seed0/lemon", summary["noise_rate"] * 359
    out = command.main([str(run), "--review_budget", "50", "--target_precision", "0.9"])
    text = capsys.readouterr().out
    assert out["wrong"][1] <= wrong <= out["wrong"][2] and out[50][0] > 45 and 90 < out["suspects"] < 180
    assert (
        f"review the sample of all labels (python -m report.review {run}, under Show)" in text
        and "the first 50, of which" in text
    )
    assert out["calibration_error"] < 0.1
    assert (run / "calibration.png").stat().st_size > 5000
    rows = list(csv.DictReader((run / "scores.csv").open(encoding="utf-8")))
    by_index, rows = rows, sorted(rows, key=lambda row: float(row["label_score"]))[::6]
    keys = ("id", "path", "content", "given_label")
    for row in rows:
        row["decision"] = "right" if row["given_label"] == row["true_label"] else "wrong"
    lines = [(*keys, "decision"), *([row[k] for k in (*keys, "decision")] for row in rows)]
    write_csv(tmp_path / "decisions.csv", lines)
    ticked = command.main([str(run), "--decisions", str(tmp_path / "decisions.csv")])
    assert ticked["source"] == f"from {len(rows)} checked labels and the scores" in capsys.readouterr().out
    assert ticked["wrong"][1] <= wrong <= ticked["wrong"][2]
    found, truth = (
        estimates.of_run(*read_run(run)[1:3]),
        np.array([r["given_label"] != r["true_label"] for r in by_index]),
    )
    open_ = ~found.checked  # what is decided is certain, and would flatter the estimate
    assert ticked["calibration_error"] == estimates.calibration(found.p_wrong[open_], truth[open_])[1]
    assert ticked["calibration_error"] > 1.05 * estimates.calibration(found.p_wrong, truth)[1]
    assert ticked["wrong"][2] - ticked["wrong"][1] < out["wrong"][2] - out["wrong"][1]
    limited = main_detect.main(detection(tmp_path, "--detector", "lemon", "--review_budget", "20", "--tag", "few"))
    assert limited["selected"] == 1 - 20 / 359 and limited["precision_mislabelled"] == 1
    for flags, message in [
        (["--review_budget", "many"], "--review_budget: expected a whole number, not 'many'"),
        (["--target_precision", "1.5"], "--target_precision: expected a number from 0 to 1, not '1.5'"),
    ]:
        with pytest.raises(UserError, match=message):
            command.main([str(run), *flags])
    with pytest.raises(UserError, match="target_precision must be between 0 and 1"):
        main_detect.main(detection(tmp_path, "--target_precision", "90"))


def test_rows_of_deft_share_one_training(tmp_path, monkeypatch):
    monkeypatch.setattr(detector_table, "DEFT", {"deft": {}, "deft, mask_epochs 2": {"mask_epochs": 2}})
    cfg = load_config(["--cfg", "config/PEFT/digits.yaml", *CELL, *FAST, "--output_dir", str(tmp_path)])
    data = load_data(cfg)
    ((_, alone, _),) = detector_table.deft_rows(["deft"], cfg, data)
    (_, first, _), _ = detector_table.deft_rows(["deft", "deft, mask_epochs 2"], cfg, data)
    assert np.array_equal(alone["p_clean"], first["p_clean"])
