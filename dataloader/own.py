"""A person's own images as a data set: a folder, a table, or what a notebook holds in memory."""

from dataclasses import replace

import numpy as np
from PIL import Image

from dataloader.dataset import Dataset, Split, View, hold_out
from dataloader.files import images_identity, inspect_files, inspection_cache
from dataloader.rows import read_rows, say_names, shortened, tidy_names
from utils.config import UserError, nearest

OWN_VIEW = View(flip=False)  # neither cut nor mirrored: what fills the frame stays whole, and letters what they are


def own(cfg):
    """A folder of class folders or a table (dataloader/own.py); without a test split `test_fraction` is held out by `seed`.

    Where true labels are given, those of the training images are true_labels, and those of the test images its labels.
    """
    rows, skipped, duplicates = sound_rows(cfg.data_path, cfg)
    train, test = ([row for row in rows if (row.split == "train") == is_train] for is_train in (True, False))
    classes = sorted({row.label for row in train} | {row.true_label for row in train} - {""})
    if len({row.label for row in train}) < 2:
        raise UserError(
            f"data_path: {cfg.data_path} holds training images of {len(classes)} class, expected two or more."
        )
    labels, true_labels = label_numbers(train, classes)
    if not test:
        kept, held_out = hold_out(labels, cfg.test_fraction, cfg.seed)
        few = [classes[k] for k in np.setdiff1d(labels, labels[held_out])]
        if few and cfg.test_fraction:
            print(f"too few images to hold one out for testing: {shortened(few)}")
        train, test = [train[i] for i in kept], [train[i] for i in held_out]
        labels, true_labels = labels[kept], None if true_labels is None else true_labels[kept]
    test_split = None
    if test:
        test_split = Split([row.path for row in test], label_numbers([_corrected(row) for row in test], classes)[0])
    print(f"{cfg.data_path}: {len(train)} training images of {len(classes)} classes, {len(test)} for testing")
    return Dataset(
        "own",
        Split([row.path for row in train], labels),
        test_split,
        classnames=tidy_names(classes),
        label_names=classes,
        view=OWN_VIEW,
        trusted=False,
        true_labels=true_labels,
        ids=[row.id for row in train] if train[0].id else None,
        skipped=skipped,
        duplicates=duplicates,
    )


def _corrected(row):
    """The row with its true label, where it has one, for its label: what a classifier should say."""
    return replace(row, label=row.true_label or row.label)


def label_numbers(rows, classes):
    """labels and true_labels of rows, (N,) int64; None for the latter unless every row has one."""
    number = {name: i for i, name in enumerate(classes)}
    for row in rows:
        for label in (row.label, row.true_label or row.label):
            if label not in number:
                raise UserError(f"{row.where}: {label!r} is no class of the training images.{nearest(label, classes)}")
    labels = np.array([number[row.label] for row in rows], dtype=np.int64)
    known = [row.true_label for row in rows if row.true_label]
    if len(known) < len(rows):
        if known:
            print(f"true labels: given for {len(known)} of {len(rows)} images only, not used")
        return labels, None
    return labels, np.array([number[name] for name in known], dtype=np.int64)


def sound_rows(source, cfg, key="data_path"):
    """The rows of a folder or table whose files can be read, {path: reason} of the others, and the identical files.

    Of these, which stay, (group, path, label, whether the labels of the group differ).
    """
    rows = read_rows(source, cfg, key)
    digests, reasons = inspect_files([row.path for row in rows], inspection_cache(cfg))
    skipped = {row.path: reason for row, reason in zip(rows, reasons) if reason}
    groups = {}
    for row, digest, reason in zip(rows, digests, reasons):
        if not reason:
            groups.setdefault(digest, []).append(row)
    twins = [group for group in groups.values() if len(group) > 1]
    duplicates = [
        (i, row.path, row.label, len({r.label for r in group}) > 1) for i, group in enumerate(twins, 1) for row in group
    ]
    if skipped:
        reasons_given = [f"{path} ({reason})" for path, reason in skipped.items()]
        print(f"left out {len(skipped)} of {len(rows)} images: {shortened(reasons_given, 5)}")
    if len(skipped) == len(rows):
        raise UserError(f"{key}: none of the {len(rows)} images of {source} can be read.")
    if duplicates:
        differ = sum(len({row.label for row in group}) > 1 for group in twins)
        print(
            f"{len(duplicates)} images are {len(twins)} files more than once"
            + (f", {differ} of them with different labels" if differ else "")
            + "; all are kept"
        )
    return [row for row in rows if row.path not in skipped], skipped, duplicates


def in_memory(images, labels, classnames=None):
    """A Dataset without a test split from what a notebook has: paths, Pillow images or uint8 (N, H, W, 3); N labels.

    classnames are in the order of the sorted labels; with whole numbers as labels, label k is classnames[k].
    """
    is_array, labels = isinstance(images, np.ndarray), np.asarray(labels)
    if is_array and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3):
        raise UserError(f"images: expected uint8 (N, H, W, 3), found {images.dtype} of shape {images.shape}.")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iuU":
        raise UserError(
            f"labels: expected {len(images)} strings or whole numbers, one an image, found {labels.dtype} of "
            f"shape {labels.shape}."
        )
    images = images if is_array else [x if isinstance(x, Image.Image) else str(x) for x in images]
    names = np.arange(len(classnames)) if classnames and labels.dtype.kind != "U" else np.unique(labels)
    unknown = np.setdiff1d(labels, names)
    if len(unknown) or len(names) < 2 or (classnames and len(classnames) != len(names)):
        raise UserError(
            f"labels: {len(np.union1d(labels, names))} classes, expected two or more, with a name in classnames "
            f"each, of which there are {len(classnames or names)}."
        )
    words = list(classnames) if classnames else tidy_names([str(name) for name in names])
    say_names(words, names.tolist())
    return Dataset(
        "own",
        Split(images, np.searchsorted(names, labels).astype(np.int64)),
        None,
        words,
        OWN_VIEW,
        names.tolist(),
        trusted=False,
        fingerprint=images_identity(images)[:8],
    )
