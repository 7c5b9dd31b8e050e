"""Tables of experiments: what config/tables.yaml describes as cells, and each cell as commands of the ordinary scripts."""

import argparse
import os
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from utils.config import DEFAULTS, load_config, read_yaml
from utils.errors import UserError, nearest, pick
from utils.files import slug

NOISE_KEYS = (  # by which the folder of a run is named
    "noise_mode noise_ratio noise_file noise_rng image_noise image_noise_level image_noise_on".split()
)
TABLE_KEYS = {  # of a file of tables: the keys that every entry of a group has, and those that it may have
    "datasets": (["yaml"], ["real", "flags"]),
    "profiles": (["datasets", "backbones"], ["lacks"]),
    "tables": (["title", "datasets", "methods"], "columns set flags_to metrics settings paper plot".split()),
}
NAMED_BY = (  # other flags that the folder of a run is named by
    "tag backbone detector lnl_methods mask adaptation phase2_loss noisy_samples soft_labels".split()
)
BY_NAME = "the next command needs --mask with the name of that run's folder, without its tag"
ENDS = {"first": 0, "last": -1}  # of a method's commands


@cache
def _parsed(path: str | Path, changed: int) -> dict[Any, Any]:
    return read_yaml(path)


def yaml_now(path: str | Path) -> dict[Any, Any]:
    """The content of a YAML file, read again when the file has changed."""
    return _parsed(path, os.stat(path).st_mtime_ns if os.path.isfile(path) else 0)


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
        content = yaml_now(flags.pop("cfg"))
        return yaml_now(DEFAULTS) | {str(key).lower(): value for key, value in content.items()} | flags

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


def read_tables(path: str | Path) -> dict[str, Any]:
    """The content of a file of tables. Raises UserError for an entry that lacks a key or has an unknown one."""
    known = yaml_now(path)
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
    script = real if dataset.get("real") and Path(f"{real}.py").is_file() else script
    if len(words) % 2:
        raise UserError(f"methods: '{command}': every flag needs a value.")
    own = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2]))
    varied = [slug(f"{key}-{value}") for key, value in flags.items() if key not in (*NOISE_KEYS, "seed", "tag")]
    tag = "-".join(filter(None, [flags.get("tag"), own.pop("tag", ""), *varied]))
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


def title_of(table: dict[str, Any], profile: dict[str, Any]) -> str:
    """The title of a table; a profile's CLIP stands for the backbones that it names."""
    title = table["title"]
    for name in map(re.escape, profile.get("backbones", [])):
        title = re.sub(rf"(CLIP )?(?<![\w/-]){name}(?![\w/-])", "the profile's CLIP", title)
    return title
