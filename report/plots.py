"""The plots of the report, as SVG inside the page."""

import io
from collections.abc import Callable
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from methods.selection import precision_recall
from report.training import curves_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, BLUE, ORANGE, GREEN = "#010203", "#3f87c8", "#d9742b", "#3c9a5f"  # INK becomes the colour of the page's text
STYLE: dict[Any, Any] = {  # of matplotlib's rcParams
    "svg.fonttype": "none",
    "svg.hashsalt": "",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def _plot(caption: str, draw: Callable[["Axes"], None]) -> str:
    """A figure of the page: draw(axes) into an inline SVG whose text has the page's colour and letters."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(
            file, format="svg", transparent=True, metadata={key: None for key in ("Creator", "Date", "Format", "Type")}
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def plot_scores(arrays: dict[str, np.ndarray]) -> str:
    """The histogram of p_clean, of the samples that the detector keeps and of its suspects, with the threshold."""

    def draw(ax: "Axes") -> None:
        parts = [arrays["p_clean"][~mask], arrays["p_clean"][mask]]
        ax.hist(parts, np.linspace(0, 1, 41).tolist(), stacked=True, color=[ORANGE, BLUE], label=["suspect", "kept"])
        if cut:
            ax.axvline(0.5, color=INK, linestyle="--", linewidth=1)
        ax.set(xlabel="p_clean", ylabel="images", xlim=(0, 1))
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.12, 1))

    mask = arrays["by_detector"]
    only = np.array_equal(arrays["p_clean"] > 0.5, mask)
    cut = not (mask & (arrays["p_clean"] <= 0.5)).any()
    decided = " Your decisions are not shown here." if arrays["decision"].any() else ""
    return _plot(
        "p_clean of all labels judged. "
        + (
            "The detector’s suspects are at or below 0.5 (dashed)."
            if only
            else "The detector’s suspects are below 0.5 (dashed) or fail another criterion of it."
            if cut
            else "This detector selects suspects by other criteria than a threshold on p_clean."
        )
        + decided,
        draw,
    )


def threshold_curve(p_clean: np.ndarray, is_clean: np.ndarray, thresholds: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1, (T,) each, of the samples with p_clean (N,) above each threshold (T,); cf. selection."""
    rows = [precision_recall(p_clean > t, is_clean) for t in thresholds]
    return {key: np.array([row[key] for row in rows]) for key in ("precision", "recall", "f1")}


def plot_thresholds(arrays: dict[str, np.ndarray], is_clean: np.ndarray) -> str:
    """Precision, recall and F1 of the clean labels over the threshold on p_clean."""

    def draw(ax: "Axes") -> None:
        thresholds = np.linspace(0, 1, 101)[:-1]
        curve = threshold_curve(arrays["p_clean"], is_clean, thresholds)
        for (key, values), colour, style in zip(curve.items(), (BLUE, ORANGE, GREEN), ("--", ":", "-")):
            ax.plot(thresholds, values, style, color=colour, label="F1" if key == "f1" else key)
        ax.axvline(0.5, color=INK, linestyle="--", linewidth=1, alpha=0.5)
        ax.set(xlabel="threshold on p_clean", xlim=(0, 1), ylim=(0, 1.02))
        ax.legend(frameon=False, loc="lower left")

    return _plot("Precision, recall and F1 of the kept labels for other thresholds on p_clean.", draw)


CAPTIONS = {  # of curves_of's titles
    "loss": "Mean training loss of each epoch.",
    "test accuracy, %": "Accuracy on the test images after each epoch.",
    "selection, %": "Share of the training labels selected in each epoch; precision and recall if the true labels are known.",
}


def plot_history(history: list[dict[str, Any]]) -> str:
    """Losses, test accuracies and the selection over the epochs, a figure each, of the lines of log.jsonl."""

    def draw(title: str, lines: dict[str, list[float]], ax: "Axes") -> None:
        for (name, values), colour in zip(lines.items(), (BLUE, ORANGE, GREEN, INK, "#8a63b8")):
            ax.plot([line["epoch"] for line in history], values, ".-", color=colour, label=name)
        ax.set(xlabel="epoch", ylabel=title)
        ax.locator_params("x", integer=True)
        ax.legend(frameon=False)

    curves = curves_of(history)
    return "".join(_plot(CAPTIONS[title], partial(draw, title, lines)) for title, lines in curves.items())
