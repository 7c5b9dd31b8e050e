"""CLIPCleaner's selection compared with reference values of the authors' code (tests/golden/clipcleaner.npz)."""

import json
from pathlib import Path

import numpy as np
import pytest

from methods import clipcleaner

GOLDEN = np.load(Path(__file__).parent / "golden" / "clipcleaner.npz", allow_pickle=False)
META = json.loads(str(GOLDEN["meta"]))
K = META["num_classes"]
NAMES = {
    "zero-gmm": ("score_zero_perclass_celoss", "select_zeroshot_perclassgmm"),
    "zero-consistency": ("score_zero_consistency", "select_zeroshot_consistency"),
    "lr-gmm": ("score_lr_perclass_celoss", "select_visuallr_perclassgmm"),
    "lr-consistency": ("score_lr_consistency", "select_visuallr_consistency"),
}


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("case", ["plain", "strict", "empty_class"])
def test_probabilities_scores_and_selections(case):
    features, labels = unit(GOLDEN["features"]), GOLDEN[f"{case}/labels"]
    owner = np.repeat(np.arange(K), GOLDEN["prompts_per_class"])
    zero_shot = clipcleaner.zero_shot_probability(features, unit(GOLDEN["text_features"]), owner, K)
    visual = clipcleaner.visual_probability(features, labels, K)
    assert np.allclose(zero_shot, GOLDEN[f"{case}/prediction_zero"], atol=1e-5)
    assert np.allclose(visual, GOLDEN[f"{case}/prediction_lr"], atol=1e-3)
    facts = META["cases"][case]
    p_of = {name: zero_shot if name.startswith("zero") else visual for name in clipcleaner.CRITERIA}
    scores = clipcleaner.criterion_scores(p_of, labels, META["numpy_seed"])
    thetas = {name: facts["theta_gmm" if name.endswith("gmm") else "theta_cons"] for name in p_of}
    for name, (score, selection) in NAMES.items():
        if name.endswith("gmm"):  # the file holds what the mixtures are fitted to
            log_p = clipcleaner.log_probability(zero_shot if name == "zero-gmm" else visual, labels)
            assert np.allclose(clipcleaner.scaled_within_class(log_p, labels), GOLDEN[f"{case}/{score}"], atol=1e-3)
        else:
            assert np.allclose(scores[name], GOLDEN[f"{case}/{score}"], atol=1e-3)
        alone = clipcleaner.select({name: scores[name]}, thetas, labels, K)
        assert np.array_equal(np.flatnonzero(alone), np.sort(GOLDEN[f"{case}/{selection}"])), name
    together = clipcleaner.select(scores, thetas, labels, K)
    assert np.array_equal(np.flatnonzero(together), np.sort(GOLDEN[f"{case}/intersection"]))
    rank_by = clipcleaner.log_probability(zero_shot, labels)
    official = clipcleaner.select(scores, thetas, labels, K, rank_by=rank_by, official=True)
    assert np.array_equal(np.flatnonzero(official), np.sort(GOLDEN[f"{case}/select_final"]))
    ours = clipcleaner.select(scores, thetas, labels, K, rank_by=rank_by)
    assert ours.sum() == official.sum() and (ours == official).all() == (case != "empty_class")
    for k in range(K):  # an empty class gets its highest-scored samples
        added, left = (ours & ~together & (labels == k), ~ours & ~together & (labels == k))
        assert not added.any() or rank_by[added].min() >= rank_by[left].max()
