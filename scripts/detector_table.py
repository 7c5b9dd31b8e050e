"""Every detector on label noises and seeds: results/detectors.csv and .md of the digits, detectors-photos of photographs.

    OMP_NUM_THREADS=1 python -m scripts.detector_table
    OMP_NUM_THREADS=1 python -m scripts.detector_table --rows deft ctx      # adds DeFT and its settings, which train
    OMP_NUM_THREADS=1 python -m scripts.detector_table --table photos --data_root photos
    OMP_NUM_THREADS=1 python -m scripts.detector_table --table few --data_root few --rows features trained --runs few_runs
    OMP_NUM_THREADS=1 python -m scripts.detector_table --table few --data_root few --out again --dataset cifar10 --noise worse_0.4 --seeds 0

`photos` and `few` read CIFAR-10, CIFAR-100 and Tiny-ImageNet from --data_root, the whole sets or parts
(scripts/unpack_photos.py). `trained` adds what has been trained in --runs (reproduce.py --table label_noises).
A row is one detector on one noise and seed. Rows that are in --out already are not made again, so a stopped command goes on; to
repeat those of results/, give another --out, as the last command does for one cell.
`seconds` of detectors on features are CPU seconds of each alone, on the first noise with seed 0; of those that train, seconds by
the clock.
"""

import argparse
import contextlib
import csv
import io
import time
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from dataloader.dataset import image_keys
from dataloader.load import load_data
from dataloader.noise import HUMAN
from methods.deft import build_detector, final_selection, score_records, train_with_records, trusted_by_both
from methods.detectors import DETECTORS
from methods.inputs import load_inputs
from methods.masks import read_selection
from methods.selection import detection_quality
from report.tables import format_table
from utils.checkpoint import load_checkpoint
from utils.config import load_config, parse_flags
from utils.errors import UserError, pick
from utils.files import write_csv, write_text, write_whole
from utils.runs import Run, backbone_name, seed_folder
from utils.start import run_main
from utils.summaries import read_summary

NOISES = (("sym", 0.2), ("sym", 0.4), ("sym", 0.6), ("asym", 0.3), ("asym", 0.4), ("idn", 0.2), ("idn", 0.4))
RESULTS = Path(__file__).resolve().parents[1] / "results"
COLUMNS = ("dataset", "noise", "seed", "detector", "f1", "auroc", "auprc_wrong", "precision_100", "seconds")
METRICS = {
    "f1": "F1 of the right labels, %",
    "auroc": "AUROC, %",
    "auprc_wrong": "AUPRC of the wrong labels, %",
    "precision_100": "wrong labels among the first 100 suspects, %",
    "seconds": "Seconds",
}
TEMPLATES = [
    "a photo of a {}.",
    "a {}.",
    "a photo of the digit {}.",
    "the number {}.",
    "a handwritten {}.",
    "a scan of the handwritten digit {}.",
]
# a detector with other settings
VARIANTS = {
    "auto, no texts": {},
    "label-match, 6 templates": {"templates": TEMPLATES},
    "lemon, 6 templates": {"templates": TEMPLATES},
}
# settings of phase 1 that concern the final mask alone
DEFT = {
    "deft": {},
    "deft, mask_view eval": {"mask_view": "eval"},
    "deft, mask_epochs 5": {"mask_epochs": 5},
    "deft, mask_by positive": {"mask_by": "positive"},
    "deft, mask_by margin": {"mask_by": "margin"},
    "deft, mask_by threshold": {"mask_by": "threshold"},
    "deft, agree_with knn": {"agree_with": "knn"},
    "deft, agree_with lemon": {"agree_with": "lemon"},
    "deft, ctx_init": {},
    "deft, ctx_init, mask_by margin": {"mask_by": "margin"},
}
# detectors that train: the folder of their finished runs
TRAINED = {"small-loss, visual prompts": "small-loss-{}-peft-64", "gmm": "gmm-{}"}
# what --rows makes, each group in one go
ROWS = {
    "features": [*DETECTORS, *VARIANTS],
    "trained": list(TRAINED),
    "deft": [name for name in DEFT if "ctx_init" not in name],
    "ctx": [name for name in DEFT if "ctx_init" in name],
}
DRAWN = {  # style of each curve of the plots
    "auto": "C3o-",
    "label-match": "C0s-",
    "clip-margin": "C9^-",
    "lemon": "C1D-",
    "clipcleaner": "C2v-",
    "confident-learning": "C4P-",
    "knn": "C5X-",
    "aum": "C6d-",
    "deft": "k*-",
    "deft, mask_by margin": "C7p--",
}


class Table(NamedTuple):
    """What a table is of: its file in results/, its cells (dataset, noise_mode, noise_ratio), seeds and variants."""

    file: str
    cells: tuple
    seeds: tuple
    folder: str  # of the data sets' YAML files
    left_out: tuple = ()  # of ROWS


PHOTO_CELLS = (
    *((dataset, *noise) for dataset in ("cifar100", "cifar10") for noise in NOISES),
    # the ratios of human labels as in config/tables.yaml
    *(("cifar10", *human) for human in (("aggre", 0.09), ("random1", 0.17), ("worse", 0.4))),
    *(("tiny_imagenet", "sym", ratio) for ratio in (0.2, 0.4)),
)
OF_DIGITS = ("label-match, 6 templates", "lemon, 6 templates")
OF_TEN_EPOCHS = ("deft, mask_epochs 5",)
TABLES = {
    "digits": Table("detectors", tuple(("digits", *noise) for noise in NOISES), (0, 1, 2, 3, 4), ""),
    "photos": Table("detectors-photos", PHOTO_CELLS, (0, 1, 2), "photos/", (*OF_DIGITS, *OF_TEN_EPOCHS)),
    "few": Table("detectors-few", PHOTO_CELLS, (0, 1, 2), "photos/", (*OF_DIGITS, *OF_TEN_EPOCHS)),
}


def measures(selection, is_clean):
    """The numbers of one row, as fractions, of a selection on labels that are right or not, is_clean (N,)."""
    quality = detection_quality(selection["mask"], selection["p_clean"], is_clean)
    worst = np.argsort(selection["p_clean"], kind="stable")[:100]
    return {
        **{name: quality[name] for name in ("f1", "auroc", "auprc_mislabelled")},
        "precision_100": float(np.mean(~is_clean[worst])),
    }


def feature_rows(names, cfg, data, timed):
    """(name, Detection, seconds) of detectors on frozen features, one after the other; seconds where `timed`, else None."""
    of_templates = {}
    for name in names:
        settings = SimpleNamespace(**vars(cfg) | VARIANTS.get(name, {}))
        if str(settings.templates) not in of_templates:
            of_templates[str(settings.templates)], _ = load_inputs(settings, data, torch.device("cpu"))
        shared = of_templates[str(settings.templates)]
        # replace() keeps nothing of what has been computed, so that no part of the seconds is another detector's
        inputs = replace(shared) if timed else shared
        if name.endswith("no texts"):
            inputs = copy(inputs)
            inputs.text_features = inputs.logits = None
        start = time.process_time()
        found = DETECTORS[name.partition(",")[0]].find(inputs)._asdict()
        yield name, found, time.process_time() - start if timed else None


def deft_rows(names, cfg, data):
    """(name, selection, seconds) of phase 1 with settings that concern the mask alone: all from one training."""
    device, start_words = torch.device("cpu"), {"ctx_init": "a photo of a", "tag": "ctx"}
    kept = max(rule.get("mask_epochs", 1) for rule in DEFT.values())  # whatever is asked for: one run for all
    settings = SimpleNamespace(**vars(cfg) | {"mask_epochs": kept} | (start_words if "ctx_init" in names[0] else {}))
    run = Run(settings, data.place, "deft", data.identity)
    records, _ = train_with_records(settings, data, run)
    seconds = sum(line["seconds"] for line in run.history)
    model = build_detector(settings, data.classnames, device)
    load_checkpoint(run.folder / "checkpoint.pt", model)
    plain = score_records(model.eval(), settings, data, device)
    inputs, _ = load_inputs(cfg, data, device)
    for name in names:
        rule = SimpleNamespace(**vars(cfg) | DEFT[name])
        seen = {k: v[None].numpy() for k, v in plain.items()} if rule.mask_view == "eval" else records
        selection = final_selection({k: v[-rule.mask_epochs :] for k, v in seen.items()}, data.train.labels, rule)
        if rule.agree_with:
            selection = trusted_by_both(selection, DETECTORS[rule.agree_with].find(inputs)._asdict())
        yield name, selection, seconds


def trained_rows(names, cfg, data):
    """(name, selection, seconds) of the detectors in TRAINED that have a finished run for these labels."""
    for name in names:
        folder = seed_folder(cfg, data.place) / TRAINED[name].format(backbone_name(cfg))
        if summary := read_summary(folder / "summary.json"):
            found = read_selection(folder / "clean_mask.npz")
            here = {"images": image_keys(data.train, data.root), "labels": data.train.labels}
            for what, values in here.items():
                if not np.array_equal(found[what], values):
                    raise UserError(f"{folder}: was made of other {what}.")
            yield name, found, summary["seconds"]


def cell_config(table, cell, seed, args):
    """The settings of one cell (dataset, noise_mode, noise_ratio) of a Table; outputs are in args.runs, data in args.data_root."""
    dataset, mode, ratio = cell
    flags = ["--cfg", f"config/PEFT/{table.folder}{dataset}.yaml", "--device", "cpu", "--num_workers", "1"]
    flags += ["--noise_mode", mode, "--noise_ratio", str(ratio), "--seed", str(seed)]
    cfg = load_config([*flags, "--output_dir", str(args.runs)])
    if args.data_root:
        cfg.data_path = str(args.data_root / Path(cfg.data_path).name)
    return cfg


def wanted_cells(table, args):
    """The cells of a Table that --dataset and --noise name, the noises as in reproduce.py: sym_0.4, worse_0.4."""
    for name in args.dataset or []:
        pick(dict.fromkeys(dataset for dataset, *_ in table.cells), name, "--dataset")
    for name in args.noise or []:
        pick(dict.fromkeys(f"{mode}_{ratio:g}" for _, mode, ratio in table.cells), name, "--noise")
    cells = [
        (dataset, mode, ratio)
        for dataset, mode, ratio in table.cells
        if (not args.dataset or dataset in args.dataset) and (not args.noise or f"{mode}_{ratio:g}" in args.noise)
    ]
    if not cells:
        raise UserError(f"--noise: the table has no {', '.join(args.noise)} of {', '.join(args.dataset)}.")
    return cells


def make_rows(names, table, args):
    """Add the rows `names` to a Table's CSV, cell by cell; a cell whose rows are there is left out. Returns all rows."""
    path, rows, there = args.out / f"{table.file}.csv", [], 0
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [tuple(row.values()) for row in csv.DictReader(file)]
    for seed in args.seeds or table.seeds:
        for dataset, mode, ratio in wanted_cells(table, args):
            cell = (dataset, noise_name(mode, ratio), str(seed))
            first_noise = next(noise for of, *noise in table.cells if of == dataset)
            if {row[3] for row in rows if row[:3] == cell} >= set(names):
                there += 1
                continue
            cfg = cell_config(table, (dataset, mode, ratio), seed, args)
            with contextlib.redirect_stdout(io.StringIO()):
                data = load_data(cfg)
                is_clean = data.true_labels == data.train.labels
                if names[0] in DEFT:
                    found_by = deft_rows(names, cfg, data)
                elif names[0] in TRAINED:
                    found_by = trained_rows(names, cfg, data)
                else:
                    found_by = feature_rows(names, cfg, data, timed=seed == 0 and [mode, ratio] == first_noise)
                new = [
                    (
                        *cell,
                        name,
                        *(f"{v:.6f}" for v in measures(found, is_clean).values()),
                        "" if seconds is None else f"{seconds:.2f}",
                    )
                    for name, found, seconds in found_by
                ]
            rows = sorted([row for row in rows if row[:3] != cell or row[3] not in names] + new)
            args.out.mkdir(parents=True, exist_ok=True)
            write_csv(path, [COLUMNS, *rows])
            print(f"{' '.join(cell)}: {len(new)} rows", flush=True)
    if there:
        print(f"{path}: has the rows of {there} cells already; another --out makes them again")
    return rows


def noise_name(mode, ratio):
    """A noise in a table: sym 0.2; the human labels by their name alone."""
    return mode if mode in HUMAN else f"{mode} {ratio:g}"


def cell_text(numbers, column, seeds):
    """Mean and standard deviation of the numbers of one column, as text, and their count where it is not that of all `seeds`."""
    scale, digits = (1, 2) if column == "seconds" else (100, 1)
    numbers = scale * np.array(numbers, dtype=float)
    if not len(numbers):
        return "" if column == "seconds" else "not run"
    spread = f" ± {numbers.std(ddof=1):.{digits}f}" if len(numbers) > 1 else ""
    count = f" ({len(numbers)})" if len(numbers) != len(seeds) and column != "seconds" else ""
    return f"{numbers.mean():.{digits}f}{spread}{count}"


def write_tables(rows, table, out):
    """The Table's Markdown: a table for each measure and data set, mean and standard deviation over the seeds there are.

    The text above the tables is that of the page in results/.
    """
    introduction = (RESULTS / f"{table.file}.md").read_text(encoding="utf-8").split("\n\n## ")[0]
    names = [n for group in ROWS.values() for n in group if any(row[3] == n for row in rows)]
    datasets, text = list(dict.fromkeys(dataset for dataset, *_ in table.cells)), [introduction]
    for column, title in METRICS.items():
        text.append(f"## {title}")
        i = COLUMNS.index(column)
        for dataset in datasets:
            noises = [noise_name(mode, ratio) for of, mode, ratio in table.cells if of == dataset]
            lines = [["detector" if len(datasets) == 1 else dataset, *noises]]
            for name in names:
                here = [row for row in rows if (row[0], row[3]) == (dataset, name)]
                numbers = {n: [float(r[i]) for r in here if r[1] == n and r[i]] for n in noises}
                texts = [cell_text(of_noise, column, table.seeds) for of_noise in numbers.values()]
                lines += [[name, *texts]] if any(numbers.values()) else []
            text += [format_table(lines, 1)] if len(lines) > 1 else []
    write_text(out / f"{table.file}.md", "\n\n".join(text) + "\n")


def draw(rows, table, path):
    """Plot the mean F1 and AUROC of the detectors in DRAWN: a column of plots for each data set, a curve for each detector."""
    datasets = [d for d in dict.fromkeys(dataset for dataset, *_ in table.cells) if any(row[0] == d for row in rows)]
    drawn = {name: style for name, style in DRAWN.items() if any(row[3] == name for row in rows)}
    of = {dataset: [noise_name(mode, ratio) for d, mode, ratio in table.cells if d == dataset] for dataset in datasets}
    figure = Figure(figsize=(4 + 2.6 * len(datasets), 7.5), layout="constrained")
    axes = figure.subplots(
        2,
        len(datasets),
        sharex="col",
        sharey="row",
        squeeze=False,
        width_ratios=[len(noises) + 1 for noises in of.values()],
    )
    for line, (measure, title) in zip(axes, (("f1", "F1 of the right labels, %"), ("auroc", "AUROC, %"))):
        i = COLUMNS.index(measure)
        line[0].set_ylabel(title)
        for axis, (dataset, noises) in zip(line, of.items()):
            for name, style in drawn.items():
                here = [[float(r[i]) for r in rows if r[:2] == (dataset, n) and r[3] == name] for n in noises]
                means = [100 * np.mean(values) if values else np.nan for values in here]
                axis.plot(noises, means, style, label=name, markersize=6, linewidth=0.8)
            axis.grid(alpha=0.3)
            axis.tick_params(axis="x", rotation=60)
            axis.set_xlim(-0.5, len(noises) - 0.5)
    for axis, dataset in zip(axes[0], datasets):
        axis.set_title(dataset)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center")
    with write_whole(path) as file:
        figure.savefig(file, format="png", dpi=110)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default="digits", choices=TABLES)
    parser.add_argument("--rows", nargs="*", default=["features"], choices=ROWS, help="deft and ctx train phase 1")
    parser.add_argument("--dataset", nargs="+", help="only these data sets")
    parser.add_argument("--noise", nargs="+", help="only these noises, e.g. sym_0.2")
    parser.add_argument("--seeds", type=int, nargs="*", help="default: those of the table")
    parser.add_argument("--data_root", type=Path, help="where the data sets are, instead of ./data")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the table (default: results)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/detector-table"), help="where features and trainings lie"
    )
    args = parse_flags(parser, argv)
    torch.set_num_threads(1)
    table = TABLES[args.table]
    for group in args.rows:
        names = [name for name in ROWS[group] if name not in table.left_out]
        rows = make_rows(names, table, args)
        write_tables(rows, table, args.out)
        draw(rows, table, args.out / f"{table.file}.png")


if __name__ == "__main__":
    run_main(main)
