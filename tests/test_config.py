import contextlib
import fnmatch
import re

import pytest
import yaml

from dataloader.load import DATASETS
from dataloader.noise import NOISE
from methods.baselines import METHODS
from methods.detectors import DETECTORS
from utils.config import DEFAULTS, known_keys, load_config
from utils.errors import UserError

# the keys of the official YAML files, as in config/PEFT/clothing1m.yaml and config/FFT/cifar100.yaml there
OFFICIAL = """
dataset: "cifar100"
data_path: "./data/cifar-100"
num_class: 3
model: clip
backbone: "ViT-B/16"
resolution: 224
seed: 0
gpuid: 0
num_workers: 8
epochs: 10
warmup: 5
batch_size: 32
lr: 0.03
weight_decay: 5e-4
momentum: 0.9
lnl_methods: "CE"
vpt_deep: True
vpt_len: 20
finetune: True
N_CTX: 16
CLASS_TOKEN_POSITION: "end"
noise_mode: sym
noise_ratio: 0.385
class_names: [
  'T-Shirt',
  'Shirt', 'Knitwear'
]
"""


def test_official_yaml_loads_unchanged(tmp_path):
    path = tmp_path / "official.yaml"
    path.write_text(OFFICIAL)
    cfg = load_config(["--cfg", str(path), "--noise_ratio", "0.2", "--gpuid", "3"])
    assert cfg.weight_decay == 5e-4  # PyYAML reads it as text
    assert (cfg.n_ctx, cfg.class_token_position, cfg.vpt_deep, cfg.warmup) == (16, "end", True, 5)
    assert cfg.class_names == ["T-Shirt", "Shirt", "Knitwear"]
    assert (cfg.noise_ratio, cfg.gpuid) == (0.2, 3)  # flags win over the file


def test_precedence_and_defaults(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("epochs: 7\n")
    assert load_config([]).epochs == yaml.safe_load(DEFAULTS.read_text())["epochs"]
    assert load_config([], epochs=5).epochs == 5
    assert load_config(["--cfg", str(path)], epochs=5).epochs == 7
    assert load_config(["--cfg", str(path), "--epochs", "9"], epochs=5).epochs == 9


@pytest.mark.parametrize("name", "animal10n cifar10N cifar100N clothing1m webvision red_mini_imagenet".split())
def test_real_world_phase_2_has_its_epochs_with_the_files_of_phase_1_too(name):
    settings = {"epochs": 5, "schedule": "constant"}  # of main_real_phase2
    assert load_config(["--cfg", f"config/PEFT/{name}.yaml"], script="main_phase2", **settings).epochs == 5
    assert load_config(["--cfg", f"config/PEFT/{name}.yaml"], script="main_phase1").epochs == 10
    assert load_config(["--vpt_deep", "false"]).vpt_deep is False
    assert load_config(["--require_agreement"]).require_agreement is True


def test_a_learning_rate_that_a_flag_implies_is_said(tmp_path, capsys):
    path = tmp_path / "a.yaml"
    path.write_text("lr: 0.002\nepochs: 7\nadaptation: fft\n")
    flags = ["--cfg", str(path), "--epochs", "2"]
    for more, lr, said in (
        ([], 0.002, ""),
        (["--adaptation", "peft"], 0.03, f"--backbone or --adaptation: lr 0.03 instead of lr 0.002 in {path}\n"),
        (["--adaptation", "peft", "--lr", "0.1"], 0.1, ""),
    ):
        assert load_config([*flags, *more], script="main_baseline").lr == lr
        assert capsys.readouterr().out == said


def test_settings_of_a_backbone_in_a_yaml(tmp_path, capsys):
    """A file's own settings hold and are said, but for an official file, whose scripts then set those of the backbone."""
    path, own = tmp_path / "a.yaml", "lr 0.01, weight_decay 1e-05, momentum 0.0"
    content = "backbone: vit\nlr: 5e-4\nweight_decay: 5e-4\nmomentum: 0.9\n"
    theirs = "lr 0.0005, weight_decay 0.0005, momentum 0.9"
    for more, flags, settings, said in (
        ("", [], (5e-4, 5e-4, 0.9), f"{path}: {theirs} instead of {own} of backbone vit\n"),
        ("", ["--lr", "1"], (1, 5e-4, 0.9), None),
        ("model: clip\n", [], (1e-2, 1e-5, 0.0), f"as in the official code: {own} instead of {theirs} in {path}\n"),
        ("model: clip\n", ["--backbone", "ViT-B/16"], (1e-2, 1e-5, 0.0), None),
    ):
        path.write_text(content + more)
        cfg = load_config(["--cfg", str(path), *flags], script="main_phase2")
        assert (cfg.lr, cfg.weight_decay, cfg.momentum) == settings
        assert said in (None, printed := capsys.readouterr().out), printed


def test_every_key_has_a_comment():
    for line in DEFAULTS.read_text().splitlines():
        assert not line or line.startswith("#") or " # " in line, line


@pytest.mark.parametrize(
    "content, message",
    [
        ("epochz: 3", "unknown key 'epochz'. Did you mean epochs?"),
        ("epochs: ten", "epochs must be a whole number, not 'ten'"),
        ("epochs: 2.5", "epochs must be a whole number, not 2.5"),
        ("epochs: true", "epochs must be a whole number, not True"),
        ("lr: fast", "lr must be a number"),
        ("lr: .nan", "lr must be a number"),
        ("lr: 0", "lr must be > 0"),
        ("vpt_deep: maybe", "vpt_deep must be true or false"),
        ("noise_ratio: 1.5", "noise_ratio must be between 0 and 1"),
        ("rho: -0.5", "rho must be between 0 and 1"),  # -1 alone is the method's own
        ("class_token_position: start", "one of end, middle, front"),
        ("schedule: cosin", "Did you mean cosine?"),
        ("class_names: cat", "class_names must be a list"),
        (
            "class_names: [no, yes]",
            "class_names must be a list of words or numbers, not [False, True]. YAML reads yes, no",
        ),
        ("- epochs", "expected lines of the form"),
        ("epochs: [1", "not a YAML file"),
    ],
)
def test_bad_yaml(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        load_config(["--cfg", str(path)])
    assert message in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--epoch", "3"], "--epoch: unknown flag. Did you mean --epochs?"),
        (["--cfg", "config/PEFT/digit.yaml"], "Did you mean config/PEFT/digits.yaml?"),
        (["--cfg", "config/own.yaml"], "There is config/FFT/own.yaml and config/PEFT/own.yaml."),
        (["--batch_size", "0"], "batch_size must be >= 1"),
    ],
)
def test_bad_flags(argv, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        load_config(argv)


@pytest.mark.parametrize(
    "script, argv, message",
    [
        (
            "main_baseline",
            ["--mask", "deft"],
            "--mask: has no effect with lnl_methods CE; it needs lnl_methods MixFix.",
        ),
        ("main_baseline", ["--lnl_methods", "MixFix", "--mask", "deft"], ""),
        ("main_phase2", ["--mask", "deft", "--adaptation", "fft"], ""),  # which has no lnl_methods
        ("main_baseline", ["--lnl_methods", "GMM", "--rho", "0.7"], "it needs lnl_methods ProMix."),
        ("main_phase2", ["--n_ctx", "4"], "--n_ctx: has no effect with is_coop false; it needs is_coop."),
        ("main_phase2", ["--n_ctx", "4", "--is_coop"], ""),
        ("main_phase1", ["--n_ctx", "4"], ""),
        ("main_phase2", ["--vpt_len", "4"], "has no effect with vpt_deep false and vpt_shallow false"),
        ("main_phase2", ["--vpt_len", "4", "--adaptation", "peft"], ""),
        ("main_phase1", ["--theta_gmm", "0.3"], "has no effect with agree_with empty"),
        ("main_phase1", ["--theta_gmm", "0.3", "--agree_with", "clipcleaner-lr-gmm"], ""),
        (
            "main_detect",
            ["--theta_gmm", "0.3", "--detector", "knn"],
            "has no effect with detector knn; it needs detector ",
        ),
        ("main_detect", ["--image_noise_level", "0.1"], "has no effect with image_noise none"),
        ("main_phase2", ["--backbone", "resnet", "--momentum", "0.5"], "has no effect with optimizer adamw"),
        ("main_clipcleaner", ["--warmup", "2"], "--warmup: main_clipcleaner.py does not use this key"),
        (None, ["--rho", "0.7"], ""),
    ],
)
def test_a_flag_without_effect_is_an_error(script, argv, message):
    with pytest.raises(UserError, match=re.escape(message)) if message else contextlib.nullcontext():
        load_config(argv, script=script)


def test_a_yaml_is_for_several_methods(tmp_path):
    path = tmp_path / "shared.yaml"
    path.write_text("lnl_methods: ProMix\nrho: 0.7\n")
    assert load_config(["--cfg", str(path), "--lnl_methods", "CE"], script="main_baseline").rho == 0.7


def test_conditions_name_keys_and_their_values():
    keys = known_keys()
    conditions = {name: key.condition for name, key in keys.items() if key.condition}
    assert len(conditions) > 30 and all(other in keys for condition in conditions.values() for other in condition)
    for names, other in (
        (METHODS, "lnl_methods"),
        (DETECTORS, "detector"),
        (NOISE, "noise_mode"),
        (DATASETS, "dataset"),
    ):
        patterns = {p for condition in conditions.values() for p in condition.get(other, [])}
        assert patterns and all(fnmatch.filter(names, pattern) for pattern in patterns), other


def test_whole_numbers_are_plain_decimals(tmp_path):
    """YAML 1.1 would read these as 8, 90 and 16."""
    path = tmp_path / "x.yaml"
    path.write_text("epochs: 010\nwarmup: -1\nlr: 1e-3\nmilestones: [3, 20]")
    cfg = load_config(["--cfg", str(path)])
    assert (cfg.epochs, cfg.warmup, cfg.lr, cfg.milestones) == (10, -1, 1e-3, ["3", "20"])
    for text in ("1:30", "0x10"):
        path.write_text(f"epochs: {text}")
        with pytest.raises(UserError, match=f"epochs must be a whole number, not '{text}'"):
            load_config(["--cfg", str(path)])
