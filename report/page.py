"""What a detector found, to look at and to use: `python -m report.page RUN` writes into the run's folder

report.html      one page to read and to review the worst labels with, without a network
suspects.png     the first suspects as a picture
suspects.csv, scores.csv, labels_clean.csv, labels_fixed.csv      see docs/own-images.md

    python -m report.page runs/digits/sym-0.4/seed0/deft --relabel_above 0.9
"""

import argparse
import base64
import io
import json
import warnings
from html import escape
from pathlib import Path
from string import Template

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import binomtest

from dataloader.dataset import label_hash
from dataloader.transforms import open_image
from methods.selection import precision_recall
from report.suspects import (
    add_run_flags,
    file_path,
    fixed_labels,
    ranking,
    read_run,
    score_rows,
    write_labels,
    write_scores,
)
from utils.config import UserError, default_values, parse_flags
from utils.distributed import run_main
from utils.files import write_text, write_whole

GALLERY = 200  # images in the page
THUMBNAIL = 160  # pixels of their longer side
MATRIX = 20  # classes up to which the matrix given x suggested is shown
PAIRS = 15  # lines of the list of pairs
INK, BLUE, ORANGE, GREEN = "#010203", "#3f87c8", "#d9742b", "#3c9a5f"  # INK becomes the colour of the page's text
STYLE = {
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


# --- images


def thumbnail(images, i, size):
    """Sample i as an RGB Pillow image of at most size x size pixels; a JPEG is decoded no larger than needed."""
    if isinstance(images, np.ndarray):
        image = Image.fromarray(images[i])
    else:
        try:
            image = open_image(images[i], size)
        except Exception as error:  # Pillow's plugins raise anything on a damaged file
            raise UserError(f"{images[i]}: not a readable image ({error}).") from None
    image.thumbnail((size, size))
    return image


def _data_uri(image):
    kind = "PNG" if max(image.size) <= 64 else "JPEG"
    file = io.BytesIO()
    image.save(file, kind, quality=80, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def draw_suspects(data, arrays, path, count=40, columns=10):
    """Write a PNG of the `count` samples of lowest p_clean: given label → the detector's, and the truth where known."""
    number = int(np.sum(~arrays["mask"]))
    order = ranking(arrays["p_clean"], arrays["mask"])[: min(count, number)]
    rows = max(1, -(-len(order) // columns))
    names = [name if len(name) <= 16 else name[:15] + "…" for name in data.true_names]
    arrow = " → " if max(map(len, names)) <= 8 else "\n→ "
    headline = f"{number} of {len(arrays['mask'])} labels look wrong; the most suspect: given label → the detector's"
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph"
        )  # the picture shows boxes for letters its font lacks; the page does not
        figure = Figure(figsize=(1.15 * columns, 1.62 * rows + 0.6))
        axes, right = figure.subplots(rows, columns, squeeze=False), 0
        for ax, i in zip(axes.flat, order):
            given, believed = arrays["labels"][i], arrays["predicted"][i]
            title, colour = f"{names[given]}{arrow}{names[believed]}", "black"
            if data.true_labels is not None:
                truth = data.true_labels[i]
                right += truth == believed
                colour = "tab:green" if truth == believed else "tab:orange" if truth != given else "tab:red"
                title += f"\nis {names[truth]}"
            ax.imshow(thumbnail(data.train.images, i, THUMBNAIL))
            ax.set_title(f"{title}\n{arrays['p_clean'][i]:.3f}", fontsize=7, color=colour)
        for ax in axes.flat:
            ax.axis("off")
        if data.true_labels is not None:
            headline += (
                f", the truth (green: {right} of {len(order)} put right; orange: wrong label, but another truth; "
                "red: the label was right)"
            )
        figure.suptitle(headline + ", p_clean", fontsize=8)
        figure.tight_layout(rect=(0, 0, 1, 0.98))
        with write_whole(path) as file:
            figure.savefig(file, format="png", dpi=130)


# --- plots


def _plot(caption, draw):
    """A figure of the page: draw(axes) into an inline SVG whose text has the page's colour and letters."""
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


def plot_scores(arrays):
    """The histogram of p_clean, of the samples kept and of the suspects, with the threshold."""

    def draw(ax):
        parts = [arrays["p_clean"][~arrays["mask"]], arrays["p_clean"][arrays["mask"]]]
        ax.hist(parts, np.linspace(0, 1, 41), stacked=True, color=[ORANGE, BLUE], label=["suspect", "kept"])
        if cut:
            ax.axvline(0.5, color=INK, linestyle="--", linewidth=1)
        ax.set(xlabel="p_clean", ylabel="images", xlim=(0, 1))
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.12, 1))

    only = np.array_equal(arrays["p_clean"] > 0.5, arrays["mask"])
    cut = not (arrays["mask"] & (arrays["p_clean"] <= 0.5)).any()
    return _plot(
        "p_clean of all training images; suspect is what lies "
        + (
            "at 0.5 (dashed) or below."
            if only
            else "below 0.5 (dashed), and what this detector leaves out for other reasons."
            if cut
            else "outside this detector’s selection, which is not cut at one value."
        ),
        draw,
    )


def threshold_curve(p_clean, is_clean, thresholds):
    """Precision, recall and F1, (T,) each, of the samples with p_clean (N,) above each threshold (T,); cf. selection."""
    rows = [precision_recall(p_clean > t, is_clean) for t in thresholds]
    return {key: np.array([row[key] for row in rows]) for key in ("precision", "recall", "f1")}


def plot_thresholds(arrays, is_clean):
    """Precision, recall and F1 of the clean labels over the threshold on p_clean."""

    def draw(ax):
        thresholds = np.linspace(0, 1, 101)[:-1]
        curve = threshold_curve(arrays["p_clean"], is_clean, thresholds)
        for (key, values), colour, style in zip(curve.items(), (BLUE, ORANGE, GREEN), ("--", ":", "-")):
            ax.plot(thresholds, values, style, color=colour, label="F1" if key == "f1" else key)
        ax.axvline(0.5, color=INK, linestyle="--", linewidth=1, alpha=0.5)
        ax.set(xlabel="kept where p_clean is above", xlim=(0, 1), ylim=(0, 1.02))
        ax.legend(frameon=False, loc="lower left")

    return _plot("Precision, recall and F1 of the labels kept, were the threshold on p_clean another one.", draw)


def plot_history(history):
    """Losses, test accuracies and the selection over the epochs, a figure each, of the lines of log.jsonl."""

    def curves(keys, ylabel):
        def draw(ax):
            for key, colour in zip(keys, (BLUE, ORANGE, GREEN, INK, "#8a63b8")):
                ax.plot(
                    [line["epoch"] for line in history], [line[key] for line in history], ".-", color=colour, label=key
                )
            ax.set(xlabel="epoch", ylabel=ylabel)
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.legend(frameon=False)

        return draw

    groups = {
        "loss": ("Mean training loss of each epoch.", lambda key: key.startswith("loss")),
        "%": ("Accuracy on the test images after each epoch.", lambda key: key.startswith("acc_")),
        "share": (
            "Share of the training labels selected in each epoch, and where the truth is known its quality.",
            lambda key: key in ("selected", "precision", "recall", "f1"),
        ),
    }
    found = {unit: [key for key in history[0] if test(key)] for unit, (_, test) in groups.items()}
    return "".join(_plot(groups[unit][0], curves(keys, unit)) for unit, keys in found.items() if keys)


# --- sections of the page


def _section(name, title, *parts):
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
    text = (
        "<p class=soft>The interval (Wilson) says how far the share of suspects may lie from this one among other "
        "images of the same kind, had as many of them been looked at. It knows nothing of the detector’s own "
        "mistakes: among the suspects are right labels, among the rest are wrong ones. How many of the labels are "
        "wrong, only looking at them tells.</p>"
    )
    return _section(
        "overview", "Overview", f"<div class=pair><div>{_tiles(tiles)}{text}</div>{plot_scores(arrays)}</div>"
    )


def against_truth(data, arrays, relabel_above):
    """Quality of the selection where the true labels are known."""
    truth, labels, mask = data.true_labels, arrays["labels"], arrays["mask"]
    quality = precision_recall(mask, truth == labels)
    _, sure = fixed_labels(arrays, relabel_above)
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
                f"{100 * np.mean(arrays['predicted'][sure] == truth[sure]):.1f} %",
            )
        )
    text = (
        "<p class=soft>The truth is known of these images, and the detector did not see it. Precision: the share of the "
        "labels kept that are right. Recall: the share of the right labels that are kept.</p>"
    )
    return _section(
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
    return _section("classes", "By class", table.replace("<td><i", "<td class=bar><i"))


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
    return _section("confusions", "What is taken for what", *parts)


def training(history):
    """The learning curves."""
    return _section("training", "Training", f"<div class=plots>{plot_history(history)}</div>")


def settings(cfg, summary):
    """Every key of the configuration, those that differ from the defaults first."""
    defaults, keys = default_values(), list(vars(cfg))
    other = [key for key in keys if getattr(cfg, key) != defaults.get(key)]

    def values(keys):
        return [[key, escape(str(getattr(cfg, key)))] for key in keys]

    changed = [[*line, escape(str(defaults.get(line[0], "")))] for line in values(other)]
    facts = [
        f"{what}: {escape(str(summary[key]))}"
        for key, what in (("epochs", "epochs"), ("seconds", "seconds"), ("device", "device"), ("git_commit", "commit"))
        if summary.get(key)
    ]
    return _section(
        "settings",
        "Settings",
        f"<p class=soft>{'; '.join(facts)}</p>",
        _table(["key", "value", "default"], changed, 3),
        "<details><summary>Settings left at their default</summary>",
        _table(["key", "value"], values(key for key in keys if key not in other), 2),
        "</details>",
    )


# --- the gallery


def _card(data, arrays, i):
    given, suggested = data.label_names[arrays["labels"][i]], data.label_names[arrays["predicted"][i]]
    what = escape(f"{given} → {suggested}")
    path = file_path(data, i) or f"image {i}"
    name = escape(data.ids[i] if data.ids else Path(path).name)
    truth = "" if data.true_labels is None else f"<br>is {escape(data.true_names[data.true_labels[i]])}"
    boxes = "".join(f'<label><input type="checkbox" value="{it}"> label is {it}</label>' for it in ("wrong", "right"))
    return (
        f'<article data-index="{i}" data-given="{arrays["labels"][i]}" data-suggested="{arrays["predicted"][i]}" '
        f'aria-label="{name}: {what}"><img alt="{what}" src="{_data_uri(thumbnail(data.train.images, i, THUMBNAIL))}">'
        f"<p><b>{what}</b></p><p class=soft>p_clean {arrays['p_clean'][i]:.3f} · "
        f"{100 * arrays['confidence'][i]:.0f} %{truth}</p>"
        f'<p class="soft file" title="{escape(path)}">{name}</p>{boxes}</article>'
    )


def _options(names, labels):
    numbers = np.bincount(labels, minlength=len(names))
    return "".join(f'<option value="{k}">{escape(names[k])} ({numbers[k]})</option>' for k in np.flatnonzero(numbers))


def write_page(folder, cfg, data, arrays, summary, relabel_above):
    """report.html: numbers, plots and the worst labels of a run, in one file that loads nothing."""
    folder, suspects = Path(folder), int(np.sum(~arrays["mask"]))
    order = ranking(arrays["p_clean"], arrays["mask"])[: min(GALLERY, suspects)]
    log = folder / "log.jsonl"
    history = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    sections = [overview(data, arrays, relabel_above)]
    sections += [against_truth(data, arrays, relabel_above)] if data.true_labels is not None else []
    sections += [by_class(data, arrays), confusions(data, arrays)]
    sections += [training(history)] if history else []
    sections += [settings(cfg, summary)]
    links = [(name, title) for name, title, _ in sections]
    links.insert(1, ("gallery", "The worst, to review"))
    header, *rows = score_rows(data, arrays, order)
    name = f"{summary['dataset']}-{summary['noise']}-seed{summary['seed']}-{folder.resolve().name}"
    rows = json.dumps(
        {
            "key": f"{name}-{label_hash(arrays['labels'])}",
            "name": f"{name}-decisions.csv",
            "header": header,
            "rows": rows,
        },
        ensure_ascii=False,
    ).replace("<", "\\u003c")
    page = Template((Path(__file__).with_suffix(".html")).read_text(encoding="utf-8")).substitute(
        title=escape(f"Suspect labels: {name}"),
        heading=f"{suspects:,} of {len(arrays['mask']):,} labels look wrong",
        subtitle=escape(
            f"{summary['dataset']}, noise {summary['noise']}, seed {summary['seed']}: {summary['name']} with "
            f"{summary['backbone']}"
        ),
        links="".join(f'<a href="#{name}">{title}</a>' for name, title in links),
        overview=sections[0][2],
        sections="\n".join(html for *_, html in sections[1:]),
        shown=len(order),
        suspects=f"{suspects:,}",
        given_options=_options(data.label_names, arrays["labels"][order]),
        suggested_options=_options(data.label_names, arrays["predicted"][order]),
        cards="\n".join(_card(data, arrays, i) for i in order),
        rows=rows,
    )
    write_text(folder / "report.html", page)


def main(argv=None):
    """Write the report of one run into its folder."""
    parser = argparse.ArgumentParser(
        prog="python -m report.page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_flags(parser)
    args = parse_flags(parser, argv)
    cfg, arrays, data, summary = read_run(args.run, args.data_path, args.decisions)
    folder = Path(args.run)
    write_scores(folder, data, arrays)
    write_labels(folder, data, arrays, args.relabel_above)
    draw_suspects(data, arrays, folder / "suspects.png")
    write_page(folder, cfg, data, arrays, summary, args.relabel_above)
    print(
        f"all suspects, worst first: {folder / 'suspects.csv'}\n"
        f"labels to train on: {folder / 'labels_clean.csv'}, {folder / 'labels_fixed.csv'}\n"
        f"to look at: {folder / 'report.html'}"
    )


if __name__ == "__main__":
    run_main(main)
