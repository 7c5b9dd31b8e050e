"""A lock that lets one process at a time work on a run."""

import errno
import fcntl
import hashlib
import os
import time
import weakref
from pathlib import Path

from utils.errors import UserError

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # on some network file systems, where runs are not locked
# {path: Lock} of this process, which may open a run's folder more than once
_held: weakref.WeakValueDictionary[Path, "Lock"] = weakref.WeakValueDictionary()


class Lock:
    """A lock on `folder`, held while the object exists. The operating system releases it if the process is killed."""

    def __init__(self, path: Path, folder: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a+", encoding="utf-8")
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            raise UserError(
                f"{folder}: {self.file.read() or 'another process'} is working on this run. Wait for it, stop it, or "
                "start another run with --tag NAME."
            ) from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise UserError(f"output_dir: {path.parent} is not writable ({error.strerror}).") from None
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} (since {time.strftime('%Y-%m-%d %H:%M:%S')})")
        self.file.flush()


def lock(output_dir: Path, folder: Path) -> Lock:
    """Lock a run's folder (in <output_dir>/cache/locks). Raises UserError, naming the process, if another one holds it."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    path = (output_dir / "cache" / "locks" / name).resolve()
    held = _held.get(path)
    if held is None:
        _held[path] = held = Lock(path, folder)
    return held
