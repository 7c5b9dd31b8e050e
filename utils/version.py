"""Which code this is: the version of the project, its commit, and a hash of its code."""

import hashlib
import subprocess
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
PACKAGES = ("dataloader", "methods", "model", "utils")
CODE = ("main_*.py", "report/record.py", *(f"{package}/**/[!.]*.py" for package in PACKAGES))


def git_commit() -> str | None:
    """The commit of this checkout, followed by + if files differ from it; None outside a checkout."""
    try:
        rev = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=HERE, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return rev.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def code_hash() -> str:
    """Eight hex digits that identify the files of CODE, on which the results of a run depend."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in CODE for path in HERE.glob(pattern) if path.is_file()}):
        digest.update(f"{path.relative_to(HERE).as_posix()}\n".encode() + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:8]


def this_code() -> dict[str, str | None]:
    """For a summary: the version in pyproject.toml, git_commit and code_hash."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"version": project["version"], "git_commit": git_commit(), "code": code_hash()}
