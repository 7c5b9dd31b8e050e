"""How good the estimates of wrong labels are, where the truth is known: results/estimates.md and results/calibration.png.

    OMP_NUM_THREADS=1 python -m scripts.estimate_table --deft 0

The digits with seven label noises and three seeds, DeFT, which trains, with the seeds after --deft alone. Each detector's
estimate is compared with the truth, from the scores alone, with 100 checked labels spread over the list, and with the first
100 of it checked. The scores of a cell are kept, so that a stopped command goes on.
"""

import argparse
import contextlib
import io
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
from scripts.detector_table import NOISES, deft_rows
from utils.config import load_config
from utils.files import write_text, write_whole

NAMES = ("auto", "lemon", "label-match", "clip-margin", "clipcleaner", "confident-learning", "knn", "aum")
CHECKED = {"scores alone": None, "100 checked, spread": "spread", "first 100 checked": "first"}
INTRODUCTION = """# Estimates of wrong labels on the digits

`methods/estimates.py` against the truth: 1,437 digits, `tiny-clip-digits`, the seven label noises of
[detectors.md](detectors.md), {seeds}. `python -m scripts.estimate_table{flag}`. The constants of the estimate were chosen on
these digits, which flatters it.

* **error of the share**: mean absolute difference of the estimated and the true share of wrong labels, in percentage points
* **in the interval**: how often the true number of wrong labels lies in the 90 % interval
* **calibration error**: expected calibration error of the chance that a label is wrong, ten bins
* **precision at 90 %**: wrong labels among the suspects that `target_precision: 0.9` chooses, mean and lowest of
  the runs in which there are any

{table}

![calibration curves](calibration.png)

The curves show bins of 50 labels or more. From the scores alone, labels between the two groups of scores are misjudged: with
`label-match` and `clipcleaner` few of them are wrong, with `knn` most. The intervals allow for that and are wide. A hundred
checked labels spread over the whole list mend it for every detector; the first hundred suspects say nothing about the rest.
"""


def scores(names, mode, ratio, seed, runs):
    """{detector: p_clean (N,)} of one noise and seed, and `wrong` (N,), computed once."""
    path = runs / f"scores-{mode}-{ratio:g}-seed{seed}.npz"
    kept = dict(np.load(path)) if path.is_file() else {}
    if missing := [name for name in names if name not in kept]:
        flags = ["--cfg", "config/PEFT/digits.yaml", "--device", "cpu", "--output_dir", str(runs), "--seed", str(seed)]
        cfg = load_config([*flags, "--noise_mode", mode, "--noise_ratio", str(ratio)])
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
        print(f"{mode} {ratio:g}, seed {seed}", flush=True)
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--deft", type=int, nargs="*", default=[], help="seeds for which phase 1 is trained, too")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--runs", type=Path, default=Path("runs/detector-table"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.runs.mkdir(parents=True, exist_ok=True)
    cells = [
        scores((*NAMES, *["deft"] * (seed in args.deft)), mode, ratio, seed, args.runs)
        for seed in args.seeds
        for mode, ratio in NOISES
    ]
    text, (figure, axes) = [], plt.subplots(1, 3, figsize=(12, 4.2), sharey=True)
    for (title, which), axis in zip(CHECKED.items(), axes):
        rows = []
        axis.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
        for name in (*NAMES, *["deft"] * bool(args.deft)):
            row, (p_wrong, wrong) = measure(name, which, cells)
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
    with write_whole(args.out / "calibration.png") as file:
        figure.savefig(file, format="png", dpi=120)
    seeds = f"seeds {', '.join(map(str, args.seeds))}"
    flag = " --deft " + " ".join(map(str, args.deft)) if args.deft else ""
    write_text(args.out / "estimates.md", INTRODUCTION.format(seeds=seeds, flag=flag, table="\n\n".join(text)))


if __name__ == "__main__":
    main()
