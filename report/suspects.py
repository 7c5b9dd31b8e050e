"""The selection of a detector as CSV files. docs/own-images.md describes their columns."""

import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dataloader.archives import source_root
from dataloader.dataset import Dataset, Split, View
from dataloader.files import inspect_files, inspection_cache
from dataloader.load import load_data
from dataloader.rows import TRUSTED_BY, read_csv, shortened
from methods.decisions import (
    RIGHT,
    UNDECIDED,
    as_arrays,
    differing_copies,
    labels_to_train_on,
    say_contradictions,
    settle,
)
from methods.masks import read_selection
from utils.config import recorded_settings
from utils.errors import UserError
from utils.files import as_path, write_csv
from utils.summaries import read_summary, usable, verdict_line


def read_run(
    folder: str | Path, data_path: str | None = None, decisions: str | Path | None = None
) -> tuple[SimpleNamespace, dict[str, np.ndarray], Dataset, dict[str, Any]]:
    """(configuration, arrays of the clean mask, data set, summary) of a finished detector run.

    The images are those that the run recorded, in scores.csv; where some are gone, or have changed, `there` (N,) bool of
    the arrays says so. Decisions of a person, in the run's log and in the file `decisions`, which is added to it, are in
    `decision` and `new_labels` (see methods/decisions.py), and `mask` follows them; `by_detector` does not. data_path: where the images lie
    now, if not where the run found them. UserError if the folder holds no such run, or none of its images is there.
    """
    folder = Path(folder)
    for name in ("config.yaml", "clean_mask.npz", "summary.json", "scores.csv"):
        if not (folder / name).is_file():
            runs = sorted(str(p.parent) for place in (folder, folder.parent) for p in place.glob("*/clean_mask.npz"))
            begun = (folder / "checkpoint.pt").is_file() and not (folder / "summary.json").is_file()
            raise UserError(
                f"{folder}: {'not finished; the same command continues it' if begun else f'holds no {name}'}; "
                "expected the folder of a finished detector run"
                f"{', such as ' + ', '.join(runs) if runs else ''}."
            )
    cfg = SimpleNamespace(**recorded_settings(folder / "config.yaml"))
    arrays = read_selection(folder / "clean_mask.npz")
    summary = read_summary(folder / "summary.json")
    if not usable(summary):
        print(verdict_line(summary))
    data = _recorded(folder, cfg, summary, arrays, data_path)
    if data.root:
        cfg.data_path = data.root
        arrays["there"] = _still_there(data, cfg)
    elif cfg.dataset == "own":
        raise UserError(
            f"{folder}: its images were in memory and were not kept, so there is nothing to show; scores.csv lists them all."
        )
    else:
        data = _same_arrays(folder, cfg, summary, arrays["labels"])
        arrays["there"] = np.ones(len(data.train.labels), dtype=bool)
    arrays["by_detector"] = arrays["mask"]
    decision, new_labels = as_arrays(settle(folder, data, decisions, arrays["there"]), data)
    follow(arrays, decision, new_labels)
    trusted = labels_to_train_on(arrays["by_detector"] & arrays["there"], arrays["labels"], decision, new_labels)
    say_contradictions(data, *trusted, decision)
    return cfg, arrays, data, summary


def follow(arrays: dict[str, np.ndarray], decision: np.ndarray, new_labels: np.ndarray) -> None:
    """Let the mask follow decisions (see decisions.as_arrays): `right` is in it, `wrong` is not, the rest is the detector's."""
    arrays |= {"decision": decision, "new_labels": new_labels}
    arrays["mask"] = np.where(decision == UNDECIDED, arrays["by_detector"], decision == RIGHT)


def _recorded(
    folder: Path, cfg: SimpleNamespace, summary: dict[str, Any], arrays: dict[str, np.ndarray], data_path: str | None
) -> Dataset:
    """The Dataset that a run judged, as its scores.csv has it; without pixels if its images are not files (root is "").

    Where images held out for testing were judged as well, they are `held_out` (N,) bool of the arrays.
    """
    labels = arrays["labels"]
    rows = [fields for _, fields in read_csv(folder / "scores.csv")]
    if not all(fields.get("index", "").isdecimal() and "given_label" in fields for fields in rows):
        raise UserError(f"{folder / 'scores.csv'}: not the list that a run wrote; run the detector again.")
    rows.sort(key=lambda fields: int(fields["index"]))
    if "classes" not in summary or "content" not in (rows or [{}])[0]:
        raise UserError(f"{folder}: written by an older version; run the detector again (in another --output_dir).")
    classes, root = summary["classes"], summary["root"]
    if [row["given_label"] for row in rows] != [classes[k] for k in labels]:
        raise UserError(f"{folder}: scores.csv and clean_mask.npz are not of one run; run the detector again.")
    if data_path and root:
        root = source_root(data_path, cfg)
    if "split" in rows[0]:
        arrays["held_out"] = np.array([row["split"] == "test" for row in rows])
    truth = [row["true_label"] for row in rows if "true_label" in row]
    others = sorted(set(truth) - set(classes))
    number = {name: k for k, name in enumerate(classes + others)}
    split = Split(
        [_file(root, row["path"]) for row in rows],
        labels,
        np.array([number[name] for name in truth]) if truth else None,
        ids=[row["id"] for row in rows] if rows[0]["id"] else None,
        digests=[row["content"] for row in rows] if rows[0]["content"] else None,
    )
    return Dataset(
        summary["dataset"],
        split,
        None,
        summary.get("class_names", classes),
        View(),
        label_names=classes,
        other_names=others,
        root=root,
        fingerprint=summary["identity"]["images"],
        noise_name=summary["noise"],
        truth_on_disk=summary.get("truth") == "labels on disk",
    )


def _file(root: str, text: str) -> str:
    """The image file that is `text` in a list; its name may not be UTF-8, see as_text."""
    path = os.path.normpath(os.path.join(root, text))
    return path if "\\udc" not in text or os.path.exists(path) else as_path(path)


def _still_there(data: Dataset, cfg: SimpleNamespace) -> np.ndarray:
    """Which images (N,) bool of a Dataset of files are where they were and, if their content is known, what they were.

    UserError where that is less than half of them: then it is another folder, or another state of it.
    """
    paths = data.train.images
    found = np.array([os.path.isfile(path) for path in paths])
    changed = np.zeros(len(paths), dtype=bool)
    if data.digests:
        check = np.flatnonzero(found)
        now, _ = inspect_files([paths[i] for i in check], inspection_cache(cfg))
        changed[check] = [digest != data.digests[i] for i, digest in zip(check, now)]
    there = found & ~changed
    if there.mean() < 0.5:
        raise UserError(
            f"data_path: of the {len(paths)} images of the run, {np.sum(~found)} are missing from {data.root} and "
            f"{np.sum(changed)} have changed; name their new folder with --data_path DIR, or run the detector again."
        )
    for which, what in ((~found, "missing now"), (changed, "changed since the run")):
        if which.any():
            names = shortened([data.path(i) for i in np.flatnonzero(which).tolist()], 5)
            print(f"{data.root}: {what}, left out: {which.sum()} of {len(paths)} images ({names})")
    return there


def _same_arrays(folder: Path, cfg: SimpleNamespace, summary: dict[str, Any], labels: np.ndarray) -> Dataset:
    """The Dataset of a run on arrays, loaded again; UserError unless it is the same."""
    data = load_data(cfg)
    if data.fingerprint != summary["identity"]["images"] or not np.array_equal(data.train.labels, labels):
        raise UserError(f"{folder}: the images of {cfg.dataset} are not those of the run; run the detector again.")
    return data


def ranking(p_clean: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Indices (N,) of all samples: those outside the clean mask (N,) first, then by p_clean (N,), the lowest first."""
    return np.lexsort((p_clean, mask))


def fixed_labels(arrays: dict[str, np.ndarray], relabel_above: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) with relabelled suspects, and which samples are relabelled (N,) bool.

    Put right are those that a person gave another label, and those no person has decided that the detector is sure of:
    confidence >= relabel_above in a class that is not the given one.
    """
    labels, new_labels = arrays["labels"], arrays["new_labels"]
    by_detector = ~arrays["mask"] & (arrays["decision"] == UNDECIDED) & (arrays["predicted"] != labels)
    by_detector &= arrays["confidence"] >= relabel_above
    by_person = new_labels >= 0
    return np.where(by_person, new_labels, np.where(by_detector, arrays["predicted"], labels)), by_person | by_detector


def to_review(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Indices of the suspects to review, the worst first: those that are there and not yet decided."""
    order = ranking(arrays["p_clean"], arrays["mask"])
    return order[(~arrays["mask"] & arrays["there"] & (arrays["decision"] == UNDECIDED))[order]]


def score_rows(data: Dataset, arrays: dict[str, np.ndarray], order: Iterable[int]) -> list[list[str]]:
    """A heading and a row of text for each of the samples `order`; given_label … are cleanlab's names and meanings.

    path is relative to the root in summary.json; content is a hash of the file, where it has been read, or of the pixels.
    """
    names, truth = data.label_names, data.true_labels
    header = ["rank", "index", "id", "path", "given_label", "predicted_label", "predicted_probability", "label_score"]
    header += ["is_label_issue", *["true_label"] * (truth is not None), "content"]
    held_out = arrays.get("held_out")  # images for testing that were judged, too
    header += ["split"] * (held_out is not None)
    rank = np.empty(len(arrays["mask"]), dtype=np.int64)
    rank[ranking(arrays["p_clean"], arrays["mask"])] = np.arange(1, len(rank) + 1)
    rows = [
        [
            str(rank[i]),
            str(i),
            data.ids[i] if data.ids else "",
            data.path(i),
            names[arrays["labels"][i]],
            names[arrays["predicted"][i]],
            f"{arrays['confidence'][i]:.6f}",
            f"{arrays['p_clean'][i]:.6f}",
            str(not arrays["mask"][i]),
            *([data.true_names[truth[i]]] if truth is not None else []),
            data.digests[i] if data.digests else "",
            *([] if held_out is None else ["test" if held_out[i] else "train"]),
        ]
        for i in order
    ]
    return [header, *rows]


def write_scores(folder: str | Path, data: Dataset, arrays: dict[str, np.ndarray]) -> None:
    """scores.csv, the scores of all samples, in their order: the record that reports are made from."""
    write_csv(Path(folder) / "scores.csv", score_rows(data, arrays, range(len(arrays["mask"]))))


def say_differing_copies(data: Dataset, arrays: dict[str, np.ndarray]) -> None:
    """Print in how many groups of identical images copies are kept with different labels."""
    kept = [[i for i in group if arrays["mask"][i]] for group in differing_copies(data)]
    if contradictory := sum(len({arrays["labels"][i] for i in group}) > 1 for group in kept):
        print(
            f"warning: in {contradictory} of the groups of identical images, copies are kept with different labels; review them "
            "(Show: identical, labels differ)"
        )


def write_suspects(folder: str | Path, data: Dataset, arrays: dict[str, np.ndarray]) -> None:
    """suspects.csv, the samples outside the clean mask, the worst first."""
    order = ranking(arrays["p_clean"], arrays["mask"])
    write_csv(Path(folder) / "suspects.csv", score_rows(data, arrays, order[~arrays["mask"][order]]))


def write_labels(folder: str | Path, data: Dataset, arrays: dict[str, np.ndarray], relabel_above: float) -> None:
    """labels_clean.csv, the samples kept, and labels_fixed.csv, those and the suspects put right (see fixed_labels).

    Paths are absolute, so that either file can be the data set of another run, from anywhere.
    """
    names, there, (labels, sure) = data.label_names, arrays["there"], fixed_labels(arrays, relabel_above)

    def table(samples: np.ndarray, with_original: bool) -> list[Iterable[object]]:
        columns = {
            "path": [os.path.abspath(data.train.images[i]) if data.root else "" for i in samples],
            "label": [names[labels[i]] for i in samples],
        }
        if with_original:
            columns["original_label"] = [names[arrays["labels"][i]] for i in samples]
        columns[TRUSTED_BY] = ["person" if arrays["decision"][i] else "detector" for i in samples]
        if data.ids:
            columns["id"] = [data.ids[i] for i in samples]
        columns["index"] = samples.tolist()
        return [columns, *zip(*columns.values())]

    write_csv(Path(folder) / "labels_clean.csv", table(np.flatnonzero(there & arrays["mask"]), False))
    write_csv(Path(folder) / "labels_fixed.csv", table(np.flatnonzero(there & (arrays["mask"] | sure)), True))
