"""Tables over runs: `python -m report.tables runs` prints one line per method, mean over the seeds.

    python -m report.tables RUNS…        folders; every summary.json below them is read

Precision, recall and F1 are of the clean class: of the labels kept, against the labels that are right. AUROC is of p_clean,
AUPRC of p_clean as a score of the mislabelled class. summary.json has precision, recall and F1 of that class as well.
A * marks runs that judged the labels of the images held out for testing too, as detectors without training do.
Runs of one name with different settings, or with masks of detectors that had different settings, are not averaged: what
differs stands behind the name. Seeds that were run with different code are averaged, which is said beside their number.
The verdict, of several seeds the worst, says whether a detector's result can be used; summary.json has the reason.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report.flags import command_parser
from utils.config import FREE_KEYS, default_values, parse_flags, read_yaml
from utils.errors import UserError
from utils.start import run_main
from utils.summaries import LEVELS, codes, read_summary

COLUMNS = {  # heading: (key of the summary, factor, digits)
    "noise %": ("noise_rate", 100, 1),
    "kept %": ("selected", 100, 1),
    "clean prec.": ("precision", 100, 2),
    "clean rec.": ("recall", 100, 2),
    "clean F1": ("f1", 100, 2),
    "AUROC": ("auroc", 100, 2),
    "wrong AUPRC": ("auprc_mislabelled", 100, 2),
    "best acc.": ("acc_best", 1, 2),
    "last acc.": ("acc_last", 1, 2),
    "seconds": ("seconds", 1, 0),
}


def read_summaries(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The summary of every finished run below the folders, sorted by path."""
    paths = sorted({p for folder in folders for p in Path(folder).rglob("summary.json")})
    if not paths:
        raise UserError(f"{' '.join(map(str, folders))}: no finished run (summary.json) below.")
    return _told_apart([(path, read_summary(path)) for path in paths])


def _told_apart(runs: list[tuple[Path, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The summaries of runs; where runs of one name are not seeds of each other, the name is followed by what differs.

    That is their settings or, if a seed comes twice, the folder.
    """
    groups: dict[tuple[str, ...], list[tuple[Path, dict[str, Any]]]] = {}
    for path, summary in runs:
        groups.setdefault(tuple(summary[key] for key in ("dataset", "noise", "name")), []).append((path, summary))
    out = []
    for group in groups.values():
        differ = _differences([_settings(*run) for run in group])
        seeds = Counter((label, summary["seed"]) for label, (_, summary) in zip(differ, group))
        for label, (path, summary) in zip(differ, group):
            folder = path.parents[2 + len(Path(summary["name"]).parts)].parent
            label += f" in {folder}" * (seeds[label, summary["seed"]] > 1)
            out.append(summary | {"name": f"{summary['name']} ({label.strip()})" if label else summary["name"]})
    return out


def _settings(path: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """{key: value} of a run; of one that was given a mask, those of the detector's run as well, as `mask's key`.

    That run is where the mask was or, if folders were moved, the one beside it; whether decisions were followed; and hashes
    of weights and descriptions, which are files.
    """

    def of(folder: Path) -> dict[str, Any]:
        file = folder / "config.yaml"
        content = default_values() | (read_yaml(file) if file.is_file() else {})
        return {key: value for key, value in content.items() if key not in FREE_KEYS | {"seed"}}

    settings = of(path.parent) | {"a person's decisions": "followed" if summary.get("decisions") else "none"}
    settings |= {key: summary["identity"][key] for key in ("weights", "descriptions") if key in summary["identity"]}
    mask = Path(summary.get("mask", ""))
    if mask.name == "clean_mask.npz":
        beside = path.parents[len(Path(summary["name"]).parts)] / mask.parent.name
        detector = next((p for p in (mask.parent, beside) if (p / "config.yaml").is_file()), None)
        settings["mask's settings"] = "known" if detector else "not found"
        settings |= {f"mask's {key}": value for key, value in of(detector).items()} if detector else {}
    return settings


def _differences(settings: list[dict[str, Any]]) -> list[str]:
    """Where these settings differ, as text, one for each."""
    every = dict.fromkeys(key for one in settings for key in one)
    keys = [key for key in every if len({str(one[key]) for one in settings if key in one}) > 1]
    return [", ".join(f"{key} {one[key]}" for key in keys if key in one) for one in settings]


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (None for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def make_table(summaries: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of text: data set, noise, run, the worst verdict, number of seeds, then mean ± std of every column.

    Seeds are those of one data set: where two have one name and noise, it is followed by what identifies the data. A star
    marks runs that judged the images held out for testing too, so that they are not measured on the same labels as others.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    sources: dict[tuple[str, str, str], set[str | None]] = {}

    def kind(s: dict[str, Any]) -> tuple[str, str, str]:
        return s["dataset"], s["noise"], s["name"] if "/score-" in s["name"] else ""

    for s in summaries:
        sources.setdefault(kind(s), set()).add(s.get("source"))
    for s in summaries:
        dataset = s["dataset"] if len(sources[kind(s)]) == 1 else f"{s['dataset']} ({s.get('source')})"
        groups.setdefault((dataset, s["noise"], s["name"] + " *" * s.get("all_judged", False)), []).append(s)
    # detectors, then phase 2, then baselines, as one reads them
    order = sorted(groups, key=lambda g: (g[0], g[1], "precision" not in groups[g][0], g[2].startswith("phase2"), g[2]))
    rows = [["data set", "noise", "run", "verdict", "seeds", *COLUMNS]]
    for group in order:
        cells = []
        for key, factor, digits in COLUMNS.values():
            values = [s[key] * factor for s in groups[group] if s.get(key) is not None]
            mean, std = mean_std(values) if values else (None, None)
            cells.append("" if mean is None else f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}"))
        levels = [s["verdict"]["level"] for s in groups[group] if "verdict" in s]
        seeds = str(len(groups[group])) + " (different code)" * (len(codes(groups[group])) > 1)
        rows.append([*group, max(levels, key=LEVELS.index, default=""), seeds, *cells])
    return rows


def format_table(rows: list[list[str]], words: int = 4) -> str:
    """A Markdown table of rows of text; the first `words` columns hold words, the others numbers, set to the right."""
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(cell.ljust(w) if i < words else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, width)))
        + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 2) if i < words else "-" * (w + 1) + ":" for i, w in enumerate(width)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def main(argv: list[str] | None = None) -> None:
    """Print the table of the runs below the folders given."""
    parser = command_parser("tables", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="folder; every summary.json below it is read")
    rows = make_table(read_summaries(parse_flags(parser, argv).runs))
    print(format_table(rows))
    if any(row[2].endswith(" *") for row in rows):
        print(
            "* over all labels, including those of images held out for testing; other rows are over the training labels"
        )


if __name__ == "__main__":
    run_main(main)
