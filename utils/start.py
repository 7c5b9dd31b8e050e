"""How a script starts and ends. Imports nothing heavy, so that flags are read before PyTorch loads."""

import os
import sys
import warnings
from collections.abc import Callable
from io import TextIOWrapper

from utils.errors import UserError
from utils.memory import keep_freed_memory


def run_main(main: Callable[[], object]) -> None:
    """Run a script's main(). Exit code 2 and one line on stderr after a UserError, 130 after Ctrl-C.

    main() should read its flags before it imports anything slow. Under torchrun, the process group is set up first.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # those of libraries; this project prints what a user should know
    keep_freed_memory()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for paths that are not UTF-8, see utils.files.as_text
    try:
        if "LOCAL_RANK" in os.environ:
            from utils.distributed import processes

            with processes():
                main()
        else:
            main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # of the machine: a full disk, a folder that cannot be written, a name that is too long
        if error.errno is None:
            raise
        print(f"error: {error.filename or ''}: {error.strerror}".replace("error: :", "error:"), file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # PyTorch's, not imported here
            raise
        print(
            f"error: device: {str(error).split(' GPU ')[0]} Training a CLIP needs less with --micro_batch 8, and in phase 1 with "
            "--checkpoint_text, with which a run that was begun goes on; all else needs less with a smaller --batch_size.",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(130)
