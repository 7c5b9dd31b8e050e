"""Files that are whole or not there, and text files of lines."""

import csv
import io
import os
from contextlib import contextmanager
from pathlib import Path

from utils.config import UserError


@contextmanager
def write_whole(path, shared=False):
    """A binary file to write to; it takes the name `path` only when the block ends without an error.

    shared: other processes may be writing the same file, as those in the cache.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a name of its own: the next try writes over what a kill left
        temporary = path.parent / f".{path.name}{os.getpid() if shared else ''}.tmp"
        file = temporary.open("wb")
    except OSError as error:
        raise UserError(f"output_dir: {path.parent} cannot be written to ({error.strerror}).") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path, text):
    """A whole UTF-8 text file."""
    with write_whole(path) as file:
        file.write(text.encode("utf-8"))


def write_csv(path, rows):
    """A whole CSV file; the first of the rows is the heading."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def read_lines(path):
    """The lines of a UTF-8 text file, without empty ones at its end; UserError if it cannot be read as that."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a UTF-8 text file ({error})") from None


def slug(text):
    """A name that is safe as a folder: ViT-B/16 -> ViT-B-16."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in str(text)).strip("-.")
