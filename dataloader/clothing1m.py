"""Clothing1M."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dataloader.dataset import Dataset, View
from dataloader.listings import ENLARGE, read_pairs, read_words, to_split
from utils.errors import UserError


def clothing1m(cfg: SimpleNamespace) -> Dataset:
    """Clothing1M: key lists and label files; trains on a class-balanced subset of the noisy images, fixed by `seed`.

    Going through the shuffled list, an image is taken while its class has fewer than num_samples / 14 images. Keys begin
    with `images/`; this folder may or may not exist on disk.
    """
    root = Path(cfg.data_path)
    n = cfg.num_samples or 1000 * cfg.batch_size

    def read(keys_file: str, labels_file: str) -> list[tuple[str, int]]:
        labels, pairs = dict(read_pairs(root / labels_file)), []
        for row, words in enumerate(read_words(root / keys_file, 1)):
            if words[0] not in labels:
                raise UserError(
                    f"{root / keys_file}: line {row + 1}, {words[0]}, has no label in {root / labels_file}."
                )
            pairs.append((words[0], labels[words[0]]))
        return pairs

    train = read("noisy_train_key_list.txt", "noisy_label_kv.txt")
    test = read("clean_test_key_list.txt", "clean_label_kv.txt")
    counts: dict[int, int] = {}
    taken: list[tuple[str, int]] = []
    for i in np.random.default_rng([cfg.seed, 0, 2]).permutation(len(train)):
        label = train[i][1]
        if counts.get(label, 0) < n / 14 and len(taken) < n:
            taken.append(train[i])
            counts[label] = counts.get(label, 0) + 1
    keeps_prefix = (root / taken[0][0]).is_file()
    noisy, clean = [
        to_split([(root / (key if keeps_prefix else key.removeprefix("images/")), label) for key, label in part])
        for part in (taken, test)
    ]
    view = View(
        enlarge=ENLARGE,
        test_enlarge=ENLARGE,
        short_side=True,
        mean=(0.6959, 0.6537, 0.6371),
        std=(0.3113, 0.3192, 0.3214),
    )
    source = hashlib.sha256(repr((train, test)).encode()).hexdigest()[:8]  # of the whole list: subsets are its seeds
    return Dataset("clothing1m", noisy, clean, classnames=[], view=view, trusted=False, source=source)
