"""Which code this is: the commit and the version of the project."""

import hashlib
import subprocess
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
CODE = ("main_*.py", "dataloader", "methods", "model", "report", "utils")  # on which the results of a run depend


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=HERE, capture_output=True, text=True, errors="replace", check=True
    ).stdout


def git_commit() -> str | None:
    """The commit of this checkout, followed by + and a hash of the files of CODE that differ from it; None outside one."""
    try:
        rev = _git("rev-parse", "HEAD").strip()
        changes = _git("diff", "HEAD", "--", *CODE)
        new = _git("ls-files", "--others", "--exclude-standard", "-z", "--", *CODE).split("\0")[:-1]
    except (OSError, subprocess.CalledProcessError):
        return None
    if not changes and not new:
        return rev
    digest = hashlib.sha256(changes.encode())
    for name in new:
        digest.update(name.encode() + b"\0" + (HERE / name).read_bytes())
    return f"{rev}+{digest.hexdigest()[:8]}"


def this_code() -> dict[str, str | None]:
    """For a summary: the version in pyproject.toml, and git_commit."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"version": project["version"], "git_commit": git_commit()}
