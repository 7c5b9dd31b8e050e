"""What has been run of a table of experiments: the record of its commands, and the results that count."""

import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from dataloader.listings import CLASSNAMES
from report.experiments import Cell, Step, yaml_now
from utils.config import DEFAULTS, FREE_KEYS, load_config
from utils.errors import UserError
from utils.files import file_hash, model_files, slug
from utils.summaries import read_summary

LEDGER_KEYS: dict[str, Any] = {"script": str, "flags": list, "settings": dict, "folder": str, "seconds": (int, float)}
SETTLED = {"prec": "auto", "epochs": 0, "warmup": -1}  # in whose place a run records what it settled on


@cache
def _hash(path: str, changed: int) -> str:
    return file_hash(path)[:16]


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
        if step.settings["data_path"] == yaml_now(DEFAULTS)["data_path"]:
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
        """{key: hash} of the settings that name a file, such as noise_file, of the class names, and of a backbone's files."""
        folder = (self.data_path(step) or Path()) / "noise_file"
        named = {
            key: value
            for key, value in step.settings.items()
            if key != "data_path" and value and isinstance(value, str)
        }
        named.setdefault("classnames", str(CLASSNAMES / f"{step.settings['dataset']}.txt"))
        paths = {key: [v, v.partition("=")[2], str(folder / v)] for key, v in named.items()}  # TAG=FILE
        there = {key: next(filter(os.path.isfile, those), None) for key, those in paths.items()}
        there |= {f"backbone/{path.name}": str(path) for path in model_files(named.get("backbone", ""))}
        return {key: _hash(path, os.stat(path).st_mtime_ns) for key, path in there.items() if path}

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
                same_settings = step.settings == yaml_now(DEFAULTS) | line["settings"]
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
            if summary.get("decisions"):
                raise UserError(f"{folder}: was trained on labels that a person decided about.")
            settings, asked = yaml_now(folder / "config.yaml"), vars(load_config(step.command()[1:]))
            flags = dict(step.flags[1:])  # after cfg
            in_yaml = {str(key).lower() for key in yaml_now(step.flags[0][1])} - FREE_KEYS
            for key in (*flags, *sorted(in_yaml & settings.keys())):  # a script has its own defaults of others
                if asked[key] not in (settings.get(key), SETTLED.get(key)):
                    raise UserError(
                        f"{folder}: was made with {key} {settings.get(key)}, not {flags.get(key, asked[key])}."
                    )
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
                    outcome = (
                        f"{_place(outcome)}: was made with other images, labels or class names than {_place(like)}"
                    )
                    ledger.reasons[cell.step] = outcome
        results.setdefault(cell.place, []).append(outcome)
    return results


def _place(summary: dict[str, Any]) -> str:
    """The folder of a run, below output_dir."""
    return f"{slug(summary['dataset'])}/{slug(summary['noise'])}/seed{summary['seed']}/{summary['name']}"
