"""Figures of runs beside those of a paper: what is averaged, what is marked, and how it is printed and drawn."""

import csv
import io

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from report.comparison import FORMATS, compare, label_of, plot, wide

ROWS = compare(
    {
        ("cifar_x", "ours & co", "sym_0.2"): [{"f1": 0.9}, {"f1": 0.8}],
        ("cifar_x", "ours & co", "sym_0.4"): ["not run", "no data"],
    },
    {"F1": "f1"},
    {"cifar_x": {"ours & co": {"sym_0.2": 84.0}}},
    ["dataset", "method", "column"],
)


def test_formats():
    markdown, latex, text = (FORMATS[name]({"t": ROWS, "u": ROWS[:1]}) for name in ("markdown", "latex", "csv"))
    assert "85.00 ± 7.07 (2) / 84.00 / +1.00" in markdown and "not run [1]" in markdown
    assert "[1] not run; no data\n\n**u**: " in markdown
    assert r"cifar\_x & ours \& co & 85.00 $\pm$ 7.07 (2) / 84.00 / +1.00 & not run [1] \\" in latex
    for legend in (markdown, latex):
        assert "mean ± standard deviation (seeds) / paper / difference" in legend
    first, second, third = csv.DictReader(io.StringIO(text))  # one heading for all tables
    assert (first["table"], third["table"], first["ours"]) == ("t", "u", third["ours"])
    assert (
        float(first["ours"]) == pytest.approx(85) and second["ours"] == "" and second["missing"] == "not run; no data"
    )


def test_data_sets_with_other_columns_have_a_table_of_their_own():
    results = {(d, m, c): [{"f1": 0.5}] for d, m, c in (("a", "x", "one"), ("a", "y", "one"), ("b", "x", "two"))}
    rows = compare(results | {("c", "x", "one"): ["not run"]}, {"F1": "f1"}, None, None)
    (first, second), notes = wide(rows)
    assert first == [
        ["data set", "method", "one F1"],
        *([d, m, "50.00 (1)"] for d, m in ("ax", "ay")),
        ["c", "x", "not run"],
    ]
    assert second == [["data set", "method", "two F1"], ["b", "x", "50.00 (1)"]] and not notes
    assert FORMATS["markdown"]({"t": rows}).count("| method |") == 2
    latex = FORMATS["latex"]({"t": rows})
    assert latex.count(r"\end{tabular}") == 2 and "\\end{tabular}\n\n\\begin{tabular}" in latex  # not side by side


def test_what_is_averaged():
    """Numbers, whole ones as well; words that differ are all said."""
    seeds = [{"n": 3, "kept": 0.5, "level": "usable"}, {"n": 4, "kept": 0.7, "level": "doubtful"}]
    (missing,) = compare({("a", "b", "c"): seeds}, {"F1": "fl"}, None, None)
    assert (
        "| no figure [1] |" in FORMATS["markdown"]({"t": [missing]}) and missing["missing"] == "its summary has no fl"
    )
    (wrong,) = compare({("a", "b", "c"): [{"f1_mislabelled": 0.9}]}, {"F1": "f1_mislabelled"}, None, None)
    assert wrong["ours"] == 90  # per cent, as all fractions
    metrics = {"n": "n", "kept %": "selected", "verdict": "level"}
    count, kept, level = compare({("a", "b", "c"): [s | {"selected": s["kept"]} for s in seeds]}, metrics, None, None)
    assert (count["ours"], count["n"]) == (3.5, 2) and kept["ours"] == pytest.approx(60)
    assert (level["ours"], level["sd"], level["n"]) == ("usable, doubtful", None, 2)


def test_seeds_of_different_code_are_marked():
    old, new = {"f1": 0.8, "code": "a1", "git_commit": "c" * 40}, {"f1": 0.9, "git_commit": "b" * 40}
    one, both = (compare({("d", "m", "c"): seeds}, {"F1": "f1"}, None, None) for seeds in ([old, old], [old, new]))
    assert (one[0]["code"], both[0]["code"]) == ("a1", "a1, commit bbbbbbb")
    assert "80.00 ± 0.00 (2) |" in FORMATS["markdown"]({"t": one})
    marked = FORMATS["markdown"]({"t": both})
    assert (
        "85.00 ± 7.07 (2) [1]" in marked and "[1] the seeds were run with different code: a1, commit bbbbbbb" in marked
    )


def test_small_differences_show():
    figures = {"a": {"b": {"c": 0.001}}}
    rows = compare({("a", "b", "c"): [{"lr": 1e-4}]}, {"lr": "lr"}, figures, ["dataset", "method", "column"])
    assert "0.0001 (1) / 0.001 / -0.0009 |" in FORMATS["markdown"]({"t": rows})


def test_a_plot_shows_each_figure_once_and_under_its_data_set(tmp_path, figures):
    """A curve for each method and noise mode, with the spread over seeds; nothing where there is no figure."""
    figure_of = {("d", "m", "sym_0.2"): (80, 90), ("d", "m", "sym_0.4"): (60, 80), ("d", "m", "idn_0.4"): (50,)}
    figure_of |= {("d", "n", "sym_0.4"): (30, 40), ("e", "n", "worse"): (20, 20)}
    results = {key: [{"f1": value / 100, "loss": 9.0} for value in values] for key, values in figure_of.items()}
    results[("d", "n", "idn_0.4")] = ["not run"]
    plot(compare(results, {"loss": "loss", "F1": "f1"}, None, None), tmp_path / "x.png", "F1, %")
    axes = {axis.get_title(): axis for part in figures[0].subfigs for axis in part.axes}
    drawn = {}
    for dataset, axis in axes.items():
        ticks = [label.get_text() for label in axis.get_xticklabels()]
        for curve in axis.containers:
            (line, _, (bars,)) = curve.lines
            points = line.get_xydata()
            spread = [np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()]
            drawn[dataset, line.get_color(), tuple(ticks[round(x)] for x in points[:, 0])] = (points[:, 1], spread)
    sd = 10 / 2**0.5  # of two values 10 apart
    expected = {
        ("d", "C0", ("sym 0.2", "sym 0.4")): ([85, 70], [sd, 2 * sd]),
        ("d", "C0", ("idn 0.4",)): ([50], [0]),
        ("d", "C1", ("sym 0.4",)): ([35], [sd]),
        ("e", "C1", ("worse",)): ([20], [0]),
    }
    assert drawn.keys() == expected.keys()
    for key, (means, spreads) in expected.items():
        np.testing.assert_allclose(drawn[key][0], means)
        np.testing.assert_allclose(drawn[key][1], spreads, atol=1e-9)
    legend = {text.get_text(): patch.get_facecolor() for text, patch in zip(*legend_of(figures[0]))}
    assert legend == {"m": to_rgba("C0"), "n": to_rgba("C1")}


def legend_of(figure):
    return figure.legends[0].get_texts(), figure.legends[0].get_patches()


def test_plots_are_of_the_last_metric_and_no_wider_than_a_page(tmp_path):
    from matplotlib.image import imread

    assert label_of("last", "acc_last") == "test accuracy (last), %" and label_of("AUROC", "auroc") == "AUROC, %"
    assert label_of("epochs", "epochs") == "epochs"
    plot(ROWS, tmp_path / "a" / "x.png", "F1, %")
    one = imread(tmp_path / "a" / "x.png")
    many = [row | {"dataset": f"{row['dataset']} {i}"} for i in range(5) for row in ROWS]
    plot(many, tmp_path / "many.png", "F1, %")
    assert imread(tmp_path / "many.png").shape[0] >= 2 * one.shape[0] and imread(tmp_path / "many.png").shape[1] < 1600
