"""One process at a time in the folder of a run."""

import errno
import fcntl
import hashlib
import os
import time
import weakref
from pathlib import Path

from utils.config import UserError

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # by some network file systems, which then go without
_held: weakref.WeakValueDictionary[Path, "Lock"] = (
    weakref.WeakValueDictionary()
)  # {path: Lock} of this process, which may open a run's folder more than once


class Lock:
    """A lock on `folder` until the object is gone; the operating system frees it even where the process is killed."""

    def __init__(self, path: Path, folder: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a+", encoding="utf-8")
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            raise UserError(
                f"{folder}: {self.file.read() or 'another process'} works on this run; wait for it or stop it, or "
                "--tag NAME makes another run."
            ) from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise UserError(f"output_dir: {path.parent} cannot be written to ({error.strerror}).") from None
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} (since {time.strftime('%Y-%m-%d %H:%M:%S')})")
        self.file.flush()


def lock(output_dir: Path, folder: Path) -> Lock:
    """The Lock on a run's folder, in <output_dir>/cache/locks; UserError if another process holds it, naming that."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    path = (output_dir / "cache" / "locks" / name).resolve()
    held = _held.get(path)
    if held is None:
        _held[path] = held = Lock(path, folder)
    return held
