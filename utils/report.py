"""What a detector found, to look at: `python -m utils.report RUN` lists the suspects of a run and draws the first.

    python -m utils.report runs/digits/sym-0.4/seed0/deft
"""
import csv
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import yaml
from PIL import Image

from dataloader.datasets import load_data
from utils.checkpoint import write_text, write_whole
from utils.config import UserError, default_values, run_main

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def suspects(p_clean, mask):
    """Indices of the samples that are not in the clean mask, the lowest p_clean first."""
    rejected = np.flatnonzero(~mask)
    return rejected[np.argsort(p_clean[rejected], kind="stable")]


def read_run(folder):
    """(configuration, arrays of the clean mask, data set) of a detector's run."""
    folder = Path(folder)
    if not (folder / "clean_mask.npz").is_file():
        raise UserError(f"{folder}: holds no clean_mask.npz; expected the folder of a finished detector run.")
    cfg = SimpleNamespace(**default_values() | yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    with np.load(folder / "clean_mask.npz", allow_pickle=False) as file:
        arrays = dict(file)
    return cfg, arrays, load_data(cfg)


def _pixels(images, i):
    return images[i] if isinstance(images, np.ndarray) else np.asarray(Image.open(images[i]).convert("RGB"))


def write_suspects(data, arrays, path):
    """Write a CSV of the samples outside the clean mask, the lowest p_clean first; columns as in the README.

    The names given_label, predicted_label and label_score are cleanlab's; true_label stands where the truth is known.
    """
    names, known = data.classnames, data.true_labels is not None
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["rank", "index", "path", "given_label", "predicted_label", "label_score"] + ["true_label"] * known)
    for rank, i in enumerate(suspects(arrays["p_clean"], arrays["mask"]), 1):
        file = "" if isinstance(data.train.images, np.ndarray) else data.train.images[i]
        writer.writerow([rank, i, file, names[arrays["labels"][i]], names[arrays["predicted"][i]],
                         f"{arrays['p_clean'][i]:.6f}"] + ([names[data.true_labels[i]]] if known else []))
    write_text(path, text.getvalue())


def draw_suspects(data, arrays, path, count=40, columns=10):
    """Write a PNG of the `count` samples of lowest p_clean: given label → the detector's, and the truth where known."""
    order = suspects(arrays["p_clean"], arrays["mask"])[:count]
    rows = max(1, -(-len(order) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(1.15 * columns, 1.62 * rows + 0.6), squeeze=False)
    right = 0
    for ax, i in zip(axes.flat, order):
        given, believed = arrays["labels"][i], arrays["predicted"][i]
        title, colour = f"{data.classnames[given]} → {data.classnames[believed]}", "black"
        if data.true_labels is not None:
            truth = data.true_labels[i]
            right += truth == believed
            colour = "tab:green" if truth == believed else "tab:orange" if truth != given else "tab:red"
            title += f"\nis {data.classnames[truth]}"
        ax.imshow(_pixels(data.train.images, i))
        ax.set_title(f"{title}\n{arrays['p_clean'][i]:.3f}", fontsize=7, color=colour)
    for ax in axes.flat:
        ax.axis("off")
    headline = f"{len(arrays['mask']) - arrays['mask'].sum()} of {len(arrays['mask'])} labels look wrong; the most suspect:"
    headline += " given label → the detector's"
    if data.true_labels is not None:
        headline += (f", the truth (green: {right} of {len(order)} put right; orange: wrong label, but another truth; "
                     "red: the label was right)")
    figure.suptitle(headline + ", p_clean", fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    with write_whole(path) as file:
        figure.savefig(file, format="png", dpi=130)
    plt.close(figure)


def main(argv=None):
    """List and draw the suspects of one run, in its folder."""
    args = argv if argv is not None else sys.argv[1:]
    if len(args) != 1 or args[0].startswith("-"):
        raise UserError("expected the folder of one detector run, e.g. runs/digits/sym-0.4/seed0/deft.")
    cfg, arrays, data = read_run(args[0])
    folder = Path(args[0])
    write_suspects(data, arrays, folder / "suspects.csv")
    draw_suspects(data, arrays, folder / "suspects.png")
    print(f"all suspects, worst first: {folder / 'suspects.csv'}\nthe first of them to look at: {folder / 'suspects.png'}")


if __name__ == "__main__":
    run_main(main)
