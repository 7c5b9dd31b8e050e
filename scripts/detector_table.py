"""Every detector on the digits with seven label noises and five seeds: results/detectors.csv and .md.

    OMP_NUM_THREADS=1 python -m scripts.detector_table
    OMP_NUM_THREADS=1 python -m scripts.detector_table --rows deft ctx      # adds DeFT and its settings, which train

A row is one detector on one noise and seed; rows that are there are not made again, so a stopped command goes on.
`seconds` are those of the detector alone, on cached features, in one thread of a machine that others use as well.
"""

import argparse
import contextlib
import csv
import io
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from dataloader.load import load_data
from methods.deft import agreement, build_detector, final_selection, score_records, train_with_records
from methods.detectors import DETECTORS
from methods.inputs import load_inputs
from methods.selection import precision_recall
from report.tables import format_table
from utils.checkpoint import load_checkpoint
from utils.config import load_config
from utils.files import write_csv, write_text
from utils.runs import Run

NOISES = (("sym", 0.2), ("sym", 0.4), ("sym", 0.6), ("asym", 0.3), ("asym", 0.4), ("idn", 0.2), ("idn", 0.4))
COLUMNS = ("noise", "seed", "detector", "f1", "auroc", "auprc_wrong", "precision_100", "seconds")
METRICS = {
    "f1": "F1 of the right labels, %",
    "auroc": "AUROC, %",
    "auprc_wrong": "AUPRC of the wrong labels, %",
    "precision_100": "wrong labels among the first 100 suspects, %",
    "seconds": "seconds",
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
# what --rows makes, each group in one go
ROWS = {
    "features": [*DETECTORS, *VARIANTS],
    "deft": [name for name in DEFT if "ctx_init" not in name],
    "ctx": [name for name in DEFT if "ctx_init" in name],
}
INTRODUCTION = """# Detectors on the digits

1,437 real 8 x 8 digits of scikit-learn, the embedded `tiny-clip-digits`, seven label noises; mean ± standard deviation over
five seeds, which draw the noise, the split and the initial values. `python -m scripts.detector_table`, and with `--rows deft ctx`
for the rows that train (10 epochs, `config/PEFT/digits.yaml`); every row of every seed is in `detectors.csv`.

The settings of `auto`, of `mask_by` and of `clip-margin`, `confident-learning` and the linear probe were chosen on these
very digits, which flatters them; LEMoN's and CLIPCleaner's were not. `auto, no texts` is `auto` with the texts withheld,
as with a timm encoder. `ctx_init` is "a photo of a". Seconds are of one thread on a machine that others used at the same
time, so they compare orders of magnitude."""


def measures(selection, is_clean):
    """The numbers of one row, as fractions, of a selection on labels that are right or not, is_clean (N,)."""
    mask, p_clean = selection["mask"], selection["p_clean"]
    worst = np.argsort(p_clean, kind="stable")[:100]
    return {
        "f1": precision_recall(mask, is_clean)["f1"],
        "auroc": roc_auc_score(is_clean, p_clean),
        "auprc_wrong": average_precision_score(~is_clean, -p_clean),
        "precision_100": float(np.mean(~is_clean[worst])),
    }


def feature_rows(names, cfg, data):
    """(name, Detection, seconds) of detectors on frozen features, one after the other."""
    device = torch.device("cpu")
    for name in names:
        settings = SimpleNamespace(**vars(cfg) | VARIANTS.get(name, {}))
        inputs, _ = load_inputs(settings, data, device)  # anew: nothing is shared, so that seconds are those of one
        if name.endswith("no texts"):
            inputs.text_features = inputs.logits = None
        start = time.perf_counter()
        found = DETECTORS[name.partition(",")[0]].find(inputs)._asdict()
        yield name, found, time.perf_counter() - start


def deft_rows(names, cfg, data):
    """(name, selection, seconds) of phase 1 with settings that concern the mask alone: all from one training."""
    device, start_words = torch.device("cpu"), {"ctx_init": "a photo of a", "tag": "ctx"}
    settings = SimpleNamespace(**vars(cfg) | {"mask_epochs": 5} | (start_words if "ctx_init" in names[0] else {}))
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
            selection = agreement(selection, DETECTORS[rule.agree_with].find(inputs)._asdict())
        yield name, selection, seconds


def make_rows(names, seeds, out, runs):
    """Add the rows `names` to the table, cell by cell; a cell whose rows are there is left out."""
    path, table = out / "detectors.csv", []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            table = [tuple(row.values()) for row in csv.DictReader(file)]
    make = deft_rows if names[0] in DEFT else feature_rows
    for seed in seeds:
        for mode, ratio in NOISES:
            noise = f"{mode} {ratio:g}"
            there = {row[2] for row in table if row[:2] == (noise, str(seed))}
            if there >= set(names):
                continue
            flags = ["--cfg", "config/PEFT/digits.yaml", "--device", "cpu", "--output_dir", str(runs)]
            flags += ["--noise_mode", mode, "--noise_ratio", str(ratio), "--seed", str(seed)]
            cfg = load_config(flags)
            with contextlib.redirect_stdout(io.StringIO()):
                data = load_data(cfg)
                is_clean = data.true_labels == data.train.labels
                new = [
                    (
                        noise,
                        str(seed),
                        name,
                        *(f"{v:.6f}" for v in measures(found, is_clean).values()),
                        f"{seconds:.2f}",
                    )
                    for name, found, seconds in make(names, cfg, data)
                ]
            table = sorted([row for row in table if row[:2] != (noise, str(seed)) or row[2] not in names] + new)
            out.mkdir(parents=True, exist_ok=True)
            write_csv(path, [COLUMNS, *table])
            print(f"{noise}, seed {seed}: {len(new)} rows", flush=True)
    return table


def write_tables(table, out):
    """results/detectors.md: a table a measure, mean and standard deviation over the seeds there are."""
    names = [n for group in ROWS.values() for n in group if any(row[2] == n for row in table)]
    noises = [f"{mode} {ratio:g}" for mode, ratio in NOISES]
    text = [INTRODUCTION]
    for column, title in METRICS.items():
        rows = [["detector", *noises]]
        for name in names:
            cells = []
            for noise in noises:
                numbers = [float(r[COLUMNS.index(column)]) for r in table if r[0] == noise and r[2] == name]
                scale, digits = (1, 2) if column == "seconds" else (100, 1)
                mean, sd = (
                    scale * f(numbers) if numbers else 0 for f in (np.mean, lambda x: np.std(x, ddof=len(x) > 1))
                )
                cells.append(f"{mean:.{digits}f} ± {sd:.{digits}f}" if numbers else "")
            rows.append([name, *cells])
        text.append(f"## {title}\n\n{format_table(rows, 1)}")
    seeds = {name: len({row[1] for row in table if row[2] == name}) for name in names}
    few = [f"{name}: {n}" for name, n in seeds.items() if n < 5]
    if few:
        text.append(f"Fewer than five seeds: {', '.join(few)}.")
    write_text(out / "detectors.md", "\n\n".join(text) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=["features"], choices=ROWS, help="deft and ctx train phase 1")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/detector-table"), help="where features and trainings lie"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    for group in args.rows:
        write_tables(make_rows(ROWS[group], args.seeds, args.out, args.runs), args.out)


if __name__ == "__main__":
    main()
