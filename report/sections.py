"""The sections of the report: numbers and tables as HTML."""

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from types import SimpleNamespace
from typing import Any

import numpy as np

from dataloader.dataset import Dataset
from methods.estimates import ADVICE, of_run, of_sample
from methods.selection import precision_recall
from report.pictures import thumbnails
from report.plots import plot_history, plot_scores, plot_thresholds
from report.suspects import fixed_labels
from utils.config import default_values

MATRIX = 20  # classes up to which the matrix given x suggested is shown
PAIRS = 15  # lines of the list of pairs
Section = tuple[str, str, str]  # name, title, HTML


def section(name: str, title: str, *parts: str) -> Section:
    return name, title, f'<section id="{name}"><h2>{title}</h2>{"".join(parts)}</section>'


def figures(data: Dataset, arrays: dict[str, np.ndarray], order: Sequence[int]) -> list[str]:
    """A small picture with its given label for each of the samples `order`."""
    shown = data.shown_names
    names = [escape(shown[arrays["labels"][i]]) for i in order]
    files = [escape(data.path(i) or f"image {i}") for i in order]
    return [
        f'<figure class=small><img alt="{name}" title="{file}" src="{uri}"><figcaption>{name}</figcaption></figure>'
        for name, file, uri in zip(names, files, thumbnails(data.train.images, order))
    ]


def _table(header: list[str], rows: Iterable[list[str]], words: int = 1) -> str:
    """An HTML table; the first `words` columns hold text, cells that begin with < are HTML already."""

    def line(tag: str, cells: list[str]) -> str:
        return (
            "<tr>"
            + "".join(f"<{tag}{' class=words' if k < words else ''}>{cell}</{tag}>" for k, cell in enumerate(cells))
            + "</tr>"
        )

    return (
        f"<div class=scroll tabindex=0><table><thead>{line('th', header)}</thead><tbody>"
        f"{''.join(line('td', row) for row in rows)}</tbody></table></div>"
    )


def _tiles(pairs: list[tuple[str, str]]) -> str:
    return (
        "<dl class=tiles>" + "".join(f"<div><dt>{what}</dt><dd>{value}</dd></div>" for what, value in pairs) + "</dl>"
    )


def _interval(k: int, n: int) -> str:
    """95 % Wilson interval of k of n, in per cent."""
    from scipy.stats import binomtest

    low, high = binomtest(int(k), int(n)).proportion_ci(0.95, "wilson")
    return f"{100 * low:.1f}–{100 * high:.1f} %"


def overview(data: Dataset, arrays: dict[str, np.ndarray], relabel_above: float) -> Section:
    """How many labels are suspect, in numbers, and the histogram of p_clean."""
    n, suspects = len(arrays["mask"]), int(np.sum(~arrays["mask"]))
    sure = fixed_labels(arrays, relabel_above)[1] & arrays["there"]
    tiles = [
        ("labels judged", f"{n:,}"),
        ("suspects", f"{suspects:,}"),
        ("share of suspects", f"{100 * suspects / n:.1f} %"),
    ]
    if sure.any():
        by = f"by you{f' or with a probability ≥ {relabel_above:g}' if relabel_above <= 1 else ''}"
        tiles.append((f"relabelled in labels_fixed.csv, {by}", f"{sure.sum():,}"))
    found = of_run(arrays, data)
    _, low, high = found.wrong()
    tiles.append(
        (f"share of wrong labels, 90 % interval, {found.source}", f"{100 * low / n:.1f}–{100 * high / n:.1f} %")
    )
    if sample := of_sample(arrays):
        wrong, checked, low, high = sample
        of = f"from the sample of all labels, of which {wrong} of {checked} are wrong"
        tiles.append((f"share of wrong labels, 90 % interval, {of}", f"{100 * low:.1f}–{100 * high:.1f} %"))
    reviewed = np.bincount(arrays["decision"], minlength=3)[1:]
    if reviewed.any():
        tiles += [("reviewed: label is right", f"{reviewed[0]:,}"), ("reviewed: label is wrong", f"{reviewed[1]:,}")]
    if not arrays["there"].all():
        tiles.append(("images gone or changed since the run", f"{np.sum(~arrays['there']):,}"))
    text = (
        "<p class=soft>Some suspects have right labels, and some labels that are kept are wrong; the interval of the share "
        f"of wrong labels accounts for both{'' if sample else f'; it is {ADVICE} (Review, under Show)'}.</p>"
    )
    return section(
        "overview", "Overview", f"<div class=pair><div>{_tiles(tiles)}{text}</div>{plot_scores(arrays)}</div>"
    )


def against_truth(data: Dataset, arrays: dict[str, np.ndarray], relabel_above: float) -> Section:
    """Quality of the selection where the true labels are known."""
    truth, labels, mask = np.asarray(data.true_labels), arrays["labels"], arrays["by_detector"]
    quality = precision_recall(mask, truth == labels)
    fixed, sure = fixed_labels(arrays, relabel_above)
    sure &= arrays["there"]
    tiles = [
        ("labels that are wrong", f"{100 * np.mean(truth != labels):.1f} %"),
        *(
            (f"{what} of the labels kept", f"{100 * quality[key]:.1f} %")
            for what, key in (("precision", "precision"), ("recall", "recall"), ("F1", "f1"))
        ),
    ]
    if sure.any():
        tiles.append(
            (
                f"right labels among the {sure.sum():,} relabelled",
                f"{100 * np.mean(fixed[sure] == truth[sure]):.1f} %",
            )
        )
    known = "The true labels of these images are known. The detector did not see them."
    if data.truth_on_disk:
        known = "The labels on disk, before noise was added, are taken as true; they may be wrong themselves."
    text = (
        f"<p class=soft>{known} Precision: the share of the kept labels that are right. Recall: the share of the right "
        "labels that are kept.</p>"
    )
    return section(
        "truth",
        "Against the truth",
        f"<div class=pair><div>{_tiles(tiles)}{text}</div>{plot_thresholds(arrays, truth == labels)}</div>",
    )


def by_class(data: Dataset, arrays: dict[str, np.ndarray]) -> Section:
    """Suspects of every given label, the largest share first."""
    K, labels, known = data.num_classes, arrays["labels"], data.true_labels is not None
    images, suspects = np.bincount(labels, minlength=K), np.bincount(labels[~arrays["mask"]], minlength=K)
    wrong = np.bincount(labels[data.true_labels != labels], minlength=K) if known else suspects
    share, rows, names = suspects / np.maximum(images, 1), [], data.shown_names
    for k in np.argsort(-share, kind="stable"):
        if images[k]:
            truth = [f"{100 * wrong[k] / images[k]:.1f} %"] * known
            rows.append(
                [
                    escape(names[k]),
                    f"{suspects[k]:,}",
                    f"{images[k]:,}",
                    f"{100 * share[k]:.1f} %",
                    _interval(suspects[k], images[k]),
                    *truth,
                    f'<i style="width:{100 * share[k]:.0f}%"></i>',
                ]
            )
    table = _table(["given label", "suspects", "of", "share", "95 % interval", *["truly wrong"] * known, ""], rows)
    text = (
        "<p class=soft>The interval (Wilson) is of the share of suspects and covers sampling only, not the detector’s "
        "errors.</p>"
    )
    return section("classes", "By class", table.replace("<td><i", "<td class=bar><i"), text)


def confusions(data: Dataset, arrays: dict[str, np.ndarray]) -> Section:
    """Suspects by given and suggested label: as a matrix, where the classes are few, and as a list of the largest pairs."""
    names, K, suspect = [escape(name) for name in data.shown_names], data.num_classes, ~arrays["mask"]
    counts = Counter(zip(arrays["labels"][suspect].tolist(), arrays["predicted"][suspect].tolist()))
    order = sorted(counts, key=lambda pair: (-counts[pair], pair))[:PAIRS]
    pairs = _table(
        ["given", "suggestion", "suspects"],
        [[names[i], names[j] if i != j else "no class fits better", f"{counts[i, j]:,}"] for i, j in order],
        2,
    )
    parts = [
        "<p class=soft>Suspects only. On the diagonal, the detector does not trust the label, but no other class fits "
        "better.</p><div class=pair>"
    ]
    if K <= MATRIX:
        largest = max(counts.values(), default=1)
        head = "".join(f'<th scope=col title="{name}">{name}</th>' for name in names)
        body = "".join(
            f"<tr><th scope=row>{names[i]}</th>"
            + "".join(
                f'<td style="background:rgba(var(--tint),{0.75 * c / largest:.2f})">{c or ""}</td>'
                for c in (counts[i, j] for j in range(K))
            )
            + "</tr>"
            for i in range(K)
        )
        parts.append(
            f'<div><h3>Given label (rows) and suggestion (columns)</h3><div class="scroll matrix" tabindex=0><table>'
            f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
        )
    parts.append(f"<div><h3>The {len(order)} largest of {len(counts):,} pairs</h3>{pairs}</div></div>")
    return section("confusions", "Confused classes", *parts)


def training(history: list[dict[str, Any]]) -> Section:
    """The learning curves."""
    return section("training", "Training", f"<div class=plots>{plot_history(history)}</div>")


def settings(cfg: SimpleNamespace, summary: dict[str, Any]) -> Section:
    """Every key of the configuration, those that differ from the defaults first."""
    defaults = default_values()
    keys = [key for key in vars(cfg) if key in defaults]
    other = [key for key in keys if getattr(cfg, key) != defaults.get(key)]

    def values(keys: Iterable[str]) -> list[list[str]]:
        return [[key, escape(str(getattr(cfg, key)))] for key in keys]

    changed = [[*line, escape(str(defaults.get(line[0], "")))] for line in values(other)]
    facts = [
        f"{what}: {escape(str(summary[key]))}"
        for key, what in (("epochs", "epochs"), ("seconds", "seconds"), ("device", "device"), ("git_commit", "commit"))
        if summary.get(key)
    ]
    return section(
        "settings",
        "Settings",
        f"<p class=soft>{'; '.join(facts)}</p>",
        _table(["key", "value", "default"], changed, 3),
        "<details><summary>Settings left at their default</summary>",
        _table(["key", "value"], values(key for key in keys if key not in other), 2),
        "</details>",
    )
