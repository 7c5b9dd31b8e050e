"""summary.json, the record of a finished run. It carries a checksum, so that edits are detected."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from utils.errors import UserError, brief
from utils.files import from_json, read_json_lines, write_text

REQUIRED = {"name": str, "dataset": str, "noise": str, "seed": int, "backbone": str, "identity": dict}
FRACTIONS = {  # the keys of a summary or an epoch that hold fractions, which screens and tables show in per cent
    *("noise_rate", "selected", "auroc", "auprc_mislabelled"),
    *(key + of for key in ("precision", "recall", "f1") for of in ("", "_mislabelled")),
}
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


def read_summary(path: str | Path) -> dict[str, Any]:
    """The summary of a finished run, empty if the file does not exist.

    Raises UserError if the file is not what the run wrote. Those of versions that wrote neither their version nor a checksum are
    accepted.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    mend = "Delete it and run the run's command again, which rewrites it from the checkpoint."
    try:
        summary = from_json(path.read_text(encoding="utf-8"))
        if not isinstance(summary, dict):
            raise ValueError("expected an object")
        lacks = [key for key, kind in REQUIRED.items() if not isinstance(summary.get(key), kind)]
        if lacks:
            raise ValueError(f"it has no {lacks[0]}")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not the record of a run ({brief(error)}). {mend}") from None
    if summary.get("checksum", None if "version" in summary else _checksum(summary)) != _checksum(summary):
        raise UserError(f"{path}: modified after the run wrote it. {mend}")
    return summary


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The epochs of a run, the lines of its log.jsonl, one dict each; [] where it trains nothing."""
    path = Path(folder) / "log.jsonl"
    log = read_json_lines(path) if path.is_file() else []
    if any("epoch" not in line or log[0].keys() - line.keys() or not _histograms(line.get("p_clean")) for line in log):
        raise UserError(
            f"{path}: not the log of a run; delete summary.json and run its command again, which rewrites the log."
        )
    return log


def _histograms(p_clean: Any) -> bool:
    """Whether it is {name: counts} as in a log, or None."""
    lists = p_clean.values() if isinstance(p_clean, dict) else []
    return p_clean is None or bool(lists) and all(isinstance(counts, list) and counts for counts in lists)


def code_of(summary: dict[str, Any]) -> str:
    """The code that made a run, in short: its hash; of a run that did not record it, its commit or version."""
    commit = str(summary.get("git_commit") or "")[:7]
    return str(
        summary.get("code") or (f"commit {commit}" if commit else f"version {summary.get('version', 'unknown')}")
    )


def codes(summaries: list[dict[str, Any]]) -> list[str]:
    """The code_of these runs, each once, sorted."""
    return sorted(set(map(code_of, summaries)))


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


def in_time(seconds: float | None) -> str:
    """A duration in its two largest units: 1 h 23 min, 4 min 5 s, 6 s; None is unknown."""
    if seconds is None:
        return "unknown"
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
