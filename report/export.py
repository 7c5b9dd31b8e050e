"""Write the images whose labels a detector trusts as class folders: DIR/<class>/<file>. The source is only read.

DIR/metadata.csv has the label, original label, score and source of each, in the format of Hugging Face's imagefolder.

python -m report.export runs/own-photos/none/seed0/deft --to cleaned --fixed
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from report.flags import RELABEL_ABOVE, add_run_flags, command_parser
from utils.config import parse_flags
from utils.errors import UserError
from utils.files import as_text, csv_text, safe_name, unused, write_csv, write_text, write_whole
from utils.start import run_main

if TYPE_CHECKING:
    from dataloader.dataset import Dataset

METADATA = "metadata.csv"
UNFINISHED = ".unfinished-export.json"  # in DIR until the last file is written: what the export was to be


def plan(data: "Dataset", samples: np.ndarray, labels: np.ndarray) -> list[Path]:
    """Where each of `samples` goes, <class>/<file>; labels (N,) of all. The same data give the same names."""
    taken = {METADATA}
    folders = [unused(safe_name(name), taken) for name in data.label_names]
    files: list[set[str]] = [set() for _ in data.label_names]

    def target(i: int) -> Path:
        if data.root:
            stem, suffix = os.path.splitext(Path(data.path(i)).name)
            name = safe_name(stem) + as_text(suffix)
        else:
            name = f"{i:06d}.png"
        return Path(folders[labels[i]]) / unused(name, files[labels[i]])

    return [target(i) for i in samples]


def _metadata(
    data: "Dataset", arrays: dict[str, np.ndarray], samples: np.ndarray, targets: list[Path], labels: np.ndarray
) -> list[tuple[str, ...]]:
    """metadata.csv: a heading and a row for each of `samples`, whose files are `targets`; labels (N,) of all."""
    from dataloader.rows import TRUSTED_BY

    names = data.label_names
    columns = {
        "file_name": [target.as_posix() for target in targets],
        "label": [names[labels[i]] for i in samples],
        "original_label": [names[arrays["labels"][i]] for i in samples],
        TRUSTED_BY: ["person" if arrays["decision"][i] else "detector" for i in samples],
        "label_score": [f"{arrays['p_clean'][i]:.6f}" for i in samples],
        "source": [data.path(i) or f"image {i}" for i in samples],
    }
    if data.ids:
        columns["id"] = [data.ids[i] for i in samples]
    return [tuple(columns), *zip(*columns.values())]


def _check_source(to: Path, data: "Dataset", data_path: str) -> None:
    """UserError unless `to` is, or can become, a folder outside the source."""
    sources = {Path(data_path).resolve()}
    if not isinstance(data.train.images, np.ndarray):
        sources |= {Path(folder).resolve() for folder in {os.path.dirname(path) for path in data.train.images}}
    inside = next((source for source in (to.resolve(), *to.resolve().parents) if source in sources), None)
    if inside:
        raise UserError(f"--to: {to} lies inside the source {inside}, which is only read; name a folder elsewhere.")
    if to.exists() and not to.is_dir():
        raise UserError(f"--to: {to} is no folder.")


def _is_whole(to: Path, metadata: list[tuple[str, ...]], link: bool) -> bool:
    """Whether `to` holds the files that `metadata` lists, as links or as copies, no others, and the same metadata."""
    there = {path.relative_to(to).as_posix(): path.is_symlink() for path in to.rglob("*") if not path.is_dir()}
    whole = there == {METADATA: False, **{row[0]: link for row in metadata[1:]}}
    return whole and (to / METADATA).read_bytes() == csv_text(metadata).encode()


def _check_empty(to: Path, wanted: str) -> None:
    """UserError unless the folder `to` is empty, or an unfinished export of just this."""
    if {path.name for path in to.iterdir()} - {f".{UNFINISHED}.tmp"}:  # what a kill in its first moment leaves
        before = (to / UNFINISHED).read_text(encoding="utf-8") if (to / UNFINISHED).is_file() else ""
        if before != wanted:
            raise UserError(
                f"--to: {to} is not empty"
                + (", and holds an unfinished export of another run or with other flags" if before else "")
                + "; name a new folder."
            )


@contextmanager
def _alone(to: Path) -> Iterator[None]:
    """Make the folder `to` and wait until no other process exports to it."""
    to.mkdir(parents=True, exist_ok=True)
    folder = os.open(to, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(data: "Dataset", i: int, target: Path, link: bool) -> None:
    path = data.train.images[i] if data.root else None
    if target.is_file():  # from a try that was stopped: files are whole or not there
        return
    if path and link:
        target.unlink(missing_ok=True)  # a link whose image has moved since
        target.symlink_to(os.path.abspath(path))
        return
    with write_whole(target) as file:
        if path:
            file.write(Path(path).read_bytes())
        else:
            Image.fromarray(data.train.images[i]).save(file, "PNG")


def export(
    data: "Dataset",
    arrays: dict[str, np.ndarray],
    to: str | Path,
    data_path: str,
    link: bool = False,
    fixed: bool = False,
    relabel_above: float = RELABEL_ABOVE,
) -> int:
    """Write the samples kept, and with `fixed` the suspects put right (see fixed_labels), below the folder `to`.

    link: symbolic links instead of copies; array data sets are always written, as PNG. An export that was stopped is
    completed by the same call. Returns how many images there are. Raises UserError for a `to` that cannot be used.
    """
    from dataloader.dataset import label_hash
    from report.suspects import fixed_labels

    labels, sure = fixed_labels(arrays, relabel_above)
    kept = arrays["mask"] | sure if fixed else arrays["mask"]
    samples = np.flatnonzero(kept & arrays["there"])
    targets = plan(data, samples, labels)
    metadata = _metadata(data, arrays, samples, targets, labels)
    names = hashlib.sha256("\n".join(map(str, targets)).encode()).hexdigest()[:16]
    wanted = json.dumps(
        {
            "images": data.fingerprint,
            "labels": label_hash(arrays["labels"]),
            "kept": label_hash(samples),
            "names": names,
            "link": link,
        }
    )
    to = Path(to)
    _check_source(to, data, data_path)
    try:
        with _alone(to):
            if _is_whole(to, metadata, link and bool(data.root)):
                return len(samples)
            _check_empty(to, wanted)
            write_text(to / UNFINISHED, wanted)
            for folder in {target.parent for target in targets}:
                (to / folder).mkdir(exist_ok=True)
            for i, target in zip(samples.tolist(), tqdm(targets, "writing", disable=None)):
                _write(data, i, to / target, link)
            write_csv(to / METADATA, metadata)
            (to / UNFINISHED).unlink()
    except OSError as error:
        raise UserError(
            f"--to: {error.filename or to}: {error.strerror}; the same command continues from here."
        ) from None
    return len(samples)


def main(argv: list[str] | None = None) -> None:
    """Export one run."""
    parser = command_parser("export", __doc__)
    add_run_flags(parser)
    parser.add_argument(
        "--to", required=True, metavar="FOLDER", help="target: a new or empty folder outside the source"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--copy", action="store_true", help="copy the images (default)")
    how.add_argument("--link", action="store_true", help="make symbolic links to the images instead")
    parser.add_argument(
        "--fixed", action="store_true", help="also the suspects that get another label, as in labels_fixed.csv"
    )
    flags = parse_flags(parser, argv)
    from report.suspects import read_run, say_differing_copies

    cfg, arrays, data, _ = read_run(flags.run, flags.data_path, flags.decisions)
    count = export(data, arrays, flags.to, cfg.data_path, flags.link, flags.fixed, flags.relabel_above)
    say_differing_copies(data, arrays)
    print(f"exported {count} of {len(data.train.labels)} judged images to {flags.to}")


if __name__ == "__main__":
    run_main(main)
