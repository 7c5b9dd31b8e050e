"""Near-duplicates, outliers and nearest images by features, against cleanlab's rules and by hand."""

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from methods.neighbours import find_neighbours
from report import similar
from report.suspects import read_run
from tests.helpers import unit


@pytest.fixture(scope="module")
def features():
    """300 points around 6 centres; 5 and 6 are copies of 4, 8 nearly one of 7, and 11 is alone."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 16))[np.arange(300) % 6] + 0.3 * rng.normal(size=(300, 16))
    x[5], x[6], x[8], x[11] = x[4], x[4], x[7] + 1e-3, -x.mean(0) * 9 + rng.normal(size=16)
    return unit(x)


def test_copies_are_found_and_no_others(features):
    neighbours = find_neighbours(features, np.arange(300) % 6, 10)
    assert similar.near_duplicates(neighbours) == [[4, 5, 6], [7, 8]]
    far, distance = similar.outliers(neighbours)
    assert far[0] == 11 and len(far) < 20 and distance[11] == distance.max()


def test_the_rules_are_cleanlabs(features):
    """What Datalab's near_duplicate and outlier flag, by the functions of cleanlab 2.9 that decide."""
    from cleanlab.datalab.internal.issue_manager.duplicate import NearDuplicateIssueManager
    from cleanlab.datalab.internal.issue_manager.outlier import OutlierIssueManager
    from cleanlab.internal.neighbor.knn_graph import create_knn_graph_and_index

    graph, _ = create_knn_graph_and_index(features.astype(np.float64), n_neighbors=10, metric="cosine")
    distances = graph.data.reshape(300, -1)
    sets = NearDuplicateIssueManager._neighbors_within_radius(graph, 0.13, np.median(distances[:, 0]))
    _, _, is_outlier = OutlierIssueManager._compute_threshold_and_issue_column_from_distances(None, distances)
    neighbours = find_neighbours(features, np.arange(300) % 2, similar.NEIGHBOURS)
    ours = {i for group in similar.near_duplicates(neighbours) for i in group}
    assert ours == {i for i, found in enumerate(sets) if len(found)}
    assert sorted(similar.outliers(neighbours)[0]) == np.flatnonzero(is_outlier).tolist()


def test_the_nearest_of_the_given_and_the_suggested_class(features):
    labels = np.arange(300) % 6
    arrays = {
        "labels": labels,
        "predicted": np.roll(labels, 1),
        "mask": np.ones(300, dtype=bool),
        "there": np.ones(300, dtype=bool),
        "decision": np.zeros(300, dtype=np.int8),
    }
    nearest = similar.nearest_of_classes(features, arrays, 0)
    cosine = features @ features[0]
    for side, label in (("given", labels[0]), ("suggested", arrays["predicted"][0])):
        members = [i for i in np.argsort(-cosine) if labels[i] == label and i != 0]
        assert nearest[side] == members[:4]
    gone, wrong, suspect = nearest["given"][:3]
    arrays["there"][gone], arrays["decision"][wrong], arrays["mask"][suspect] = False, 2, False
    again = similar.nearest_of_classes(features, arrays, 0)["given"]
    assert not {gone, wrong, suspect} & set(again) and len(again) == 4  # trusted ones come before suspects


def test_features_of_a_run_are_found_by_its_images(nasty_run, tmp_path):
    """Those of the run itself; and for a run without any, those of a detector beside it, in the order of its images."""
    out = Path(shutil.copytree(nasty_run.parents[3], tmp_path / "runs"))
    run = out / nasty_run.relative_to(nasty_run.parents[3])
    _, _, data, _ = read_run(run)
    features = similar.find_features(run, data)
    assert features.shape[0] == len(data.train.labels)
    bare = shutil.copytree(run, run.parent / "bare")
    (bare / "summary.json").unlink()
    order = np.arange(len(data.train.labels))[::-1][:10]
    part = SimpleNamespace(
        train=data.train.take(order),
        digests=[data.digests[i] for i in order],
        path=lambda i: data.path(order[i]),
        root="x",
    )
    assert np.array_equal(similar.find_features(bare, part), features[order])
    part.digests = ["other"] * len(order)
    assert similar.find_features(bare, part) is None


def test_the_report_lists_them(nasty_run):
    with (nasty_run / "near_duplicates.csv").open(encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["group", "index", "path", "label", "labels_differ"]
    html = (nasty_run / "report.html").read_text(encoding="utf-8")
    assert 'id="duplicates"' in html and 'id="outliers"' in html
