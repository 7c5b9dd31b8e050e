"""A person's own images as a data set: a folder, a table or an archive."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dataloader.archives import opened, source_root
from dataloader.dataset import Dataset, Split, View
from dataloader.files import data_root, inspect_files, inspection_cache
from dataloader.rows import (
    SPLITS,
    TABLE_SUFFIXES,
    Row,
    read_rows,
    shortened,
    sorted_labels,
    tidy_names,
    written_by_report,
)
from utils.errors import UserError, nearest
from utils.summaries import read_summary

OWN_VIEW = View(flip=False)  # no crop or flip: objects that fill the frame stay whole, letters readable


def own(cfg: SimpleNamespace) -> Dataset:
    """A folder of class folders, a table (dataloader/rows.py) or an archive (dataloader/archives.py); without a test split `test_fraction` is held out by `seed`.

    The classes are the labels that training images were given, whatever else their true labels are.
    """
    rows, skipped = sound_rows(cfg.data_path, cfg)
    classes = sorted_labels({row.label for row in rows if row.split == "train"})
    if len(classes) < 2:
        tables = sorted(str(p) for p in Path(cfg.data_path).glob("*") if p.suffix.lower() in TABLE_SUFFIXES)
        raise UserError(
            f"data_path: {cfg.data_path} holds training images of {len(classes)} class, expected two or more."
            f"{f' A table of labels is named itself, as {tables[0]}.' if tables else ''}"
        )
    if unread := {row.label for row, _ in skipped if row.split == "train"} - set(classes):
        print(f"classes of which no image can be read: {shortened(sorted_labels(unread))}")
    if SPLITS.keys() >= {name.lower() for name in classes}:
        raise UserError(
            f"data_path: the only classes of {cfg.data_path} are {', '.join(classes)}, names of splits; expected class "
            "folders in each split, or labels in the label column."
        )
    held_out = None
    if all(row.split == "train" for row in rows):
        if lost := [row.path for row, _ in skipped if row.split != "train"]:
            raise UserError(
                f"data_path: none of the {len(lost)} test images of {cfg.data_path} can be read, such as {lost[0]}; correct "
                "their paths, or remove these rows to test on images held out of training."
            )
        rows, held_out = _hold_out(whole_truth(rows), cfg.test_fraction, cfg.seed)
    others = other_names(rows, classes)
    train, test = ([row for row in rows if (row.split == "train") == is_train] for is_train in (True, False))
    print(
        f"{cfg.data_path}: {len(train)} training images of {len(classes)} classes, {len(test)} "
        f"{'for testing' if held_out is None else 'others held out for testing'}"
    )
    _say_lost_classes(cfg.data_path, classes)
    unknown = [row.path for row in test if row.true_label in others]
    if unknown:
        print(f"not tested on, since their true label is no class: {shortened(unknown, 5)}")
    duplicates = find_duplicates(rows)
    return Dataset(
        f"own-{cfg.name or source_name(cfg.data_path)}",
        split_of_rows(train, classes, others),
        split_of_rows(test, classes, others) if test else None,
        classnames=tidy_names(classes),
        view=OWN_VIEW,
        label_names=classes,
        other_names=others,
        root=source_root(cfg.data_path, cfg),
        held_out=held_out,
        trusted=False,
        skipped=[(row.path, reason) for row, reason in skipped],
        duplicates=duplicates,
    )


def _say_lost_classes(source: str | Path, classes: list[str]) -> None:
    """Print which classes of a run have no image left in a table that a report wrote into the run's folder."""
    summary = read_summary(Path(source).parent / "summary.json") if written_by_report(source) else {}
    lost = sorted(set(summary.get("classes", [])) - set(classes))
    if lost:
        print(
            f"warning: {source} has no image left of {len(lost)} of the run's classes, so a model trained on it will not "
            f"know them: {shortened(lost)}"
        )


def source_name(source: str | Path) -> str:
    """The default name of a data set: that of its folder, or of its table and the table's folder.

    Before that of a table that a report wrote into the folder of a run goes the name of the run's data set.
    """
    path = Path(os.path.abspath(source))
    of_run = read_summary(path.parent / "summary.json").get("dataset", "") if written_by_report(path) else ""
    parts = [of_run.removeprefix("own-"), path.parent.name, path.stem] if path.is_file() else [path.name]
    return "-".join(filter(None, parts))


def _hold_out(rows: list[Row], fraction: float, seed: int) -> tuple[list[Row], np.ndarray | None]:
    """The rows, those held out for testing with the split test, and the positions of these, or None where there are none.

    In each class, the images with the smallest content hashes, scrambled by the seed, are held out. The choice hardly changes
    when images are added or removed, and identical images are never on both sides.
    """
    classes, labels = np.unique([row.label for row in rows], return_inverse=True)
    content = np.array([int(row.digest[:16], 16) for row in rows], dtype=np.uint64)
    scrambled = content * (np.random.default_rng(seed).integers(2**64, dtype=np.uint64) | np.uint64(1))
    sizes = np.bincount(labels)
    wanted = np.where(min(fraction, 1 - fraction) * sizes >= 1 - 1e-9, np.round(fraction * sizes), 0)
    order = np.lexsort((scrambled, labels))
    place = np.empty(len(rows), dtype=np.int64)  # within its class
    place[order] = np.arange(len(rows)) - (np.cumsum(sizes) - sizes)[labels[order]]
    is_test = place < wanted[labels]
    is_test &= ~np.isin(content, content[~is_test])
    few = [str(name) for name, count in zip(classes, wanted) if not count]
    if few and fraction:
        print(f"classes with too few images to hold any out for testing: {shortened(few)}")
    rows = [replace(row, split="test") if held_out else row for row, held_out in zip(rows, is_test)]
    return rows, np.flatnonzero(is_test) if is_test.any() else None


def whole_truth(rows: list[Row]) -> list[Row]:
    """The rows, without their true labels unless all have one."""
    known = sum(bool(row.true_label) for row in rows)
    if known in (0, len(rows)):
        return rows
    print(f"true labels: given for {known} of {len(rows)} images only, not used")
    return [replace(row, true_label="") for row in rows]


def other_names(rows: list[Row], classes: list[str]) -> list[str]:
    """The true labels among rows that are none of the classes, sorted."""
    return sorted({row.true_label for row in rows} - {"", *classes})


def split_of_rows(rows: list[Row], classes: list[str], others: list[str]) -> Split:
    """Rows as a Split; others: see other_names. UserError for a row whose label is none of the classes."""
    number = {name: i for i, name in enumerate(classes + others)}
    for row in rows:
        if number.get(row.label, len(classes)) >= len(classes):
            raise UserError(
                f"{row.where}: {row.label!r} is no class of the training images.{nearest(row.label, classes)}"
            )
    labels = np.array([number[row.label] for row in rows], dtype=np.int64)
    truth = [row.true_label for row in whole_truth(rows) if row.true_label]
    true_labels = np.array([number[name] for name in truth], dtype=np.int64) if truth else None
    paths, ids = [row.path for row in rows], [row.id for row in rows] if rows[0].id else None
    return Split(paths, labels, true_labels, ids=ids, digests=[row.digest for row in rows])


def sound_rows(
    source: str | Path, cfg: SimpleNamespace, key: str = "data_path"
) -> tuple[list[Row], list[tuple[Row, str]]]:
    """The rows of a folder or table whose files can be read, with their digests, and (row, why) of each of the others."""
    rows = read_rows(opened(source, cfg, key), cfg, key)
    digests, reasons = inspect_files([row.path for row in rows], inspection_cache(cfg))
    skipped = [(row, reason) for row, reason in zip(rows, reasons) if reason]
    if skipped:
        files = Counter((row.path, reason) for row, reason in skipped)
        given = [f"{path} ({reason}{f' in {n} rows' if n > 1 else ''})" for (path, reason), n in files.items()]
        print(f"skipped {len(skipped)} of {len(rows)} images: {shortened(given, 5)}")
    if len(skipped) == len(rows):
        is_table = Path(source).suffix.lower() in TABLE_SUFFIXES
        hint = f"; paths are relative to {data_root(source)}" if is_table else ""
        raise UserError(f"{key}: none of the {len(rows)} images of {source} can be read{hint}.")
    return [replace(row, digest=digest) for row, digest, reason in zip(rows, digests, reasons) if not reason], skipped


def find_duplicates(rows: list[Row]) -> list[tuple[int, str, str, str, bool]]:
    """The rows with identical files, all of which are kept: (group, path, split, label, whether the group's labels differ).

    Prints how many there are, how many groups have different labels, and which test images are training images too.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.digest, []).append(row)
    twins = [group for group in groups.values() if len(group) > 1]
    if twins:
        differ = sum(len({row.label for row in group}) > 1 for group in twins)
        print(
            f"byte-identical images: {sum(map(len, twins))}, in {len(twins)} groups, {differ} of them with different labels; "
            "all are kept, see duplicates.csv"
        )
    leaks = [
        row.path for group in twins if any(r.split == "train" for r in group) for row in group if row.split != "train"
    ]
    if leaks:
        total = sum(row.split != "train" for row in rows)
        print(
            f"warning: {len(leaks)} of {total} test images are training images too, so the test accuracy is too high: "
            f"{shortened(leaks, 5)}"
        )
    return [
        (i, row.path, row.split, row.label, len({r.label for r in group}) > 1)
        for i, group in enumerate(twins, 1)
        for row in group
    ]
