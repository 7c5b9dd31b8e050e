"""Tables of the paper by one command: figures beside the paper's, nothing run twice, kills and changes noticed."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import main_phase2
import reproduce
from methods.baselines import METHODS
from report.comparison import FORMATS, compare, label_of, plot, wide
from tests.helpers import SUMMARY, phase1, phase2
from utils.config import BACKBONES, load_config
from utils.errors import UserError
from utils.summaries import read_summary, with_checksum, write_summary

PAPER = Path(__file__).resolve().parents[2] / "shared" / "paper" / "tables.yaml"
FIGURES = yaml.safe_load(Path("config/paper.yaml").read_text())
TABLES = yaml.safe_load(Path("config/tables.yaml").read_text())

# stands for a training script: "trains" a while, epoch by epoch, and leaves a run
SCRIPT = """
import sys, time, pathlib, json
sys.path.insert(0, {root!r})
from utils.summaries import with_checksum, write_summary
from utils.files import write_text
flags = dict(zip((w[2:] for w in sys.argv[1::2]), sys.argv[2::2]))
if flags.get("lnl_methods") == "broken":
    sys.exit("error: lnl_methods: it is broken")
name = {name!r} + ("-" + flags["tag"] if "tag" in flags else "")
folder = pathlib.Path(flags["output_dir"]) / "toy" / f"{{flags['noise_mode']}}-{{flags['noise_ratio']}}"
folder = folder / f"seed{{flags['seed']}}" / name
if {after!r} and not (folder.parent / flags.get("mask", {after!r}) / "summary.json").is_file():
    sys.exit("error: mask: no clean mask")
(folder.parent / "starts").mkdir(parents=True, exist_ok=True)
(folder.parent / "starts" / f"{{name}}-{{time.time_ns()}}").touch()
if "edits" in pathlib.Path(flags["cfg"]).read_text():
    pathlib.Path(flags["cfg"]).write_text("LR: 0.4")
if not (folder / "summary.json").is_file():
    write_text(folder / "config.yaml", "".join(f"{{k}}: {{v}}\\n" for k, v in flags.items() if k != "cfg"))
    for epoch in range(int(flags["epochs"]) if "epochs" in flags else 3):
        time.sleep(0.02)
    value = 50 + 10 * float(flags["noise_ratio"]) + int(flags["seed"])
    summary = {summary!r} | {{"name": name, "seed": int(flags["seed"]), "noise": folder.parent.parent.name}}
    summary |= {{"precision": value / 100, "acc_last": value, "seconds": 60}}
    write_summary(folder / "summary.json", with_checksum(summary))
print(f"results: {{folder}}")
if {after!r}:  # the last line names another run
    print(f"warning: worse than {{folder.parent / {after!r}}}")
"""

TOY = """
datasets: {toy: {yaml: toy}, gone: {yaml: gone}}
methods:
  detector: [main_phase1 PEFT]
  both: [main_phase1 PEFT, main_phase2 PEFT]
  broken: [main_baseline PEFT --lnl_methods broken]
tables:
  table1:
    title: A toy
    datasets: [toy, gone]
    methods: [detector, both]
    columns: [sym_0.2, sym_0.4]
    metrics: {precision: precision}
    paper: [dataset, method, column]
  table2:
    title: With what fails
    datasets: [toy]
    methods: {ours: both, broken: broken}
    columns: {sym_0.2: {noise_mode: sym, noise_ratio: 0.2}, longer: {noise_mode: sym, noise_ratio: 0.2, epochs: 5}}
    metrics: {last: acc_last}
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A project with toy scripts; returns run(*flags) -> what reproduce.py says it found, in its folder."""
    (tmp_path / "config" / "PEFT").mkdir(parents=True)
    (tmp_path / "config" / "tables.yaml").write_text(TOY)
    (tmp_path / "config" / "paper.yaml").write_text("table1: {toy: {detector: {sym_0.2: 50.0, sym_0.4: 60}}}")
    (tmp_path / "config" / "PEFT" / "toy.yaml").write_text("dataset: toy\nLR: 0.1\n")
    (tmp_path / "config" / "PEFT" / "gone.yaml").write_text("data_path: ./data/gone\n")
    for name, run, after in (
        ("main_phase1", "deft", ""),
        ("main_phase2", "phase2-deft", "deft"),
        ("main_baseline", "ce", ""),
    ):
        (tmp_path / f"{name}.py").write_text(SCRIPT.format(root=os.getcwd(), summary=SUMMARY, name=run, after=after))
    monkeypatch.setattr(reproduce, "HERE", tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        return reproduce.main(["--tables", "config/tables.yaml", "--output_dir", "out dir", *flags])

    return run


def starts(folder="."):
    return sorted(p.name.rsplit("-", 1)[0] for p in Path(folder).rglob("starts/*"))


def test_runs_once_and_compares(toy, capsys):
    rows = toy("--table", "1", "--seeds", "0", "1")["table1"]
    first = rows[0]
    assert (first["dataset"], first["method"], first["column"]) == ("toy", "detector", "sym_0.2")
    assert first["ours"] == pytest.approx(52.5) and first["sd"] == pytest.approx(0.5**0.5) and first["n"] == 2
    assert first["paper"] == 50 and first["difference"] == pytest.approx(2.5)
    assert starts() == ["deft"] * 4 + ["phase2-deft"] * 4  # phase 1 is shared by the two methods
    out = capsys.readouterr().out
    assert "52.50 ± 0.71 (2) / 50.00 / +2.50" in out and "there is no data/gone" in out and "not run [1]" in out
    assert toy("--table", "1", "--seeds", "0", "1")["table1"] == rows and len(starts()) == 8  # nothing runs twice
    ledger = Path("out dir/reproduce.jsonl")
    ledger.write_text(ledger.read_text().replace('"csc": false, ', ""))  # as of a version without this key
    assert toy("--table", "1", "--seeds", "0", "1")["table1"] == rows and len(starts()) == 8
    Path("config/PEFT/toy.yaml").write_text("dataset: toy\nLR: 0.2\n")
    toy("--table", "1", "--seeds", "0", "1")
    assert len(starts()) == 16  # another YAML: the scripts are asked again
    Path("config/PEFT/toy.yaml").write_text("dataset: toy\nLR: 0.3\nlnl_methods: edits\n")
    with pytest.raises(UserError, match="1 of the runs failed"):
        toy("--table", "1", "--noise", "sym_0.2", "--dataset", "toy")
    assert "its settings or their files were changed while it ran" in capsys.readouterr().out


def test_a_summary_in_the_place_of_another_run(toy, capsys):
    """Copied by hand, or stripped of what shows an edit: no figure, and an error."""
    flags = "--table", "1", "--dataset", "toy", "--noise", "sym_0.2", "--seeds", "0", "1"
    toy(*flags)
    runs = Path("out dir/toy/sym-0.2")
    there, other = (runs / seed / "deft" / "summary.json" for seed in ("seed0", "seed1"))
    original = there.read_text()
    for text, settings, message in (
        (other.read_text(), "", "summary.json: is that of toy/sym-0.2/seed1/deft"),
        (re.sub(r',\s*"checksum": "\w+"', ', "version": "1"', original).replace("0.52", "0.5"), "", "modified after"),
        (original, "noise_mode: sym", "was made with noise_ratio None, not 0.2"),
    ):
        there.write_text(text)
        (runs / "seed0/deft/config.yaml").write_text(settings or "noise_mode: sym\nnoise_ratio: 0.2\nseed: 0\n")
        capsys.readouterr()
        with pytest.raises(UserError, match="1 of the runs failed or do not count"):
            toy(*flags)
        assert message in (out := capsys.readouterr().out) and "| 53.00 (1) [1] / 50.00" in out


def test_a_killed_run_says_so(toy, capsys):
    script = Path("main_phase1.py")
    script.write_text(
        "import os, signal\nprint('epoch 3/40: loss 0.6', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    with pytest.raises(UserError, match="1 of the runs failed"):
        toy("--table", "1", "--dataset", "toy", "--noise", "sym_0.2")
    assert "[1] main_phase1.py was killed (SIGKILL)" in capsys.readouterr().out


def test_records_that_were_edited(toy, capsys):
    flags = "--table", "1", "--dataset", "toy", "--noise", "sym_0.2"
    rows = toy(*flags)
    with Path("out dir/reproduce.jsonl").open("ab") as file:
        file.write(b'{}\n{"script": "x", "flags": 5, "settings": {}, "folder": "x", "seconds": 1}\n\xff\n')
    assert toy(*flags) == rows and len(starts()) == 2
    capsys.readouterr()
    toy(*flags, "--seeds", "2", "--dry_run")
    out, err = capsys.readouterr()
    assert err.count("skipped, not a whole record") == 3 and "out dir/reproduce.jsonl, line 3: skipped" in err
    assert "2 commands to run, 0 finished; expected: 2 min" in out  # a minute each, as the runs say themselves


def test_pictures_need_a_folder(toy):
    Path("file").touch()
    with pytest.raises(UserError, match="--plots: file: no folder can be made there"):
        toy("--table", "1", "--plots", "file")
    assert not starts()


def test_failures_and_variants_in_the_table(toy, capsys):
    with pytest.raises(UserError, match="2 of the runs failed or do not count; the table says why"):
        toy("--table", "2", "--jobs", "2", "--format", "csv")
    printed = capsys.readouterr().out
    rows = {(row["method"], row["column"]): row for row in csv.DictReader(io.StringIO(printed))}
    assert rows["broken", "sym_0.2"]["ours"] == ""
    assert rows["broken", "sym_0.2"]["missing"] == "lnl_methods: it is broken"
    assert float(rows["ours", "longer"]["ours"]) == 52
    assert starts() == ["deft", "deft-epochs-5", "phase2-deft", "phase2-deft-epochs-5"]
    settings = Path("out dir/toy/sym-0.2/seed0/phase2-deft-epochs-5/config.yaml").read_text()
    assert "mask: deft-epochs-5\n" in settings  # the mask of its own phase 1
    toy("--table", "2", "--dry_run")  # what failed before is "not run", and no error
    with pytest.raises(UserError):
        toy("--table", "2")
    assert "[1] lnl_methods: it is broken" in capsys.readouterr().out


def test_a_seed_counts_once(toy):
    row = toy("--table", "1", "--dataset", "toy", "--noise", "sym_0.2", "--seeds", "0", "1", "0")["table1"][0]
    assert (row["ours"], row["n"]) == (52.5, 2)


def test_the_folder_of_runs_may_be_written_in_any_way(toy):
    for folder in ("out/", "./other", "."):
        rows = toy("--table", "1", "--dataset", "toy", "--noise", "sym_0.2", "--output_dir", folder)["table1"]
        assert [row["missing"] for row in rows] == ["", ""], folder


def test_seeds_of_other_data_are_not_averaged(toy):
    flags = "--table", "1", "--dataset", "toy", "--noise", "sym_0.2", "--seeds", "0", "1"
    toy(*flags)
    path = Path("out dir/toy/sym-0.2/seed1/deft/summary.json")
    summary = read_summary(path)
    del summary["checksum"]
    write_summary(path, with_checksum(summary | {"source": "other"}))
    with pytest.raises(UserError, match="1 of the runs failed or do not count"):
        toy(*flags)
    first, second = toy(*flags, "--dry_run")["table1"]
    assert (first["ours"], first["n"]) == (52, 1) and "seed1/deft: was made with other images or labels" in first[
        "missing"
    ]
    assert second["n"] == 2  # phase 2 of the toy knows nothing of it


def test_every_gpu_has_one_command_at_a_time(toy, monkeypatch):
    """Also where the commands take unequal times."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    busy, together, lock = [], [], threading.Lock()

    def watch(self, words, gpu):
        with lock:
            busy.append(gpu)
            together.append(sorted(busy))
        time.sleep(0.3 if "--epochs" not in words else 0.02)
        with lock:
            busy.remove(gpu)
        return 1, None, "error: x"

    monkeypatch.setattr(reproduce.Runner, "_watch", watch)
    path = Path("config/tables.yaml")
    tables = yaml.safe_load(path.read_text())
    noise = {"noise_mode": "sym", "noise_ratio": 0.2}
    tables["tables"]["table2"] |= {
        "columns": {"slow": noise} | {f"fast{i}": noise | {"epochs": i} for i in range(1, 6)}
    }
    tables["tables"]["table2"] |= {"methods": ["detector"]}
    path.write_text(yaml.safe_dump(tables, sort_keys=False))
    with pytest.raises(UserError, match="6 of the runs failed"):
        toy("--table", "2")
    assert ["3", "5"] in together and ["3", "3"] not in together and ["5", "5"] not in together


def test_data_in_another_place(toy, tmp_path, capsys):
    """--data_root stands for ./data; a YAML that names a folder elsewhere, or a file, is taken at its word."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "table.csv").touch()
    Path("config/PEFT/gone.yaml").write_text(f"data_path: {tmp_path / 'elsewhere' / 'table.csv'}")
    rows = toy("--table", "1", "--dataset", "gone", "--noise", "sym_0.2", "--data_root", "few/")["table1"]
    assert rows[0]["ours"] == 52
    Path("config/PEFT/gone.yaml").write_text("data_path: ./data/gone")
    toy("--table", "1", "--dataset", "gone", "--noise", "sym_0.4", "--data_root", "few/", "--dry_run")
    assert "--data_path few/gone  # there is no few/gone\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="nothing could be run: there is no few/gone. --data_root names"):
        toy("--table", "1", "--dataset", "gone", "--noise", "sym_0.4", "--data_root", "few/")
    assert "not run [1]" in capsys.readouterr().out


def test_other_data_are_asked_for_again(toy):
    """A table of a part of the images is not passed off as that of the whole set, once this is there."""
    for root in ("few", "./few/", "all"):
        Path(root, "gone").mkdir(parents=True, exist_ok=True)
        toy("--table", "1", "--dataset", "gone", "--noise", "sym_0.2", "--data_root", root)
        assert starts().count("deft") == (1 if root != "all" else 2)
    ledger = Path("out dir/reproduce.jsonl")
    ledger.write_text(re.sub(r'"data": "[^"]*", ', "", ledger.read_text()))  # of a version that did not name them
    toy("--table", "1", "--dataset", "gone", "--noise", "sym_0.2", "--data_root", "few")
    assert starts().count("deft") == 2


@pytest.mark.parametrize("setting, file", [("noise_file: T.csv", "T.csv"), ("backbone: mine", "mine/weights")])
def test_the_content_of_a_file_that_a_setting_names_counts(toy, setting, file):
    path, file = Path("config/tables.yaml"), Path(file)
    file.parent.mkdir(exist_ok=True)
    file.write_text("1")
    columns = f"columns: {{x: {{noise_mode: sym, noise_ratio: 0.2, {setting}}}}}"
    path.write_text(path.read_text().replace("columns: [sym_0.2, sym_0.4]", columns))
    toy("--table", "1", "--dataset", "toy")
    toy("--table", "1", "--dataset", "toy")
    assert len(starts()) == 2
    file.write_text("2")
    toy("--table", "1", "--dataset", "toy")
    assert len(starts()) == 4
    file.unlink()
    toy("--table", "1", "--dataset", "toy")
    assert len(starts()) == 4  # a finished run is not lost with its file


def test_phase_2_uses_the_mask_of_the_command_before_it():
    digits, noise = {"yaml": "digits"}, {"noise_mode": "sym", "noise_ratio": 0.4, "seed": 0}

    def mask(detector, last="main_phase2 FFT", **flags):
        before = reproduce.make_step(detector, digits, noise | flags)
        return dict(reproduce.make_step(last, digits, noise | flags, before).flags).get("mask")

    assert mask("main_phase1 PEFT") is None  # the default, deft
    assert mask("main_phase1 PEFT --tag x") == "deft-x"
    assert mask("main_detect PEFT --detector knn") == "knn" and mask("main_detect PEFT") == "label-match"
    assert mask("main_detect PEFT --detector knn --tag x", epochs=2) == "knn-x-epochs-2"
    assert mask("main_detect PEFT --detector knn", "main_baseline FFT --lnl_methods MixFix") == "knn"
    assert mask("main_detect PEFT --detector knn", "main_baseline FFT --lnl_methods CE") is None
    steps = reproduce.make_step("main_detect PEFT --detector knn --tag x", digits | {"real": True}, noise)
    steps = reproduce.make_step("main_baseline FFT --lnl_methods MixFix", digits | {"real": True}, noise, steps)
    assert steps.script == "main_real_baseline" and dict(steps.flags)["mask"] == "knn-x"
    gmm = "main_baseline FFT --lnl_methods GMM"
    assert mask(gmm, "main_phase2 FFT --mask gmm-tiny-clip-digits") == "gmm-tiny-clip-digits"
    assert (
        mask("main_detect PEFT --detector knn", "main_baseline FFT", lnl_methods="MixFix") == "knn-lnl_methods-MixFix"
    )
    with pytest.raises(UserError, match="after main_baseline, the next command needs --mask"):
        mask(gmm)


def test_flags_of_one_end_of_a_method():
    table = TABLES["tables"]["table2"] | {"datasets": ["digits"], "columns": {"short": {"n_ctx": 4, "seed": 0}}}
    for end, with_flag in (("first", [True, False]), ("last", [False, True])):
        cells = reproduce.make_cells(table | {"flags_to": end}, TABLES, {}, args_of())
        steps = next(cell.step for cell in cells if cell.place[1] == "deft").chain()
        assert ["n_ctx" in dict(step.flags) for step in steps] == with_flag
        assert dict(steps[1].flags).get("mask") == ("deft-n_ctx-4" if end == "first" else None)


def test_runs_that_would_share_a_folder_are_refused_before_any_starts(toy):
    path = Path("config/tables.yaml")
    tables = yaml.safe_load(path.read_text())
    tables["tables"]["table1"]["methods"].append("slow")
    tables["methods"]["slow"] = ["main_phase1 PEFT --lr 1e-1"]  # what the YAML says
    path.write_text(yaml.safe_dump(tables, sort_keys=False))
    toy("--table", "1", "--dataset", "toy", "--dry_run")
    tables["methods"]["slow"] = ["main_phase1 PEFT --lr 0.001"]
    path.write_text(yaml.safe_dump(tables, sort_keys=False))
    with pytest.raises(UserError, match="would have one folder; give one of them a --tag"):
        toy("--table", "1", "--dataset", "toy")
    assert not starts()


def test_columns_of_each_data_set(toy, capsys):
    path = Path("config/tables.yaml")
    tables = yaml.safe_load(path.read_text())
    tables["datasets"]["other"] = {"yaml": "toy"}
    own = {"toy": ["sym_0.2", "sym_0.4"], "other": ["sym_0.4", "worse_0.4"], "gone": []}
    tables["tables"]["table1"] |= {"datasets": own, "methods": ["detector"]}
    path.write_text(yaml.safe_dump(tables, sort_keys=False))
    toy("--table", "1", "--dry_run")
    out = capsys.readouterr().out
    commands = [
        line.split("#")[0].split("toy.yaml ")[1].strip() for line in out.splitlines() if line.startswith("python")
    ]
    where = "--seed 0 --output_dir 'out dir'"
    assert commands[2] == f"--noise_mode worse --noise_ratio 0.4 {where}"
    assert [words.split("--seed")[0] for words in commands[:2]] == [
        f"--noise_mode sym --noise_ratio {r} " for r in (0.2, 0.4)
    ]
    table = [[cell.strip() for cell in line.split("|")[3:-1]] for line in out.splitlines() if line.startswith("| ")]
    assert table == [
        ["sym_0.2 precision", "sym_0.4 precision"],
        ["not run / 50.00", "not run / 60.00"],
        ["sym_0.4 precision", "worse_0.4 precision"],
        ["not run", "not run"],
    ]


def test_dry_run(toy, capsys):
    toy("--table", "1", "--dataset", "toy", "--noise", "sym_0.2")
    capsys.readouterr()
    rows = toy("--table", "1", "--dataset", "toy", "--seeds", "0", "3", "--dry_run")["table1"]
    out = capsys.readouterr().out
    assert "python main_phase1.py --cfg config/PEFT/toy.yaml --noise_mode sym --noise_ratio 0.4 --seed 0" in out
    assert "6 commands to run, 2 finished; expected: " in out and "unknown" not in out
    assert len(starts()) == 2 and [row["n"] for row in rows] == [1, 0, 1, 0]


def test_a_changed_record_is_noticed(toy, capsys):
    toy("--table", "1", "--dataset", "toy", "--noise", "sym_0.2")
    path = Path("out dir/toy/sym-0.2/seed0/deft/summary.json")
    good = path.read_text()
    for bad, why in (
        (good.replace("0.52", "0.99"), "modified after the run wrote it"),
        (good[:40], "not the record of a run"),
    ):
        path.write_text(bad)
        with pytest.raises(UserError, match="1 of the runs failed or do not count"):
            toy("--table", "1", "--dataset", "toy", "--noise", "sym_0.2")
        out = capsys.readouterr().out
        assert "| toy      | detector | not run [1] / 50.00 |" in out and why in out
    path.write_text(good)
    settings = path.with_name("config.yaml")
    settings.write_text(settings.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(UserError, match="1 of the runs failed or do not count"):
        toy("--table", "1", "--noise", "sym_0.2")
    assert "was made with seed 1, not 0" in capsys.readouterr().out


def test_a_run_may_settle_what_was_asked_for(toy, capsys):
    method = "[\"main_phase1 PEFT --warmup -1 --templates 'a scan of {}.'\"]"
    tables = TOY.replace("detector: [main_phase1 PEFT]", f"detector: {method}").replace(
        "[detector, both]", "[detector]"
    )
    Path("config/tables.yaml").write_text(tables)
    flags = ("--table", "1", "--dataset", "toy", "--noise", "sym_0.2")
    with pytest.raises(UserError, match="of the runs failed or do not count"):
        toy(*flags)  # the toy records the flags as they are
    assert "was made with templates a scan of {}., not a scan of {}." in capsys.readouterr().out
    record = Path("out dir/toy/sym-0.2/seed0/deft/config.yaml")
    settled = record.read_text().replace("warmup: -1", "warmup: 3").replace("a scan of {}.", "['a scan of {}.']")
    record.write_text(settled)
    rows = toy(*flags)["table1"]
    assert [row["ours"] for row in rows if row["method"] == "detector"] == [52]
    record.write_text(settled.replace("seed: 0", "seed: 0.5"))
    with pytest.raises(UserError, match="of the runs failed or do not count"):
        toy(*flags)


def test_only_one_at_a_time(toy):
    with reproduce.only_one("out dir"), pytest.raises(UserError, match=f"process {os.getpid()}.*is at work in out dir"):
        toy("--table", "1")


def test_killed_and_started_again(toy, capsys):
    """Killed at any moment, with its children, the same command ends with the same table."""
    code = f"import sys; sys.path.insert(0, {str(Path(reproduce.__file__).parent)!r}); import pathlib, reproduce\n"
    code += "reproduce.HERE = pathlib.Path('.'); print('go', flush=True); reproduce.main(sys.argv[1:])"
    flags = "--table 1 --dataset toy --tables config/tables.yaml --output_dir out".split()
    for wait in (0.02, 0.15, 0.4):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *flags], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with (Path("out") / "reproduce.jsonl").open("a") as file:
        file.write('{"key": "cut sho')
    expected = {"sym_0.2": 52, "sym_0.4": 54}
    for _ in range(2):
        rows = reproduce.main(flags)["table1"]
        assert [(row["ours"], row["n"]) for row in rows] == [(expected[row["column"]], 1) for row in rows]
    assert re.search(r"reproduce.jsonl, line \d: skipped, not a whole record", capsys.readouterr().err)


def test_unknown_names():
    for flags, message in (
        (["--table", "12"], "--table: unknown name 'table12'"),
        (["--table", "1", "--profile", "digit"], "unknown name 'digit'.*Did you mean digits"),
        (["--table", "1", "--format", "html"], "unknown name 'html'"),
        ([], "--table: expected some of table1"),
        (["--table", "1", "--noise", "sym_0.2", "sym_02"], "--noise: unknown name 'sym_02'.*Did you mean sym_0.2"),
        (["--table", "1", "--dataset", "cifar_100", "cub200"], "--dataset: unknown name 'cifar_100'.*mean cifar100"),
        (["--table", "1", "--dataset", "digits"], "--dataset: unknown name 'digits'"),
        (["--table", "label_noises", "--dataset", "cifar100", "--noise", "worse_0.4"], "label_noises: no run matches"),
        (
            ["--table", "3", "--profile", "digits"],
            "table3: no run matches --profile; the data sets are cifar100n, clothing1m",
        ),
        (["--table", "1", "--seeds", "-1"], "--seeds: must be whole numbers, not -1"),
        (["--table", "1", "--jobs", "-1"], "--jobs: must be whole numbers, not -1"),
        (["--verify", "nowhere"], "no finished run"),
    ):
        with pytest.raises(UserError, match=message):
            reproduce.main(flags)


def test_run_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"run it in {re.escape(str(reproduce.HERE))}"):
        reproduce.main(["--table", "1", "--dry_run"])


@pytest.mark.parametrize(
    "place, value, message",
    [
        ("tables table1 flag_to", "last", "table1: unknown key 'flag_to'.*Did you mean flags_to"),
        ("tables table1 metrics", None, "table1: has neither metrics nor settings"),
        ("tables table1 flags_to", "lst", "flags_to: unknown name 'lst'.*Did you mean last"),
        ("tables table1 columns", None, "table1: has no columns"),
        ("tables table1 methods", None, "table1: has no methods"),
        ("tables table1 columns", ["sym"], "columns: sym must be a noise mode and its ratio, e.g. sym_0.2"),
        ("tables table1 methods", ["deft"], "methods: unknown name 'deft'"),
        ("tables table1 datasets", ["toys"], "datasets: unknown name 'toys'.*Did you mean toy"),
        ("datasets toy reel", True, "toy: unknown key 'reel'.*Did you mean real"),
        ("datasets toy yaml", None, "toy: has no yaml"),
        ("datasets toy", "toy", "datasets: toy must have the keys yaml"),
        ("profiles", {"small": {"datasets": {}}}, "small: has no backbones"),
        ("profiles", {"small": {"datasets": {}, "backbones": {"a": "b"}}}, "small: backbones must be a list"),
        ("profiles", {"small": {"datasets": {}, "backbones": [], "lacks": ["a"]}}, "small: lacks must have a reason"),
        (
            "profiles",
            {"small": {"datasets": {}, "backbones": [], "lacks": {"sym_02": ""}}},
            "unknown name 'sym_02'.*sym_0.2",
        ),
        ("methods both", ["main_phase1 PEFT --csc"], "methods: 'main_phase1 PEFT --csc': every flag needs a value"),
        ("methods", None, "has no methods"),
    ],
)
def test_mistakes_in_the_file_of_tables(toy, place, value, message):
    path = Path("config/tables.yaml")
    tables = yaml.safe_load(path.read_text())
    *above, key = place.split()
    entry = tables
    for word in above:
        entry = entry[word]
    entry |= {key: value}
    if value is None:
        del entry[key]
    path.write_text(yaml.safe_dump(tables, sort_keys=False))
    with pytest.raises(UserError, match=message):
        toy("--table", "1", "--dry_run")


# --- the tables as they are


def args_of(*flags):
    return reproduce.read_flags([*flags])


@pytest.mark.parametrize("name", [f"table{i}" for i in range(1, 12)])
def test_every_figure_of_the_paper_has_a_cell(name):
    """Reads every block of the paper's file: each figure is beside some cell, and each cell of a table has a figure."""
    table = TABLES["tables"][name]
    cells = reproduce.make_cells(table, TABLES, {}, args_of())
    metrics = table.get("metrics") or table["settings"]
    rows = compare({cell.place: ["not run"] for cell in cells}, metrics, FIGURES[name], table["paper"])
    assert all(row["paper"] is not None for row in rows)

    def leaves(block):
        return sum(map(leaves, block.values())) if isinstance(block, dict) else 1

    apart = sum(len({"timm", "momentum_in_code"} & set(b)) for b in FIGURES[name].values()) if name == "table11" else 0
    assert (
        len({(row["dataset"], row["method"], row["column"], row["metric"]) for row in rows})
        == leaves(FIGURES[name]) - apart
    )


# of the paper's file: settings, which the tests below and test_clipcleaner_training.py compare with the YAML files …
SETTINGS = "implementation_in_paper configuration_in_code hyperparameters_in_readme_commands defaults_in_code".split()
# … words on the code and on other papers, and curves without printed values
WORDS = "paper code_facts figures oddities_to_expect missing selection_in_code fm_srm_port ido dkaf noisegpt".split()


def test_paper_figures_are_the_verified_ones():
    """Reads every block of the paper's file: it is one of ours, of known settings or words, or was read second hand."""
    if not PAPER.is_file():
        pytest.skip("the paper's file is not here")
    content = yaml.safe_load(PAPER.read_text())
    tables = {name.split("_")[0]: block for name, block in content["deft"].items() if name.startswith("table")}
    assert {name: block["values"] for name, block in tables.items()} == FIGURES
    assert all(block["verified"] is True for block in tables.values())
    for paper in content.keys() - {"about"}:
        for name, block in content[paper].items():
            second_hand = isinstance(block, dict) and block.get("verified") is False
            assert second_hand != (name in [*SETTINGS, *WORDS] or name.split("_")[0] in tables), name


def test_the_yaml_files_hold_the_published_settings():
    if not PAPER.is_file():
        pytest.skip("the paper's file is not here")
    published = yaml.safe_load(PAPER.read_text())["deft"]
    code, paper = published["configuration_in_code"], published["implementation_in_paper"]
    one, two, both = code["phase1_peft"], code["phase2_fft"], code["common"]
    assert (one["lr"], one["vpt_len"], one["n_ctx"], two["lr"]) == (
        paper["phase1"]["lr"],
        paper["visual_prompt_length"],
        paper["textual_prompt_length"],
        paper["phase2"]["lr"],
    )
    for name, warmup in code["phase1_warmup"].items():
        file = {"cifar100n": "cifar100N"}.get(name, name)
        cfg = load_config(["--cfg", f"config/PEFT/{file}.yaml"])
        shared = {key: both[key] for key in ("epochs", "batch_size", "weight_decay", "momentum", "seed")}
        expected = shared | {"warmup": warmup} | {key: one[key] for key in ("lr", "vpt_len", "n_ctx")}
        expected |= {
            "backbone": paper["clip_backbone"],
            "vpt_deep": one["vpt"] == "deep",
            "lora_dim": 8,
            "adapter_dim": 8,
        }
        assert {key: getattr(cfg, key) for key in expected} == expected, file
        tuning = load_config(["--cfg", f"config/FFT/{file}.yaml"])
        expected = shared | {"lr": two["lr"], "finetune": True, "backbone": paper["clip_backbone"]}
        expected["warmup"] = code["phase2_config_warmup_used_by_gmm_and_small_loss_baselines"][name]
        if name in code["noise_ratio_field"]:
            expected["noise_ratio"] = code["noise_ratio_field"][name]
        assert {key: getattr(tuning, key) for key in expected} == expected, file


def quoted(path):
    """The figures with two decimals that the header of a YAML file gives as the paper's, in order."""
    header = " ".join(line[1:].strip() for line in Path(path).read_text().splitlines() if line.startswith("#"))
    return [float(text) for text in re.findall(r"\b\d+\.\d\d\b", header[header.index("Paper (") :])]


def test_headers_of_the_yaml_files_quote_the_same_figures():
    for name in ("cifar100", "tiny_imagenet", "stanford_cars", "cub200"):
        masks, accuracies = FIGURES["table1"][name]["deft"], FIGURES["table2"][name]
        columns = list(masks) if name != "cifar100" else [column for column in masks if column.startswith("sym")]
        assert quoted(f"config/PEFT/{name}.yaml") == [x for cell in masks.values() for x in cell.values()]
        expected = [x for method in ("deft", "ce") for c in columns for x in accuracies[method][c].values()]
        assert quoted(f"config/FFT/{name}.yaml") == expected
    for name in ("cifar100N", "clothing1m", "webvision"):
        figures = FIGURES["table3"][name.lower()]
        assert quoted(f"config/FFT/{name}.yaml") == [figures[method] for method in ("deft", "ce", "elr", "sce", "gmm")]
    assert quoted("config/PEFT/cifar100N.yaml") == list(FIGURES["table8"]["deft"].values())


def test_table_11_is_ours():
    rows = reproduce.main(["--table", "11"])["table11"]
    assert all(str(row["ours"]).lower() == str(row["paper"]).lower() for row in rows) and len(rows) == 12
    names = {"vit_b16": "vit", "resnet50": "resnet", "convnext_t": "convnext", "mae_vit_b": "mae"}
    for column, figures in FIGURES["table11"].items():
        assert BACKBONES[names[column]][0] == figures["timm"]


@pytest.mark.parametrize("profile", ["", *TABLES["profiles"]])
def test_every_command_is_one_that_its_script_takes(profile):
    known = TABLES["profiles"].get(profile, {})
    cells = [
        cell for table in TABLES["tables"].values() for cell in reproduce.make_cells(table, TABLES, known, args_of())
    ]
    steps = {step for cell in cells if cell.step for step in cell.step.chain()}
    of_a_folder = "noise_mode noise_ratio image_noise image_noise_on seed tag lnl_methods detector adaptation mask backbone noisy_samples phase2_loss"
    folders, taken = {}, set()
    for step in steps:
        flags = dict(step.flags)
        if (step.script, flags["cfg"], flags.get("lnl_methods"), *flags) not in taken:
            cfg = load_config(step.command()[1:])
            if "lnl_methods" in flags:
                METHODS[cfg.lnl_methods](cfg, 8, 2)  # which refuses a warm-up of all epochs
            taken.add((step.script, flags["cfg"], flags.get("lnl_methods"), *flags))
        # two commands of one script in one folder would refuse each other
        place = (step.script, Path(flags["cfg"]).name, *(flags.get(key) for key in of_a_folder.split()))
        assert folders.setdefault(place, step.flags) == step.flags, step


def test_profile_maps_data_and_backbones():
    digits = TABLES["profiles"]["digits"]
    cells = reproduce.make_cells(TABLES["tables"]["table1"], TABLES, digits, args_of("--noise", "sym_0.2"))
    assert [cell.place for cell in cells] == [("digits", m, "sym_0.2") for m in ("label_match", "small_loss", "deft")]
    assert not reproduce.make_cells(TABLES["tables"]["table3"], TABLES, digits, args_of())
    titles = (reproduce._title(TABLES["tables"][table], digits) for table in ("table2", "table5"))
    assert [title[-18:] for title in titles] == ["the profile's CLIP"] * 2
    # the embedded CLIP stands for ViT-B/32 as well, so that the two tables share their runs
    fifth, first = (reproduce.make_cells(TABLES["tables"][t], TABLES, digits, args_of()) for t in ("table5", "table1"))
    assert [cell.step for cell in fifth] == [cell.step for cell in first] and fifth[0].step
    by_backbone = TABLES["tables"]["table4"] | {"datasets": ["cifar100"]}
    (cell, *_) = reproduce.make_cells(by_backbone, TABLES, digits, args_of())
    assert cell.step is None and "nothing for the backbone resnet" in cell.reason
    selection = reproduce.make_cells(TABLES["tables"]["clipcleaner_selection"], TABLES, digits, args_of())
    assert {c.place[2]: c.reason for c in selection if not c.step} == {
        "asym_similar_0.4": digits["lacks"]["asym_similar_0.4"]
    }
    # of two data sets of a table that one stands for, each run counts once
    both = {"datasets": {"cifar100": "digits", "cub200": "digits"}, "backbones": []}
    assert reproduce.make_cells(TABLES["tables"]["table1"], TABLES, both, args_of()) == first


def test_profile_of_photographs():
    """Its data sets are those of the paper that the embedded CLIP knows, and both phases see the same data and CLIP."""
    photos = TABLES["profiles"]["photos"]
    cells = reproduce.make_cells(TABLES["tables"]["table2"], TABLES, photos, args_of("--noise", "sym_0.2"))
    assert {cell.place[0] for cell in cells} == {"photos_cifar100", "photos_tiny_imagenet"}
    first, second = next(cell.step for cell in cells if cell.place[1] == "deft").chain()
    assert [step.script for step in (first, second)] == ["main_phase1", "main_phase2"]
    for key, value in (("dataset", "cifar100"), ("backbone", "tiny-clip-photos"), ("data_path", "./data/cifar-100")):
        assert first.settings[key] == second.settings[key] == value
    # human labels of CIFAR-10N stand for those of CIFAR-100N, so that table 3 shares its runs with the table of all methods
    third, every = (reproduce.make_cells(TABLES["tables"][t], TABLES, photos, args_of()) for t in ("table3", "methods"))
    assert {cell.place[0] for cell in third} == {"photos_cifar10n"} and len(third) == 9
    assert {cell.step for cell in third} <= {cell.step for cell in every if cell.place[2] == "worse_0.4"}


# --- text and pictures


ROWS = compare(
    {
        ("cifar_x", "ours & co", "sym_0.2"): [{"f1": 0.9}, {"f1": 0.8}],
        ("cifar_x", "ours & co", "sym_0.4"): ["not run", "no data"],
    },
    {"F1": "f1"},
    {"cifar_x": {"ours & co": {"sym_0.2": 84.0}}},
    ["dataset", "method", "column"],
)


def test_formats():
    markdown, latex, text = (FORMATS[name]({"t": ROWS, "u": ROWS[:1]}) for name in ("markdown", "latex", "csv"))
    assert "85.00 ± 7.07 (2) / 84.00 / +1.00" in markdown and "not run [1]" in markdown
    assert "[1] not run; no data\n\n**u**: " in markdown
    assert r"cifar\_x & ours \& co & 85.00 $\pm$ 7.07 (2) / 84.00 / +1.00 & not run [1] \\" in latex
    for legend in (markdown, latex):
        assert "mean ± standard deviation (seeds) / paper / difference" in legend
    first, second, third = csv.DictReader(io.StringIO(text))  # one heading for all tables
    assert (first["table"], third["table"], first["ours"]) == ("t", "u", third["ours"])
    assert (
        float(first["ours"]) == pytest.approx(85) and second["ours"] == "" and second["missing"] == "not run; no data"
    )


def test_data_sets_with_other_columns_have_a_table_of_their_own():
    results = {(d, m, c): [{"f1": 0.5}] for d, m, c in (("a", "x", "one"), ("a", "y", "one"), ("b", "x", "two"))}
    rows = compare(results | {("c", "x", "one"): ["not run"]}, {"F1": "f1"}, None, None)
    (first, second), notes = wide(rows)
    assert first == [
        ["data set", "method", "one F1"],
        *([d, m, "50.00 (1)"] for d, m in ("ax", "ay")),
        ["c", "x", "not run"],
    ]
    assert second == [["data set", "method", "two F1"], ["b", "x", "50.00 (1)"]] and not notes
    assert FORMATS["markdown"]({"t": rows}).count("| method |") == 2
    latex = FORMATS["latex"]({"t": rows})
    assert latex.count(r"\end{tabular}") == 2 and "\\end{tabular}\n\n\\begin{tabular}" in latex  # not side by side


def test_what_is_averaged():
    """Numbers, whole ones as well; words that differ are all said."""
    seeds = [{"n": 3, "kept": 0.5, "level": "usable"}, {"n": 4, "kept": 0.7, "level": "doubtful"}]
    (missing,) = compare({("a", "b", "c"): seeds}, {"F1": "fl"}, None, None)
    assert (
        "| no figure [1] |" in FORMATS["markdown"]({"t": [missing]}) and missing["missing"] == "its summary has no fl"
    )
    (wrong,) = compare({("a", "b", "c"): [{"f1_mislabelled": 0.9}]}, {"F1": "f1_mislabelled"}, None, None)
    assert wrong["ours"] == 90  # per cent, as all fractions
    metrics = {"n": "n", "kept %": "selected", "verdict": "level"}
    count, kept, level = compare({("a", "b", "c"): [s | {"selected": s["kept"]} for s in seeds]}, metrics, None, None)
    assert (count["ours"], count["n"]) == (3.5, 2) and kept["ours"] == pytest.approx(60)
    assert (level["ours"], level["sd"], level["n"]) == ("usable, doubtful", None, 2)


def test_seeds_of_different_code_are_marked():
    old, new = {"f1": 0.8, "code": "a1", "git_commit": "c" * 40}, {"f1": 0.9, "git_commit": "b" * 40}
    one, both = (compare({("d", "m", "c"): seeds}, {"F1": "f1"}, None, None) for seeds in ([old, old], [old, new]))
    assert (one[0]["code"], both[0]["code"]) == ("a1", "a1, commit bbbbbbb")
    assert "80.00 ± 0.00 (2) |" in FORMATS["markdown"]({"t": one})
    marked = FORMATS["markdown"]({"t": both})
    assert (
        "85.00 ± 7.07 (2) [1]" in marked and "[1] the seeds were run with different code: a1, commit bbbbbbb" in marked
    )


def test_small_differences_show():
    figures = {"a": {"b": {"c": 0.001}}}
    rows = compare({("a", "b", "c"): [{"lr": 1e-4}]}, {"lr": "lr"}, figures, ["dataset", "method", "column"])
    assert "0.0001 (1) / 0.001 / -0.0009 |" in FORMATS["markdown"]({"t": rows})


def test_plots_are_of_the_last_metric_and_no_wider_than_a_page(tmp_path):
    from matplotlib.image import imread

    assert label_of("last", "acc_last") == "test accuracy (last), %" and label_of("AUROC", "auroc") == "AUROC, %"
    assert label_of("epochs", "epochs") == "epochs"
    plot(ROWS, tmp_path / "a" / "x.png", "F1, %")
    one = imread(tmp_path / "a" / "x.png")
    many = [row | {"dataset": f"{row['dataset']} {i}"} for i in range(5) for row in ROWS]
    plot(many, tmp_path / "many.png", "F1, %")
    assert imread(tmp_path / "many.png").shape[0] >= 2 * one.shape[0] and imread(tmp_path / "many.png").shape[1] < 1600


# --- repeating a run


def test_summaries_carry_a_checksum(tmp_path):
    summary = with_checksum({**SUMMARY, "acc_last": 0.1 + 0.2, "name": "ü", "per_class": (1, None)})
    write_summary(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path / "summary.json") == summary and read_summary(tmp_path / "none.json") == {}
    del summary["checksum"]
    (tmp_path / "old.json").write_text(json.dumps(summary))
    assert read_summary(tmp_path / "old.json") == summary


def test_every_run_says_where_it_is(cell, capsys):
    """What reproduce.py waits for, also where nothing is trained."""
    out, _ = cell
    summary = main_phase2.main(phase2(out, "--adaptation", "none"))
    folder = out / "digits/sym-0.4/seed0" / summary["name"]
    assert summary["acc_last"] and f"results: {folder}" in capsys.readouterr().out.splitlines()
    shutil.rmtree(folder)


def test_what_verify_repeats(tmp_path, monkeypatch):
    seen = []

    def note(words, **_):
        seen.append(words[1:])
        return subprocess.CompletedProcess(words, 1)

    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=note))
    (tmp_path / "clean_mask.npz").touch()
    for script, mask in (
        ("main_baseline", str(tmp_path / "clean_mask.npz")),
        ("main_phase2", "all"),
        ("main_clipcleaner", "runs/clean_mask.npz"),
        ("main_phase1", None),
        ("detect", None),
        (None, None),
    ):
        summary = SUMMARY | {"script": script} | ({"mask": mask} if mask else {})
        write_summary(tmp_path / "summary.json", with_checksum(summary))
        expected = "fails with the settings" if script and script != "detect" else "was made by .*no command repeats"
        with pytest.raises(UserError, match=f"--verify: .*{expected}"):
            reproduce.main(["--verify", str(tmp_path)])
    assert [(words[0], words[5:]) for words in seen] == [
        ("main_baseline.py", ["--mask", str(tmp_path / "clean_mask.npz")]),
        ("main_phase2.py", ["--mask", "all"]),
        ("main_clipcleaner.py", []),
        ("main_phase1.py", []),
    ]


def test_verify(cell, monkeypatch, capsys):
    out, summaries = cell
    assert {name: summary["script"] for name, summary in summaries.items()} == {
        "label-match": "main_detect",
        "deft": "main_phase1",
        "phase2-deft-tiny-clip-digits": "main_phase2",
        "ce-tiny-clip-digits": "main_baseline",
    }
    run = out / "digits" / "sym-0.4" / "seed0" / "label-match"

    def in_this_process(words, **_):
        import main_detect

        main_detect.main([*words[2:], *changes])
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=in_this_process))
    changes = []
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--verify", str(run)])
    assert ended.value.code == 0 and "the same again" in capsys.readouterr().out
    changes = ["--noise_ratio", "0.2"]
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--verify", str(run)])
    text = capsys.readouterr().out
    assert ended.value.code == 1 and "noise_rate: " in text and "clean_mask.npz, labels: " in text
    assert phase1(out)  # the record itself is as it was
    assert read_summary(run / "summary.json") == summaries["label-match"]


def test_verify_of_other_data(tmp_path):
    """Images that were added, arrays of another version: said, not a traceback."""
    for name, arrays in (("old", {"p": np.zeros(3), "lost": np.zeros(2)}), ("new", {"p": np.zeros(4)})):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "clean_mask.npz", **arrays)
        write_summary(tmp_path / name / "summary.json", with_checksum(SUMMARY))
    assert reproduce.differences(tmp_path / "old", tmp_path / "new") == [
        "clean_mask.npz, p: of shape (3,) before, (4,) now",
        "clean_mask.npz, lost: missing now",
    ]
    (tmp_path / "old/log.jsonl").write_text('{"epoch": 1}\n')
    (tmp_path / "new/clean_mask.npz").unlink()
    assert reproduce.differences(tmp_path / "old", tmp_path / "new") == [
        "log.jsonl: 1 epochs before, 0 now",
        "clean_mask.npz: missing now",
    ]
    for name in ("old", "new"):
        (tmp_path / name / "clean_mask.npz").write_bytes(b"PK cut short")
    with pytest.raises(UserError, match="old/clean_mask.npz: not a mask file"):
        reproduce.differences(tmp_path / "old", tmp_path / "new")


def test_verify_of_a_verdict(tmp_path):
    """Its level is a result, the words that explain it are not."""
    for name, level in (("old", "usable"), ("reworded", "usable"), ("worse", "doubtful")):
        summary = SUMMARY | {"verdict": {"level": level, "why": name}}
        summary |= {} if name == "old" else {"class_names": ["a"]}  # an older version had none
        write_summary(tmp_path / name / "summary.json", with_checksum(summary))
    assert reproduce.differences(tmp_path / "old", tmp_path / "reworded") == []
    assert reproduce.differences(tmp_path / "old", tmp_path / "worse") == ["verdict: usable before, doubtful now"]


def test_verify_takes_the_threads_of_the_run_and_says_what_else_it_was_made_with(tmp_path, monkeypatch):
    """Sums over other numbers of threads differ in their last digits."""
    made = {"script": "main_phase1", "threads": 3, "versions": {"torch": "1"}, "f1": 0.5}
    write_summary(tmp_path / "run" / "summary.json", with_checksum(SUMMARY | made))
    now = {"threads": 3, "versions": {"torch": "2"}}

    def again(words, env, **_):
        assert env["OMP_NUM_THREADS"] == "3"
        out = Path(words[words.index("--output_dir") + 1])
        write_summary(out / "x" / "summary.json", with_checksum(SUMMARY | made | now))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=again))
    assert reproduce.verify(tmp_path / "run") == []
    now["f1"] = 0.4
    assert reproduce.verify(tmp_path / "run") == [
        "f1: 0.5 before, 0.4 now",
        "made with other versions: {'torch': '1'} before, {'torch': '2'} now",
    ]


def test_verify_of_a_renamed_folder(tmp_path, monkeypatch, capsys):
    write_summary(tmp_path / "kept" / "summary.json", with_checksum(SUMMARY | {"script": "main_phase1"}))

    def again(words, **_):
        out = Path(words[words.index("--output_dir") + 1])
        write_summary(
            out / "toy" / "none" / "seed0" / "x" / "summary.json", with_checksum(SUMMARY | {"script": "main_phase1"})
        )
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=again))
    assert reproduce.verify(tmp_path / "kept") == []
