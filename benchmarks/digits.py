"""Every method on the digits: accuracy of the last and the best epoch under five kinds of label noise, as a Markdown table.

python -m benchmarks.digits                           all of it; finished runs are kept, so the same command goes on
python -m benchmarks.digits --seeds 0 --rows CE GMM   part of it
python -m benchmarks.digits --rows                    the table of the runs that there are
"""

import argparse
from pathlib import Path

import main_baseline
import main_detect
import main_phase1
import main_phase2
import main_small_loss
from report.tables import format_table, mean_std, read_summaries
from utils.config import UserError
from utils.memory import keep_freed_memory
from utils.start import run_main

NOISES = ("sym-0.2", "sym-0.4", "sym-0.6", "asym-0.4", "idn-0.4")
PEFT, FFT = (["--cfg", f"config/{kind}/digits.yaml"] for kind in ("PEFT", "FFT"))
END = "tiny-clip-digits"


def baseline(name, *flags, mask=""):
    run = "-".join(filter(None, [name.lower(), mask, END]))
    return run, main_baseline, [*FFT, "--lnl_methods", name, *(["--mask", mask] if mask else []), *flags]


# {row: (name of the run, script, flags)}; detectors first, since their masks are trained on, then the quick ones
ROWS = {
    "zero-shot CLIP": ("label-match", main_detect, PEFT),
    "DeFT, phase 1's text classifier": ("deft", main_phase1, PEFT),
    "DeFT, phase 2": (f"phase2-deft-{END}", main_phase2, FFT),
    "DeFT, phase 2 with GCE": (f"phase2-deft-{END}-gce", main_phase2, [*FFT, "--phase2_loss", "GCE"]),
    "DeFT, phase 2, others labelled by the detector": (
        f"phase2-deft-{END}-detector",
        main_phase2,
        [*FFT, "--noisy_samples", "detector"],
    ),
    "DeFT, phase 2, others labelled where confident": (
        f"phase2-deft-{END}-confidence",
        main_phase2,
        [*FFT, "--noisy_samples", "confidence"],
    ),
    "CE": baseline("CE"),
    "GMM": baseline("GMM"),
    "ELR": baseline("ELR"),
    "RoLT": baseline("RoLT"),
    "MixFix on DeFT's mask": baseline("MixFix", mask="deft"),
    "small-loss": (f"small-loss-{END}", main_small_loss, FFT),
    "SCE": baseline("SCE"),
    "GCE": baseline("GCE"),
    "TURN": baseline("TURN"),
    "AUM": baseline("AUM"),
    "forgetting": baseline("forgetting"),
    "mean-p": baseline("mean-p"),
    "Co-teaching": baseline("Co-teaching"),
    "ProMix": baseline("ProMix"),
    "DivideMix": baseline("DivideMix"),
    "LongReMix": baseline("LongReMix"),
    "UNICON": baseline("UNICON"),
}


def train(rows, noises, seeds, out):
    """Run what is not finished yet, row by row of a seed and noise; UserError at the end that names what failed."""
    failed = []
    for seed in seeds:
        for noise in noises:
            mode, ratio = noise.split("-")
            for row in rows:
                _, script, flags = ROWS[row]
                try:
                    cell = ["--noise_mode", mode, "--noise_ratio", ratio, "--seed", str(seed), "--output_dir", out]
                    script.main([*flags, *cell])
                except UserError as error:
                    failed.append(f"{row}, {noise}, seed {seed}: {error}")
    if failed:
        raise UserError(" | ".join(failed))


def table(out):
    """Markdown: `last / best` test accuracy in per cent, mean ± standard deviation over the seeds run, a cell for each noise."""
    found = {}
    for summary in read_summaries([Path(out) / "digits"]):
        found.setdefault((summary["name"], summary["noise"]), []).append(summary)
    lines = [["method", *NOISES, "seeds"]]
    for row, (name, *_) in ROWS.items():
        cells, counts = [], []
        for noise in NOISES:
            runs = found.get((name, noise), [])
            counts.append(len(runs))
            cells.append(" / ".join(_mean(runs, key) for key in ("acc_last", "acc_best")) if runs else "not run")
        if any(counts):
            few, many = min(counts), max(counts)
            lines.append([row, *cells, str(many) if few == many else f"{few} to {many}"])
    return format_table(lines, words=1)


def _mean(runs, key):
    mean, std = mean_std([run[key] for run in runs])
    return f"{mean:.1f}" + ("" if std is None else f" ± {std:.1f}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    p.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    p.add_argument("--noises", nargs="*", choices=NOISES, default=list(NOISES), metavar="NOISE")
    p.add_argument("--output_dir", default="runs")
    args = p.parse_args()
    keep_freed_memory()
    try:
        train(args.rows, args.noises, args.seeds, args.output_dir)
    finally:
        print("\n" + table(args.output_dir))


if __name__ == "__main__":
    run_main(main)
