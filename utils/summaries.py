"""summary.json, the record of a finished run. It carries a checksum, so that edits are detected."""

import hashlib
import json
from pathlib import Path
from typing import Any

from utils.config import UserError
from utils.files import write_text

LEVELS = ("usable", "doubtful", "not usable")  # of a verdict, best first


def _checksum(summary: dict[str, Any]) -> str:
    content = {key: value for key, value in summary.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def with_checksum(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary as JSON reads it back, plus its checksum."""
    summary = json.loads(json.dumps(summary))
    return summary | {"checksum": _checksum(summary)}


def write_summary(path: str | Path, summary: dict[str, Any]) -> None:
    """Write a summary, checksum included, with one line per key."""
    lines = ",\n ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in summary.items())
    write_text(path, f"{{\n {lines}\n}}\n")


def read_summary(path: str | Path) -> dict[str, Any] | None:
    """The summary of a finished run, or None if the file does not exist.

    Raises UserError if the file is not what the run wrote. Summaries of older versions have no checksum; they are accepted.
    """
    path = Path(path)
    if not path.is_file():
        return None
    mend = "Delete it and run the run's command again, which rewrites it from the checkpoint."
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        changed = summary.get("checksum", _checksum(summary)) != _checksum(summary)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not the record of a run ({error}). {mend}") from None
    if changed:
        raise UserError(f"{path}: modified after the run wrote it. {mend}")
    return summary


def usable(summary: dict[str, Any]) -> bool:
    """Whether a detector's verdict is "usable"; True if the run has no verdict."""
    return summary.get("verdict", {"level": "usable"})["level"] == "usable"


def reason(summary: dict[str, Any]) -> str:
    """The reason for a detector's verdict and what to do instead; "" if the run has no verdict."""
    verdict = summary.get("verdict", {"why": "", "instead": ""})
    return verdict["why"] + (f". Instead: {verdict['instead']}" if verdict["instead"] else "")


def verdict_line(summary: dict[str, Any]) -> str:
    """The first line that a detector prints: its verdict and the reason."""
    return f"{summary['verdict']['level']}: {reason(summary)}"
