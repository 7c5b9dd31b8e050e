"""Configuration. Later sources override earlier ones: default.yaml, the script's settings, the --cfg YAML, flags."""

import argparse
import math
import os
import re
import sys
from copy import copy
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import yaml

from utils.errors import UserError, brief, nearest
from utils.summaries import read_summary

# the paper's other backbones (DeFT, table 11): name in timm, and the settings of each, which a YAML or flag overrides
BACKBONES = {
    "vit": (
        "vit_base_patch16_224.augreg_in1k",
        {"optimizer": "sgd", "lr": 1e-2, "weight_decay": 1e-5, "momentum": 0.0},
    ),
    "resnet": ("resnet50.a1_in1k", {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-5}),
    "convnext": ("convnext_tiny.fb_in1k", {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 1e-4}),
    "mae": ("vit_base_patch16_224.mae", {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 1e-3}),
    "preact_resnet18": ("preact_resnet18", {}),  # untrained, see model/preact_resnet.py
}
# how phase 2 adapts (DeFT, section 4.4): none: phase 1's text classifier; peft: visual prompts and a head; fft: all blocks
ADAPTATIONS = {
    "none": {},
    "peft": {"finetune": False, "vpt_deep": True, "lr": 0.03},
    "fft": {"finetune": True, "vpt_deep": False, "lr": 5e-4},
}
# settings in which the official scripts for real-world noise differ from those for synthetic noise
REAL_WORLD: dict[str, Any] = {
    "require_agreement": True,
    "warmup": 5,
    "warmup_loss": "sce",
    "pseudo_from": 2,
    "schedule": "constant",
}
# keys that do not change the result of a run, and may differ when it is resumed
FREE_KEYS = set(
    "device gpuid num_workers cache_gb output_dir data_path name model score mask micro_batch checkpoint_text compile download "
    "check_data tensorboard script".split()
)
DEFAULTS = Path(__file__).resolve().parents[1] / "config" / "default.yaml"


def is_timm(backbone: str) -> bool:
    """Whether a backbone is a network of timm or of our own and no CLIP."""
    return backbone in BACKBONES or backbone.startswith("timm:")


def whole_numbers(words: list[str], key: str) -> list[int]:
    """The words as integers. Raises UserError if one is not a whole number."""
    if not all(word.strip().isdecimal() for word in words):
        raise UserError(f"{key}: must be whole numbers, not {', '.join(words)}.")
    return [int(word) for word in words]


@dataclass(frozen=True)
class Key:
    """A key of config/default.yaml: its group, the scripts that read it, its default and its comment."""

    group: str
    scripts: tuple[str, ...]  # empty: all
    default: object
    comment: str

    def read_by(self, script: str | None) -> bool:
        """Whether the script reads the key. script None reads every key."""
        return script is None or not self.scripts or script in self.scripts

    @property
    def condition(self) -> dict[str, list[str]]:
        """{other key: values, [] for any} from `if KEY VALUE|VALUE or KEY:` in the comment; {} if the key always counts."""
        found = re.match(r"[^:]*?\bif ([^:]+): ", self.comment)
        parts = [part.partition(" ") for part in found[1].split(" or ")] if found else []
        return {name: values.split("|") if values else [] for name, _, values in parts}

    def check_effect(self, name: str, cfg: SimpleNamespace) -> None:
        """UserError if none of the conditions of this key, called `name`, holds in `cfg`; keys not in `cfg` do not count."""
        needed = {other: values for other, values in self.condition.items() if hasattr(cfg, other)}
        now = {other: getattr(cfg, other) for other in needed}
        if needed and not any(
            any(fnmatch(now[other], value) for value in values) if values else now[other]
            for other, values in needed.items()
        ):
            found = " and ".join(
                f"{other} {({False: 'false', '': 'empty'}).get(value, value)}" for other, value in now.items()
            )
            wanted = " or ".join(" ".join([other, ", ".join(values)]).strip() for other, values in needed.items())
            raise UserError(f"--{name}: has no effect with {found}; it needs {wanted}.")


@cache
def known_keys() -> dict[str, Key]:
    """{key: Key} in the order of config/default.yaml; read once, so not to be changed."""
    text, keys, group, scripts = DEFAULTS.read_text(encoding="utf-8"), {}, "", ()
    defaults = yaml.safe_load(text)
    for line in text.splitlines():
        if heading := re.match(r"# --- ([^(]*?)(?: \((.*)\))?$", line):
            group, scripts = heading[1], tuple(heading[2].split(", ")) if heading[2] else ()
        elif setting := re.match(r"(\w+):.*?\s# (.*)$", line):
            keys[setting[1]] = Key(group, scripts, defaults[setting[1]], setting[2])
    return keys


def default_values() -> dict[str, Any]:
    """{key: value} of config/default.yaml."""
    return {name: copy(key.default) for name, key in known_keys().items()}


def _coerce(name: str, key: Key, value: Any, where: str) -> Any:
    """`value` converted to the type of the default. Raises UserError if it is outside the limits in the comment."""
    default, comment = key.default, key.comment

    def fail(expected: str, hint: str = "") -> NoReturn:
        raise UserError(f"{where}: {name} must be {expected}, not {brief(repr(value))}.{hint}")

    if isinstance(default, bool):
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        value = words[str(value).lower()] if str(value).lower() in words else fail("true or false")
    elif isinstance(default, list):
        if not isinstance(value, list) or any(isinstance(v, (list, dict)) for v in value):
            fail("a list of words or numbers")
        if any(v is None or isinstance(v, bool) for v in value):
            fail(
                "a list of words or numbers",
                " YAML reads yes, no, on, off and null as no words unless they stand in quotes.",
            )
        value = [str(v) for v in value]
    elif isinstance(default, str):
        value = "" if value is None else fail("text") if isinstance(value, (list, dict)) else str(value)
        if "\0" in value:
            fail("text without NUL bytes")
    else:
        kind, expected = (int, "a whole number") if isinstance(default, int) else (float, "a number")
        try:
            # PyYAML reads 5e-4 as text; a float where an integer is expected is an error and not rounded
            number = kind(value) if isinstance(value, str) or kind is float else value
            if isinstance(value, bool) or not isinstance(number, kind) or not math.isfinite(number):
                raise ValueError
            value = number
        except (TypeError, ValueError, OverflowError):
            fail(expected)

    if value == default:  # which may lie outside, as the -1 that stands for a method's own constant
        return value
    choices = re.match(r"\{([^}]*)\}", comment)
    span = re.match(r"\[(-?[\d.]+), ([\d.]+)\]", comment)
    bound = re.match(r"(>=?) (-?[\d.]+)", comment)
    if choices and not isinstance(default, bool) and value not in (names := choices[1].split("|")):
        fail(f"one of {', '.join(filter(None, names))}", nearest(value, names))
    if span and not float(span[1]) <= value <= float(span[2]):
        fail(f"between {span[1]} and {span[2]}")
    if bound and not (value > float(bound[2]) or (value == float(bound[2]) and bound[1] == ">=")):
        fail(f"{bound[1]} {bound[2]}")
    return value


class _Loader(yaml.SafeLoader):
    """yaml.SafeLoader that rejects duplicate keys, of which SafeLoader silently keeps the last.

    Whole numbers are plain decimals; YAML 1.1 reads 010 as 8 and 1:30 as 90.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value).lower(), key.start_mark.line + 1
            if name in lines:
                raise UserError(f"{key.start_mark.name}: duplicate key {key.value} in lines {lines[name]} and {line}.")
            lines[name] = line
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """The {key: value} of a YAML file, with keys as written in the file. UserError if it is not such a file."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            content = yaml.load(file, _Loader)  # noqa: S506  _Loader is a SafeLoader
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a YAML file ({brief(error)}).") from None
    if not isinstance(content or {}, dict):
        raise UserError(f"{path}: expected lines of the form `key: value`.")
    return content or {}


def recorded_settings(path: str | Path) -> dict[str, Any]:
    """{key: value} of a run's config.yaml, with the defaults for keys it lacks. UserError if the file is damaged."""
    content, keys = read_yaml(path), known_keys()
    if not content:
        raise UserError(f"{path}: is empty, expected the settings of a run.")
    for name in content.keys() & keys.keys():
        _coerce(name, keys[name], content[name], str(path))
    return default_values() | content


def _implied(given: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The settings that the given backbone and adaptation imply, as far as the script reads their keys.

    before: what holds where `given` says nothing. An adaptation's lr is that of CLIP: a backbone with its own keeps it.
    """
    adaptation = ADAPTATIONS.get(given.get("adaptation", ""), {})
    backbone = given.get("backbone", before["backbone"] if adaptation else "")
    implied = adaptation | BACKBONES.get(backbone, ("", {}))[1]
    return {name: value for name, value in implied.items() if name in before}


def _say_instead(who: str, new: dict[str, Any], old: dict[str, Any], whose: str) -> None:
    """Print which settings hold instead of others, {name: value} each.

    The switches, which name what is trained, are what an adaptation stands for, and are not printed.
    """
    changed = [k for k, v in old.items() if new.get(k, v) != v and not isinstance(v, bool)]
    if changed:
        instead, of = (", ".join(f"{name} {values[name]}" for name in changed) for values in (new, old))
        print(f"{who}: {instead} instead of {of} {whose}")


def parse_flags(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the flags of a `python -m` command. Raises UserError where argparse would exit."""

    def fail(message: str) -> NoReturn:
        raise UserError(f"{message}; {' '.join(parser.format_usage().split())}")

    parser.error, parser.allow_abbrev = fail, False  # type: ignore[method-assign]
    flags, unknown = parser.parse_known_args(argv)
    for word in unknown:
        fail(f"{word}: unknown flag.{nearest(word, re.findall(r'--[a-z_]+', parser.format_usage()))}")
    return flags


def _parser(
    keys: dict[str, Key], script: str | None, description: str | None, defaults: dict[str, Any]
) -> argparse.ArgumentParser:
    """The parser for --cfg and the keys that a script reads, in the groups of config/default.yaml."""
    parser = argparse.ArgumentParser(
        usage="python SCRIPT --cfg YAML [--KEY VALUE …]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--cfg", default="", metavar="YAML", help="YAML file with the settings that differ from config/default.yaml"
    )
    groups = {}
    for name, key in keys.items():
        if not key.read_by(script):
            continue
        if key.group not in groups:
            groups[key.group] = parser.add_argument_group(key.group)
        default, switch = defaults[name], isinstance(defaults[name], bool)
        choices = re.match(r"\{([^}]*?)\|?\} ?", key.comment)
        text = key.comment[choices.end() :] if choices else key.comment
        text = text if switch or not choices else f"{choices[1].replace('|', ', ')}; {text}".rstrip("; ")
        text += f" (default: {str(default).lower() if switch else default})" if default not in ("", []) else ""
        groups[key.group].add_argument(
            f"--{name}",
            help=text.replace("%", "%%"),
            metavar="true|false" if switch else "X",
            nargs="?" if switch else None,
            const="true" if switch else None,
        )

    def fail(message: str) -> NoReturn:
        raise UserError(message)

    parser.error = fail  # type: ignore[method-assign]
    return parser


def _refuse(word: str, keys: dict[str, Key], script: str | None) -> NoReturn:
    """Raise the UserError for a flag that this script does not read."""
    word = word.split("=")[0]
    key = keys.get(word.removeprefix("--")) if word.startswith("--") else None
    if key:
        *most, last = [f"{name}.py" for name in key.scripts if name != "none"] or [""]
        others = f"{', '.join(most)} and {last}" if most else last
        raise UserError(f"{word}: {script}.py does not use this key{'; it is used by ' + others if others else ''}.")
    hint = nearest(word, ["--cfg", *(f"--{name}" for name in keys)]) if word.startswith("--") else ""
    raise UserError(f"{word}: unknown flag.{hint}")


def load_config(
    argv: list[str] | None = None, description: str | None = "", script: str | None = None, **settings: Any
) -> SimpleNamespace:
    """The resolved configuration: a namespace with `script` and one attribute per key that the script reads.

    argv: the flags; None means sys.argv.
    script: name of the script; None reads every key of default.yaml.
    settings: the script's own defaults. They override default.yaml and are overridden by the YAML and flags. Settings
    that are not keys of the script are passed through.

    Several scripts may share a YAML, so a key that the script does not read is validated there and then ignored. As a
    flag it is an error, and so is a flag that has no effect with the other settings. Raises UserError for an unknown key, a
    wrong type, a value out of range or a missing file.
    """
    keys, defaults = known_keys(), default_values()
    resolved = {name: settings.get(name, defaults[name]) for name, key in keys.items() if key.read_by(script)}
    parser = _parser(keys, script, description, resolved)
    if argv is None:
        parser.usage = str(parser.usage).replace("SCRIPT", Path(sys.argv[0]).name)
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse(unknown[0], keys, script)

    content: dict[str, Any] = {}
    of_file: dict[str, Any] = {}  # what the file's backbone and adaptation imply
    official = False
    if flags.cfg:
        content = _read_cfg(flags.cfg, keys)
        official = "model" in content  # only the official files have this key
        content = {name: value for name, value in content.items() if name in resolved}
        of_file = _implied(content, resolved)
        if official:  # its scripts set these, and for real-world noise the epochs, after they have read the file
            of_file |= {"epochs": settings["epochs"]} if "epochs" in settings else {}
            resolved |= content | of_file
        else:
            resolved |= of_file | content
    given = {}
    for name in resolved:
        text = getattr(flags, name)
        if text is not None:
            value = text.split(",") if isinstance(keys[name].default, list) else text
            given[name] = _coerce(name, keys[name], value, f"--{name}")
    implied = _implied(given, resolved)
    cfg = SimpleNamespace(**settings | resolved | implied | given, script=script)
    if script and getattr(cfg, "score", "") and Path(flags.cfg).name == "config.yaml":
        _check_script(flags.cfg, script)
    if script:
        content, of_file, implied = (
            {k: v for k, v in x.items() if k not in given} for x in (content, of_file, implied)
        )
        _say_instead("--backbone or --adaptation", implied, content, f"in {flags.cfg}")
        content, of_file = ({k: v for k, v in x.items() if k not in implied} for x in (content, of_file))
        if official:
            _say_instead("as in the official code", of_file, content, f"in {flags.cfg}")
        else:
            backbone = content.get("backbone", "")
            own = {k: v for k, v in BACKBONES.get(backbone, ("", {}))[1].items() if k in of_file}
            _say_instead(flags.cfg, content, own, f"of backbone {backbone}")
        for name in given:
            keys[name].check_effect(name, cfg)
    return cfg


def _read_cfg(path: str, keys: dict[str, Key]) -> dict[str, Any]:
    """{key: value} of the YAML file that --cfg names, in lower case."""
    if not os.path.isfile(path):
        folder = Path(path).parent
        below = [str(p) for p in sorted(folder.glob(f"*/{Path(path).name}"))]
        hint = f" There is {' and '.join(below)}." if below else nearest(path, map(str, folder.glob("*.yaml")))
        raise UserError(f"--cfg: no such file: {brief(path)}.{hint}")
    content = {}
    for written, value in read_yaml(path).items():
        name = str(written).lower()
        if name not in keys:
            raise UserError(f"{path}: unknown key '{written}'.{nearest(written, keys)}")
        content[name] = _coerce(name, keys[name], value, path)
    return content


def _check_script(path: str, script: str) -> None:
    """UserError where the settings at `path` are of a run that another script made, so that it would not be this that scores."""
    made_by = read_summary(Path(path).with_name("summary.json")).get("script", "detect")
    if made_by not in ("detect", script):
        raise UserError(f"--cfg: {path} is of a run that {made_by}.py made; score with that script.")


def settle_epochs(cfg: SimpleNamespace, num_samples: int) -> None:
    """Resolve `epochs` 0 and `warmup` -1, which depend on the size of the training set, and print the result.

    The prompts need a number of steps, and a small data set has few per epoch. `epochs` becomes what takes 1500 steps,
    between 10 and 100. `warmup` becomes a tenth of the epochs, but at least 100 steps, so that samples are not selected
    by an untrained model, and at most half of the epochs.
    """
    warmup = getattr(cfg, "warmup", 0)  # phase 2 has none
    if cfg.epochs and warmup >= 0:
        return
    steps = math.ceil(num_samples / cfg.batch_size)
    cfg.epochs = cfg.epochs or min(max(math.ceil(1500 / steps), 10), 100)
    if warmup < 0:
        cfg.warmup = min(max(round(cfg.epochs / 10), math.ceil(100 / steps)), max(cfg.epochs // 2, 1))
    settled = f"epochs {cfg.epochs}" + (f", warmup {cfg.warmup}" if hasattr(cfg, "warmup") else "")
    print(f"{num_samples} images, {steps} steps per epoch at batch size {cfg.batch_size}: {settled}")
