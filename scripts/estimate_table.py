"""How good the estimates of wrong labels are, where the truth is known: results/estimates*.md, calibration*.png.

    OMP_NUM_THREADS=1 python -m scripts.estimate_table --deft 0
    OMP_NUM_THREADS=1 python -m scripts.estimate_table --table few --data_root few

The noises of scripts/detector_table.py and three seeds; DeFT, which trains, with the seeds after --deft alone. Each detector's
estimate is compared with the truth, from the scores alone, with 100 checked labels spread over the list, and with the first
100 of it checked. The scores of a cell are kept, so that a stopped command goes on.
"""

import argparse
import contextlib
import io
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from dataloader.load import load_data
from methods.detectors import DETECTORS
from methods.estimates import calibration, estimate, spread
from methods.inputs import load_inputs
from report.tables import format_table
from scripts.detector_table import TABLES, cell_config, deft_rows, noise_name
from utils.config import parse_flags
from utils.files import write_text, write_whole
from utils.start import run_main

NAMES = {
    "digits": ("auto", "lemon", "label-match", "clip-margin", "clipcleaner", "confident-learning", "knn", "aum"),
    "few": ("auto", "label-match", "clip-margin", "confident-learning"),
}
CHECKED = {"scores alone": None, "100 checked, spread": "spread", "first 100 checked": "first"}
DIGITS = """# Estimates of wrong labels on the digits

`methods/estimates.py` against the truth: 1,437 digits, `tiny-clip-digits`, the seven label noises of
[detectors.md](detectors.md), {seeds}. `python -m scripts.estimate_table{flag}`. The constants of the estimate were chosen on
these digits with an earlier embedded CLIP, which flatters it.

{measures}

{table}

![calibration curves](calibration.png)

The curves show bins of 50 labels or more. From the scores alone, labels between the two groups of scores are misjudged: with
`label-match` and `clipcleaner` few of them are wrong, with `knn` most. The intervals allow for that and are wide. A hundred
checked labels spread over the whole list mend it for every detector; the first hundred suspects say nothing about the rest.
"""
FEW = """# Estimates of wrong labels on few photographs

`methods/estimates.py`, whose constants were chosen on the digits, against the truth: the photographs and noises of
[detectors-few.md](detectors-few.md) (1,500 training images of CIFAR-10 and of CIFAR-100, 3,000 of Tiny-ImageNet),
`tiny-clip-photos`, {seeds}. The human labels of CIFAR-10N (`aggre`, `random1`, `worse`) are the same for every seed. One CPU
thread, {date}:

    python -m scripts.unpack_photos data/cifar-10 data/cifar-100 --out few --train 1500 --test 1000
    python -m scripts.unpack_photos data/tiny-imagenet-200 --out few --train 3000 --test 1000
    python -m scripts.estimate_table --table few --data_root few{flag}

**From the scores alone, the interval can miss the truth.** That of `auto` holds it in 34 of 38 runs (17 of 19 noises), that of
`clip-margin` in 36, of `confident-learning` in 32 and of `label-match` in 28. All four miss CIFAR-10N `aggre`: 28 to 32 %
estimated, 9.5 % true. `auto` also misses `worse`: 23.5 % estimated, 41.7 % true. `label-match` and `confident-learning`
overestimate on CIFAR-100 and Tiny-ImageNet, by up to 43 and 46 points; where they hold the truth there, it is because the
interval is wide. Under synthetic noise, `auto` and `clip-margin` always hold it; their mean estimates are off by 11 points at
most.

**With 100 checked labels spread over the list,** the mean error falls to 1.5 points for `auto`, 1.9 for `clip-margin`, 2.9 for
`label-match` and 4.2 for `confident-learning`. The interval then holds the truth in 38, 36, 37 and 29 of 38 runs: that of
`confident-learning` becomes too narrow. The first 100 suspects help little.

## Scores alone, by noise

True share of wrong labels, in %, and the mean estimate; in brackets, in how many runs the 90 % interval holds the truth.

{noises}

{measures}

{table}

![calibration curves](calibration-few.png)

The curves show bins of 50 labels or more.
"""
INTRODUCTIONS = {"digits": DIGITS, "few": FEW}
MEASURES = """* **error of the share**: mean absolute difference of the estimated and the true share of wrong labels, in percentage points
* **in the interval**: how often the true number of wrong labels lies in the 90 % interval
* **calibration error**: expected calibration error of the chance that a label is wrong, ten bins
* **precision at 90 %**: wrong labels among the suspects that `target_precision: 0.9` chooses, mean and lowest of
  the runs in which there are any"""


def scores(names, table, cell, seed, args):
    """{detector: p_clean (N,)} of one cell of a Table and seed, and `wrong` (N,), computed once."""
    dataset, mode, ratio = cell
    path = args.runs / f"scores-{dataset}-{mode}-{ratio:g}-seed{seed}.npz"
    kept = dict(np.load(path)) if path.is_file() else {}
    if missing := [name for name in names if name not in kept]:
        cfg = cell_config(table, cell, seed, args)
        with contextlib.redirect_stdout(io.StringIO()):
            data = load_data(cfg)
            inputs, _ = load_inputs(cfg, data, torch.device("cpu"))
            kept["wrong"] = data.true_labels != data.train.labels
            for name in missing:
                if name == "deft":
                    ((_, selection, _),) = deft_rows(["deft"], cfg, data)
                    kept[name] = selection["p_clean"]
                else:
                    kept[name] = DETECTORS[name].find(inputs).p_clean
        with write_whole(path) as file:
            np.savez(file, **kept)
        print(f"{dataset} {noise_name(mode, ratio)}, seed {seed}", flush=True)
    return {name: kept[name] for name in (*names, "wrong")}


def checked_labels(p_clean, wrong, which, n=100):
    """{index: whether wrong} of n labels that a person would have checked."""
    index = spread(p_clean, n) if which == "spread" else np.argsort(p_clean, kind="stable")[:n]
    return {int(i): bool(wrong[i]) for i in index} if which else {}


def measure(name, which, cells):
    """A row of the table, and P(wrong) and truth of all cells in a row, for the curve."""
    errors, inside, calibrations, precisions, pairs = [], [], [], [], []
    for cell in (cell for cell in cells if name in cell):
        p_clean, wrong = cell[name], cell["wrong"]
        found = estimate(p_clean, checked_labels(p_clean, wrong, which))
        expected, low, high = found.wrong()
        n = found.suspects_for(0.9)
        errors.append(100 * abs(expected - wrong.sum()) / len(wrong))
        inside.append(low <= wrong.sum() <= high)
        calibrations.append(100 * calibration(found.p_wrong, wrong)[1])
        precisions += [100 * wrong[found.order[:n]].mean()] if n else []
        pairs.append((found.p_wrong, wrong))
    row = [
        name,
        str(len(errors)),
        f"{np.mean(errors):.1f} (at most {max(errors):.1f})",
        f"{100 * np.mean(inside):.0f} %",
    ]
    row += [f"{np.mean(calibrations):.1f} %", f"{np.mean(precisions):.0f} % ({min(precisions):.0f} %)"]
    return row, [np.concatenate(part) for part in zip(*pairs)]


def by_noise(names, noises, cells):
    """The table of estimates from the scores alone, a row for each of the noises (dataset, noise_mode, noise_ratio).

    cells: {(noise, seed): scores}.
    """
    rows = [["data", "noise", "wrong, %", *names]]
    for dataset, mode, ratio in noises:
        runs = [found for (noise, _), found in cells.items() if noise == (dataset, mode, ratio)]
        row = [dataset, noise_name(mode, ratio), f"{100 * np.mean([cell['wrong'] for cell in runs]):.1f}"]
        for name in names:
            found = [(*estimate(cell[name]).wrong(), cell["wrong"].sum()) for cell in runs]
            share = 100 * np.mean([expected for expected, *_ in found]) / len(runs[0]["wrong"])
            row.append(f"{share:.1f} ({sum(low <= wrong <= high for _, low, high, wrong in found)} of {len(runs)})")
        rows.append(row)
    return format_table(rows, 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default="digits", choices=NAMES)
    parser.add_argument("--data_root", type=Path, help="where the data sets are, instead of ./data")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--deft", type=int, nargs="*", default=[], help="seeds for which phase 1 is trained, too")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--runs", type=Path, default=Path("runs/detector-table"))
    args = parse_flags(parser)
    torch.set_num_threads(1)
    args.runs.mkdir(parents=True, exist_ok=True)
    table, names = TABLES[args.table], NAMES[args.table]
    cells = {
        (cell, seed): scores((*names, *["deft"] * (seed in args.deft)), table, cell, seed, args)
        for seed in args.seeds
        for cell in table.cells
    }
    text, (figure, axes) = [], plt.subplots(1, 3, figsize=(12, 4.2), sharey=True)
    for (title, which), axis in zip(CHECKED.items(), axes):
        rows = []
        axis.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
        for name in (*names, *["deft"] * bool(args.deft)):
            row, (p_wrong, wrong) = measure(name, which, cells.values())
            rows.append(row)
            points = [point[:2] for point in calibration(p_wrong, wrong)[0] if point[2] >= 50]
            axis.plot(*zip(*points), marker=".", label=name)
        axis.set(title=title, xlabel="estimated chance that a label is wrong", xlim=(0, 1), ylim=(0, 1))
        header = [
            "detector",
            "runs",
            "error of the share",
            "in the interval",
            "calibration error",
            "precision at 90 % (lowest)",
        ]
        text.append(f"## {title[0].upper()}{title[1:]}\n\n{format_table([header, *rows], 1)}")
    axes[0].set_ylabel("part that is wrong")
    axes[1].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    end = "" if args.table == "digits" else f"-{args.table}"
    with write_whole(args.out / f"calibration{end}.png") as file:
        figure.savefig(file, format="png", dpi=120)
    seeds = f"seeds {', '.join(map(str, args.seeds))}"
    flag = " --seeds " + " ".join(map(str, args.seeds)) if args.seeds != [0, 1, 2] else ""
    flag += " --deft " + " ".join(map(str, args.deft)) if args.deft else ""
    parts = {"measures": MEASURES, "table": "\n\n".join(text), "noises": by_noise(names, table.cells, cells)}
    parts["date"] = time.strftime("%d %B %Y")
    write_text(args.out / f"estimates{end}.md", INTRODUCTIONS[args.table].format(seeds=seeds, flag=flag, **parts))


if __name__ == "__main__":
    run_main(main)
