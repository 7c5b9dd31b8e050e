"""A lock that lets one process at a time work on a run, or on the runs of a folder."""

import errno
import fcntl
import hashlib
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from utils.errors import UserError

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # on some network file systems, where runs are not locked
# {path: Lock} of this process, which may open a run's folder more than once
_held: weakref.WeakValueDictionary[Path, "Lock"] = weakref.WeakValueDictionary()


class Lock:
    """A lock, held until its `file` is closed, or no longer exists; the operating system does so if the process is killed.

    UserError if another process holds it: what `busy` makes of the words that name that process.
    """

    def __init__(self, path: Path, busy: Callable[[str], str]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a+", encoding="utf-8")
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            raise UserError(busy(self.file.read() or "another process")) from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise UserError(f"output_dir: {path.parent} is not writable ({error.strerror}).") from None
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} (since {time.strftime('%Y-%m-%d %H:%M:%S')})")
        self.file.flush()


def lock(
    output_dir: Path,
    folder: Path,
    doing: str = "working on this run",
    advice: str = "Wait for it, stop it, or start another run with --tag NAME.",
) -> Lock:
    """Lock a folder (in <output_dir>/cache/locks). Raises UserError, naming the process, what it does there and what to do,
    if another one holds it."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    path = (output_dir / "cache" / "locks" / name).resolve()
    held = _held.get(path)
    if held is None:
        _held[path] = held = Lock(path, lambda who: f"{folder}: {who} is {doing}. {advice}")
    return held
