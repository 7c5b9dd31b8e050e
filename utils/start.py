"""How a script starts and ends. Nothing heavy is imported here: flags are read before PyTorch is."""

import os
import sys
import warnings
from collections.abc import Callable
from io import TextIOWrapper

from utils.config import UserError
from utils.memory import keep_freed_memory


def run_main(main: Callable[[], object]) -> None:
    """Run a script's main(); a UserError ends it with one line on stderr and exit code 2, Ctrl-C with 130.

    main() reads its flags before it imports anything that takes long. Under torchrun the processes are joined first.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries; what a user should know is said in our own words
    keep_freed_memory()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # paths that are no UTF-8: see utils.files.as_text
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
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what is finished", file=sys.stderr)
        sys.exit(130)
