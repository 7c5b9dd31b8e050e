"""Detectors that need no training of the network: zero-shot, or a linear classifier on CLIP's features."""

import warnings

import numpy as np
import torch
from scipy.special import softmax

from methods.loops import evaluate
from methods.selection import gmm_clean_probability
from model.clip import cosine_logits, load_clip
from model.features import image_features
from model.prompts import zero_shot_features
from utils.config import UserError, pick


def label_match(features, logits, labels, seed):
    """Clean where the zero-shot prediction is the given label; p_clean is the zero-shot probability of the label."""
    probabilities = softmax(logits, axis=1)
    return (logits.argmax(1) == labels, *_scores(probabilities, labels))


def clip_margin(features, logits, labels, seed):
    """p_clean from how far the zero-shot logit of the label lies above (or below) the best other one.

    A mixture of two normal distributions of one width, fitted to the margins, gives p_clean, which so grows with the
    margin; clean where it is above 0.5. Where nothing is wrong it still finds two groups.
    """
    rows, others = np.arange(len(labels)), logits.copy()
    others[rows, labels] = -np.inf
    p_clean = gmm_clean_probability(others.max(1) - logits[rows, labels], seed, covariance_type="tied", max_iter=100)
    _, predicted, confidence = _scores(softmax(logits, axis=1), labels)
    return p_clean > 0.5, p_clean, predicted, confidence


def confident_learning(features, logits, labels, seed):
    """cleanlab's confident learning (Northcutt et al., JAIR 2021) on out-of-fold probabilities of a linear classifier.

    Clean is what cleanlab finds no label issue in; p_clean is its label quality score, self-confidence.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    probabilities = out_of_fold(features, labels, logits.shape[1], seed)
    mask = ~find_label_issues(labels, probabilities, n_jobs=1)
    _, predicted, confidence = _scores(probabilities, labels)
    return mask, get_label_quality_scores(labels, probabilities), predicted, confidence


def out_of_fold(features, labels, num_classes, seed, folds=5):
    """Class probabilities (N, K) of each sample by a logistic regression that has not seen it.

    A class with fewer images than folds is unknown in some of them, where its probability is 0.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = min(folds, np.bincount(labels).max())
    if folds < 2:
        raise UserError("detector: confident-learning needs a class with two images or more.")
    probabilities = np.zeros((len(labels), num_classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes smaller than the number of folds; of slow convergence
        for seen, held_out in StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, labels):
            classes = np.unique(labels[seen])
            if len(classes) == 1:
                probabilities[held_out, classes[0]] = 1
                continue
            linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
            linear.fit(features[seen], labels[seen])
            probabilities[np.ix_(held_out, classes)] = linear.predict_proba(features[held_out])
    return probabilities


def _scores(probabilities, labels):
    """Probability of the given label, predicted class and its probability, (N,) each, of probabilities (N, K)."""
    return probabilities[np.arange(len(labels)), labels], probabilities.argmax(1), probabilities.max(1)


# each: features (N, D), zero-shot logits (N, K), labels (N,), seed -> mask, p_clean, predicted, confidence, (N,), all numpy
DETECTORS = {"label-match": label_match, "clip-margin": clip_margin, "confident-learning": confident_learning}


def run_detector(cfg, data, device):
    """The selection of the detector that `cfg` names on a Dataset, and its accuracies for the summary.

    The selection is `mask`, `p_clean`, `predicted` and `confidence`, (N,) numpy each.
    """
    detector = pick(DETECTORS, cfg.detector, "detector")
    clip, tokenizer = load_clip(cfg.backbone, cfg.pretrained)
    clip.to(device)
    text_features = zero_shot_features(clip, tokenizer, data.classnames)

    def features_and_logits(split):
        features = image_features(clip, split, data.view, cfg, device)
        return features, cosine_logits(clip, features.to(device), text_features).detach().cpu()

    accuracy = {}
    for name, split in data.tests.items():
        _, logits = features_and_logits(split)
        result = evaluate(lambda x: x, [(logits, torch.from_numpy(split.labels), None)], data.num_classes)
        accuracy[f"acc_{name}"] = result["acc"]
        if name == "test":
            accuracy |= {"acc_last": result["acc"], "acc_best": result["acc"], "acc_per_class": result["acc_per_class"]}
    features, logits = features_and_logits(data.train)
    columns = detector(features.numpy(), logits.numpy(), data.train.labels, cfg.seed)
    return dict(zip(("mask", "p_clean", "predicted", "confidence"), columns)), accuracy
