"""Thumbnails of a run's images: for the page, and the picture of the first suspects."""

import base64
import io
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataloader.dataset import Dataset
from dataloader.transforms import open_image
from report.suspects import to_review
from utils.errors import UserError
from utils.files import write_whole

THUMBNAIL = 160  # pixels of their longer side


def thumbnail(images: Any, i: int, size: int) -> Image.Image:
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


def encoded(image: Image.Image, quality: int, optimize: bool = False) -> tuple[str, bytes]:
    """("jpeg", content), or ("png", content) of a small image, where JPEG would blur the few pixels."""
    kind, file = "png" if max(image.size) <= 48 else "jpeg", io.BytesIO()
    image.save(file, kind, quality=quality, optimize=optimize)
    return kind, file.getvalue()


def data_uri(image: Image.Image) -> str:
    kind, content = encoded(image, quality=80, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def thumbnails(images: Any, order: Sequence[int] | np.ndarray, size: int = THUMBNAIL) -> list[str]:
    """Thumbnails of the samples `order` as data: URIs, which the page embeds."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        uris = pool.map(lambda i: data_uri(thumbnail(images, i, size)), order)
        return list(tqdm(uris, "pictures", len(order), leave=False, disable=None))


def draw_suspects(
    data: Dataset, arrays: dict[str, np.ndarray], path: Path, heading: str, count: int = 40, columns: int = 10
) -> None:
    """Write a PNG of the `count` samples of lowest p_clean that nobody has reviewed, below a heading: given label →
    suggestion, and the true label where known."""
    import matplotlib
    from matplotlib.figure import Figure

    order = to_review(arrays)[:count]
    rows = max(1, -(-len(order) // columns))
    names = [name if len(name) <= 16 else name[:15] + "…" for name in [*data.shown_names, *data.other_names]]
    arrow = " → " if max(map(len, names)) <= 8 else "\n→ "
    headline = f"{heading}\nThe most suspect: given label → suggestion"
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        # the picture shows boxes for letters that its font lacks; the page does not
        warnings.filterwarnings("ignore", "Glyph")
        width, height = 1.15 * columns, 1.62 * rows + 0.5
        figure, right = Figure(figsize=(width, height)), 0
        ax = figure.add_axes((0, 0, 1, 1))  # in inches; 40 subplots would take seconds
        ax.axis("off")
        for place, i in enumerate(order):
            given, believed = arrays["labels"][i], arrays["predicted"][i]
            suggestion = "(none fits better)" if believed == given else names[believed]
            title, colour = f"{names[given]}{arrow}{suggestion}", "black"
            if data.true_labels is not None:
                truth = data.true_labels[i]
                right += truth == believed
                colour = "tab:green" if truth == believed else "tab:orange" if truth != given else "tab:red"
                title += f"\nis {names[truth]}"
            image = thumbnail(data.train.images, i, THUMBNAIL)
            w, h = (side / max(image.size) for side in image.size)
            x, y = 1.15 * (place % columns + 0.5), 1.62 * (place // columns) + 1.02
            ax.imshow(image, extent=(x - w / 2, x + w / 2, y + h, y), aspect="auto")
            ax.text(
                x, y - 0.06, f"{title}\n{arrays['p_clean'][i]:.3f}", color=colour, fontsize=7, ha="center", va="bottom"
            )
        ax.set(xlim=(0, width), ylim=(height, 0))
        if data.true_labels is not None:
            headline += (
                f", true label, p_clean. Green: the suggestion is right ({right} of {len(order)}); orange: both are wrong; "
                "red: the given label is right"
            )
        else:
            headline += ", p_clean"
        ax.text(width / 2, 0.1, headline, fontsize=8, ha="center", va="top")
        with write_whole(path) as file:
            figure.savefig(file, format="png", dpi=130)
