"""Run a table of the paper and print the results next to the paper's figures.

    python reproduce.py --table 1 --dataset cifar100 --noise sym_0.2 --seeds 0 1 2
    python reproduce.py --table 2 --dry_run
    python reproduce.py --table 1 2 --profile digits
    python reproduce.py --verify runs/digits/sym-0.4/seed0/deft

config/tables.yaml describes the tables, config/paper.yaml holds the paper's figures. Every cell is a run of the ordinary
scripts: finished runs are not repeated, interrupted ones are resumed, and runs that cells or tables share are made once.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from utils.config import DEFAULTS, load_config, parse_flags, read_yaml, whole_numbers
from utils.errors import UserError, brief, nearest, pick
from utils.files import model_files, slug
from utils.lock import Lock
from utils.start import run_main
from utils.summaries import code_of, read_log, read_summary
from utils.version import this_code

HERE = Path(__file__).resolve().parent
NOISE_KEYS = (  # by which the folder of a run is named
    "noise_mode noise_ratio noise_file noise_rng image_noise image_noise_level image_noise_on".split()
)
TABLE_KEYS = {  # of a file of tables: the keys that every entry of a group has, and those that it may have
    "datasets": (["yaml"], ["real", "flags"]),
    "profiles": (["datasets", "backbones"], ["lacks"]),
    "tables": (["title", "datasets", "methods"], "columns set flags_to metrics settings paper plot".split()),
}
LEDGER_KEYS: dict[str, Any] = {"script": str, "flags": list, "settings": dict, "folder": str, "seconds": (int, float)}
NAMED_BY = (  # other flags that the folder of a run is named by
    "tag backbone detector lnl_methods mask adaptation phase2_loss noisy_samples soft_labels".split()
)
BY_NAME = "the next command needs --mask with the name of that run's folder, without its tag"
ENDS = {"first": 0, "last": -1}  # of a method's commands
SETTLED = {"prec": "auto", "epochs": 0, "warmup": -1}  # in whose place a run records what it settled on
MADE_WITH = "code versions device threads".split()  # on which the last digits of a run depend
NOT_COMPARED = {  # of two runs: time, place and machine; class names, which older records lack, are in the identity
    *MADE_WITH,
    *"seconds images_per_second peak_memory_gb peak_cuda_memory_gb git_commit checksum mask class_names".split(),
}


@cache
def _parsed(path: str | Path, changed: int) -> dict[Any, Any]:
    return read_yaml(path)


def _yaml(path: str | Path) -> dict[Any, Any]:
    """The content of a YAML file, read again when the file has changed."""
    return _parsed(path, os.stat(path).st_mtime_ns if os.path.isfile(path) else 0)


@cache
def _sha256(path: str, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@dataclass(frozen=True)
class Step:
    """One command: a script, its flags as (key, value) pairs of text, and the step whose mask it takes, if any."""

    script: str
    flags: tuple[tuple[str, str], ...]
    after: "Step | None" = None

    @property
    def settings(self) -> dict[str, Any]:
        """What its flags, its YAML file and config/default.yaml say now, in that order of precedence."""
        flags = dict(self.flags)
        content = _yaml(HERE / flags.pop("cfg"))
        return _yaml(DEFAULTS) | {str(key).lower(): value for key, value in content.items()} | flags

    def command(self, *where: tuple[str, str]) -> list[str]:
        """The words of the command, with further flags that say where it runs."""
        return [f"{self.script}.py", *(word for key, value in (*self.flags, *where) for word in (f"--{key}", value))]

    def mask_name(self) -> str:
        """What --mask calls the mask that this step makes, without its tag. UserError if it is no detector's."""
        if "phase1" in self.script:
            return "deft"
        if self.script == "main_detect":
            return str(self.settings["detector"])
        raise UserError(f"methods: after {self.script}, {BY_NAME}.")

    def chain(self) -> "list[Step]":
        """The steps that lead to this one, and itself."""
        return [*(self.after.chain() if self.after else []), self]


@dataclass(frozen=True)
class Cell:
    """A place in a table for one seed: the step that gives its figures, or the reason why there can be none."""

    place: tuple[str, str, str]  # data set, method, column
    step: Step | None
    reason: str = ""


# --- from a table's description to commands


def read_tables(path: str | Path) -> dict[str, Any]:
    """The content of a file of tables. Raises UserError for an entry that lacks a key or has an unknown one."""
    known = _yaml(path)
    for group in ("datasets", "methods", "tables"):
        if not isinstance(known.get(group), dict):
            raise UserError(f"{path}: has no {group}.")
    for group, (needed, further) in TABLE_KEYS.items():
        for name, entry in known.get(group, {}).items():
            if not isinstance(entry, dict):
                raise UserError(f"{path}: {group}: {name} must have the keys {', '.join(needed)}.")
            for key in (key for key in needed if key not in entry):
                raise UserError(f"{path}: {name}: has no {key}.")
            for key in (key for key in entry if key not in needed + further):
                raise UserError(f"{path}: {name}: unknown key '{key}'.{nearest(key, needed + further)}")
    for name, profile in known.get("profiles", {}).items():
        if not isinstance(profile["backbones"], list):
            raise UserError(f"{path}: {name}: backbones must be a list; those of the YAML files stand for them.")
        if not isinstance(profile.get("lacks", {}), dict):
            raise UserError(f"{path}: {name}: lacks must have a reason for each method or column.")
    for name, table in known["tables"].items():
        if isinstance(table["datasets"], list) and "columns" not in table:
            raise UserError(f"{path}: {name}: has no columns.")
        if not table.keys() & {"metrics", "settings"}:
            raise UserError(f"{path}: {name}: has neither metrics nor settings.")
        if "flags_to" in table:
            pick(ENDS, table["flags_to"], f"{path}: {name}: flags_to")
    columns = {
        column for table in known["tables"].values() for d in table["datasets"] for column in columns_of(table, d)
    }
    for name, profile in known.get("profiles", {}).items():
        for lacking in profile.get("lacks", {}):
            pick(dict.fromkeys([*known["methods"], *sorted(columns)]), lacking, f"{path}: {name}: lacks")
    return known


def headings(content: dict[str, Any] | list[str]) -> dict[str, Any]:
    """{heading: what it stands for} of a table's methods or columns, where a list names them as they are."""
    return dict(zip(content, content)) if isinstance(content, list) else content


def columns_of(table: dict[str, Any], dataset: str) -> dict[str, Any]:
    """{heading: flags} of a table's columns for a data set: sym_0.2 is noise_mode sym, noise_ratio 0.2."""
    own = isinstance(table["datasets"], dict)
    return {
        heading: column if isinstance(column, dict) else _noise_flags(column)
        for heading, column in headings(table["datasets"][dataset] if own else table["columns"]).items()
    }


def _noise_flags(column: str) -> dict[str, Any]:
    mode, _, ratio = column.rpartition("_")
    if not mode:
        raise UserError(
            f"columns: {column} must be a noise mode and its ratio, e.g. sym_0.2, or have flags of its own."
        )
    return {"noise_mode": mode, "noise_ratio": ratio}


def make_step(command: str, dataset: dict[str, Any], flags: dict[str, Any], after: Step | None = None) -> Step:
    """The Step of a method's command on a data set, in a separate run if it has flags other than noise and seed."""
    script, cfg, *words = shlex.split(command)
    real = script.replace("main_", "main_real_")
    script = real if dataset.get("real") and (HERE / f"{real}.py").is_file() else script
    if len(words) % 2:
        raise UserError(f"methods: '{command}': every flag needs a value.")
    own = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2]))
    varied = [slug(f"{key}-{value}") for key, value in flags.items() if key not in (*NOISE_KEYS, "seed")]
    tag = "-".join(filter(None, [own.pop("tag", ""), *varied]))
    own |= {key: str(value) for key, value in flags.items()}
    if tag:
        own["tag"] = tag
    cfg_flag = ("cfg", f"config/{cfg}/{dataset['yaml']}.yaml")
    method = Step(script, (cfg_flag, *own.items())).settings["lnl_methods"] if script.endswith("baseline") else ""
    if after and (script.endswith("phase2") or method == "MixFix"):
        name = own.get("mask") or after.mask_name()
        before = dict(after.flags).get("tag", "")
        if (name, before) != ("deft", ""):  # which is the default
            own["mask"] = f"{name}-{slug(before)}" if before else name
    return Step(script, (cfg_flag, *own.items()), after)


def make_cell(
    table: dict[str, Any],
    known: dict[str, Any],
    profile: dict[str, Any],
    place: tuple[str, str, str],
    flags: dict[str, Any],
    seed: int,
) -> Cell:
    """One Cell of a table; flags: those of its column."""
    stands_for = profile.get("datasets", {}).get(place[0], place[0])
    place = (stands_for, *place[1:])
    dataset = pick(known["datasets"], stands_for, "datasets")
    flags = table.get("set", {}) | dataset.get("flags", {}) | flags
    method = headings(table["methods"])[place[1]]
    for reason in (why for name, why in profile.get("lacks", {}).items() if name in (method, place[2])):
        return Cell(place, None, reason)
    if "backbone" in flags and profile:
        if flags["backbone"] not in profile["backbones"]:
            return Cell(place, None, f"the profile has nothing for the backbone {flags['backbone']}")
        del flags["backbone"]  # that of the YAML files stands for it
    commands = pick(known["methods"], method, "methods")
    noise, step = {key: value for key, value in flags.items() if key in NOISE_KEYS}, None
    for command in commands:
        all_flags = table.get("flags_to") not in ENDS or command == commands[ENDS[table["flags_to"]]]
        step = make_step(command, dataset, (flags if all_flags else noise) | {"seed": seed}, step)
    return Cell(place, step)


def make_cells(
    table: dict[str, Any], known: dict[str, Any], profile: dict[str, Any], args: argparse.Namespace
) -> list[Cell]:
    """The Cells of a table that match the flags."""
    datasets = [d for d in table["datasets"] if not profile or d in profile["datasets"]]
    cells = [
        make_cell(table, known, profile, (dataset, method, column), flags, seed)
        for dataset in datasets
        if not args.dataset or {dataset, profile.get("datasets", {}).get(dataset)} & set(args.dataset)
        for method in headings(table["methods"])
        for column, flags in columns_of(table, dataset).items()
        if not args.noise or column in args.noise
        for seed in args.seeds
    ]
    return list(dict.fromkeys(cells))  # one data set may stand for two of a table


def check_names(tables: list[dict[str, Any]], profile: dict[str, Any], args: argparse.Namespace) -> None:
    """UserError for a --dataset or --noise that none of the tables has."""
    datasets = dict.fromkeys(dataset for table in tables for dataset in table["datasets"])
    columns = dict.fromkeys(c for table in tables for dataset in table["datasets"] for c in columns_of(table, dataset))
    stand_ins = dict.fromkeys(new for old, new in profile.get("datasets", {}).items() if old in datasets)
    for key, names, there in (("dataset", args.dataset, datasets | stand_ins), ("noise", args.noise, columns)):
        for name in names or []:
            pick(there, name, f"--{key}")


def check_apart(steps: list[Step]) -> None:
    """UserError if two Steps differ in their settings, but in none that a run's folder is named by."""
    named: dict[tuple[Any, ...], Step] = {}
    for step in dict.fromkeys(one for last in steps for one in last.chain()):
        by = {"seed", *NOISE_KEYS, *NAMED_BY} - ({"backbone"} if step.script.endswith(("phase1", "detect")) else set())
        yaml_file = Path(dict(step.flags)["cfg"]).name
        other = named.setdefault((step.script, yaml_file, *sorted(p for p in step.flags if p[0] in by)), step)
        if other.flags != step.flags and _resolved(other) != _resolved(step):
            both = " and ".join(f"'{shlex.join(s.command())}'" for s in (other, step))
            raise UserError(f"methods: {both} would have one folder; give one of them a --tag.")


def _resolved(step: Step) -> dict[str, Any]:
    return vars(load_config(step.command()[1:]))


# --- what has been run


class Ledger:
    """<output_dir>/reproduce.jsonl: a line for every finished command: script, flags, settings, data, folder, seconds."""

    def __init__(self, output_dir: Path, data_root: Path | None) -> None:
        self.output_dir, self.data_root, self.path = output_dir, data_root, output_dir / "reproduce.jsonl"
        self.lines: list[dict[str, Any]] = []
        self.reasons: dict[Step, str] = {}  # why a Step has no summary, or one that does not count
        self._summaries: dict[Step, dict[str, Any]] = {}
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.is_file() else ""
        for number, line in enumerate(text.splitlines(), 1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict) and all(isinstance(record.get(k), kind) for k, kind in LEDGER_KEYS.items()):
                self.lines.append(record)
            else:  # cut short by a kill
                print(f"{self.path}, line {number}: skipped, not a whole record", file=sys.stderr)

    def data_path(self, step: Step) -> Path | None:
        """Where the step's data lie; None for data that need no files."""
        if step.settings["data_path"] == _yaml(DEFAULTS)["data_path"]:
            return None
        path = Path(step.settings["data_path"])
        return self.data_root / path.relative_to("data") if self.data_root and path.is_relative_to("data") else path

    def lacks(self, step: Step) -> str:
        """What is missing of the step's data, '' where nothing is."""
        path = self.data_path(step)
        return f"there is no {path}" if path and not path.exists() else ""

    def failures(self) -> list[Step]:
        """The Steps with a reason of their own that is not missing data."""
        return [s for s, why in self.reasons.items() if s.after not in self.reasons and why != self.lacks(s)]

    def add(self, step: Step, settings: dict[str, Any], files: dict[str, str], folder: str, seconds: float) -> None:
        """Record a finished step, with the settings and files that it was started with; `seconds` of an earlier start count, too."""
        trained = read_summary(self.output_dir / folder / "summary.json").get("seconds", 0)
        line = {
            "script": step.script,
            "flags": step.flags,
            "settings": settings,
            "data": self._data(step),
            "files": files,
        }
        text = json.dumps(line | {"folder": folder, "seconds": max(seconds, trained)})
        self.lines.append(json.loads(text))
        whole = not self.path.is_file() or self.path.read_bytes()[-1:] in (b"", b"\n")
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("" if whole else "\n") + text + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}).") from None

    def _data(self, step: Step) -> str:
        path = self.data_path(step)
        return str(path.absolute()) if path else ""

    def files(self, step: Step) -> dict[str, str]:
        """{key: hash} of the settings that name a file, such as noise_file, and of the files of a backbone's folder."""
        folder = (self.data_path(step) or Path()) / "noise_file"
        named = {
            key: value
            for key, value in step.settings.items()
            if key != "data_path" and value and isinstance(value, str)
        }
        paths = {key: [v, v.partition("=")[2], str(folder / v)] for key, v in named.items()}  # TAG=FILE
        there = {key: next(filter(os.path.isfile, those), None) for key, those in paths.items()}
        there |= {f"backbone/{path.name}": str(path) for path in model_files(named.get("backbone", ""))}
        return {key: _sha256(path, os.stat(path).st_mtime_ns) for key, path in there.items() if path}

    def summary(self, step: Step) -> dict[str, Any]:
        """The summary of a finished Step, else empty; `reasons` says what is wrong with an invalid one."""
        if not self._summaries.get(step) and step not in self.reasons:
            line = self._line(step)
            try:
                self._summaries[step] = self._checked(step, line["folder"]) if line else {}
            except UserError as error:
                self.reasons[step] = str(error)
        return self._summaries.get(step, {})

    def _line(self, step: Step) -> dict[str, Any] | None:
        """The last record of a step that ran with the settings and data of now, after the step it depends on; else None."""
        after = self._line(step.after) if step.after else None
        if step.after and not after:
            return None
        for line in reversed(self.lines):
            if line is after:  # the mask was made anew since
                return None
            if line["script"] == step.script and tuple(map(tuple, line["flags"])) == step.flags:
                # a setting that is newer than the line had the effect of its default; an old line does not name data or files
                same_settings = step.settings == _yaml(DEFAULTS) | line["settings"]
                same_data = self._data(step) == line.get("data", self._data(step))
                recorded, now = line.get("files", {}), self.files(step)  # a file may be gone since
                same_files = all(recorded.get(key, content) == content for key, content in now.items())
                return line if same_settings and same_data and same_files else None
        return None

    def _checked(self, step: Step, place: str) -> dict[str, Any]:
        """The summary of a step in its folder; UserError if it is not of this run, or of other settings."""
        folder = self.output_dir / place
        summary = read_summary(folder / "summary.json")
        if summary:
            if _place(summary) != place:
                raise UserError(f"{folder / 'summary.json'}: is that of {_place(summary)}.")
            settings, asked = _yaml(folder / "config.yaml"), vars(load_config(step.command()[1:]))
            for key, value in step.flags[1:]:  # after cfg
                if asked[key] not in (settings.get(key), SETTLED.get(key)):
                    raise UserError(f"{folder}: was made with {key} {settings.get(key)}, not {value}.")
        return summary

    def expected_seconds(self, step: Step) -> float | None:
        """Mean duration of the finished commands most like this one; None where none has its script and YAML."""
        alike: dict[int, list[float]] = {}
        for line in self.lines:
            theirs = {tuple(pair) for pair in line["flags"]}
            if line["script"] == step.script and step.flags[0] in theirs:
                alike.setdefault(len(theirs & set(step.flags)), []).append(line["seconds"])
        times = alike[max(alike)] if alike else []
        return sum(times) / len(times) if times else None


def only_one(output_dir: str | Path) -> TextIO:
    """A lock on the folder, as a context; UserError if another reproduce.py is working there."""
    place = f"is at work in {output_dir}; wait for it, or give --output_dir another folder."
    lock = Lock(Path(output_dir) / ".reproduce.lock", lambda who: f"output_dir: another reproduce.py, {who}, {place}")
    return lock.file


# --- running


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
            cwd=HERE,
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


# --- repeating a run


def verify(folder: str | Path) -> list[str]:
    """Repeat a finished run from its record, in a temporary folder, with its number of threads. Returns what differs, one
    line each."""
    folder = Path(folder)
    before = read_summary(folder / "summary.json")
    if not before:
        raise UserError(f"--verify: there is no finished run (summary.json) in {folder}.")
    script, mask = before.get("script"), before.get("mask")
    if not script or not (HERE / f"{script}.py").is_file():
        raise UserError(f"--verify: {folder} was made by {script or 'an older version'}, which no command repeats.")
    with tempfile.TemporaryDirectory() as out:
        words = [f"{script}.py", "--cfg", str((folder / "config.yaml").resolve()), "--output_dir", out]
        if mask and script != "main_clipcleaner":  # which makes its own
            words += ["--mask", str(Path(mask).resolve()) if Path(mask).is_file() else mask]
        print(f"python {shlex.join(words)}", file=sys.stderr)
        threads = {"OMP_NUM_THREADS": str(before["threads"])} if "threads" in before else {}
        if subprocess.run([sys.executable, *words], cwd=HERE, env=os.environ | threads, stdout=sys.stderr).returncode:
            raise UserError(f"--verify: {script}.py fails with the settings of {folder}.")
        again = [p.parent for p in Path(out).rglob("summary.json") if read_summary(p)["name"] == before["name"]]
        if not again:
            raise UserError(f"--verify: {script}.py no longer makes a run of the name {before['name']}.")
        return differences(folder, again[0])


def differences(folder: Path, again: Path) -> list[str]:
    """What differs between two runs, one line each: summary except for NOT_COMPARED, epochs, and the arrays of the mask;
    and then what they were made with, as far as it differs.

    Of a verdict, only its level counts: the evidence and the sentence that explain it may be others.
    """
    import numpy as np

    def of_run(folder: Path) -> dict[str, Any]:
        summary = read_summary(folder / "summary.json")
        judged = {"verdict": summary["verdict"]["level"]} if "verdict" in summary else {}
        return {key: value for key, value in summary.items() if key != "evidence"} | judged

    def arrays_of(mask: Path) -> dict[str, Any]:
        try:
            return dict(np.load(mask, allow_pickle=False))
        except Exception as error:  # a damaged zip, objects …
            raise UserError(f"{mask}: not a mask file ({brief(error)}).") from None

    def changed(old: dict[str, Any], new: dict[str, Any], place: str = "") -> list[str]:
        keys = [k for k in dict.fromkeys([*old, *new]) if k not in NOT_COMPARED and old.get(k) != new.get(k)]
        return [f"{place}{key}: {old.get(key)} before, {new.get(key)} now" for key in keys]

    out = changed(of_run(folder), of_run(again))
    logs = read_log(folder), read_log(again)
    if len(logs[0]) != len(logs[1]):
        out.append(f"log.jsonl: {len(logs[0])} epochs before, {len(logs[1])} now")
    for old, new in zip(*logs):
        out += changed(old, new, f"epoch {old['epoch']}, ")
    masks = [f / "clean_mask.npz" for f in (folder, again)]
    if masks[0].is_file() != masks[1].is_file():
        out.append(f"clean_mask.npz: {'missing now' if masks[0].is_file() else 'there now'}")
    elif masks[0].is_file():
        old, new = map(arrays_of, masks)
        for key, array in old.items():
            if key not in new:
                out.append(f"clean_mask.npz, {key}: missing now")
            elif array.shape != new[key].shape:
                out.append(f"clean_mask.npz, {key}: of shape {array.shape} before, {new[key].shape} now")
            elif differ := np.sum(array != new[key]):
                out.append(f"clean_mask.npz, {key}: {differ} of {array.size} differ")
    if out:
        old, new = (read_summary(f / "summary.json") for f in (folder, again))
        made = [key for key in MADE_WITH if old.get(key) != new.get(key)]
        out += [f"made with other {key}: {old.get(key, 'not recorded')} before, {new.get(key)} now" for key in made]
    return out


# --- the command


def list_commands(steps: list[Step], runner: Runner) -> None:
    """Print the commands that are missing, how many, and how long they should take."""
    todo = runner.missing(steps)
    times = {step: runner.ledger.expected_seconds(step) for step in todo}
    for step in todo:
        print(f"python {shlex.join(runner.command(step))}  # {runner.ledger.lacks(step) or duration(times[step])}")
    known = [seconds for seconds in times.values() if seconds is not None]
    finished = len({s for step in steps for s in step.chain() if runner.ledger.summary(s)})
    expected = duration(sum(known) / runner.jobs if known or not todo else None)
    expected += f", and {len(todo) - len(known)} of unknown length" if 0 < len(known) < len(todo) else ""
    print(f"{len(todo)} command{'s' * (len(todo) != 1)} to run, {finished} finished; expected: {expected}")


def duration(seconds: float | None) -> str:
    """A duration in words."""
    if seconds is None:
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def results_of(
    cells: list[Cell], table: dict[str, Any], ledger: Ledger
) -> dict[tuple[str, str, str], list[dict[str, Any] | str]]:
    """{place: [the summary of each seed, or why there is none]}; of a table of settings, the settings.

    The runs of a data set and a column must have been made with the same images and true labels; the first is the measure.
    """
    first: dict[tuple[str, str], dict[str, Any]] = {}
    results: dict[tuple[str, str, str], list[dict[str, Any] | str]] = {}
    for cell in cells:
        if cell.step is None:
            outcome: dict[str, Any] | str = cell.reason
        elif "settings" in table:
            outcome = vars(load_config(cell.step.command()[1:]))
        else:
            found = ledger.summary(cell.step)  # which may find a reason why there is none
            reasons = [ledger.reasons[step] for step in cell.step.chain() if step in ledger.reasons]
            outcome = found or (reasons or ["not run"])[0]
            if isinstance(outcome, dict):
                like = first.setdefault((cell.place[0], cell.place[2]), outcome)
                if outcome.get("source") != like.get("source"):
                    outcome = f"{_place(outcome)}: was made with other images or labels than {_place(like)}"
                    ledger.reasons[cell.step] = outcome
        results.setdefault(cell.place, []).append(outcome)
    return results


def _place(summary: dict[str, Any]) -> str:
    """The folder of a run, below output_dir."""
    return f"{slug(summary['dataset'])}/{slug(summary['noise'])}/seed{summary['seed']}/{summary['name']}"


def read_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", default=[], help="1 to 11, another name in the file of tables, or all")
    parser.add_argument("--dataset", nargs="+", help="only these data sets")
    parser.add_argument("--noise", nargs="+", help="only these columns, e.g. sym_0.2")
    parser.add_argument("--seeds", nargs="+", default=["0"], help="default 0")
    parser.add_argument("--profile", help="the tables on other data: a profile of the file of tables, e.g. digits")
    parser.add_argument(
        "--jobs", default="0", help="number of commands to run at once (default: one per GPU, else one)"
    )
    parser.add_argument("--dry_run", action="store_true", help="list the commands and the results so far")
    parser.add_argument("--format", default="markdown", help="markdown, csv or latex")
    parser.add_argument("--plots", help="folder for the pictures of figures")
    parser.add_argument("--output_dir", type=Path, default="runs", help="folder of the runs (default: runs)")
    parser.add_argument("--data_root", type=Path, help="where the data sets are, instead of ./data")
    parser.add_argument("--tables", default=str(HERE / "config" / "tables.yaml"), help="file of tables")
    parser.add_argument("--verify", metavar="RUN", help="repeat a finished run and compare the results")
    args = parse_flags(parser, argv)
    args.seeds = list(dict.fromkeys(whole_numbers(args.seeds, "--seeds")))  # a seed given twice counts once
    (args.jobs,) = whole_numbers([args.jobs], "--jobs")
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
    paper = {} if profile else _yaml(HERE / "config" / "paper.yaml")
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
        print(show({f"{name}: {_title(tables[name], profile)}": rows for name, rows in out.items()}))
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
        print(
            f"{len(others)} of these runs were made by other code ({', '.join(sorted(set(others)))}) than that of now ({now}); "
            "--verify RUN says whether one comes out the same",
            file=sys.stderr,
        )


def _title(table: dict[str, Any], profile: dict[str, Any]) -> str:
    """The title of a table; a profile's CLIP stands for the backbones that it names."""
    title = table["title"]
    for name in map(re.escape, profile.get("backbones", [])):
        title = re.sub(rf"(CLIP )?(?<![\w/-]){name}(?![\w/-])", "the profile's CLIP", title)
    return title


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
