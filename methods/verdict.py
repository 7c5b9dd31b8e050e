"""Whether a detector's result can be used: predictions against guessing, the share of suspects, failed training.

Accuracies are means over the classes, so that guessing is right for 1 / classes of the labels whatever their shares. None of
this needs true labels.
"""

from typing import Any

import numpy as np

from dataloader.dataset import Dataset
from dataloader.rows import shortened
from methods.inputs import Inputs
from methods.neighbours import sampled_vote

BOUND = 2.33  # standard deviations: a bound that guessing passes once in a hundred times
# skill, (accuracy - guessing) / (1 - guessing): right predictions of labels of which 80 % are wrong have 0.2
WEAK = 0.1
TEXT_TELLS = 0.7  # chosen on the digits: with texts that know less of what the neighbours know, neighbours did better
# share of suspects: more than any real data set known, and more than a classifier could learn from
MANY, MOST = 0.7, 0.9
COLLAPSE = 0.8  # of its best test accuracy, below which a training has failed
FEW = 5  # labels of a class below which its accuracy is left out of a mean over classes
CLASS = 10  # labels of a class from which on it counts that none of them is trusted
# share of the labels in classes of which none is trusted, above which the suspects are whole classes in no useful order
LOST = 1 / 3
# of trained detectors: how much more often predictions agree with trusted labels than with suspects. A mask at random has 0,
# the lowest of 151 runs on digits and photographs is 0.33. Of detectors without training, which suspect too many labels where
# nearly all are right, it must only not be negative
UNRELATED = 0.1
SOME = 20  # suspects, and labels that are not as predicted, from which on this can be told

NO_NAMES = "main_detect.py --detector auto or confident-learning, which need no class names"
FAILED = (
    "a lower --lr together with a longer --warmup, smaller batches or more epochs; "
    "or main_detect.py --detector auto, which trains no network"
)
OTHER_ENCODER = "another image encoder (--backbone)"
ANOTHER = "another detector (main_detect.py --detector confident-learning or knn) or image encoder (--backbone)"
TEST = "test images (test_fraction above 0, or a test split); or look at the first suspects before you use the mask"
LOOK = "look at the first suspects before you use the mask"


def evidence(of: str, hits: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """What is known of predictions, for a summary: hits (K,) of counts (K,) labels of each class.

    Classes of fewer labels than FEW say little and are left out, if two classes and half of the labels remain. `lower` is a
    bound below the accuracy; that of a class of which few labels are known counts as near one half.
    """
    there = counts >= FEW
    if there.sum() < 2 or counts[there].sum() < counts.sum() / 2:
        there = counts > 0
    hits, counts = hits[there], counts[there]
    shrunk = (hits + 1) / (counts + 2)
    deviation = np.sqrt(np.sum(shrunk * (1 - shrunk) / (counts + 2))) / len(counts)
    accuracy = float(np.mean(hits / counts))
    return {
        "of": of,
        "accuracy": accuracy,
        "lower": float(accuracy - BOUND * deviation),
        "chance": 1 / len(counts),
        "images": int(counts.sum()),
    }


def agreement(of: str, predicted: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Evidence of predicted classes (N,) that have not seen the labels (N,)."""
    K = int(labels.max()) + 1
    return evidence(of, np.bincount(labels[predicted == labels], minlength=K), np.bincount(labels, minlength=K))


def contrast(mask: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> float | None:
    """How much more often predicted classes agree with trusted labels than with suspects, (N,) each; see UNRELATED.

    None where there are too few of one kind to tell.
    """
    agree = predicted == labels
    told = mask.any() and min((~mask).sum(), (~agree).sum()) >= SOME
    return float(agree[mask].mean() - agree[~mask].mean()) if told else None


def feature_evidence(
    inputs: Inputs, needs_text: bool, mask: np.ndarray, predicted: np.ndarray, out_of_fold: bool = False
) -> dict[str, Any]:
    """{name: evidence} of what a detector on features rests on, by its Inputs; the first counts, and has the contrast.

    mask, predicted: what it found, (N,) each. The evidence is of `zero-shot` predictions, and to compare them the votes of
    the `neighbours`; of what it `predicted`, if `out_of_fold`; or of the `neighbours` alone.
    """
    apart = {"contrast": contrast(mask, predicted, inputs.labels)}
    if out_of_fold:
        return {"out-of-fold": agreement("out-of-fold predictions", predicted, inputs.labels) | apart}
    rows, vote = sampled_vote(inputs.features, inputs.labels, inputs.num_classes, inputs.cfg.seed)
    neighbours = {"neighbours": agreement("votes of the nearest images", vote, inputs.labels[rows])}
    if needs_text:
        zero_shot = agreement("zero-shot predictions", inputs.logits.argmax(1), inputs.labels)
        return {"zero-shot": zero_shot | apart} | neighbours
    return {"neighbours": neighbours["neighbours"] | apart}


def trained_evidence(
    data: Dataset, selection: dict[str, np.ndarray], acc_per_class: list[float | None] | None, scored: bool = False
) -> dict[str, Any]:
    """{"trained": evidence} of a trained network: its test accuracies, in per cent, or else its selection.

    The labels of a selection are those it was trained on, and `seen` then, unless `scored`: a network with enough epochs
    agrees with any of them.
    """
    more: dict[str, Any] = {"contrast": contrast(selection["mask"], selection["predicted"], data.train.labels)}
    if acc_per_class and "test" in data.tests:
        counts = np.bincount(data.tests["test"].labels, minlength=data.num_classes)
        hits = np.array([accuracy or 0 for accuracy in acc_per_class]) / 100 * counts
        return {"trained": evidence("predictions of the test images", hits, counts) | more}
    more["seen"] = not scored
    return {"trained": agreement("its predictions", selection["predicted"], data.train.labels) | more}


def judge(data: Dataset, mask: np.ndarray, known: dict[str, Any], accuracies: dict[str, float]) -> dict[str, str]:
    """{"level": usable, doubtful or not usable; "why", a sentence; "instead", what to do} of a mask (N,) on a Dataset.

    known: {name: evidence}, see feature_evidence and trained_evidence; accuracies: acc_best and acc_last of a training, {}
    where there is none.
    """
    main = next(iter(known.values()))
    best, last = accuracies.get("acc_best", 0), accuracies.get("acc_last", 0)
    remedy = FAILED if "trained" in known else NO_NAMES if "zero-shot" in known else OTHER_ENCODER
    share, fits, lost = 1 - np.mean(mask), _in_words(main), _without_trusted(mask, data)
    in_lost = np.mean(np.isin(data.train.labels, lost))
    names = _listed([data.label_names[k] for k in lost])
    more, apart = f"; {_in_words(known['neighbours'])}" if "neighbours" in known else "", main.get("contrast")
    rules = [
        ("not usable", last < COLLAPSE * best, f"the test accuracy fell from {best:.1f} % to {last:.1f} %", FAILED),
        ("not usable", main["lower"] <= main["chance"], f"{fits}, no better than guessing", remedy),
        (
            "not usable",
            apart is not None and apart < (UNRELATED if "trained" in known else 0),
            "its predictions hardly agree more often with trusted labels than with suspects",
            remedy,
        ),
        ("not usable", share > MOST, f"{100 * share:.1f} % of the labels are suspect; {fits}", remedy),
        ("not usable", in_lost > LOST, f"no label of {names} is trusted", ANOTHER),
        ("doubtful", _skill(main) < WEAK, f"{fits}, little better than guessing", remedy),
        (
            "doubtful",
            "zero-shot" in known and _skill(main) < TEXT_TELLS * _skill(known["neighbours"]),
            f"CLIP knows these classes poorly by name: {fits}{more}",
            NO_NAMES,
        ),
        ("doubtful", share > MANY, f"{100 * share:.1f} % of the labels are suspect; {fits}", LOOK),
        ("doubtful", len(lost) > 0, f"no label of {names} is trusted", LOOK),
        (
            "doubtful",
            main.get("seen", False),
            f"{fits}, but the network was trained on them, and there are no test images",
            TEST,
        ),
        ("usable", True, fits, ""),
    ]
    level, _, why, instead = next(rule for rule in rules if rule[1])
    return {"level": level, "why": why, "instead": instead}


def _skill(known: dict[str, Any]) -> float:
    """How far an accuracy lies above guessing: 0 is guessing, 1 is always right."""
    return (known["accuracy"] - known["chance"]) / max(1 - known["chance"], 1e-12)


def _in_words(known: dict[str, Any]) -> str:
    accuracy, chance = 100 * known["accuracy"], 100 * known["chance"]
    share = f"{accuracy:.1f} % of {known['images']:,} labels, averaged over the classes"
    return f"{known['of']} agree with {share} (guessing: {chance:.1f} %)"


def _without_trusted(mask: np.ndarray, data: Dataset) -> np.ndarray:
    labels = data.train.labels
    images, kept = (np.bincount(x, minlength=data.num_classes) for x in (labels, labels[mask]))
    return np.flatnonzero((images >= CLASS) & (kept == 0))


def _listed(names: list[str]) -> str:
    return (
        f"the class {names[0]}" if len(names) == 1 else f"{len(names)} classes ({shortened(names, 3)})" if names else ""
    )
