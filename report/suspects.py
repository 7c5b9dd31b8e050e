"""What a detector's selection says of each sample, as CSV files. docs/own-images.md describes their columns."""

import argparse
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml

from dataloader.load import load_data
from dataloader.rows import read_csv
from utils.config import UserError, default_values
from utils.files import write_csv
from utils.summaries import read_summary

RELABEL_ABOVE = 0.9  # a choice: the probability is the detector's own, and not calibrated


def _probability(text):
    try:
        if 0 <= float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, not '{text}'")


def add_run_flags(parser):
    """What the commands that use a detector's run have in common."""
    parser.add_argument("run", metavar="RUN", help="folder of a finished detector run")
    parser.add_argument(
        "--relabel_above",
        type=_probability,
        default=RELABEL_ABOVE,
        metavar="P",
        help="a suspect gets the suggested label where its probability is P or more, 0 to 1 (default: "
        f"{RELABEL_ABOVE})",
    )
    parser.add_argument(
        "--decisions",
        metavar="FILE",
        help="CSV file of ticks saved in the report: labels called right are kept, labels called wrong are not",
    )
    parser.add_argument("--data_path", metavar="DIR", help="where the images lie now, if not where the run found them")


def read_run(folder, data_path=None, decisions=None):
    """(configuration, arrays of the clean mask, data set, summary) of a finished detector run.

    data_path: where the images lie now, if not where the run found them; decisions: see apply_decisions. UserError if the
    folder holds no such run, or the data set is not the one it was made with.
    """
    folder = Path(folder)
    for name in ("config.yaml", "clean_mask.npz", "summary.json"):
        if not (folder / name).is_file():
            runs = sorted(str(p.parent) for p in folder.glob("*/clean_mask.npz"))
            raise UserError(
                f"{folder}: holds no {name}; expected the folder of a finished detector run"
                f"{', such as ' + ', '.join(runs) if runs else ''}."
            )
    cfg = SimpleNamespace(**default_values() | yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    cfg.data_path = data_path or cfg.data_path
    with np.load(folder / "clean_mask.npz", allow_pickle=False) as file:
        arrays = dict(file)
    summary, data = read_summary(folder / "summary.json"), load_data(cfg)
    if summary.get("all_judged"):
        data = data.whole()
    if data.fingerprint != summary["identity"]["images"] or not np.array_equal(data.train.labels, arrays["labels"]):
        raise UserError(
            f"data_path: the images in {cfg.data_path} are not those of the run {folder}; "
            "--data_path DIR names another place, a new run takes them as they are."
        )
    if decisions:
        apply_decisions(arrays, data, decisions)
    return cfg, arrays, data, summary


def apply_decisions(arrays, data, path):
    """Bring the clean mask in line with what a person said: rows of a CSV file with index, given_label and decision.

    `right` keeps a label, `wrong` makes it a suspect. UserError for a row that is not of this run.
    """
    last, counts = len(arrays["mask"]) - 1, {"right": 0, "wrong": 0}
    for line, row in read_csv(Path(path)):
        index, decision, label = (row.get(key, "") for key in ("index", "decision", "given_label"))
        if not index.isdigit() or int(index) > last:
            raise UserError(f"{path}: line {line} has the index '{index}', expected one from 0 to {last}.")
        if decision not in ("right", "wrong"):
            raise UserError(f"{path}: line {line} has the decision '{decision}', expected right or wrong.")
        given = data.label_names[arrays["labels"][int(index)]]
        if label != given:
            raise UserError(
                f"{path}: line {line} says the label is '{label}', but image {index} of this run has '{given}'; "
                "the decisions are of another run."
            )
        arrays["mask"][int(index)] = decision == "right"
        counts[decision] += 1
    print(f"{path}: {counts['right']} labels called right, {counts['wrong']} wrong")


def ranking(p_clean, mask):
    """Indices (N,) of all samples: those outside the clean mask (N,) first, then by p_clean (N,), the lowest first."""
    return np.lexsort((p_clean, mask))


def fixed_labels(arrays, relabel_above):
    """Labels (N,) with suspects put right, and which samples were (N,) bool: those the detector is sure of.

    Sure is: confidence >= relabel_above in a class that is not the given one.
    """
    sure = ~arrays["mask"] & (arrays["confidence"] >= relabel_above) & (arrays["predicted"] != arrays["labels"])
    return np.where(sure, arrays["predicted"], arrays["labels"]), sure


def file_path(data, i):
    """The path of training sample i, '' where the data set is no files."""
    image = data.train.images[i]
    return image if isinstance(image, str) else ""


def score_rows(data, arrays, order):
    """A heading and a row of text for each of the samples `order`; given_label … are cleanlab's names and meanings."""
    names, known = data.label_names, data.true_labels is not None
    header = [
        "rank",
        "index",
        "id",
        "path",
        "given_label",
        "predicted_label",
        "predicted_probability",
        "label_score",
        "is_label_issue",
    ] + ["true_label"] * known
    rank = np.empty(len(arrays["mask"]), dtype=np.int64)
    rank[ranking(arrays["p_clean"], arrays["mask"])] = np.arange(1, len(rank) + 1)
    rows = [
        [
            str(rank[i]),
            str(i),
            data.ids[i] if data.ids else "",
            file_path(data, i),
            names[arrays["labels"][i]],
            names[arrays["predicted"][i]],
            f"{arrays['confidence'][i]:.6f}",
            f"{arrays['p_clean'][i]:.6f}",
            str(not arrays["mask"][i]),
        ]
        + ([data.true_names[data.true_labels[i]]] if known else [])
        for i in order
    ]
    return [header, *rows]


def write_scores(folder, data, arrays):
    """suspects.csv, the samples outside the clean mask, worst first; scores.csv, all samples in their order."""
    suspects = ranking(arrays["p_clean"], arrays["mask"])[: np.sum(~arrays["mask"])]
    for name, order in (("suspects.csv", suspects), ("scores.csv", range(len(arrays["mask"])))):
        write_csv(Path(folder) / name, score_rows(data, arrays, order))


def write_labels(folder, data, arrays, relabel_above):
    """labels_clean.csv, the samples kept, and labels_fixed.csv, those and the suspects put right (see fixed_labels).

    Paths are absolute, so that either file can be the data set of another run, from anywhere.
    """
    names, (labels, sure) = data.label_names, fixed_labels(arrays, relabel_above)

    def table(samples, with_original):
        columns = {
            "path": [os.path.abspath(file_path(data, i)) if file_path(data, i) else "" for i in samples],
            "label": [names[labels[i]] for i in samples],
        }
        if with_original:
            columns["original_label"] = [names[arrays["labels"][i]] for i in samples]
        if data.ids:
            columns["id"] = [data.ids[i] for i in samples]
        columns["index"] = samples.tolist()
        return [columns, *zip(*columns.values())]

    write_csv(Path(folder) / "labels_clean.csv", table(np.flatnonzero(arrays["mask"]), False))
    write_csv(Path(folder) / "labels_fixed.csv", table(np.flatnonzero(arrays["mask"] | sure), True))
