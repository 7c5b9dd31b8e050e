"""How commands start and stop: help and errors in flags before anything heavy is imported, each script's own keys."""

import ast
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import main_small_loss
from dataloader.load import DATASETS
from dataloader.noise import NOISE
from methods.baselines import METHODS
from methods.detectors import DETECTORS
from tests.test_rooms import ROOMS
from utils.config import known_keys, load_config
from utils.errors import UserError

SCRIPTS = sorted(path.stem for path in Path().glob("main_*.py"))
MODULES = sorted(f"report.{p.stem}" for p in Path("report").glob("*.py") if "run_main(main)" in p.read_text())
COMMANDS = [[f"{name}.py"] for name in SCRIPTS] + [["-m", name] for name in MODULES]
HEAVY = {"torch", "torchvision", "open_clip", "timm", "sklearn", "scipy", "matplotlib", "pandas", "cleanlab"}


def start(*args):
    """A command's result, its output, and the packages that it imported."""
    done = subprocess.run([sys.executable, "-X", "importtime", *args], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    imported = {line.split("|")[-1].strip().split(".")[0] for line in lines if line.startswith("import time:")}
    return done, [line for line in lines if not line.startswith("import time:")], imported


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_imports_nothing_heavy(command):
    done, errors, imported = start(*command, "--help")
    assert done.returncode == 0 and not errors and "argparse" in imported and not imported & HEAVY
    assert done.stdout.startswith("usage: python " + " ".join(command))
    source = Path(command[-1].replace("report.", "report/").removesuffix(".py") + ".py").read_text()
    assert ast.get_docstring(ast.parse(source)).splitlines()[2] in done.stdout.splitlines()  # with its line breaks


@pytest.mark.parametrize(
    "command, message",
    [
        (
            ["main_phase1.py", "--schedule", "cosin"],
            "--schedule: schedule must be one of cosine, constant, .*, not 'cosin'. Did you mean cosine?",
        ),
        (
            ["main_phase1.py", "--mask", "deft"],
            "--mask: main_phase1.py does not use this key; it is used by main_phase2.py",
        ),
        (
            ["main_detect.py", "--warmup", "1"],
            "--warmup: .*it is used by main_phase1.py, main_baseline.py and main_small_loss.py.",
        ),
        (["-m", "report.predict", "run", "x.png", "--devise", "cpu"], "--devise: unknown flag. Did you mean --device?"),
        (["main_phase1.py", "--epochs"], "argument --epochs: expected one argument"),
    ],
)
def test_errors_in_flags_are_one_line_at_once(command, message):
    done, errors, imported = start(*command)
    assert done.returncode == 2 and not done.stdout and not imported & HEAVY
    assert len(errors) == 1 and re.match("error: " + message, errors[0])


# --- which script reads what


def test_help_lists_the_keys_of_a_script_by_group(capsys):
    with pytest.raises(SystemExit):
        load_config(["--help"], "First line\nsecond line", "main_detect")
    text = capsys.readouterr().out
    assert "First line\nsecond line\n" in text
    groups = [line.rstrip(":") for line in text.splitlines() if re.match(r"[a-zA-Z].*:$", line)]
    assert groups == ["options", *dict.fromkeys(k.group for k in known_keys().values() if k.read_by("main_detect"))]
    assert "--detector" in text and "label-match, clip-margin" in text and "(default: label-match)" in text
    for name in ("--mask", "--n_ctx", "--epochs", "--lnl_methods", "--model"):
        assert name not in text


def test_a_script_has_the_keys_it_reads_and_no_others(tmp_path):
    """What no heading in default.yaml gives to a script is no attribute of its configuration: forgetting one is seen."""
    cfg = load_config([], script="main_detect")
    assert cfg.detector == "label-match" and not hasattr(cfg, "epochs") and not hasattr(cfg, "mask")
    for script, flag in (("main_detect", "--mask"), ("main_phase1", "--detector"), ("main_phase2", "--score")):
        with pytest.raises(UserError, match=rf"^{flag}: {script}.py does not use this key; it is used by main_\w+.py"):
            load_config([f"{flag}=x"], script=script)
    with pytest.raises(UserError, match="^--model: main_phase1.py does not use this key.$"):
        load_config(["--model", "clip"], script="main_phase1")
    (tmp_path / "shared.yaml").write_text("mask: deft\nepochs: 3\nadaptation: fft\nmodel: clip\n")
    cfg = load_config(["--cfg", str(tmp_path / "shared.yaml")], script="main_phase1")
    assert cfg.epochs == 3 and not hasattr(cfg, "mask") and not cfg.finetune  # what only phase 2 reads does nothing
    assert load_config(["--cfg", str(tmp_path / "shared.yaml")], script="main_phase2").finetune
    (tmp_path / "shared.yaml").write_text("full_batch: maybe\n")
    with pytest.raises(UserError, match="full_batch must be true or false"):  # but it is checked
        load_config(["--cfg", str(tmp_path / "shared.yaml")], script="main_phase1")


def test_every_key_is_read_somewhere():
    keys = known_keys()
    assert {name for key in keys.values() for name in key.scripts} <= {*SCRIPTS, "none"}
    code = "\n".join(path.read_text() for room in [".", *ROOMS] for path in Path(room).glob("*.py"))
    for name, key in keys.items():
        read = re.search(rf"\b(cfg|reading)\.{name}\b|\"{name}\"", code)
        assert read or key.scripts == ("none",), name


def test_help_names_what_can_be_chosen():
    tables = {"dataset": DATASETS, "noise_mode": NOISE, "detector": DETECTORS, "lnl_methods": METHODS}
    for key, table in tables.items():
        assert set(table) <= set(re.findall(r"[\w-]+", known_keys()[key].comment)), key


def test_the_small_loss_script_has_one_method(tmp_path):
    with pytest.raises(
        UserError, match="--lnl_methods: main_small_loss.py does not use this key; it is used by main_baseline.py"
    ):
        main_small_loss.main(["--lnl_methods", "GMM"])


# --- YAML files


def test_a_key_that_stands_twice_names_both_lines(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("epochs: 3\nseed: 1\nEPOCHS: 4\n")
    with pytest.raises(UserError, match="twice.yaml: duplicate key EPOCHS in lines 1 and 3"):
        load_config(["--cfg", str(path)])


def test_a_nul_byte_is_refused(tmp_path):
    path = tmp_path / "nul.yaml"
    path.write_text('data_path: "a\\0b"\n')
    with pytest.raises(UserError, match="nul.yaml: data_path must be text without NUL bytes"):
        load_config(["--cfg", str(path)])
    path.write_bytes(b"data_path: a\0b\n")
    with pytest.raises(UserError, match="nul.yaml: not a YAML file"):
        load_config(["--cfg", str(path)])


# --- ends that are not the script's own


def test_a_reader_that_stops_is_no_error():
    program = "from utils.start import run_main\nrun_main(lambda: print('x' * 100_000))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


@pytest.mark.parametrize(
    "command", [["main_phase1.py", "--cfg", "config/PEFT/digits.yaml"], ["-m", "report.page", "x"]]
)
def test_ctrl_c_while_importing_is_one_line(command):
    process = subprocess.Popen(
        [sys.executable, "-v", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a job of nohup ignores it
    )
    for line in process.stderr:  # -v says what is imported
        if line.startswith("import 'torch.storage'") or line.startswith("import 'torch._C'"):
            process.send_signal(signal.SIGINT)
            break
    rest = [line for line in process.stderr if not line.startswith(("import ", "#", "extension module"))]
    said = [line for line in rest if "interrupted" in line or "Error" in line or "Traceback" in line]
    assert process.wait() == 130 and len(said) == 1 and said[0].startswith("interrupted; ")


def test_a_full_gpu_ends_in_one_line_that_says_what_needs_less():
    full = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7.79 GiB …"
    program = f"""
import torch
from utils.start import run_main
def main(): raise torch.OutOfMemoryError({full!r})
run_main(main)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(
        "error: device: CUDA out of memory. Tried to allocate 20.00 MiB. Training "
    )
    assert "--micro_batch" in line and "7.79" not in line
