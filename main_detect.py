"""Find wrong labels without training, for a first look: zero-shot, or by a linear classifier on CLIP's features.

    python main_detect.py --cfg config/PEFT/own.yaml --data_path DIR_OR_CSV --detector confident-learning

`detect` is the same for a notebook.
"""
import contextlib
import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax

from dataloader.datasets import in_memory, load_data
from main_phase1 import train_detector
from main_real_phase1 import REAL_WORLD
from model.clip import cosine_logits, load_clip
from model.prompts import zero_shot_features
from utils.config import DEFAULTS, UserError, load_config, pick
from utils.distributed import run_main
from utils.engine import evaluate
from utils.features import image_features
from utils.runs import Run, seed_folder, show
from utils.selection import gmm_clean_probability


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


def run_detector(cfg, data):
    """Run the detector that `cfg` names on a Dataset; returns the summary."""
    detector = pick(DETECTORS, cfg.detector, "detector")
    run = Run(cfg, data, cfg.detector)
    if run.summary:
        show(run.summary)
        return run.summary

    clip, tokenizer = load_clip(cfg.backbone, cfg.pretrained)
    clip.to(run.device)
    text_features = zero_shot_features(clip, tokenizer, data.classnames)

    def features_and_logits(split):
        features = image_features(clip, split, data.view, cfg, run.device)
        return features, cosine_logits(clip, features.to(run.device), text_features).detach().cpu()

    accuracy = {}
    for name, split in (({"test": data.test} if data.test else {}) | data.more_tests).items():
        features, logits = features_and_logits(split)
        result = evaluate(lambda x: x, [(logits, torch.from_numpy(split.labels), None)], data.num_classes)
        accuracy[f"acc_{name}"] = result["acc"]
        if name == "test":
            accuracy |= {"acc_last": result["acc"], "acc_best": result["acc"], "acc_per_class": result["acc_per_class"]}
    features, logits = features_and_logits(data.train)
    quality = run.save_selection(data, *detector(features.numpy(), logits.numpy(), data.train.labels, cfg.seed))
    summary = run.finish(data, {**quality, **accuracy})
    show(summary)
    run.say_where()
    return summary


def detect(images, labels, classnames=None, detector="label-match", **settings):
    """p_clean (N,), the chance that a label is right, and the suggested labels (N,): the given one where it is trusted.

    images: a list of N paths or Pillow images, or a uint8 array (N, H, W, 3). labels: N strings, or whole numbers.
    classnames: the words CLIP reads, in the order of the sorted labels, or of the numbers; empty for the labels.
    detector: a name in DETECTORS, or deft, which trains (phase 1). `settings` are keys of config/default.yaml, e.g.
    backbone, device, epochs; with output_dir the run and the features are kept. Raises UserError.
    """
    pick({**DETECTORS, "deft": None}, detector, "detector")
    data = in_memory(images, labels, classnames)
    with tempfile.TemporaryDirectory() as folder:
        flags = {"output_dir": folder, **settings, "detector": detector}
        cfg = load_config(["--cfg", str(DEFAULTS.parent / "PEFT" / "own.yaml"), *(f"--{k}={v}" for k, v in flags.items())],
                          **REAL_WORLD)
        with contextlib.redirect_stdout(io.StringIO()):  # which speaks of files; progress goes on
            summary = train_detector(cfg, data) if detector == "deft" else run_detector(cfg, data)
        with np.load(Path(seed_folder(cfg, data)) / summary["name"] / "clean_mask.npz", allow_pickle=False) as file:
            mask, p_clean, predicted = (file[k] for k in ("mask", "p_clean", "predicted"))
    return p_clean, np.array(data.label_names)[np.where(mask, data.train.labels, predicted)]


def main(argv=None, **settings):
    """Run the detector that the flags name; returns the summary. `settings` are the script's own defaults."""
    cfg = load_config(argv, __doc__, **settings)
    pick(DETECTORS, cfg.detector, "detector")
    return run_detector(cfg, load_data(cfg))


if __name__ == "__main__":
    run_main(main)
