"""The same folder of images through cleanlab's Datalab and through this tool, on the same features.

    python -m benchmarks.datalab                                   # handwritten digits, a fifth of the labels wrong
    python -m benchmarks.datalab --data_path photos --backbone ViT-B/16

Without --data_path, the folder has 1,797 digits, 20 of them a second time as JPEG files of quality 60, and 5 images of noise.
Precision and recall are of wrong labels, where a table has a column true_label. docs/cleanlab.md explains the figures.
"""

import csv
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import main_detect
import main_real_phase1
import report.page
from benchmarks.common import digits_folder, parser
from benchmarks.common import report as write_report
from methods.detectors import out_of_fold
from report.similar import find_features
from report.suspects import read_run

DETECTORS = ("label-match", "confident-learning", "auto", "deft")


def example_folder(root):
    """Write the digits: {path: true label, None for an image of noise}."""
    truth = digits_folder(root, 1797)
    rng = np.random.default_rng(0)
    for path in rng.choice(sorted(truth), 20, replace=False):
        again = Path(path).with_suffix(".jpg")
        Image.open(path).convert("RGB").save(again, quality=60)
        truth[str(again)] = truth[path]
    for i in range(5):
        path = root / "zero" / f"noise{i}.png"
        Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(path)
        truth[str(path)] = None
    return truth


def timed(function, *args, **kwargs):
    """(result, seconds of a processor) of a call."""
    started = sum(os.times()[:4])
    result = function(*args, **kwargs)
    return result, sum(os.times()[:4]) - started


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def with_this_tool(flags, folder, detectors):
    """{what: (set of paths, CPU seconds)} that the detectors flag, and the report of the run beside them."""
    found = {}
    for name in detectors:  # the first computes the features, which the others read
        main, more = (main_real_phase1.main, []) if name == "deft" else (main_detect.main, ["--detector", name])
        _, seconds = timed(main, [*flags, "--test_fraction", "0", *more])
        found[f"labels: {name}"] = {row["path"] for row in read(folder / name / "suspects.csv")}, seconds
    _, seconds = timed(report.page.main, [str(folder / "confident-learning")])
    for name in ("near_duplicates", "outliers"):
        paths = {row["path"] for row in read(folder / "confident-learning" / f"{name}.csv")}
        found[f"{name}: report.page"] = paths, seconds
    return found


def with_cleanlab(run):
    """The same of cleanlab, on the features and labels of a run and out-of-fold probabilities; and all that Datalab flags."""
    from cleanlab import Datalab
    from cleanlab.filter import find_label_issues

    _, arrays, data, _ = read_run(run)
    features, labels, names = find_features(run, data), arrays["labels"], data.label_names
    paths = np.array([data.path(i) for i in range(len(labels))])
    probabilities, regressions = timed(out_of_fold, features, labels, len(names), 0)
    lab = Datalab({"label": [names[k] for k in labels]}, label_name="label", verbosity=0)
    _, seconds = timed(lab.find_issues, features=features, pred_probs=probabilities)
    kinds = [column[3:-6] for column in lab.get_issues() if column.startswith("is_")]
    flags = {kind: set(paths[lab.get_issues(kind)[f"is_{kind}_issue"].to_numpy()]) for kind in kinds}
    issues, plain_seconds = timed(find_label_issues, labels, probabilities, n_jobs=1)
    found = {
        "labels: find_label_issues": (set(paths[issues]), regressions + plain_seconds),
        "labels: Datalab": (flags["label"], regressions + seconds),
        "near_duplicates: Datalab": (flags["near_duplicate"], seconds),
        "outliers: Datalab": (flags["outlier"], seconds),
    }
    return found, {kind: len(paths) for kind, paths in flags.items()}


def known_faults(run, root, truth):
    """{kind: set of paths} that should be flagged: wrong labels, and what example_folder added. Empty where unknown."""
    rows = read(run / "scores.csv")
    true = {row["path"]: truth[str(root / row["path"])] if truth else row["true_label"] for row in rows}
    copies = {path for path in true if truth and path.endswith(".jpg")}
    known = truth or any(true.values())
    return {
        "labels": {row["path"] for row in rows if row["given_label"] != true[row["path"]]} if known else set(),
        "near_duplicates": copies | {path.replace(".jpg", ".png") for path in copies},
        "outliers": {path for path in true if true[path] is None},
    }


def figures(what, found, seconds, faults):
    """A row of the table."""
    row = {"what": what, "CPU s": round(seconds, 1), "flagged": len(found)}
    if faults:
        right = len(found & faults)
        row |= {
            "precision, %": round(100 * right / max(len(found), 1), 1),
            "recall, %": round(100 * right / len(faults), 1),
        }
        row |= {"F1, %": round(200 * right / (len(found) + len(faults)), 1)}
    return row


def main():
    p = parser(__doc__)
    p.add_argument("--data_path", default="", help="your own folder of class folders, or table")
    p.add_argument("--backbone", default="tiny-clip-digits")
    p.add_argument("--untrained", action="store_true", help="without DeFT, which takes most of the time")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        root = Path(args.data_path or out / "images")
        truth = None if args.data_path else example_folder(root)
        flags = [
            "--cfg",
            "config/PEFT/own.yaml",
            "--data_path",
            str(root),
            "--name",
            "example",
            "--device",
            args.device,
        ]
        flags += ["--backbone", args.backbone, "--output_dir", str(out / "runs")]
        folder = out / "runs" / "own-example" / "none" / "seed0"
        ours = with_this_tool(flags, folder, DETECTORS[:3] if args.untrained else DETECTORS)
        theirs, all_flags = with_cleanlab(folder / "confident-learning")
        faults = known_faults(folder / "confident-learning", root, truth)
    found = dict(sorted({**theirs, **ours}.items(), key=lambda item: item[0].split(":")[0]))
    rows = [figures(what, *found[what], faults[what.split(":")[0]]) for what in found]
    differ = {
        f"{a} and {b}": len(found[a][0] ^ found[b][0])
        for a, b in (
            ("labels: confident-learning", "labels: find_label_issues"),
            ("labels: confident-learning", "labels: Datalab"),
            ("near_duplicates: report.page", "near_duplicates: Datalab"),
            ("outliers: report.page", "outliers: Datalab"),
        )
    }
    write_report(rows, args, differ=differ, datalab=all_flags)
    print(f"flags that differ: {differ}; all that Datalab flags: {all_flags}")


if __name__ == "__main__":
    main()
