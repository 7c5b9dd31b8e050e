"""Configuration: config/default.yaml <- the script's settings <- --cfg YAML <- flags."""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, TypeVar

import yaml

# the paper's other backbones (DeFT, table 11): timm's name, and the settings that go with each unless a flag says else
BACKBONES = {
    "vit": (
        "vit_base_patch16_224.augreg_in1k",
        {"optimizer": "sgd", "lr": 1e-2, "weight_decay": 1e-5, "momentum": 0.0},
    ),
    "resnet": ("resnet50.a1_in1k", {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-5}),
    "convnext": ("convnext_tiny.fb_in1k", {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 1e-4}),
    "mae": ("vit_base_patch16_224.mae", {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 1e-3}),
    "preact_resnet18": ("preact_resnet18", {}),  # untrained, of our own: model/preact_resnet.py
}
# how phase 2 adapts (DeFT, section 4.4): the phase 1 text classifier as it is, visual prompts and a head, or all blocks
ADAPTATIONS = {
    "none": {},
    "peft": {"finetune": False, "vpt_deep": True, "lr": 0.03},
    "fft": {"finetune": True, "vpt_deep": False, "lr": 5e-4},
}
# settings of the official scripts for real-world noise, where they differ from those for synthetic noise
REAL_WORLD = {
    "require_agreement": True,
    "warmup": 5,
    "warmup_loss": "sce",
    "pseudo_from": 2,
    "schedule": "constant",
}
T = TypeVar("T")
DEFAULTS = Path(__file__).resolve().parents[1] / "config" / "default.yaml"


class UserError(Exception):
    """Something the user can mend: one line that names the file, key or row and what was expected."""


def nearest(word: object, known: Iterable[object]) -> str:
    """' Did you mean X?' where one of `known` is spelt almost like `word`, else ''."""
    by_lower = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean {by_lower[close[0]]}?" if close else ""


def pick(table: Mapping[str, T], name: str, key: str) -> T:
    """table[name]; an unknown name is a UserError that lists the right ones."""
    if name not in table:
        raise UserError(f"{key}: there is no '{name}', only {', '.join(table)}.{nearest(name, table)}")
    return table[name]


def whole_numbers(words: list[str], key: str) -> list[int]:
    """A list of words as integers; UserError for one that is none."""
    if not all(word.strip().isdigit() for word in words):
        raise UserError(f"{key}: must be whole numbers, not {', '.join(words)}.")
    return [int(word) for word in words]


def default_values() -> dict[str, Any]:
    """{key: value} of config/default.yaml."""
    return yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Key:
    """What config/default.yaml says of a key: its group, the scripts that read it, its default and comment."""

    group: str
    scripts: tuple[str, ...]  # empty: all
    default: object
    comment: str

    def read_by(self, script: str | None) -> bool:
        """Whether the script reads the key; script None reads all."""
        return script is None or not self.scripts or script in self.scripts


def known_keys() -> dict[str, Key]:
    """{key: Key} of config/default.yaml, in its order."""
    text, keys, group, scripts = DEFAULTS.read_text(encoding="utf-8"), {}, "", ()
    defaults = yaml.safe_load(text)
    for line in text.splitlines():
        if heading := re.match(r"# --- ([^(]*?)(?: \((.*)\))?$", line):
            group, scripts = heading[1], tuple(heading[2].split(", ")) if heading[2] else ()
        elif setting := re.match(r"(\w+):.*?\s# (.*)$", line):
            keys[setting[1]] = Key(group, scripts, defaults[setting[1]], setting[2])
    return keys


def _coerce(name: str, key: Key, value: Any, where: str) -> Any:
    """`value` of a Key as the type of its default, within the limits that its comment sets."""
    default, comment = key.default, key.comment

    def fail(expected: str, hint: str = "") -> NoReturn:
        raise UserError(f"{where}: {name} must be {expected}, not {value!r}.{hint}")

    if isinstance(default, bool):
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        value = words[str(value).lower()] if str(value).lower() in words else fail("true or false")
    elif isinstance(default, list):
        value = [str(v) for v in value] if isinstance(value, list) else fail("a list")
    elif isinstance(default, str):
        value = "" if value is None else fail("text") if isinstance(value, (list, dict)) else str(value)
        if "\0" in value:
            fail("text without NUL bytes")
    else:
        kind, expected = (int, "a whole number") if isinstance(default, int) else (float, "a number")
        try:
            # PyYAML reads 5e-4 as text; a float for a whole number is an error, not a rounding
            number = kind(value) if isinstance(value, str) or kind is float else value
            if isinstance(value, bool) or not isinstance(number, kind) or not math.isfinite(number):
                raise ValueError
            value = number
        except (TypeError, ValueError):
            fail(expected)

    choices = re.match(r"\{([^}]*)\}", comment)
    span = re.match(r"\[([\d.]+), ([\d.]+)\]", comment)
    bound = re.match(r"(>=?) (-?[\d.]+)", comment)
    if choices and not isinstance(default, bool) and value not in (names := choices[1].split("|")):
        fail(f"one of {', '.join(filter(None, names))}", nearest(value, names))
    if span and not float(span[1]) <= value <= float(span[2]):
        fail(f"between {span[1]} and {span[2]}")
    if bound and not (value > float(bound[2]) or (value == float(bound[2]) and bound[1] == ">=")):
        fail(f"{bound[1]} {bound[2]}")
    return value


class _Loader(yaml.SafeLoader):
    """yaml.SafeLoader, but a key that stands there twice is an error: it would win or lose in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value).lower(), key.start_mark.line + 1
            if name in lines:
                raise UserError(f"{key.start_mark.name}: {key.value} stands in line {lines[name]} and in line {line}.")
            lines[name] = line
        return super().construct_mapping(node, deep)


def _read_yaml(path: str | Path) -> dict[Any, Any]:
    """{key: value} of a YAML file, keys as they are written there."""
    path = Path(path)
    if not path.is_file():
        there = [str(p) for p in path.parent.glob("*.yaml")]
        raise UserError(f"--cfg: there is no file {path}.{nearest(path, there)}")
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, _Loader) or {}  # noqa: S506  _Loader is a SafeLoader
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a YAML file ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected lines of the form `key: value`.")
    return content


def _implied(given: dict[str, Any], known: Container[str]) -> dict[str, Any]:
    """The settings, of `known` keys, that go with the backbone and the adaptation that are given, if any."""
    implied = BACKBONES.get(given.get("backbone", ""), ("", {}))[1] | ADAPTATIONS.get(given.get("adaptation", ""), {})
    return {name: value for name, value in implied.items() if name in known}


def parse_flags(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of a small command, by its argparse parser; what is wrong with them is a UserError."""

    def fail(message: str) -> NoReturn:
        raise UserError(f"{message}; {' '.join(parser.format_usage().split())}")

    parser.error, parser.allow_abbrev = fail, False  # type: ignore[method-assign]
    flags, unknown = parser.parse_known_args(argv)
    for word in unknown:
        fail(f"{word}: no such flag.{nearest(word, re.findall(r'--[a-z_]+', parser.format_usage()))}")
    return flags


def _parser(
    keys: dict[str, Key], script: str | None, description: str | None, defaults: dict[str, Any]
) -> argparse.ArgumentParser:
    """argparse's parser of --cfg and of the keys that a script reads, in the groups of config/default.yaml."""
    parser = argparse.ArgumentParser(
        usage="python SCRIPT --cfg YAML [--KEY VALUE …]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--cfg", default="", metavar="YAML", help="file of keys that differ from config/default.yaml")
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
    """UserError for a flag that is none of this script's."""
    word = word.split("=")[0]
    key = keys.get(word.removeprefix("--")) if word.startswith("--") else None
    if key:
        others = " and ".join(f"{name}.py" for name in key.scripts if name != "none")
        raise UserError(f"{word}: {script}.py does not read this{', but ' + others if others else ''}.")
    hint = nearest(word, ["--cfg", *(f"--{name}" for name in keys)]) if word.startswith("--") else ""
    raise UserError(f"{word}: no such flag.{hint}")


def load_config(
    argv: list[str] | None = None, description: str | None = "", script: str | None = None, **settings: Any
) -> SimpleNamespace:
    """The resolved configuration: a namespace with an attribute for each key of default.yaml that `script` reads, and it.

    `argv` None means sys.argv; `script` None reads all keys; `settings` are the script's own defaults, between
    default.yaml and the YAML, and stay as they are where it reads no such key. A key that the script does not read is
    refused as a flag; in a YAML, which several scripts may share, it is checked and left out.
    Raises UserError for an unknown key, a wrong type, a value out of range or a missing file.
    """
    keys = known_keys()
    resolved = {name: settings.get(name, key.default) for name, key in keys.items() if key.read_by(script)}
    parser = _parser(keys, script, description, resolved)
    if argv is None:
        parser.usage = str(parser.usage).replace("SCRIPT", Path(sys.argv[0]).name)
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse(unknown[0], keys, script)

    if flags.cfg:
        content = {}
        for written, value in _read_yaml(flags.cfg).items():
            name = str(written).lower()
            if name not in keys:
                raise UserError(f"{flags.cfg}: there is no key '{written}'.{nearest(written, keys)}")
            content[name] = _coerce(name, keys[name], value, flags.cfg)
        content = {name: value for name, value in content.items() if name in resolved}
        resolved |= _implied(content, resolved) | content
    given = {}
    for name in resolved:
        text = getattr(flags, name)
        if text is not None:
            value = text.split(",") if isinstance(keys[name].default, list) else text
            given[name] = _coerce(name, keys[name], value, f"--{name}")
    return SimpleNamespace(**settings | resolved | _implied(given, resolved) | given, script=script)


def settle_epochs(cfg: SimpleNamespace, num_samples: int) -> None:
    """Fill in `epochs` 0 and `warmup` -1, which follow the size of the training set, and print them.

    Few images make few steps an epoch, and the prompts need steps: 1500, within 10 to 100 epochs; the warm-up a tenth of
    them, but 100 steps, before which the selection may start on nothing learnt, and half of the epochs at most.
    """
    warmup = getattr(cfg, "warmup", 0)  # phase 2 has none
    if cfg.epochs and warmup >= 0:
        return
    steps = math.ceil(num_samples / cfg.batch_size)
    cfg.epochs = cfg.epochs or min(max(math.ceil(1500 / steps), 10), 100)
    if warmup < 0:
        cfg.warmup = min(max(round(cfg.epochs / 10), math.ceil(100 / steps)), max(cfg.epochs // 2, 1))
    settled = f"epochs {cfg.epochs}" + (f", warmup {cfg.warmup}" if hasattr(cfg, "warmup") else "")
    print(f"{num_samples} images, {steps} steps of {cfg.batch_size} an epoch: {settled}")
