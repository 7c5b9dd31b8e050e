"""The commands of the official README: argument for argument, on small data in the official layouts."""

from pathlib import Path

import numpy as np
import pytest
import yaml

import main_baseline
import main_phase1
import main_phase2
import main_real_baseline
import main_real_phase1
import main_real_phase2
import main_small_loss
from dataloader.load import load_data
from methods.masks import save_mask
from tests.helpers import write_cifar
from tests.test_image_sets import Pictures, make_clothing
from utils.config import load_config
from utils.errors import UserError
from utils.runs import seed_folder

SYM, IDN = (["--noise_mode", mode, "--noise_ratio", "0.2"] for mode in ("sym", "idn"))
COMMANDS = [
    (main_phase1, "PEFT/cifar100", SYM),
    (main_phase2, "FFT/cifar100", SYM),
    (main_phase1, "PEFT/cifar100", IDN),
    (main_phase2, "FFT/cifar100", IDN),
    (main_real_phase1, "PEFT/clothing1m", []),
    (main_real_phase2, "FFT/clothing1m", []),
    (main_small_loss, "PEFT/cifar100", SYM),
    (main_baseline, "FFT/cifar100", [*SYM, "--lnl_methods", "GMM"]),
    (main_real_baseline, "FFT/clothing1m", ["--lnl_methods", "GMM"]),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to run in: data, and copies of the YAML files that change only backbone, epochs, warm-up and data path."""
    root = tmp_path_factory.mktemp("official")
    write_cifar(root / "data" / "cifar-100", "cifar100", n_train=300, n_test=50)
    make_clothing(root / "data" / "clothing1M", Pictures().write)
    for name in {name for _, name, _ in COMMANDS}:
        content = yaml.safe_load(Path(f"config/{name}.yaml").read_text())
        path = root / "config" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = {"backbone": "tiny-clip-digits", "epochs": 1}
        if name.startswith("FFT"):
            small["warmup"] = 0  # GMM selects in the only epoch
        path.write_text(yaml.safe_dump(content | small))
    return root


def argv(name, rest):
    return ["--cfg", f"./config/{name}.yaml", *rest]


@pytest.mark.parametrize("script, name, rest", COMMANDS, ids=lambda v: getattr(v, "__name__", None))
def test_command(place, monkeypatch, script, name, rest):
    monkeypatch.chdir(place)
    phase_2 = script in (main_phase2, main_real_phase2)
    if phase_2:  # one epoch of a CLIP that knows digits only may trust no label at all
        cfg = load_config(argv(name, rest))
        data = load_data(cfg)
        everyone, labels = np.ones(len(data.train.labels)), data.train.labels
        trusted = {"mask": everyone > 0, "p_clean": everyone, "predicted": labels, "confidence": everyone}
        save_mask(seed_folder(cfg, data.place) / "deft" / "clean_mask.npz", trusted, data, cfg.seed)
    summary = script.main(argv(name, rest))
    assert not phase_2 or summary["selected"] == 1
    assert summary["epochs"] == 1 and summary["num_train"] in (300, 112)
    assert ("noise_rate" in summary) == (name != "PEFT/clothing1m" and name != "FFT/clothing1m")


def test_epochs_of_the_real_world_script_after_an_official_file(tmp_path, capsys):
    """The official script sets five epochs after it has read its file, which says ten; that is said."""
    path, settings = tmp_path / "clothing1m.yaml", {"script": "main_phase2", "epochs": 5}
    path.write_text("model: clip\nepochs: 10\nlr: 5e-4\n")
    assert load_config(["--cfg", str(path)], **settings).epochs == 5
    assert capsys.readouterr().out == f"as in the official code: epochs 5 instead of epochs 10 in {path}\n"
    assert load_config(["--cfg", str(path), "--epochs", "7"], **settings).epochs == 7
    assert load_config(["--cfg", str(path)], script="main_phase2").epochs == 10  # main_phase2.py itself
    path.write_text("epochs: 10\n")  # a person's
    assert load_config(["--cfg", str(path)], **settings).epochs == 10


@pytest.mark.parametrize("script, name, rest", COMMANDS, ids=lambda v: getattr(v, "__name__", None))
def test_unmodified_without_data(tmp_path, monkeypatch, script, name, rest):
    (tmp_path / "config").symlink_to(Path("config").resolve())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data_path: .*Get .*(CIFAR|Clothing1M).* from "):
        script.main(argv(name, rest))
    assert not (tmp_path / "runs").exists()
