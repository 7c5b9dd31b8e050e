"""Images of a run that are dark, overexposed, blurred or nearly uniform in colour, found by CleanVision.

    python -m report.quality runs/own-photos/none/seed0/deft

writes image_issues.csv into the run's folder; from then on the report has a section on it. Each image is checked once.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from report.flags import command_parser
from utils.config import parse_flags
from utils.errors import UserError
from utils.files import write_csv, write_whole
from utils.start import run_main

if TYPE_CHECKING:
    from PIL import Image

    from dataloader.dataset import Dataset
    from report.sections import Section

ISSUES = {
    "dark": "dark",
    "light": "overexposed",
    "blurry": "blurred",
    "low_information": "nearly uniform in colour",
}
TABLE = "image_issues.csv"
PIECE = 1000  # images: what a stop may lose
SHOWN = 24  # of each issue in the page


class Pictures:
    """The samples `order` of a Dataset as upright RGB Pillow images, each in a tuple, as CleanVision takes torchvision's."""

    def __init__(self, images: Any, order: Sequence[int]) -> None:
        self.images, self.order = images, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, k: int) -> "tuple[Image.Image]":
        from PIL import Image

        from dataloader.transforms import open_image

        image = self.images[self.order[k]]
        return (Image.fromarray(image) if isinstance(image, np.ndarray) else open_image(image),)


def find_issues(data: "Dataset", samples: list[int], cache: Path) -> dict[str, dict[int, float]]:
    """{issue: {index: score}} of those of `samples` of a Dataset that have an issue; a lower score is worse.

    Scores and thresholds are CleanVision's defaults. Images whose content is in the JSON file `cache` are not checked again.
    UserError where the package is missing.
    """
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    contents = _contents(data)
    new = [i for i in samples if contents[i] not in known]
    for start in range(0, len(new), PIECE):
        part = new[start : start + PIECE]
        table = _look_at(Pictures(data.train.images, part))
        for k, i in enumerate(part):
            known[contents[i]] = {
                name: float(table.at[k, f"{name}_score"]) for name in ISSUES if table.at[k, f"is_{name}_issue"]
            }
        with write_whole(cache, shared=True) as file:
            file.write(json.dumps(known).encode())
        print(f"checked {start + len(part)} of {len(new)} images", flush=True)
    found: dict[str, dict[int, float]] = {name: {} for name in ISSUES}
    for i in samples:
        for name, score in known[contents[i]].items():
            found[name][i] = score
    return found


def _contents(data: "Dataset") -> list[str]:
    """What tells the images from others: hashes of their contents or, where they have not been read, data set and path."""
    return data.digests or [f"{data.fingerprint}/{data.path(i)}" for i in range(len(data.train.labels))]


def _look_at(pictures: Pictures) -> Any:
    """CleanVision's table of the pictures, a row each; its index is their place among them."""
    try:
        cleanvision = import_module("cleanvision")
    except ImportError as error:
        raise UserError(f"quality: needs the package cleanvision: `pip install cleanvision` ({error}).") from None
    lab = cleanvision.Imagelab(torchvision_dataset=pictures)
    with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):  # its progress
        lab.find_issues(
            {name: {} for name in ISSUES}, n_jobs=min(os.cpu_count() or 1, -(-len(pictures) // 50)), verbose=False
        )
    return lab.issues


def write_issues(
    folder: str | Path, data: "Dataset", arrays: dict[str, np.ndarray], found: dict[str, dict[int, float]]
) -> None:
    """image_issues.csv: the images of each issue, the worst first."""
    contents = _contents(data)
    rows = [
        (i, data.path(i), data.label_names[arrays["labels"][i]], name, f"{score:.6f}", contents[i])
        for name, scores in found.items()
        for i, score in sorted(scores.items(), key=lambda pair: pair[1])
    ]
    write_csv(Path(folder) / TABLE, [("index", "path", "label", "issue", "score", "content"), *rows])


def quality_sections(folder: str | Path, data: "Dataset", arrays: dict[str, np.ndarray]) -> "list[Section]":
    """The section of image_issues.csv, as other_sections has them; [] where there is no such file."""
    from dataloader.rows import read_csv
    from report.sections import figures, section

    path = Path(folder) / TABLE
    if not path.is_file():
        return []
    found: dict[str, list[int]] = {name: [] for name in ISSUES}
    contents = _contents(data)
    try:
        for _, row in read_csv(path):
            i, of_issue = int(row["index"]), found[row["issue"]]
            if arrays["there"][i] and contents[i] == row["content"]:
                of_issue.append(i)
    except (KeyError, ValueError, IndexError):
        raise UserError(f"{path}: not the list of this run; run report.quality again, or delete it.") from None
    parts = [
        f"<h3>{len(images):,} {ISSUES[name]}</h3><div class=group>{''.join(figures(data, arrays, images[:SHOWN]))}</div>"
        for name, images in found.items()
        if images
    ]
    text = (
        "<p class=soft>Images that CleanVision finds dark, overexposed, blurred or nearly uniform in colour, the worst "
        f"first. Their labels may be right, but are hard to check. {TABLE} lists all.</p>"
    )
    return [section("quality", "Image quality", text, *(parts or ["<p>None found.</p>"]))]


def main(argv: list[str] | None = None) -> None:
    """Write image_issues.csv of one run."""
    parser = command_parser("quality", __doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a finished detector run")
    parser.add_argument("--data_path", metavar="DIR", help="folder of the images, if they have moved since the run")
    flags = parse_flags(parser, argv)
    from report.suspects import read_run

    cfg, arrays, data, _ = read_run(flags.run, flags.data_path)
    found = find_issues(
        data, np.flatnonzero(arrays["there"]).tolist(), Path(cfg.output_dir) / "cache" / "image-quality.json"
    )
    write_issues(flags.run, data, arrays, found)
    counts = ", ".join(f"{len(found[name])} {words}" for name, words in ISSUES.items())
    print(f"{counts}: {Path(flags.run) / TABLE}\nto see them: python -m report.page {flags.run}")


if __name__ == "__main__":
    run_main(main)
