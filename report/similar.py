"""Further uses of image features: near-duplicates, outliers, and the nearest images of a class."""

from pathlib import Path

import numpy as np

from dataloader.dataset import Dataset
from dataloader.rows import read_csv
from methods.decisions import WRONG
from methods.neighbours import EXACT_UP_TO, Neighbours, find_neighbours
from model.features import read_features
from report.sections import Section, figures, section
from utils.files import write_csv
from utils.summaries import read_summary

# cleanlab's choices (2.9, Datalab's near_duplicate and outlier): neighbours, share of the median distance, spread
NEIGHBOURS, NEAR, SPREAD = 10, 0.13, 1 / 0.37037037 - 1
SHOWN = 40  # groups or images in the page


def find_features(folder: str | Path, data: Dataset) -> np.ndarray | None:
    """Unit-length features (N, D) float32 of the images of a run; None if no detector has stored any.

    They are those of the run itself or, by the images' paths and contents, of another detector's run beside it.
    """
    folder = Path(folder).resolve()
    here = [(data.path(i), data.digests[i] if data.digests else "") for i in range(len(data.train.labels))]
    for run in (folder, *sorted(p.parent for p in folder.parent.glob("*/clean_mask.npz") if p.parent != folder)):
        name = read_summary(run / "summary.json").get("features")
        if not name or not (run / "scores.csv").is_file():
            continue
        rows = {}
        if run != folder:
            rows = {(row["path"], row["content"]): int(row["index"]) for _, row in read_csv(run / "scores.csv")}
            if not (data.root and all(image in rows for image in here)):
                continue
        caches = [parent / "cache" for parent in run.parents if any((parent / "cache").glob(f"{name}*.npz"))]
        total = len(here) if run == folder else 1 + max(rows.values())
        features = read_features(caches[0], name, total) if caches else None
        if features is not None:
            return features if run == folder else features[[rows[image] for image in here]]
    return None


def near_duplicates(neighbours: Neighbours) -> list[list[int]]:
    """Groups, lists of indices, of images that are nearly the same: cosine distance below NEAR of the median to the nearest.

    The rule is cleanlab's; images connected by one pair or more are one group.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    distance, N = 1 - neighbours.cosine, len(neighbours.cosine)
    near = distance < NEAR * max(np.median(distance[:, 0]), 1e-6)
    rows, columns = np.nonzero(near)
    graph = coo_array((np.ones(len(rows)), (rows, neighbours.index[rows, columns])), shape=(N, N))
    _, group = connected_components(graph, directed=False)
    members = np.flatnonzero(np.bincount(group)[group] > 1)
    parts = np.split(members[np.argsort(group[members], kind="stable")], np.cumsum(np.bincount(group[members]))[:-1])
    return [part.tolist() for part in parts if len(part)]


def outliers(neighbours: Neighbours) -> tuple[np.ndarray, np.ndarray]:
    """Indices of images far from all others, the farthest first, and the mean cosine distance (N,) to the neighbours.

    Far is cleanlab's rule: above the third quartile by SPREAD interquartile ranges.
    """
    distance = (1 - neighbours.cosine).mean(1)
    low, high = np.percentile(distance, [25, 75])
    order = np.argsort(-distance, kind="stable")
    return order[distance[order] > high + SPREAD * (high - low)], distance


def nearest_of_classes(
    features: np.ndarray, arrays: dict[str, np.ndarray], i: int, count: int = 4
) -> dict[str, list[int]]:
    """Indices of the images nearest to image i that have its given label, and of those that have the suggested one.

    Of the others only images count that are there and that nobody called wrong, the trusted ones first.
    """

    def nearest(label: int) -> list[int]:
        others = np.flatnonzero((arrays["labels"] == label) & arrays["there"] & (arrays["decision"] != WRONG))
        others = others[others != i]
        cosine = features[others] @ features[i]
        return others[np.lexsort((-cosine, ~arrays["mask"][others]))[:count]].tolist()

    given, suggested = arrays["labels"][i], arrays["predicted"][i]
    return {"given": nearest(given), "suggested": nearest(suggested) if suggested != given else []}


def write_lists(
    folder: str | Path, data: Dataset, arrays: dict[str, np.ndarray], features: np.ndarray
) -> tuple[list[list[int]], list[int]]:
    """near_duplicates.csv and outliers.csv in the run's folder; returns the groups and the outliers that are there."""
    neighbours = find_neighbours(features, arrays["labels"], NEIGHBOURS)
    there, labels = arrays["there"], arrays["labels"]
    groups = [[i for i in group if there[i]] for group in near_duplicates(neighbours)]
    groups = [group for group in groups if len(group) > 1]
    groups.sort(key=lambda group: len(set(labels[group])) == 1)  # those that contradict each other first
    outside, distance = outliers(neighbours)
    far = [i for i in outside.tolist() if there[i]]
    names = data.label_names
    rows = [
        (number, i, data.path(i), names[labels[i]], len(set(labels[group])) > 1)
        for number, group in enumerate(groups, 1)
        for i in group
    ]
    write_csv(Path(folder) / "near_duplicates.csv", [("group", "index", "path", "label", "labels_differ"), *rows])
    alone = [(k, i, data.path(i), names[labels[i]], f"{distance[i]:.6f}") for k, i in enumerate(far, 1)]
    write_csv(Path(folder) / "outliers.csv", [("rank", "index", "path", "label", "distance"), *alone])
    return groups, far


def similar_sections(
    folder: str | Path, data: Dataset, arrays: dict[str, np.ndarray], features: np.ndarray | None
) -> list[Section]:
    """The sections of near-duplicates and of outliers, as other_sections has them; [] without features (N, D) of two images."""
    if features is None or not 2 <= len(features) <= EXACT_UP_TO:
        return []
    groups, far = write_lists(folder, data, arrays, features)
    return [_duplicates(data, arrays, groups), _outliers(data, arrays, far)]


def _duplicates(data: Dataset, arrays: dict[str, np.ndarray], groups: list[list[int]]) -> Section:
    differ = sum(len(set(arrays["labels"][group])) > 1 for group in groups)
    shown = [group[:8] for group in groups[:SHOWN]]
    pictures = iter(figures(data, arrays, [i for group in shown for i in group]))
    rows = "".join(f"<div class=group>{''.join(next(pictures) for _ in group)}</div>" for group in shown)
    text = (
        f"<p class=soft>{len(groups):,} {'group' if len(groups) == 1 else 'groups'} of images that look nearly the same to the "
        "image encoder, first those with "
        f"different labels ({differ:,}): if the images show the same thing, at most one label is right. An encoder that "
        f"does not know such images may group different ones. near_duplicates.csv lists all groups; {len(shown)} are shown.</p>"
    )
    return section("duplicates", "Near-duplicates", text, f"<div class=groups>{rows}</div>")


def _outliers(data: Dataset, arrays: dict[str, np.ndarray], far: list[int]) -> Section:
    pictures = "".join(figures(data, arrays, far[:SHOWN]))
    text = (
        f"<p class=soft>{len(far):,} images that are far from all others, the farthest first. They may belong to none of the "
        f"classes. outliers.csv lists all; {min(len(far), SHOWN)} are shown.</p>"
    )
    return section("outliers", "Outliers", text, f"<div class=group>{pictures}</div>")
