"""Detectors on frozen features: DETECTORS[name].find(inputs) -> Detection. docs/methods.md has a formula of each.

A detector is a function of Inputs. What several of them need (neighbours, a regression, a linear probe) is computed once
and kept by the Inputs.
"""

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from dataloader.dataset import Dataset
from methods import clipcleaner, dynamics, neighbours
from methods.inputs import Inputs, given_inputs, load_inputs
from methods.loops import evaluate
from methods.selection import two_groups
from methods.verdict import TEXT_TELLS, WEAK, feature_evidence
from utils.errors import UserError, pick

ROUNDS = 3  # of `auto`, chosen on the digits
TEXT_LEADS = 1.1  # from here on, texts know more than the neighbours; between the digits (at most 1.04) and CIFAR-100 (at least 1.12)


class Detection(NamedTuple):
    """What a detector says of N labels, (N,) each."""

    mask: np.ndarray  # True where the label is trusted
    p_clean: np.ndarray  # score of the label in [0, 1], low where it looks wrong
    predicted: np.ndarray  # the suggested class
    confidence: np.ndarray  # its probability


def label_match(inputs: Inputs) -> Detection:
    """Trusted where the zero-shot prediction is the given label; p_clean is the zero-shot probability of the label."""
    p = softmax(inputs.logits, axis=1)
    return _by_probability(p, inputs.labels)


def clip_margin(inputs: Inputs) -> Detection:
    """p_clean from how far the zero-shot logit of the label lies above (or below) the best other one, by `two_groups`."""
    own, best = _own_and_best_other(inputs.logits, inputs.labels)
    p_clean = two_groups(own - best, inputs.cfg.seed)
    return _scored(p_clean, softmax(inputs.logits, axis=1))


def confident_learning(inputs: Inputs) -> Detection:
    """cleanlab's confident learning (Northcutt et al., JAIR 2021) on out-of-fold probabilities of a linear classifier.

    Trusted is what cleanlab finds no label issue in; p_clean is its label quality score, self-confidence.
    """
    with warnings.catch_warnings():  # the import would silence every warning of the process
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

    p = inputs.pred_probs
    if p is None:
        p = out_of_fold(inputs.features, inputs.labels, inputs.num_classes, inputs.cfg.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of small classes, none of whose labels may be flagged
        issues = find_label_issues(inputs.labels, p, n_jobs=1)
    return Detection(~issues, get_label_quality_scores(inputs.labels, p), p.argmax(1), p.max(1))


def out_of_fold(features: np.ndarray, labels: np.ndarray, num_classes: int, seed: int, folds: int = 5) -> np.ndarray:
    """Class probabilities (N, K) of each sample by a logistic regression that has not seen it.

    A class with fewer images than folds is unknown in some of them, where its probability is 0.
    """
    counts = np.bincount(labels, minlength=2)
    if np.sort(counts)[-2] < 2:  # a regression may see one class only
        raise UserError("detector: confident-learning needs two images or more of two classes.")
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    splits = StratifiedKFold(min(folds, counts.max()), shuffle=True, random_state=seed)
    probabilities = np.zeros((len(labels), num_classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes smaller than the number of folds; of slow convergence
        found = cross_val_predict(linear, features, labels, cv=splits, method="predict_proba")
    probabilities[:, counts.nonzero()[0]] = found
    return probabilities


def clip_cleaner(criteria: tuple[str, ...], inputs: Inputs) -> Detection:
    """CLIPCleaner's selection by some of its criteria (Feng et al., ACM MM 2024).

    p_clean is the mean of their scores, each stretched so that its threshold is at 0.5.
    """
    cfg, labels = inputs.cfg, inputs.labels
    source = {name: name.partition("-")[0] for name in criteria}  # zero or lr
    p_of = {of: inputs.zero_shot if of == "zero" else inputs.visual for of in source.values()}
    scores = clipcleaner.criterion_scores({name: p_of[of] for name, of in source.items()}, labels, cfg.seed)
    rank_by = clipcleaner.log_probability(p_of[source[criteria[0]]], labels)
    thetas = {name: cfg.theta_gmm if name.endswith("gmm") else cfg.theta_cons for name in criteria}
    mask = clipcleaner.select(scores, thetas, labels, inputs.num_classes, rank_by, cfg.fill_empty == "official")
    p_clean = np.mean([_stretched(scores[name], thetas[name]) for name in criteria], axis=0)
    p = np.mean(list(p_of.values()), axis=0)
    return Detection(mask, p_clean, p.argmax(1), p.max(1))


def knn(inputs: Inputs) -> Detection:
    """Trusted where the label has the largest share among the nearest neighbours, weighted by their distance."""
    return _by_probability(neighbours.weighted_knn(inputs.nearest, inputs.labels, inputs.num_classes), inputs.labels)


def simifeat_vote(inputs: Inputs) -> Detection:
    """SimiFeat-V (Zhu et al., ICML 2022): trusted where the neighbours and the image itself vote for the label."""
    shares = neighbours.simifeat_shares(inputs.nearest, inputs.labels, inputs.num_classes)
    return _by_probability(shares, inputs.labels)


def simifeat_rank(inputs: Inputs) -> Detection:
    """SimiFeat-R (Zhu et al., ICML 2022): trusts the best-voted labels of each class, as many as HOC estimates to be right."""
    shares = neighbours.simifeat_shares(inputs.nearest, inputs.labels, inputs.num_classes)
    keep = neighbours.right_given_label(inputs.nearest, inputs.labels, inputs.num_classes)
    score, mask = neighbours.simifeat_rank(shares, inputs.labels, keep)
    return Detection(mask, score, shares.argmax(1), shares.max(1))


def lemon(inputs: Inputs) -> Detection:
    """LEMoN's distance from image and text neighbours (Zhang et al., ICML 2025); p_clean by `two_groups`."""
    found, text = inputs.nearest, inputs.text_features
    score = neighbours.lemon_score(found, inputs.features, inputs.labels, text)
    weights = neighbours.weighted_knn(found, inputs.labels, inputs.num_classes)
    weights *= softmax(inputs.logits, axis=1)
    weights += 1e-12
    return _scored(two_groups(-score, inputs.cfg.seed), weights)


def fine(inputs: Inputs) -> Detection:
    """FINE (Kim et al., NeurIPS 2021): a mixture per class on the alignment with the class's first eigenvector."""
    alignment = neighbours.eigenvector_alignment(inputs.features, inputs.labels, inputs.num_classes)
    own = alignment[np.arange(len(inputs.labels)), inputs.labels]
    p_clean = clipcleaner.per_class_mixture(own, inputs.labels, inputs.cfg.seed)
    return _scored(p_clean, alignment)


def eigenvector(inputs: Inputs) -> Detection:
    """Trusted where the eigenvector of its class (see `fine`) fits an image better than that of any other class."""
    alignment = neighbours.eigenvector_alignment(inputs.features, inputs.labels, inputs.num_classes)
    alignment /= np.maximum(alignment.sum(1, keepdims=True), 1e-12)
    return _by_probability(alignment, inputs.labels)


def selfclean(inputs: Inputs) -> Detection:
    """SelfClean (Groeger et al., 2024): trusted where the nearest image of the same label is the nearest of all."""
    ratio = neighbours.intra_extra_ratio(inputs.nearest)
    return _scored(ratio, neighbours.weighted_knn(inputs.nearest, inputs.labels, inputs.num_classes))


def area_under_margin(inputs: Inputs) -> Detection:
    """AUM (Pleiss et al., NeurIPS 2020) of a linear probe."""
    margins, _, predicted, confidence = inputs.probe
    return Detection(*dynamics.by_area_under_margin(margins, inputs.cfg.seed), predicted, confidence)


def forgetting(inputs: Inputs) -> Detection:
    """Fraction of a linear probe's epochs that predicted the label (after Toneva et al., ICLR 2019)."""
    margins, _, predicted, confidence = inputs.probe
    return Detection(*dynamics.by_forgetting(margins, inputs.cfg.seed), predicted, confidence)


def mean_probability(inputs: Inputs) -> Detection:
    """A linear probe's probability of the label, averaged over the last epochs."""
    _, probabilities, predicted, confidence = inputs.probe
    return Detection(*dynamics.by_mean_probability(probabilities, inputs.cfg.seed), predicted, confidence)


def auto(inputs: Inputs) -> Detection:
    """A combination that needs no choice: a first opinion, then neighbours and eigenvectors of the trusted labels alone.

    The first opinion is LEMoN's; where the texts tell more than the neighbours (`TEXT_LEADS`), the mean of
    LEMoN's and the zero-shot margin; where they tell too little, or there are none, the sum of the margins of
    `eigenvector` (twice), `aum` and `knn`, each of unit variance. `two_groups` trusts one part of the labels; from that
    part alone eigenvectors and shares among the neighbours are computed anew, and their margins, with the texts' opinion
    where there is one, give the next opinion; ROUNDS times. With texts, the margin of a linear discriminant of the trusted
    labels is added at last; without, it would let too many wrong labels through where most are wrong. Weights and rounds
    were chosen on the digits (results/detectors.md), those for texts that tell more on CIFAR-100
    (results/detectors-photos.md).
    """
    labels, K, found, seed = inputs.labels, inputs.num_classes, inputs.nearest, inputs.cfg.seed
    shares = neighbours.weighted_knn(found, labels, K)
    tells = text_tells(inputs, shares)
    use_text, weight = tells >= TEXT_TELLS, 0.25 if tells >= TEXT_LEADS else 0.5
    if use_text:
        text = _unit_variance(-neighbours.lemon_score(found, inputs.features, labels, inputs.text_features))
        if tells >= TEXT_LEADS:
            own, best = _own_and_best_other(inputs.logits, labels)
            text = _unit_variance(text + _unit_variance(own - best))
        score = text
    else:
        alignment = neighbours.eigenvector_alignment(inputs.features, labels, K)
        aum = dynamics.area_under_margin(inputs.probe[0])
        score = 2 * _log_margin(alignment, labels, 1e-6) + _unit_variance(aum) + _log_margin(shares, labels, 0.02)
    for _ in range(ROUNDS):
        trusted = two_groups(score, seed) > 0.5
        shares = neighbours.weighted_knn(found, labels, K, trusted)
        alignment = neighbours.eigenvector_alignment(inputs.features, labels, K, trusted)
        score = _log_margin(alignment, labels, 1e-6) + _log_margin(shares, labels, 0.02)
        if use_text:
            score = text + weight * score
    if use_text:
        trusted = two_groups(score, seed) > 0.5
        score += weight * _unit_variance(discriminant_margin(inputs.features, labels, trusted))
    shares *= alignment
    shares += 1e-12
    return _scored(two_groups(score, seed), shares)


def discriminant_margin(features: np.ndarray, labels: np.ndarray, trusted: np.ndarray) -> np.ndarray:
    """Logit of the label minus the best other one, (N,), by a linear discriminant analysis of the trusted images.

    Covariances are shrunk (Ledoit and Wolf, 2004), as a class may have fewer images than features. A class without trusted
    images gets the smallest logit of the others; where fewer than two classes have any, or none has two, all margins are 0.
    """
    margin, blocks = np.zeros(len(labels)), range(0, len(labels), 256)
    if not 2 <= len(np.unique(labels[trusted])) < trusted.sum():
        return margin
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with one trusted image
        linear = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(features[trusted], labels[trusted])
    for rows in (slice(start, start + 256) for start in tqdm(blocks, "discriminant", leave=False, disable=None)):
        known = linear.decision_function(features[rows])
        known = known if known.ndim > 1 else np.column_stack([-known, known]) / 2
        logits = np.repeat(known.min(1, keepdims=True), 1 + labels.max(), axis=1)
        logits[:, linear.classes_] = known
        own, best = _own_and_best_other(logits, labels[rows])
        margin[rows] = own - best
    return margin


def text_tells(inputs: Inputs, shares: np.ndarray) -> float:
    """How well zero-shot predictions agree with the given labels, relative to the votes of the neighbours, by their shares (N, K).

    The ratio of two Cohen's kappas; about 1 for good texts, 0 where there are none. Neither prediction has seen the label that
    it is compared with, and wrong labels lower both kappas alike, so the ratio hardly depends on how many there are.
    """
    if inputs.text_features is None:
        return 0.0
    zero_shot = cohen_kappa_score(inputs.logits.argmax(1), inputs.labels)
    if zero_shot < WEAK:  # however little the neighbours know
        return 0.0
    return zero_shot / max(cohen_kappa_score(shares.argmax(1), inputs.labels), 1e-3)


def what_auto_uses(inputs: Inputs) -> str:
    """What `auto` looks at, and why, in words."""
    if inputs.text_features is None:
        return "neighbours, eigenvectors and a linear probe, since this encoder has no texts"
    tells = text_tells(inputs, neighbours.weighted_knn(inputs.nearest, inputs.labels, inputs.num_classes))
    if tells >= TEXT_LEADS:
        used, why = "LEMoN and zero-shot margins, then neighbours, a linear discriminant", "so the texts count for more"
    elif tells >= TEXT_TELLS:
        used, why = "LEMoN, then neighbours, a linear discriminant", f"enough to use the texts (from {TEXT_TELLS} on)"
    else:
        used, why = "neighbours, a linear probe", f"too little to use the texts (from {TEXT_TELLS} on)"
    return f"{used} and eigenvectors; zero-shot predictions agree with the labels {tells:.2f} times as well as the neighbours do, {why}"


def _unit_variance(score: np.ndarray) -> np.ndarray:
    return (score - score.mean()) / max(score.std(), 1e-12)


def _log_margin(weights: np.ndarray, labels: np.ndarray, floor: float) -> np.ndarray:
    """log of the label's weight minus that of the best other class, of unit variance, (N,); weights (N, K) plus a floor."""
    own, best = _own_and_best_other(weights, labels)
    return _unit_variance(np.log(own + floor) - np.log(best + floor))


def _own_and_best_other(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value (N,) of the label and the largest of the other classes, of values (N, K), which are not copied."""
    rows = np.arange(len(labels))
    own = values[rows, labels]
    values[rows, labels] = -np.inf
    best = values.max(1)
    values[rows, labels] = own
    return own, best


def _stretched(score: np.ndarray, theta: float) -> np.ndarray:
    """A score in [0, 1], stretched on both sides of theta so that theta comes to 0.5."""
    below, above = np.minimum(score, theta), np.maximum(score - theta, 0)
    return 0.5 * below / max(theta, 1e-12) + 0.5 * above / max(1 - theta, 1e-12)


def _by_probability(p: np.ndarray, labels: np.ndarray) -> Detection:
    """Detection by class probabilities (N, K): trusted where the label is the most probable class."""
    return Detection(p.argmax(1) == labels, p[np.arange(len(labels)), labels], p.argmax(1), p.max(1))


def _scored(p_clean: np.ndarray, weights: np.ndarray) -> Detection:
    """Detection by p_clean (N,) above 0.5; the suggestion by weights (N, K), which need not add up to 1."""
    return Detection(p_clean > 0.5, p_clean, weights.argmax(1), weights.max(1) / np.maximum(weights.sum(1), 1e-30))


class FeatureDetector(NamedTuple):
    """A function of Inputs, and whether it needs the texts of a CLIP."""

    find: Callable[[Inputs], Detection]
    needs_text: bool


def _clipcleaner(*criteria: str) -> FeatureDetector:
    return FeatureDetector(lambda inputs: clip_cleaner(criteria, inputs), any(c.startswith("zero") for c in criteria))


DETECTORS = {
    "auto": FeatureDetector(auto, False),
    "label-match": FeatureDetector(label_match, True),
    "clip-margin": FeatureDetector(clip_margin, True),
    "lemon": FeatureDetector(lemon, True),
    "clipcleaner": _clipcleaner(*clipcleaner.CRITERIA),
    **{f"clipcleaner-{name}": _clipcleaner(name) for name in clipcleaner.CRITERIA},
    "confident-learning": FeatureDetector(confident_learning, False),
    "knn": FeatureDetector(knn, False),
    "simifeat-vote": FeatureDetector(simifeat_vote, False),
    "simifeat-rank": FeatureDetector(simifeat_rank, False),
    "selfclean": FeatureDetector(selfclean, False),
    "fine": FeatureDetector(fine, False),
    "eigenvector": FeatureDetector(eigenvector, False),
    "aum": FeatureDetector(area_under_margin, False),
    "forgetting": FeatureDetector(forgetting, False),
    "mean-p": FeatureDetector(mean_probability, False),
}


def _checked(found: Detection, inputs: Inputs, name: str) -> Detection:
    """The Detection that the detector `name` has found; UserError if it is not one of these Inputs."""
    N, K = len(inputs.labels), inputs.num_classes
    expected = {"mask": ("b", 1), "p_clean": ("f", 1), "predicted": ("iu", K - 1), "confidence": ("f", 1)}
    for field, (kinds, highest) in expected.items():
        x = getattr(found, field, None)
        is_array = isinstance(x, np.ndarray) and x.shape == (N,) and x.dtype.kind in kinds
        if not is_array or N and not (x.min() >= 0 and x.max() <= highest + 1e-6):  # type: ignore[union-attr]  # NaN is not
            kind = {"b": "bool", "f": "floats in [0, 1]", "iu": f"whole numbers from 0 to {K - 1}"}[kinds]
            raise UserError(f"detector: {name}: expected a Detection whose {field} is a numpy array ({N},) of {kind}.")
    return found


def run_detector(
    cfg: SimpleNamespace, data: Dataset, device: torch.device, given: dict[str, np.ndarray] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The selection of the detector that `cfg` names on a Dataset, and numbers for the summary: accuracies, evidence.

    The selection is `mask`, `p_clean`, `predicted` and `confidence`, (N,) numpy each. given: what a person's own model says
    of the images, see given_inputs; no encoder is loaded then.
    """
    detector = pick(DETECTORS, cfg.detector, "detector")
    inputs, tests = (given_inputs(cfg, data, given), {}) if given else load_inputs(cfg, data, device)
    if detector.needs_text and inputs.text_features is None:
        others = [name for name, other in DETECTORS.items() if not other.needs_text]
        raise UserError(
            f"detector: {cfg.detector} needs texts, which {'features=' if given else cfg.backbone} has not; {', '.join(others)} need none."
        )
    accuracy = {"features": inputs.kept_as}
    for name, logits in tests.items():
        batches = [(torch.from_numpy(logits), torch.from_numpy(data.tests[name].labels), None)]
        result = evaluate(lambda x: x, batches, data.num_classes)
        accuracy[f"acc_{name}"] = result["acc"]
        if name == "test":
            accuracy |= {"acc_last": result["acc"], "acc_best": result["acc"], "acc_per_class": result["acc_per_class"]}
    found, to_train_on = _checked(detector.find(inputs), inputs, cfg.detector), inputs
    if data.all_judged and data.held_out is not None:  # whose labels have no say in the mask of those to train on
        rows = np.setdiff1d(np.arange(len(data.train.labels)), data.held_out)
        to_train_on = inputs.take(rows)
        for judged, own in zip(found, detector.find(to_train_on)):
            judged[rows] = own
    if detector.find is auto:
        print(f"auto: {what_auto_uses(to_train_on)}")
    out_of_fold = detector.find is confident_learning
    known = feature_evidence(inputs, detector.needs_text, found.mask, found.predicted, out_of_fold)
    return found._asdict(), {**accuracy, "evidence": known}
