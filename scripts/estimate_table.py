"""How good the estimates of wrong labels are, where the truth is known: results/estimates*.md, calibration*.png.

    OMP_NUM_THREADS=1 python -m scripts.estimate_table --deft 0
    OMP_NUM_THREADS=1 python -m scripts.estimate_table --table few --data_root few

The noises of scripts/detector_table.py, three lower ones, and three seeds; DeFT, which trains, with the seeds after --deft alone.
Each detector's estimate is compared with the truth: from the scores alone, with a sample of 100 checked labels from the whole list,
and with the first 100 checked. The scores of a cell are kept, so that a stopped command goes on. The introduction of a page, up to its
first section, is written by hand and stays.
"""

import argparse
import contextlib
import io
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from dataloader.load import load_data
from methods.detectors import DETECTORS
from methods.estimates import calibration, estimate, spread
from methods.inputs import load_inputs
from report.tables import format_table
from scripts.detector_table import RESULTS, TABLES, cell_config, deft_rows, noise_name
from utils.config import parse_flags
from utils.files import write_text, write_whole
from utils.start import run_main

NAMES = {
    "digits": ("auto", "lemon", "label-match", "clip-margin", "clipcleaner", "confident-learning", "knn", "aum"),
    "few": ("auto", "label-match", "clip-margin", "confident-learning"),
}
LOW = (0, 0.02, 0.05)  # symmetric noise of each data set, besides that of detector_table
CHECKED = {"scores alone": "none", "a sample of 100 checked": "spread", "the first 100 suspects checked": "first"}
MEASURES = """* **error of the share**: mean absolute difference of the estimated and the true share of wrong labels, in percentage points
* **in the interval**: how often the true number of wrong labels lies in the 90 % interval, in whole labels
* **calibration error**: expected calibration error of the chance that a label is wrong, ten bins
* **precision at 90 %**: wrong labels among the suspects that `target_precision: 0.9` chooses, mean and lowest of
  the runs in which there are any"""
BY_NOISE = """True share of wrong labels, in %, and the mean estimate; in brackets, in how many runs the 90 % interval, in whole labels, holds the
truth."""
HEADER = (
    "detector",
    "wrong labels",
    "runs",
    "error of the share",
    "in the interval",
    "calibration error",
    "precision at 90 % (lowest)",
)


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


def estimated(p_clean, wrong, checked, n=100):
    """The Estimate of a detector's p_clean where a person has checked n labels: `spread` over the list, its `first`, or `none`."""
    index = {"none": [], "spread": spread(p_clean, n), "first": np.argsort(p_clean, kind="stable")[:n]}[checked]
    return estimate(p_clean, {int(i): bool(wrong[i]) for i in index})


def holds(found, wrong):
    """Whether the interval of an Estimate, in whole labels, holds the number of labels that are wrong (N,)."""
    _, low, high = found.wrong()
    return round(low) <= wrong.sum() <= round(high)


def measure(name, checked, cells):
    """A row of the table, after the detector's name and the noise, and P(wrong) and truth of all cells in a row, for the curve."""
    errors, inside, calibrations, precisions, pairs = [], [], [], [], []
    for cell in cells:
        wrong = cell["wrong"]
        found = estimated(cell[name], wrong, checked)
        n = found.suspects_for(0.9)
        errors.append(100 * abs(found.wrong()[0] - wrong.sum()) / len(wrong))
        inside.append(holds(found, wrong))
        calibrations.append(100 * calibration(found.p_wrong, wrong)[1])
        precisions += [100 * wrong[found.order[:n]].mean()] if n else []
        pairs.append((found.p_wrong, wrong))
    row = [str(len(errors)), f"{np.mean(errors):.1f} (at most {max(errors):.1f})", f"{100 * np.mean(inside):.0f} %"]
    row.append(f"{np.mean(calibrations):.1f} %")
    row.append(f"{np.mean(precisions):.0f} % ({min(precisions):.0f} %)" if precisions else "")
    return row, [np.concatenate(part) for part in zip(*pairs)]


def by_noise(names, noises, cells, checked="none"):
    """The table of estimates, a row for each of the noises (dataset, noise_mode, noise_ratio).

    cells: {(noise, seed): scores}.
    """
    rows = [["data", "noise", "wrong, %", *names]]
    for dataset, mode, ratio in noises:
        runs = [found for (noise, _), found in cells.items() if noise == (dataset, mode, ratio)]
        row = [dataset, noise_name(mode, ratio) if ratio else "none"]
        row.append(f"{100 * np.mean([cell['wrong'] for cell in runs]):.1f}")
        for name in names:
            found = [(estimated(cell[name], cell["wrong"], checked), cell["wrong"]) for cell in runs]
            share = 100 * np.mean([one.wrong()[0] / len(wrong) for one, wrong in found])
            row.append(f"{share:.1f} ({sum(holds(*one) for one in found)} of {len(runs)})")
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
    datasets = dict.fromkeys(dataset for dataset, *_ in table.cells)
    noises = (*((dataset, "sym", ratio) for dataset in datasets for ratio in LOW), *table.cells)
    cells = {
        (cell, seed): scores((*names, *["deft"] * (seed in args.deft)), table, cell, seed, args)
        for seed in args.seeds
        for cell in noises
    }
    end = "" if args.table == "digits" else f"-{args.table}"
    page = args.out / f"estimates{end}.md"
    text = [(RESULTS / page.name).read_text(encoding="utf-8").split("\n\n## ")[0]]
    for title in list(CHECKED)[:2]:
        text.append(f"## {title[0].upper()}{title[1:]}, by noise\n\n{BY_NOISE}")
        text.append(by_noise(names, noises, cells, CHECKED[title]))
    text.append(f"## Summary\n\n{MEASURES}")
    figure = Figure(figsize=(13.5, 4.2), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for (title, checked), axis in zip(CHECKED.items(), axes):
        rows = [HEADER]
        axis.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
        for name in (*names, *["deft"] * bool(args.deft)):
            for noise, low in (("9 % or more", False), ("5 % or less", True)):
                row, pairs = measure(
                    name,
                    checked,
                    [found for (cell, _), found in cells.items() if name in found and (cell[2] in LOW) == low],
                )
                rows.append([name, noise, *row])
                if not low:
                    points = [point[:2] for point in calibration(*pairs)[0] if point[2] >= 50]
                    axis.plot(*zip(*points), marker=".", label=name)
        axis.set(title=title, xlabel="estimated chance that a label is wrong", xlim=(0, 1), ylim=(0, 1))
        text.append(f"### {title[0].upper()}{title[1:]}\n\n{format_table(rows, 2)}")
    axes[0].set_ylabel("part that is wrong")
    figure.legend(handles=axes[0].get_lines()[1:], loc="outside center right")  # without the diagonal
    with write_whole(args.out / f"calibration{end}.png") as file:
        figure.savefig(file, format="png", dpi=120)
    text.append(
        f"![calibration curves](calibration{end}.png)\n\nThe curves are of 9 % or more wrong labels, in bins of 50 labels or more.\n"
    )
    write_text(page, "\n\n".join(text))


if __name__ == "__main__":
    run_main(main)
