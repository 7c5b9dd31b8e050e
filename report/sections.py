"""The sections of the report: numbers and tables as HTML."""

from html import escape

import numpy as np

from methods.estimates import of_run
from methods.selection import precision_recall
from report.plots import plot_history, plot_scores, plot_thresholds
from report.suspects import fixed_labels
from utils.config import default_values

MATRIX = 20  # classes up to which the matrix given x suggested is shown
PAIRS = 15  # lines of the list of pairs


def section(name, title, *parts):
    return name, title, f'<section id="{name}"><h2>{title}</h2>{"".join(parts)}</section>'


def _table(header, rows, words=1):
    """An HTML table; the first `words` columns hold text, cells that begin with < are HTML already."""

    def line(tag, cells):
        return (
            "<tr>"
            + "".join(f"<{tag}{' class=words' if k < words else ''}>{cell}</{tag}>" for k, cell in enumerate(cells))
            + "</tr>"
        )

    return (
        f"<div class=scroll tabindex=0><table><thead>{line('th', header)}</thead><tbody>"
        f"{''.join(line('td', row) for row in rows)}</tbody></table></div>"
    )


def _tiles(pairs):
    return (
        "<dl class=tiles>" + "".join(f"<div><dt>{what}</dt><dd>{value}</dd></div>" for what, value in pairs) + "</dl>"
    )


def _interval(k, n):
    """95 % Wilson interval of k of n, in per cent."""
    from scipy.stats import binomtest

    low, high = binomtest(int(k), int(n)).proportion_ci(0.95, "wilson")
    return f"{100 * low:.1f}–{100 * high:.1f} %"


def overview(data, arrays, relabel_above):
    """How many labels are suspect, in numbers, and the histogram of p_clean."""
    n, suspects = len(arrays["mask"]), int(np.sum(~arrays["mask"]))
    _, sure = fixed_labels(arrays, relabel_above)
    tiles = [
        ("labels looked at", f"{n:,}"),
        ("suspect", f"{suspects:,}"),
        ("share", f"{100 * suspects / n:.1f} %"),
        ("95 % interval of the share", _interval(suspects, n)),
        (f"suspects put right in labels_fixed.csv (at {relabel_above:g} or more)", f"{sure.sum():,}"),
    ]
    found = of_run(arrays)
    _, low, high = found.wrong()
    tiles.append((f"share that is wrong, 90 % interval, {found.source}", f"{100 * low / n:.1f}–{100 * high / n:.1f} %"))
    reviewed = np.bincount(arrays["decision"], minlength=3)[1:]
    if reviewed.any():
        tiles.append(("reviewed by a person: right, wrong", f"{reviewed[0]:,}, {reviewed[1]:,}"))
    if not arrays["there"].all():
        tiles.append(("images gone or changed since the run", f"{np.sum(~arrays['there']):,}"))
    text = (
        "<p class=soft>The interval (Wilson) says how far the share of suspects may lie from this one among other "
        "images of the same kind, had as many of them been looked at. It knows nothing of the detector’s own "
        "mistakes: among the suspects are right labels, among the rest are wrong ones. The share that is wrong "
        "allows for both. From the scores alone it is rough; labels you decide about, spread over the whole list, make it "
        "better.</p>"
    )
    return section(
        "overview", "Overview", f"<div class=pair><div>{_tiles(tiles)}{text}</div>{plot_scores(arrays)}</div>"
    )


def against_truth(data, arrays, relabel_above):
    """Quality of the selection where the true labels are known."""
    truth, labels, mask = data.true_labels, arrays["labels"], arrays["by_detector"]
    quality = precision_recall(mask, truth == labels)
    fixed, sure = fixed_labels(arrays, relabel_above)
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
                f"right among the {sure.sum():,} put right",
                f"{100 * np.mean(fixed[sure] == truth[sure]):.1f} %",
            )
        )
    known = "The truth is known of these images, and the detector did not see it."
    if data.truth_on_disk:
        known = "Taken for the truth are the labels on disk, before noise was made; they may be wrong themselves."
    text = (
        f"<p class=soft>{known} Precision: the share of the labels kept that are right. Recall: the share of the right "
        "labels that are kept.</p>"
    )
    return section(
        "truth",
        "Against the truth",
        f"<div class=pair><div>{_tiles(tiles)}{text}</div>{plot_thresholds(arrays, truth == labels)}</div>",
    )


def by_class(data, arrays):
    """Suspects of every given label, the largest share first."""
    K, labels, known = data.num_classes, arrays["labels"], data.true_labels is not None
    images, suspects = np.bincount(labels, minlength=K), np.bincount(labels[~arrays["mask"]], minlength=K)
    wrong = np.bincount(labels[data.true_labels != labels], minlength=K) if known else suspects
    share, rows = suspects / np.maximum(images, 1), []
    for k in np.argsort(-share, kind="stable"):
        if images[k]:
            truth = [f"{100 * wrong[k] / images[k]:.1f} %"] * known
            rows.append(
                [
                    escape(data.label_names[k]),
                    f"{suspects[k]:,}",
                    f"{images[k]:,}",
                    f"{100 * share[k]:.1f} %",
                    _interval(suspects[k], images[k]),
                    *truth,
                    f'<i style="width:{100 * share[k]:.0f}%"></i>',
                ]
            )
    table = _table(["given label", "suspect", "of", "share", "95 % interval", *["wrong in truth"] * known, ""], rows)
    return section("classes", "By class", table.replace("<td><i", "<td class=bar><i"))


def confusions(data, arrays):
    """Suspects by given and suggested label: as a matrix, where the classes are few, and as a list of the largest pairs."""
    names, K = [escape(name) for name in data.label_names], data.num_classes
    counts = np.zeros((K, K), dtype=np.int64)
    np.add.at(counts, (arrays["labels"][~arrays["mask"]], arrays["predicted"][~arrays["mask"]]), 1)
    order = [divmod(int(flat), K) for flat in np.argsort(-counts, axis=None, kind="stable")[:PAIRS]]
    order = [(i, j) for i, j in order if counts[i, j]]
    pairs = _table(
        ["given", "suggestion", "suspects"],
        [[names[i], names[j] if i != j else "no other fits better", f"{counts[i, j]:,}"] for i, j in order],
        2,
    )
    parts = [
        "<p class=soft>Of the suspects only. Where given and suggestion are the same, the label is not believed, yet "
        "no other fits better.</p><div class=pair>"
    ]
    if K <= MATRIX:
        head = "".join(f'<th scope=col title="{name}">{name}</th>' for name in names)
        body = "".join(
            f"<tr><th scope=row>{names[i]}</th>"
            + "".join(
                f'<td style="background:rgba(var(--tint),{0.75 * c / max(counts.max(), 1):.2f})">{c or ""}</td>'
                for c in counts[i]
            )
            + "</tr>"
            for i in range(K)
        )
        parts.append(
            f'<div><h3>Given (rows) and suggestion (columns)</h3><div class="scroll matrix" tabindex=0><table>'
            f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
        )
    parts.append(f"<div><h3>The {len(order)} largest of {(counts > 0).sum():,} pairs</h3>{pairs}</div></div>")
    return section("confusions", "What is taken for what", *parts)


def training(history):
    """The learning curves."""
    return section("training", "Training", f"<div class=plots>{plot_history(history)}</div>")


def settings(cfg, summary):
    """Every key of the configuration, those that differ from the defaults first."""
    defaults = default_values()
    keys = [key for key in vars(cfg) if key in defaults]
    other = [key for key in keys if getattr(cfg, key) != defaults.get(key)]

    def values(keys):
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
