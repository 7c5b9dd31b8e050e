"""Classify images with a trained run: path, label and its probability, one image a line, separated by tabs.

With --top K, the K most probable labels, each followed by its probability.

python -m report.predict runs/digits/sym-0.4/seed0/phase2-deft-tiny-clip-digits photo.jpg more_photos/
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from report.flags import command_parser, count
from utils.config import parse_flags
from utils.errors import UserError
from utils.files import as_text, write_csv
from utils.start import run_main

if TYPE_CHECKING:
    import torch

BATCH = 64


def find_images(names: Iterable[str]) -> list[str]:
    """The files among `names`, and all image files below the folders among them, sorted; UserError for what is neither."""
    from dataloader.files import image_files, passed_over

    paths = []
    for path in map(Path, names):
        found, others = ([str(path)], {}) if path.is_file() else image_files(path)
        if not found:
            raise UserError(f"{path}: neither an image file nor a folder with images in it.")
        if others:
            print(f"{path}: ignored files that are not images: {passed_over(others)}", file=sys.stderr)
        paths += found
    return paths


def _pixels(path: str, info: dict[str, Any]) -> "torch.Tensor | UserError":
    """uint8 (3, pixels, pixels) as the run saw its test images, or why the file cannot be read."""
    from torchvision.transforms.v2.functional import center_crop

    from dataloader.transforms import decode

    if not os.path.isfile(path):  # a pipe may never end
        return UserError(f"{path}: not a file.")
    try:
        image = decode(path, info["resize"], info["pixels"] if info["short_side"] else None)
    except UserError as error:
        return error
    return center_crop(image, [info["pixels"]])


def predict(
    model: "torch.nn.Module", info: dict[str, Any], paths: list[str], device: "torch.device"
) -> "Iterator[tuple[str, torch.Tensor | UserError]]":
    """Yield (path, logits (K,) on the CPU) of each image; for a file that cannot be read, (path, its UserError)."""
    import torch

    from dataloader.transforms import normalise

    model.to(device)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), BATCH):
            part = paths[start : start + BATCH]
            images = list(pool.map(lambda path: _pixels(path, info), part))
            good = [image for image in images if isinstance(image, torch.Tensor)]
            logits: Iterator[torch.Tensor] = iter(())
            if good:
                batch = normalise(torch.stack(good).to(device), info["mean"], info["std"])
                with torch.no_grad():
                    logits = iter(model(batch).float().cpu())
            yield from (
                (path, next(logits) if isinstance(image, torch.Tensor) else image) for path, image in zip(part, images)
            )


def main(argv: list[str] | None = None) -> None:
    """Print the prediction for each image; UserError at the end if some could not be read."""
    parser = command_parser("predict", __doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a finished run of phase 2 or of a baseline")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders with images in them")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--top", type=count, default=1, metavar="K", help="the K most probable labels (default: 1)")
    parser.add_argument(
        "--csv", metavar="FILE", help="write a CSV file instead, with the columns path, label, probability, label_2, …"
    )
    flags = parse_flags(parser, argv)
    from dataloader.rows import shortened
    from model.saved import load_classifier
    from utils.device import pick_device

    paths = find_images(flags.images)
    model, info = load_classifier(flags.run)
    odd = next((name for name in [*paths, *info["classes"]] if re.search(r"[\t\r\n]", name)), None)
    if odd and not flags.csv:
        raise UserError(f"{odd!r} has a tab or an end of line in it, which would end the column; use --csv FILE.")
    if not 1 <= flags.top <= len(info["classes"]):
        raise UserError(f"--top: expected 1 to {len(info['classes'])}, the number of classes, not {flags.top}.")
    ranks = ["", *(f"_{k}" for k in range(2, flags.top + 1))]
    broken, rows = [], [["path", *(name + rank for rank in ranks for name in ("label", "probability"))]]
    found = predict(model, info, paths, pick_device(SimpleNamespace(device=flags.device, gpuid=-1)))
    hidden = None if flags.csv or not sys.stdout.isatty() else True  # the lines themselves are the progress
    for path, logits in tqdm(found, "images", len(paths), leave=False, disable=hidden):
        if isinstance(logits, UserError):
            broken.append(path)
            continue
        probabilities, classes = logits.softmax(0).topk(flags.top)
        pairs = [(info["classes"][k], f"{p:.4f}") for k, p in zip(classes, probabilities)]
        row = [as_text(path), *(word for pair in pairs for word in pair)]
        if flags.csv:
            rows.append(row)
        else:
            print("\t".join(row))
    if flags.csv:
        write_csv(flags.csv, rows)
    if broken:
        rest = f"; {flags.csv} is written, with the other {len(rows) - 1}" if flags.csv else ""
        raise UserError(
            f"{len(broken)} of {len(paths)} files could not be read as images: {shortened(broken, 5)}{rest}."
        )


if __name__ == "__main__":
    run_main(main)
