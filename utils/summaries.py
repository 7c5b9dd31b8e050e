"""summary.json, the record of a finished run: it carries a checksum, so that a changed one is noticed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from utils.config import UserError
from utils.files import write_text

LEVELS = ("usable", "doubtful", "not usable")  # of a verdict, the worst last


def _checksum(summary: dict[str, Any]) -> str:
    content = {key: value for key, value in summary.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def with_checksum(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary as it will be read from its file, and its checksum."""
    summary = json.loads(json.dumps(summary))
    return summary | {"checksum": _checksum(summary)}


def write_summary(path: str | Path, summary: dict[str, Any]) -> None:
    """Write a summary that has its checksum, one line a key."""
    lines = ",\n ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in summary.items())
    write_text(path, f"{{\n {lines}\n}}\n")


def read_summary(path: str | Path) -> dict[str, Any] | None:
    """The summary of a finished run, None where there is no file.

    UserError where it is not what the run wrote. One without a checksum, of an older version, is taken as it is.
    """
    path = Path(path)
    if not path.is_file():
        return None
    mend = "Delete it; the run's command then writes it anew from the checkpoint."
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        changed = summary.get("checksum", _checksum(summary)) != _checksum(summary)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not the record of a run ({error}). {mend}") from None
    if changed:
        raise UserError(f"{path}: was changed after the run wrote it. {mend}")
    return summary


def usable(summary: dict[str, Any]) -> bool:
    """Whether nothing speaks against a detector's result, or nothing is known about it."""
    return summary.get("verdict", {"level": "usable"})["level"] == "usable"


def reason(summary: dict[str, Any]) -> str:
    """Why a detector's result can be used or not, and what to do instead; "" in the record of anything else."""
    verdict = summary.get("verdict", {"why": "", "instead": ""})
    return verdict["why"] + (f". Instead: {verdict['instead']}" if verdict["instead"] else "")


def verdict_line(summary: dict[str, Any]) -> str:
    """What is first on the screen of a detector: whether its result can be used, and the reason."""
    return f"{summary['verdict']['level']}: {reason(summary)}"
