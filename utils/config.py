"""Configuration: config/default.yaml <- the script's settings <- --cfg YAML <- flags."""

import argparse
import difflib
import math
import re
from pathlib import Path
from types import SimpleNamespace

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
DEFAULTS = Path(__file__).resolve().parents[1] / "config" / "default.yaml"


class UserError(Exception):
    """Something the user can mend: one line that names the file, key or row and what was expected."""


def nearest(word, known):
    """' Did you mean X?' where one of `known` is spelt almost like `word`, else ''."""
    by_lower = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean {by_lower[close[0]]}?" if close else ""


def pick(table, name, key):
    """table[name]; an unknown name is a UserError that lists the right ones."""
    if name not in table:
        raise UserError(f"{key}: there is no '{name}', only {', '.join(table)}.{nearest(name, table)}")
    return table[name]


def whole_numbers(words, key):
    """A list of words as integers; UserError for one that is none."""
    if not all(word.strip().isdigit() for word in words):
        raise UserError(f"{key}: must be whole numbers, not {', '.join(words)}.")
    return [int(word) for word in words]


def default_values():
    """{key: value} of config/default.yaml."""
    return yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))


def _comments():
    """{key: comment} of config/default.yaml."""
    return {m[1]: m[2] for m in re.finditer(r"^(\w+):.*?\s#\s(.*)$", DEFAULTS.read_text(encoding="utf-8"), re.M)}


def _coerce(key, value, default, comment, where):
    """`value` as the type of `default`, within the limits that the comment sets."""

    def fail(expected):
        raise UserError(f"{where}: {key} must be {expected}, not {value!r}.")

    if isinstance(default, bool):
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        value = words[str(value).lower()] if str(value).lower() in words else fail("true or false")
    elif isinstance(default, list):
        value = [str(v) for v in value] if isinstance(value, list) else fail("a list")
    elif isinstance(default, str):
        value = "" if value is None else fail("text") if isinstance(value, (list, dict)) else str(value)
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
    if choices and not isinstance(default, bool) and value not in choices[1].split("|"):
        fail("one of " + choices[1].replace("|", ", ") + nearest(value, choices[1].split("|")))
    if span and not float(span[1]) <= value <= float(span[2]):
        fail(f"between {span[1]} and {span[2]}")
    if bound and not (value > float(bound[2]) or (value == float(bound[2]) and bound[1] == ">=")):
        fail(f"{bound[1]} {bound[2]}")
    return value


def _read_yaml(path):
    path = Path(path)
    if not path.is_file():
        there = [str(p) for p in path.parent.glob("*.yaml")]
        raise UserError(f"--cfg: there is no file {path}.{nearest(path, there)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected lines of the form `key: value`.")
    return content


def _implied(backbone, adaptation):
    """The settings that go with a backbone and with an adaptation."""
    return BACKBONES.get(backbone, ("", {}))[1] | ADAPTATIONS.get(adaptation, {})


def parse_flags(parser, argv=None):
    """The flags of a small command, by its argparse parser; what is wrong with them is a UserError."""

    def fail(message):
        raise UserError(f"{message}; {' '.join(parser.format_usage().split())}")

    parser.error, parser.allow_abbrev = fail, False
    flags, unknown = parser.parse_known_args(argv)
    for word in unknown:
        fail(f"{word}: no such flag.{nearest(word, re.findall(r'--[a-z_]+', parser.format_usage()))}")
    return flags


def load_config(argv=None, description="", **settings):
    """The resolved configuration as a namespace with one attribute per key of default.yaml.

    `argv` None means sys.argv; `settings` are the script's own defaults, between default.yaml and the YAML.
    Raises UserError for an unknown key, a wrong type, a value out of range or a missing file.
    """
    defaults, comments = default_values(), _comments()
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--cfg", default="", help="YAML file with the keys that differ from config/default.yaml")
    for key, value in defaults.items():
        parser.add_argument(
            f"--{key}",
            help=f"{comments[key]} (default: {value})".replace("%", "%%"),
            metavar="X",
            **({"nargs": "?", "const": "true"} if isinstance(value, bool) else {}),
        )
    flags, unknown = parser.parse_known_args(argv)
    for word in unknown:
        hint = nearest(word, [f"--{k}" for k in ["cfg", *defaults]]) if word.startswith("--") else ""
        raise UserError(f"{word}: no such flag.{hint}")

    resolved = {**defaults, **settings}
    if flags.cfg:
        content = _read_yaml(flags.cfg)
        plain = {str(key).lower(): value for key, value in content.items()}
        resolved |= _implied(plain.get("backbone"), plain.get("adaptation"))
        for key, value in content.items():
            name = str(key).lower()
            if name not in defaults:
                raise UserError(f"{flags.cfg}: there is no key '{key}'.{nearest(key, defaults)}")
            resolved[name] = _coerce(key, value, defaults[name], comments[name], flags.cfg)
    resolved |= _implied(flags.backbone, flags.adaptation)
    for key, default in defaults.items():
        text = getattr(flags, key)
        if text is not None:
            value = text.split(",") if isinstance(default, list) else text
            resolved[key] = _coerce(key, value, default, comments[key], "--" + key)
    return SimpleNamespace(**resolved)


def refuse_score(cfg):
    """UserError where a script that is no detector is asked to score labels."""
    if cfg.score:
        raise UserError("score: only a detector scores labels (main_phase1.py, main_detect.py).")


def settle_epochs(cfg, num_samples):
    """Fill in `epochs` 0 and `warmup` -1, which follow the size of the training set, and print them.

    Few images make few steps an epoch, and the prompts need steps: 1500, within 10 to 100 epochs; the warm-up a tenth of
    them, but 100 steps, before which the selection may start on nothing learnt, and half of the epochs at most.
    """
    if cfg.epochs and cfg.warmup >= 0:
        return
    steps = math.ceil(num_samples / cfg.batch_size)
    cfg.epochs = cfg.epochs or min(max(math.ceil(1500 / steps), 10), 100)
    if cfg.warmup < 0:
        cfg.warmup = min(max(round(cfg.epochs / 10), math.ceil(100 / steps)), max(cfg.epochs // 2, 1))
    print(f"{num_samples} images, {steps} steps of {cfg.batch_size} an epoch: epochs {cfg.epochs}, warmup {cfg.warmup}")
