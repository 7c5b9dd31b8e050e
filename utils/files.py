"""Atomic file writing, and small text files."""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from utils.errors import UserError, brief

# CLIPs that come with the project: {name: folder}
EMBEDDED = {folder.name: folder for folder in sorted((Path(__file__).parents[1] / "model").glob("tiny-clip-*"))}


def model_files(backbone: str) -> list[Path]:
    """The files of an embedded CLIP, or of a CLIP's folder, all but the model card and hidden ones; none of other backbones."""
    folder = EMBEDDED.get(backbone, Path(backbone))
    inside = sorted(folder.iterdir()) if backbone and folder.is_dir() else []
    return [path for path in inside if path.is_file() and path.suffix != ".md" and not path.name.startswith(".")]


@contextmanager
def write_whole(path: str | Path, shared: bool = False) -> Iterator[BinaryIO]:
    """Write a binary file atomically: it appears as `path` only if the block ends without an error.

    Raises UserError if the file cannot be written, for example on a full disk. Other errors of the block propagate.
    shared: other processes may write the same file at the same time, as in the cache.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a fixed name, so that the next attempt overwrites the leftover of a killed process
        temporary = path.parent / f".{path.name}{os.getpid() if shared else ''}.tmp"
        file = temporary.open("wb")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if reason := _write_error(error):
            raise UserError(f"{path}: cannot be written ({reason}).") from None
        raise


def _write_error(error: BaseException | None) -> str:
    """Why a write to an open file failed, or ""; follows the chain of causes, since libraries wrap the OSError."""
    while error:
        if isinstance(error, OSError) and error.errno and error.filename is None:
            return error.strerror or str(error)
        error = error.__cause__ or error.__context__
    return ""


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically; as_text escapes what is not UTF-8."""
    with write_whole(path) as file:
        file.write(as_text(text).encode())


def file_hash(*paths: str | Path) -> str:
    """SHA-256, in hex, of the contents of files one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def as_text(path: object) -> str:
    """A path as valid UTF-8 text. Bytes that are not UTF-8 become \\udc80 to \\udcff, as Python prints them."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def as_path(text: str) -> str:
    """The inverse of as_text."""
    return re.sub(r"\\udc([89a-f][0-9a-f])", lambda match: chr(0xDC00 + int(match[1], 16)), text)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """The rows as CSV, as write_csv writes them."""
    text = io.StringIO()
    plain, quoted = (csv.writer(text, lineterminator="\n", quoting=how) for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    for row in (["" if field is None else str(field) for field in row] for row in rows):
        (quoted if "\r" in "".join(row) else plain).writerow(row)  # \r would end the row when it is read
    return as_text(text.getvalue())


def write_csv(path: str | Path, rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file atomically; the first row is the header."""
    write_text(path, csv_text(rows))


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 text file without trailing empty lines. Raises UserError if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a UTF-8 text file ({error})") from None


def from_json(text: str) -> Any:
    """The value of JSON text; ValueError for what is none, or lists in lists without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line, dicts; UserError where it cannot be read."""
    try:
        rows = [from_json(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("expected an object in each line")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not lines of JSON ({brief(error)}).") from None
    return rows


def slug(text: object) -> str:
    """A safe folder name: ViT-B/16 -> ViT-B-16."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in str(text)).strip("-.")


def safe_name(text: object) -> str:
    """`text` as the name of a file or folder anywhere: no separators, control characters or dots in front, not too long."""
    name = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", as_text(text)).lstrip(". ").rstrip(". ")
    return name.encode()[:150].decode(errors="ignore") or "_"


def unused(name: str, taken: set[str]) -> str:
    """`name`, or name-2, name-3 … before its suffix: the first that is not in the set `taken`, which gets it.

    Names that differ by case only count as the same, as many file systems see them.
    """
    stem, suffix = os.path.splitext(name)
    number, candidate = 1, name
    while candidate.casefold() in taken:
        number += 1
        candidate = f"{stem}-{number}{suffix}"
    taken.add(candidate.casefold())
    return candidate


def image_list(output_dir: Path, fingerprint: str | None) -> Path:
    """The JSON file that lists the images of a fingerprint as {path: hash of the content}."""
    return output_dir / "cache" / f"images-{fingerprint}.json"


def listed_changes(output_dir: Path, before: str | None, now: str) -> str:
    """How the images of two fingerprints differ: ' (1 changed: a.png; 2 new: …; 1 gone: …)', or '' if not on record."""
    try:
        old, new = (json.loads(image_list(output_dir, x).read_text(encoding="utf-8")) for x in (before, now))
    except (OSError, ValueError):
        return ""
    lists = {
        "changed": [path for path in new if path in old and new[path] != old[path]],
        "new": [path for path in new if path not in old],
        "gone": [path for path in old if path not in new],
    }
    found = [f"{len(x)} {what}: {', '.join(x[:3])}{' …' * (len(x) > 3)}" for what, x in lists.items() if x]
    return (
        f" ({'; '.join(found)})" if found else " (the same files, but in another order or with another held-out part)"
    )
