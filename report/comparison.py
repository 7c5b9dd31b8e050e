"""Results next to a paper's figures: as Markdown, CSV, LaTeX and plots."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from report.tables import format_table, mean_std
from utils.files import write_whole
from utils.summaries import FRACTIONS, codes

NO_FIGURE = "its summary has no"  # of a run that was made
PLACE = ("dataset", "method", "column", "metric")  # of a figure in a table


def paper_figure(figures: Any, path: Iterable[str]) -> Any:
    """The figure at a path of keys in nested dicts, or None."""
    for key in path:
        if not isinstance(figures, dict):
            return None
        figures = {str(k): v for k, v in figures.items()}.get(key)
    return None if isinstance(figures, dict) else figures


def compare(
    results: dict[tuple[str, str, str], list[dict[str, Any] | str]],
    metrics: dict[str, str],
    figures: dict[str, Any] | None,
    path: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """One dict for each figure of a table: PLACE, ours (its mean), sd, n, the paper's, the difference, what is missing, the code.

    results: {(dataset, method, column): [a summary, or why there is none, for each seed]}. metrics: {heading: key of a
    summary}. figures: the paper's, nested dicts; path: the parts of PLACE that lead to one.
    """
    rows = []
    for place, outcomes in results.items():
        for metric, key in metrics.items():
            summaries = [s for s in outcomes if isinstance(s, dict) and s.get(key) is not None]
            found = [100 * s[key] if key in FRACTIONS else s[key] for s in summaries]
            missing = [f"{NO_FIGURE} {key}" if isinstance(s, dict) else s for s in outcomes if s not in summaries]
            where = dict(zip(PLACE, (*place, metric)))
            ours: float | str | None = None
            sd = None
            if found and all(isinstance(value, (int, float)) for value in found):
                ours, sd = mean_std(found)
            elif found:
                ours = ", ".join(dict.fromkeys(map(str, found)))
            # a column may lie deeper: visual_prompt_length/10
            paper = paper_figure(figures, [key for part in path for key in where[part].split("/")]) if path else None
            difference = ours - paper if isinstance(ours, float) and paper is not None else None
            rows.append(
                where
                | {"ours": ours, "sd": sd, "n": len(found), "paper": paper, "difference": difference}
                | {"missing": "; ".join(dict.fromkeys(missing)), "code": ", ".join(codes(summaries))}
            )
    return rows


def _text(value: float | str, sign: str = "") -> str:
    """A number with two decimals, a small one such as 1e-05 with three digits; words as they are."""
    if isinstance(value, str):
        return value
    value = round(value, 9)  # of a difference: what floats leave of 0
    return f"{value:{sign}{'.2f' if abs(value) >= 0.1 or value == 0 else '.3g'}}"


def label_of(metric: str, key: str) -> str:
    """What a plot calls a metric, by its heading in a table and its key of a summary."""
    if key.startswith("acc_"):
        return f"test accuracy ({metric}), %"
    return f"{metric}, %" if key in FRACTIONS else metric


def _cell(row: dict[str, Any], note: Callable[[str], str]) -> str:
    """ours ± sd (n) / paper / difference; where it is missing, why not, in a word and with the mark of a note."""
    ours = "no figure" if row["missing"].startswith(NO_FIGURE) else "not run"
    if row["ours"] is not None:
        ours = _text(row["ours"]) + ("" if row["sd"] is None else f" ± {row['sd']:.2f}") + f" ({row['n']})"
    several = f"the seeds were run with different code: {row['code']}" if "," in row["code"] else ""
    parts = [ours + note(row["missing"]) + note(several)]
    parts += [] if row["paper"] is None else [_text(row["paper"])]
    parts += [] if row["difference"] is None else [_text(row["difference"], "+")]
    return " / ".join(parts)


def wide(rows: list[dict[str, Any]]) -> tuple[list[list[list[str]]], list[str]]:
    """Tables of text with a column for each column and metric, a heading first; and the notes to them.

    Data sets with the same columns share a table.
    """
    notes = []

    def note(reason: str) -> str:
        if reason in ("", "not run"):
            return ""
        if reason not in notes:
            notes.append(reason)
        return f" [{notes.index(reason) + 1}]"

    heads: dict[str, dict[tuple[str, str], None]] = {}
    for row in rows:
        heads.setdefault(row["dataset"], {})[row["column"], row["metric"]] = None
    tables: dict[tuple[tuple[str, str], ...], list[list[str]]] = {}
    for (dataset, method), group in groupby(rows, key=lambda row: (row["dataset"], row["method"])):
        own, by_head = tuple(heads[dataset]), {(row["column"], row["metric"]): _cell(row, note) for row in group}
        table = tables.setdefault(own, [["data set", "method", *(f"{column} {metric}" for column, metric in own)]])
        table.append([dataset, method, *(by_head.get(head, "") for head in own)])
    return list(tables.values()), [f"[{i}] {reason}" for i, reason in enumerate(notes, 1)]


def _legend(title: str, rows: list[dict[str, Any]]) -> str:
    legend = "mean ± standard deviation (seeds)"
    return f"{title}: {legend}" + (" / paper / difference" if any(row["paper"] is not None for row in rows) else "")


def as_markdown(tables: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown of {title: rows}, see compare."""

    def text(title: str, rows: list[dict[str, Any]]) -> str:
        tables, notes = wide(rows)
        parts = [_legend(f"**{title}**", rows), *(format_table(table, words=2) for table in tables)]
        return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])

    return "\n\n".join(text(title, rows) for title, rows in tables.items())


def as_latex(tables: dict[str, list[dict[str, Any]]]) -> str:
    """LaTeX of {title: rows}, see compare; needs booktabs."""

    def line(cells: list[str]) -> str:
        return re.sub(r"([%_#&])", r"\\\1", "\0".join(cells)).replace("\0", " & ").replace("±", r"$\pm$") + r" \\"

    def text(title: str, rows: list[dict[str, Any]]) -> str:
        tables, notes = wide(rows)
        lines = [f"% {text}" for text in (_legend(title, rows), *notes)]
        for head, *body in tables:
            lines += [rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}", r"\toprule", line(head), r"\midrule"]
            lines += [*map(line, body), r"\bottomrule", r"\end{tabular}", ""]  # a paragraph each, not side by side
        return "\n".join(lines[:-1])

    return "\n\n".join(text(title, rows) for title, rows in tables.items())


def as_csv(tables: dict[str, list[dict[str, Any]]]) -> str:
    """CSV of {title: rows}, see compare: a line for each figure."""
    lines = [{"table": title, **row} for title, rows in tables.items() for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


PAGE = 11.0  # inches of panels side by side
FORMATS = {"markdown": as_markdown, "csv": as_csv, "latex": as_latex}


def plot(rows: list[dict[str, Any]], path: str | Path, label: str) -> None:
    """A PNG of a table's last metric, which the axes call `label`: a panel for each data set, mean and standard deviation of each method over the columns.

    A line joins the ratios of one noise mode. The methods stand a little apart, so that none hides another.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = [row for row in rows if row["metric"] == rows[-1]["metric"]]
    methods = list(dict.fromkeys(row["method"] for row in rows if row["ours"] is not None))
    columns: dict[str, list[str]] = {}
    for dataset, column in dict.fromkeys((row["dataset"], row["column"]) for row in rows):
        columns.setdefault(dataset, []).append(column)
    widths = {dataset: 1.4 + 0.55 * max(4, len(of_dataset)) for dataset, of_dataset in columns.items()}
    lines: list[list[str]] = [[]]  # of panels
    for dataset, width in widths.items():
        if lines[-1] and sum(widths[d] for d in lines[-1]) + width > PAGE:
            lines.append([])
        lines[-1].append(dataset)
    widest = max(sum(widths[d] for d in line) for line in lines)
    figure = Figure(
        figsize=(widest + 0.6 + 0.075 * max(map(len, methods), default=0), 3.6 * len(lines)), layout="constrained"
    )
    for part, line in zip(figure.subfigures(len(lines), squeeze=False)[:, 0], lines):
        axes = part.subplots(1, len(line), squeeze=False, width_ratios=[widths[d] for d in line])[0]
        axes[0].set_ylabel(label)
        for axis, dataset in zip(axes, line):
            of_dataset = columns[dataset]
            for i, method in enumerate(methods):
                drawn = [r for r in rows if r["dataset"] == dataset and r["method"] == method and r["ours"] is not None]
                aside = 0.4 * ((i + 0.5) / len(methods) - 0.5)
                for _, of_mode in groupby(drawn, key=lambda row: row["column"].rpartition("_")[0]):  # sym of sym_0.2
                    joined = list(of_mode)
                    x = [of_dataset.index(row["column"]) + aside for row in joined]
                    y, error = [row["ours"] for row in joined], [row["sd"] or 0 for row in joined]
                    axis.errorbar(x, y, error, color=f"C{i}", marker="o", markersize=4, linewidth=1, elinewidth=0.8)
            axis.set(title=dataset.replace("_", " "), xticks=range(len(of_dataset)), xlim=(-0.5, len(of_dataset) - 0.5))
            turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(of_dataset) > 4 else {}
            axis.set_xticklabels([column.replace("_", " ") for column in of_dataset], **turned)
            axis.grid(axis="y", alpha=0.3)
            axis.set_axisbelow(True)
    handles = [Patch(color=f"C{i}", label=method) for i, method in enumerate(methods)]
    figure.legend(handles=handles, loc="outside right center", fontsize="small")
    with write_whole(Path(path)) as file:
        figure.savefig(file, format="png", dpi=110)
