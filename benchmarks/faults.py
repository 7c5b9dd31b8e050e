"""Faults, counted: kills, full disks, folders that cannot be written, two commands at once, old runs, malformed inputs.

    python -m benchmarks.faults                               # all of it
    python -m benchmarks.faults --only kills --kills 500

Commands run in forks of this process, which has imported everything, so that a kill hits the work and not the imports. A
fault is survived if the same command, given again, ends with the files of an undisturbed run: masks, weights, lists and
images byte for byte, records in all but the time. A command that stops by itself must do so with exit code 2 and one line.
What is not survived is printed, and the exit code is 1.
"""

import argparse
import builtins
import codecs
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import main_baseline
import main_detect
import main_phase1
import main_phase2
import report.export
from benchmarks.common import digits_folder, machine
from benchmarks.malformed import Case, base_runs, cases, judge, run_in_process
from report.tables import format_table
from utils.config import DEFAULTS
from utils.files import write_text
from utils.start import run_main

OLD = ("97464bd", "2ef0356", "111e7b2", "8f6db27")  # versions whose runs are read: commits of this repository
TIMES = {"seconds", "images_per_second", "peak_memory_gb", "checksum"}  # what differs between two equal runs' records
SEED = "runs/own-digits/none/seed0"
OWN = ["--data_path", "../images", "--name", "digits", "--backbone", "tiny-clip-digits", "--prec", "fp32"]
OWN += ["--device", "cpu", "--output_dir", "runs"]
PEFT = ["--cfg", str(DEFAULTS.parent / "PEFT" / "own.yaml"), *OWN]
FEW = ["--epochs", "3", "--batch_size", "16"]
FFT = ["--cfg", str(DEFAULTS.parent / "FFT" / "own.yaml"), *OWN, *FEW]
JOBS = {  # name: main, its flags, and the job that must have run before
    "detector": (main_detect.main, [*PEFT, "--detector", "confident-learning"], ""),
    "phase 1": (main_phase1.main, [*PEFT, *FEW, "--n_ctx", "4", "--vpt_len", "4", "--warmup", "1"], ""),
    "phase 2": (main_phase2.main, FFT, "phase 1"),
    "baseline": (main_baseline.main, [*FFT, "--lnl_methods", "ELR"], ""),
    "export": (report.export.main, [f"{SEED}/deft", "--to", "exported"], "phase 1"),
}


# --- running and comparing


def start(job, place, prepare=lambda: None):
    """A fork that runs a job in the folder `place`, after prepare(): its process id, and a pipe with its stderr."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return SimpleNamespace(pid=child, stderr=reading)
    try:
        os.chdir(place)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(writing, 2)
        prepare()
        try:
            run_main(lambda: JOBS[job][0](JOBS[job][1]))
            code = 0
        except SystemExit as error:
            code = error.code
        except BaseException as error:  # a stack trace on the command line
            code = 1
            print(repr(error), file=sys.stderr)
        sys.stderr.flush()
    finally:
        os._exit(code)


def end(child):
    """(exit code, negative for a signal; lines on stderr) of a fork that has ended or will."""
    with os.fdopen(child.stderr) as file:
        lines = file.read().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]), lines


def content(path):
    """What is compared of a file."""

    def untimed(record):
        return {key: value for key, value in record.items() if key not in TIMES}

    def plain(value):  # tensors as bytes: equal bit for bit
        if isinstance(value, torch.Tensor):
            return str(value.dtype), value.shape, value.numpy().tobytes()
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

    if path.name == "summary.json":
        return untimed(json.loads(path.read_text()))
    if path.name == "log.jsonl":
        return [untimed(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name == "checkpoint.pt":
        saved = torch.load(path, weights_only=True)
        return plain(saved | {"history": [untimed(line) for line in json.loads(saved["history"])]})
    return path.read_bytes()


def differences(place, whole):
    """Names of the files that differ between two folders or are missing in one, apart from runs/cache/."""

    def files(folder):
        return {
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts
        }

    both = files(place) & files(whole)
    changed = {name for name in both if content(place / name) != content(whole / name)}
    return sorted((files(place) ^ files(whole)) | changed)


class Bench:
    """Undisturbed results, and what was counted."""

    def __init__(self, folder, args):
        self.folder, self.kills, self.rng = folder, args.kills, np.random.default_rng(args.seed)
        self.rows, self.problems, self.seconds = [], [], {}
        digits_folder(folder / "images", 60)
        for job in JOBS:
            place, started = self.place(job, "whole-"), time.perf_counter()
            code, lines = end(start(job, place))
            if code:
                raise RuntimeError(f"{job}: {lines}")
            self.seconds[job] = time.perf_counter() - started

    def whole(self, job):
        return self.folder / f"whole-{job}"

    def place(self, job, prefix="try-"):
        """A folder in which a job can run: the one before it has."""
        place = self.folder / f"{prefix}{job}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if before := JOBS[job][2]:
            shutil.copytree(self.whole(before), place, dirs_exist_ok=True)
        return place

    def stopped(self, what, job, place, code, lines):
        """Whether a command stopped by itself; notes one that did so in another way than it should."""
        halves = [path.name for path in place.rglob("*.tmp")]
        if code not in (0, 2) or (code == 2 and len(lines) != 1) or halves:
            self.note(f"{what}, {job}: ends with {code}, {lines[-3:]} {halves}")
        return code == 2

    def same(self, what, job, place):
        """Give the command again; whether the files are those of an undisturbed run."""
        code, lines = end(start(job, place))
        different = differences(place, self.whole(job))
        if code or different:
            self.note(f"{what}, {job}: given again, ends with {code}, {lines[-1:]} {different[:5]}")
        return not code and not different

    def note(self, problem):
        self.problems.append(problem)
        print(f"NOT SURVIVED: {problem}", flush=True)

    def row(self, what, on, tried, outcome):
        self.rows.append([what, on, str(tried), outcome])
        print(f"{what}, {on}: {tried}, {outcome}", flush=True)

    def disturb(self, what, job, faults):
        """Run a job once with each of `faults` (name, prepare), see start(), and give the command again without it."""
        tried = stopped = same = 0
        for name, prepare in faults:
            place = self.place(job)
            child = start(job, place, lambda: prepare(place))
            stopped += self.stopped(name, job, place, *end(child))
            same += self.same(name, job, place)
            tried += 1
        self.row(what, job, tried, f"{stopped} stopped with one line, {same} the same when given again")


# --- the faults


def kills(bench):
    """SIGKILL at random moments. A command that was killed is given again, and half of the time killed again."""
    for job in JOBS:
        done = results = same = 0
        while done < bench.kills / len(JOBS):
            place, killed = bench.place(job), True
            while killed:
                child = start(job, place)
                time.sleep(bench.rng.uniform(0, bench.seconds[job]))
                os.kill(child.pid, signal.SIGKILL)  # of a process that has ended: nothing
                code, lines = end(child)
                done += code == -signal.SIGKILL
                killed = code == -signal.SIGKILL and bench.rng.random() < 0.5
                if code not in (0, -signal.SIGKILL):
                    bench.note(f"kills, {job}: ends with {code}, {lines[-3:]}")
            results += 1
            same += bench.same("kills", job, place)
            if same < results:
                break
        bench.row("SIGKILL at random moments", job, done, f"{same} of {results} results the same")


def full_disk(bench):
    """The disk is full from the first, second, … file on that a command writes; and files may not be longer than n bytes."""

    def full_from(n, opened):
        def opening(file, mode="r", *args, _open=open, **kwargs):
            if set(mode) & set("wax+") and not str(file).startswith("/dev"):
                opened.value += 1
                if opened.value > n:
                    _open(file, mode, *args, **kwargs).close()  # it is made, and stays empty
                    return _open("/dev/full", "wb" if "b" in mode else "w")
            return _open(file, mode, *args, **kwargs)

        builtins.open = io.open = opening

    def each_file():
        for n in count():
            opened = multiprocessing.Value("i", 0)
            yield f"full disk from file {n + 1} on", lambda place: full_from(n, opened)
            if opened.value <= n:
                return

    def limits():
        for n in (0, 100, 1000, 10_000, 100_000, 1_000_000):
            limit = (n, resource.RLIM_INFINITY)
            yield f"files of {n} bytes", lambda place: resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    for job in JOBS:
        bench.disturb("disk full from the n-th file on", job, each_file())
        bench.disturb("no file longer than n bytes", job, limits())


def read_only(bench):
    """Folders that cannot be written, for another user than root, whom no folder resists."""
    if os.getuid():
        return bench.row("folder that cannot be written", "all", 0, "not run: needs root")

    def become_nobody(place, folder):
        codecs.lookup("utf-8-sig")  # nobody may not load it
        (place / folder).mkdir(parents=True, exist_ok=True)
        for path in (place, *place.rglob("*")):
            path.chmod(0o777)
        for path in (place / folder, *(place / folder).rglob("*")):
            path.chmod(0o555)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    for job in JOBS:
        folders = [".", "exported"] if job == "export" else [".", "runs", SEED]
        faults = [(f"{name} is read-only", partial(become_nobody, folder=name)) for name in folders]
        bench.disturb("folder that cannot be written", job, faults)


def twice(bench):
    """Two identical commands at once: one does the work, the other finds it done or is refused in one line."""
    for job in JOBS:
        codes, same, pairs = Counter(), 0, max(2, bench.kills // 20)
        for _ in range(pairs):
            place = bench.place(job)
            first = start(job, place)
            time.sleep(bench.rng.uniform(0, 0.5 * bench.seconds[job]))
            second = start(job, place)
            for code, lines in (end(first), end(second)):
                bench.stopped("twice", job, place, code, lines)
                codes[code] += 1
            same += bench.same("twice", job, place)
        bench.row(
            "the same command twice at once", job, pairs, f"{codes[2]} refused in one line, {same} results the same"
        )


def old_runs(bench):
    """Finished and unfinished runs of older versions, read by the commands of this one."""
    flags = "--noise_mode sym --noise_ratio 0.4 --test_fraction 0.8 --device cpu".split()
    phase1 = ["--cfg", "config/PEFT/digits.yaml", *flags, "--epochs", "2"]
    for commit in OLD:
        packed = subprocess.run(["git", "archive", commit], cwd=DEFAULTS.parents[1], capture_output=True)
        if packed.returncode:
            bench.row("run folder of an older version", commit, 0, "not run: its commit is not here")
            continue
        place = bench.folder / commit
        tarfile.open(fileobj=io.BytesIO(packed.stdout)).extractall(place, filter="data")
        subprocess.run(
            [sys.executable, "main_phase1.py", *phase1, "--output_dir", "runs"],
            cwd=place,
            check=True,
            capture_output=True,
        )
        deft, to = place / "runs/digits/sym-0.4/seed0/deft", ["--output_dir", str(place / "runs")]
        codes = Counter()
        for command, argv in (
            ("main_phase1", [*phase1, *to]),
            ("main_phase2", ["--cfg", "config/FFT/digits.yaml", *flags, "--epochs", "1", *to]),
            *((f"report.{name}", [str(deft)]) for name in ("tables", "page", "training", "estimate")),
            ("report.export", [str(deft), "--to", str(place / "exported")]),
            ("main_phase1", [*phase1, *to]),
        ):
            code, lines = run_in_process(Case("", command, argv, ""))
            bench.stopped(f"run of {commit}", command, place, code, lines)
            codes[code] += 1
            if command == "report.export":  # from here on the run is an unfinished one
                (deft / "summary.json").unlink()
        outcome = f"{codes[0]} commands read it, {codes[2]} refuse it in one line"
        bench.row("run folder of an older version", commit, codes.total(), outcome)


def malformed(bench):
    """The inputs of benchmarks/malformed.py."""
    base, tried, good = base_runs(bench.folder / "malformed"), Counter(), Counter()
    for number, make in enumerate(cases()):
        case, problem = judge(make, bench.folder / f"case{number}", base)
        shutil.rmtree(bench.folder / f"case{number}")
        tried[case.kind] += 1
        good[case.kind] += not problem
        if problem:
            bench.note(f"malformed, {case.kind}, {case.command} {' '.join(case.argv)[-80:]}: {problem}")
    for kind, n in tried.items():
        bench.row("malformed input", kind, n, f"{good[kind]} end with exit code 2 and one line that names it")


FAULTS = {
    "kills": kills,
    "disk": full_disk,
    "folder": read_only,
    "twice": twice,
    "old": old_runs,
    "malformed": malformed,
}


def main():
    """Do the faults, print a table; exit code 1 if anything was not survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs, of all commands together (default: 100)")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", help="write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        bench = Bench(Path(folder), args)
        for name in args.only:
            FAULTS[name](bench)
    print("\n" + format_table([["fault", "command or kind", "tried", "outcome"], *bench.rows], words=2))
    print("\n".join(f"NOT SURVIVED: {problem}" for problem in bench.problems) or "all survived")
    if args.json:
        figures = {**machine("cpu"), "arguments": vars(args), "rows": bench.rows, "problems": bench.problems}
        write_text(args.json, json.dumps(figures, indent=1) + "\n")
    sys.exit(bool(bench.problems))


if __name__ == "__main__":
    main()
