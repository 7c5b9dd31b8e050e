"""Run a table of the paper and print the results next to the paper's figures.

    python reproduce.py --table 1 --dataset cifar100 --noise sym_0.2 --seeds 0 1 2
    python reproduce.py --table 2 --dry_run
    python reproduce.py --table 1 2 --profile digits
    python reproduce.py --verify runs/digits/sym-0.4/seed0/deft

config/tables.yaml describes the tables, config/paper.yaml holds the paper's figures. Every cell is a run of the ordinary
scripts: finished runs are not repeated, interrupted ones are resumed, and runs that cells or tables share are made once.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from report.experiments import Step, check_apart, check_names, make_cells, read_tables, title_of, yaml_now
from report.flags import count
from report.ledger import Ledger, results_of
from report.verify import verify
from utils.config import parse_flags
from utils.errors import UserError, pick
from utils.lock import Lock
from utils.start import run_main
from utils.summaries import code_of, in_time
from utils.version import this_code

HERE = Path(__file__).resolve().parent


def only_one(output_dir: str | Path) -> TextIO:
    """A lock on the folder, as a context; UserError if another reproduce.py is working there."""
    place = f"is at work in {output_dir}; wait for it, or give --output_dir another folder."
    lock = Lock(Path(output_dir) / ".reproduce.lock", lambda who: f"output_dir: another reproduce.py, {who}, {place}")
    return lock.file


class Runner:
    """Runs Steps as subprocesses, `jobs` at a time; with several GPUs, each on its own, else with its share of the cores."""

    def __init__(self, ledger: Ledger, args: argparse.Namespace) -> None:
        self.ledger, self.args, self.gpus = ledger, args, visible_gpus()
        self.jobs = args.jobs or max(1, len(self.gpus))
        self.free: SimpleQueue[str | None] = SimpleQueue()  # a GPU, or none, for each of the jobs
        for i in range(self.jobs):
            self.free.put(self.gpus[i % len(self.gpus)] if self.gpus else None)
        self.children: set[subprocess.Popen[str]] = set()

    def command(self, step: Step) -> list[str]:
        """The words of the step's command, with where it runs."""
        where = [("output_dir", str(self.args.output_dir))]
        path = self.ledger.data_path(step)
        where += [("data_path", str(path))] if self.ledger.data_root and path else []
        return step.command(*where)

    def missing(self, steps: list[Step]) -> list[Step]:
        """The steps to run, of these and those they depend on, in order: without a summary, and without an invalid one."""
        chains = [step.chain() for step in steps]
        in_order = [chain[i] for i in range(max(map(len, chains), default=0)) for chain in chains if i < len(chain)]
        return [s for s in dict.fromkeys(in_order) if not self.ledger.summary(s) and s not in self.ledger.reasons]

    def run_all(self, steps: list[Step]) -> None:
        """Run the missing steps: first those that need no mask, then those that use the masks of these, and so on."""
        todo = self.missing(steps)
        for depth in range(1, 1 + max((len(step.chain()) for step in todo), default=0)):
            now = [(i, len(todo), step) for i, step in enumerate(todo, 1) if len(step.chain()) == depth]
            with ThreadPoolExecutor(self.jobs) as pool:
                try:
                    list(pool.map(self.run, now))
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    for child in list(self.children):
                        child.terminate()
                    raise

    def run(self, numbered: tuple[int, int, Step]) -> None:
        """Run (number, total, Step); if it fails, its last line of output is the reason."""
        number, total, step = numbered
        reasons = self.ledger.reasons
        if step.after and not self.ledger.summary(step.after):
            reasons[step] = reasons.get(step.after, "the run before it did not finish")
        elif lacking := self.ledger.lacks(step):
            reasons[step] = lacking
        else:
            start, words = time.perf_counter(), self.command(step)
            settings, files = step.settings, self.ledger.files(step)
            print(f"[{number}/{total}] python {shlex.join(words)}", file=sys.stderr, flush=True)
            gpu = self.free.get()
            code, folder, last = self._watch(words, gpu)
            self.free.put(gpu)
            if code < 0:
                reasons[step] = f"{words[0]} was killed ({signal.Signals(-code).name})"
            elif code:
                reasons[step] = last.removeprefix("error: ") or f"{words[0]} ended with exit code {code}"
            elif not folder:
                reasons[step] = f"{words[0]} did not say where its run is"
            elif (settings, files) != (step.settings, self.ledger.files(step)):
                reasons[step] = "its settings or their files were changed while it ran; the same command asks again"
            else:
                self.ledger.add(step, settings, files, folder, round(time.perf_counter() - start, 1))

    def _watch(self, words: list[str], gpu: str | None) -> tuple[int, str | None, str]:
        """Run a command and echo its output. Returns its exit code, the run's folder, and its last line."""
        folder, last = None, ""
        shared = self.jobs > 1 or not self.gpus
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.jobs))} if shared else {}
        child = subprocess.Popen(
            [sys.executable, *words],
            env=threads | os.environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu and self.jobs > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=_die_with_parent,
        )
        self.children.add(child)
        for line in child.stdout or ():
            last = line.strip() or last
            print(f"    {line.rstrip()}", file=sys.stderr, flush=True)
            # other lines name other runs, such as the one whose mask is used
            found = re.match(r"(?:results|already finished): (.+)", line)
            if found and (run := Path(found[1])).is_relative_to(self.args.output_dir):
                folder = str(run.relative_to(self.args.output_dir))
        self.children.discard(child)
        return child.wait(), folder, last


def visible_gpus() -> list[str]:
    """The numbers of the GPUs that may be used, as text."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    if not shutil.which("nvidia-smi"):
        return []
    return re.findall(r"^GPU (\d+)", subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout, re.M)


def _die_with_parent() -> None:
    """On Linux, kill this child process when its parent dies, so that no run continues unnoticed."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def list_commands(steps: list[Step], runner: Runner) -> None:
    """Print the commands that are missing, how many, and how long they should take."""
    todo = runner.missing(steps)
    times = {step: runner.ledger.expected_seconds(step) for step in todo}
    for step in todo:
        print(f"python {shlex.join(runner.command(step))}  # {runner.ledger.lacks(step) or in_time(times[step])}")
    known = [seconds for seconds in times.values() if seconds is not None]
    finished = len({s for step in steps for s in step.chain() if runner.ledger.summary(s)})
    expected = in_time(sum(known) / runner.jobs if known or not todo else None)
    expected += f", and {len(todo) - len(known)} of unknown length" if 0 < len(known) < len(todo) else ""
    print(f"{len(todo)} command{'s' * (len(todo) != 1)} to run, {finished} finished; expected: {expected}")


def read_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", default=[], help="1 to 11, another name in the file of tables, or all")
    parser.add_argument("--dataset", nargs="+", help="only these data sets")
    parser.add_argument("--noise", nargs="+", help="only these columns, e.g. sym_0.2")
    parser.add_argument("--seeds", nargs="+", type=count, default=[0], help="default 0")
    parser.add_argument("--profile", help="the tables on other data: a profile of the file of tables, e.g. digits")
    parser.add_argument(
        "--jobs", type=count, default=0, help="number of commands to run at once (default: one per GPU, else one)"
    )
    parser.add_argument("--dry_run", action="store_true", help="list the commands and the results so far")
    parser.add_argument("--format", default="markdown", help="markdown, csv or latex")
    parser.add_argument("--plots", help="folder for the pictures of figures")
    parser.add_argument("--output_dir", type=Path, default="runs", help="folder of the runs (default: runs)")
    parser.add_argument("--data_root", type=Path, help="where the data sets are, instead of ./data")
    parser.add_argument("--tables", default=str(HERE / "config" / "tables.yaml"), help="file of tables")
    parser.add_argument("--verify", metavar="RUN", help="repeat a finished run and compare the results")
    args = parse_flags(parser, argv)
    args.seeds = list(dict.fromkeys(args.seeds))  # a seed given twice counts once
    return args


def main(argv: list[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Run and print the tables that the flags name; returns {table: its rows, see report.comparison.compare}.

    UserError, after the tables, if a command failed, if a record does not count, or if there is no run at all.
    """
    args = read_flags(argv)
    if Path.cwd() != HERE.resolve():
        raise UserError(f"reproduce.py: run it in {HERE}, where its scripts find config/ and ./data.")
    if args.verify:
        found = verify(args.verify)
        print("\n".join(found) if found else f"{args.verify}: the same again")
        sys.exit(1 if found else 0)
    from report.comparison import FORMATS, compare, label_of, plot

    known, show = read_tables(args.tables), pick(FORMATS, args.format, "--format")
    profile = pick(known.get("profiles", {}), args.profile, "--profile") if args.profile else {}
    paper = {} if profile else yaml_now(HERE / "config" / "paper.yaml")
    names = list(known["tables"]) if "all" in args.table else [f"table{t}" if t.isdigit() else t for t in args.table]
    if not names:
        raise UserError(f"--table: expected some of {', '.join(known['tables'])}, or all.")
    tables = {name: pick(known["tables"], name, "--table") for name in names}
    check_names(list(tables.values()), profile, args)
    if args.plots:
        _make_folder(args.plots)
    cells = {name: make_cells(table, known, profile, args) for name, table in tables.items()}
    if not any(cells.values()):
        flags = [f"--{flag}" for flag in ("dataset", "noise", "profile") if getattr(args, flag)]
        sets = sorted({dataset for table in tables.values() for dataset in table["datasets"]})
        raise UserError(
            f"--table: {', '.join(names)}: no run matches {' and '.join(flags)}; the data sets are {', '.join(sets)}."
        )
    steps = [c.step for name, table in tables.items() if "settings" not in table for c in cells[name] if c.step]
    check_apart(steps)
    ledger = Ledger(args.output_dir, args.data_root)
    if args.dry_run:
        list_commands(steps, Runner(ledger, args))
        print()
    elif steps:
        with only_one(args.output_dir):
            Runner(ledger, args).run_all(steps)
    out = {}
    for name, table in tables.items():
        if not cells[name]:
            print(f"{name}: no run matches the flags", file=sys.stderr)
            continue
        metrics = table.get("metrics") or table["settings"]
        out[name] = compare(results_of(cells[name], table, ledger), metrics, paper.get(name), table.get("paper"))
    if out:
        print(show({f"{name}: {title_of(tables[name], profile)}": rows for name, rows in out.items()}))
    for name, rows in out.items() if args.plots else ():
        if tables[name].get("plot") and any(row["ours"] is not None for row in rows):
            *_, last = (tables[name].get("metrics") or tables[name]["settings"]).items()
            plot(rows, Path(args.plots) / f"{name}.png", label_of(*last))
    say_other_code([ledger.summary(step) for step in dict.fromkeys(s for last in steps for s in last.chain())])
    if not args.dry_run:
        check_complete(steps, ledger)
    return out


def say_other_code(summaries: list[dict[str, Any]]) -> None:
    """Print how many of the finished runs were made by other code than that of now."""
    now = code_of(this_code())
    others = [code_of(s) for s in summaries if s and code_of(s) != now]
    if others:
        were = "was" if len(others) == 1 else "were"
        print(
            f"{len(others)} of these runs {were} made by other code ({', '.join(sorted(set(others)))}) than that of now ({now}); "
            "--verify RUN says whether one comes out the same",
            file=sys.stderr,
        )


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--plots: {path}: no folder can be made there ({error.strerror}).") from None


def check_complete(steps: list[Step], ledger: Ledger) -> None:
    """UserError if a run failed or does not count, or if none of the Steps could be run for want of data."""
    if failed := ledger.failures():
        raise UserError(
            f"reproduce.py: {len(failed)} of the runs failed or do not count; the table says why. The same command "
            "tries again what failed."
        )
    if steps and not any(map(ledger.summary, steps)):
        raise UserError(
            f"reproduce.py: nothing could be run: {'; '.join(dict.fromkeys(ledger.reasons.values()))}. --data_root names "
            "the folder of the data sets."
        )


if __name__ == "__main__":
    run_main(main)
