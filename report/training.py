"""The training of a run: `python -m report.training RUN` plots it and lists the words nearest to its learned prompts.

    python -m report.training RUN [--tensorboard]

Written into RUN: training.png (losses, test accuracy, selection, histograms of p_clean for right and wrong labels), of a
DeFT detector words.csv (the tokens nearest to each learned context vector), with --tensorboard the folder tensorboard/.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from report.flags import command_parser
from report.tables import format_table
from utils.config import parse_flags, recorded_settings
from utils.errors import UserError
from utils.files import write_csv, write_whole
from utils.start import run_main
from utils.summaries import read_log
from utils.tensorboard import write_epochs

if TYPE_CHECKING:
    from torch import Tensor

    from model.clip import Clip, Tokenizer

QUALITY = ("precision", "recall", "f1", "selected")
COLOURS = {"right": "tab:blue", "wrong": "tab:orange", "not known": "tab:grey"}
PANELS = 6  # histograms, of epochs evenly spread


def read_training(folder: str | Path) -> tuple[list[dict[str, Any]], SimpleNamespace]:
    """The epochs of a run, one dict each, and its settings."""
    folder = Path(folder)
    for name in ("config.yaml", "log.jsonl"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name} there; expected the folder of a run that trains.")
    log = read_log(folder)
    if not log:
        raise UserError(f"{folder / 'log.jsonl'}: holds no epoch.")
    return log, SimpleNamespace(**recorded_settings(folder / "config.yaml"))


def curves_of(log: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """{title: {name: values}} of losses, test accuracies and the selection in each epoch of a log; no title without values."""
    curves = {
        "loss": {key: [line[key] for line in log] for key in log[0] if key.startswith("loss")},
        "test accuracy, %": {key[4:]: [line[key] for line in log] for key in log[0] if key.startswith("acc_")},
        "selection, %": {key: [100 * line[key] for line in log] for key in QUALITY if key in log[0]},
    }
    return {title: lines for title, lines in curves.items() if lines}


def plot_training(log: list[dict[str, Any]], path: str | Path) -> None:
    """Curves over the epochs of a log, and histograms of p_clean where it has them, as a PNG."""
    from matplotlib.figure import Figure

    epochs, drawn = [line["epoch"] for line in log], [line for line in log if "p_clean" in line]
    chosen = np.unique(np.linspace(0, len(drawn) - 1, min(PANELS, len(drawn))).round().astype(int))
    figure = Figure(figsize=(12, 6.4 if drawn else 3.4), layout="constrained")
    rows = figure.subfigures(2 if drawn else 1, 1, squeeze=False)[:, 0]
    curves = curves_of(log)
    for axis, (title, lines) in zip(rows[0].subplots(1, len(curves), squeeze=False)[0], curves.items()):
        for name, values in lines.items():
            axis.plot(epochs, values, marker=".", label=name)
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize="small")
    if drawn:
        most = max(max(counts) for line in drawn for counts in line["p_clean"].values())
        for axis, i in zip(rows[1].subplots(1, len(chosen), sharey=True, squeeze=False)[0], chosen):
            for name, counts in drawn[i]["p_clean"].items():
                axis.stairs(
                    counts, np.linspace(0, 1, len(counts) + 1), fill=True, alpha=0.6, color=COLOURS[name], label=name
                )
            axis.axvline(0.5, color="black", linestyle="--", linewidth=1)
            axis.set(
                title=f"epoch {drawn[i]['epoch']}", xlabel="p_clean", yscale="symlog", ylim=(0, 1.5 * max(most, 1))
            )
        rows[1].axes[0].set_ylabel("labels")
        rows[1].axes[0].legend(fontsize="small")
    with write_whole(Path(path)) as file:
        figure.savefig(file, format="png", dpi=110)


def nearest_words(
    contexts: "Tensor", clip: "Clip", tokenizer: "Tokenizer", count: int = 3
) -> list[list[tuple[str, float]]]:
    """[(token, cosine), …], `count` of them, nearest to each context vector of contexts (M, width)."""
    import torch.nn.functional as F

    from model.clip import text_tower

    table = F.normalize(text_tower(clip).token_embedding.weight.detach().float().cpu(), dim=1)
    similarity, tokens = (F.normalize(contexts.float(), dim=1) @ table.T).topk(count)  # (M, count)
    return [
        [(tokenizer.decode([token]).strip(), value) for token, value in zip(of_one, values)]
        for of_one, values in zip(tokens.tolist(), similarity.tolist())
    ]


def prompt_words(folder: str | Path, cfg: SimpleNamespace) -> list[tuple[str, str, int, int, str, str]] | None:
    """Rows (prompt, class, position, rank, word, cosine) of the learned contexts of a DeFT detector; None of other runs.

    The class is empty where all classes share the contexts.
    """
    import torch

    from model.clip import load_clip

    path = Path(folder) / "checkpoint.pt"
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)["model"] if path.is_file() else {}
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"{path}: not a checkpoint ({error}).") from None
    if "prompts.pos_ctx" not in weights:
        return None
    clip, tokenizer = load_clip(cfg.backbone, cfg.pretrained)
    rows = []
    for prompt in ("positive", "negative"):
        contexts = weights[f"prompts.{prompt[:3]}_ctx"]  # (M, width) or (K, M, width)
        for k, of_class in enumerate(contexts if contexts.dim() == 3 else contexts[None]):
            for position, words in enumerate(nearest_words(of_class, clip, tokenizer), 1):
                name = str(k) if contexts.dim() == 3 else ""
                rows += [(prompt, name, position, i, word, f"{value:.3f}") for i, (word, value) in enumerate(words, 1)]
    return rows


def words_table(rows: list[tuple[str, str, int, int, str, str]]) -> list[list[str]]:
    """The nearest words as rows of text: one row for each position, the two prompts side by side."""
    table: dict[tuple[str, int], dict[str, list[str]]] = {}
    for prompt, name, position, _, word, value in rows:
        table.setdefault((name, position), {}).setdefault(prompt, []).append(f"{word} {value}")
    heads = ["context vector", "positive", "negative"]
    body = [
        [f"{name} {position}".strip(), *(", ".join(of[p]) for p in heads[1:])] for (name, position), of in table.items()
    ]
    return [heads, *body]


def main(argv: list[str] | None = None) -> Path:
    """Draw a run's training and write its prompts' nearest words; returns the folder."""
    parser = command_parser("training", __doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a run that trains, finished or not")
    parser.add_argument("--tensorboard", action="store_true", help="write RUN/tensorboard/ too")
    args = parse_flags(parser, argv)
    folder = Path(args.run)
    log, cfg = read_training(folder)
    plot_training(log, folder / "training.png")
    print(f"epochs: {folder / 'training.png'}")
    rows = prompt_words(folder, cfg)
    if rows:
        write_csv(folder / "words.csv", [("prompt", "class", "position", "rank", "word", "cosine"), *rows])
        if not cfg.csc:
            print(format_table(words_table(rows), words=3))
        print(f"words nearest to the learned prompts: {folder / 'words.csv'}")
    if args.tensorboard:
        write_epochs(folder / "tensorboard", log)
        print(f"tensorboard --logdir {folder / 'tensorboard'}")
    return folder


if __name__ == "__main__":
    run_main(main)
