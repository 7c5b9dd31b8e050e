"""Tables of the paper by one command: figures beside the paper's, nothing run twice, kills and changes noticed."""

import csv
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

import main_phase2
import reproduce
from report import ledger
from tests.helpers import SUMMARY, phase2
from utils.errors import UserError
from utils.files import EMBEDDED
from utils.summaries import read_summary, with_checksum, write_summary

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
    assert (first["ours"], first["n"]) == (
        52,
        1,
    ) and "seed1/deft: was made with other images, labels or class names" in first["missing"]
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


@pytest.mark.parametrize(
    "setting, file",
    [
        ("noise_file: T.csv", "T.csv"),
        ("backbone: mine", "mine/weights"),
        ("backbone: embedded", "embedded/weights"),
        ("seed: 0", "classnames/toy.txt"),  # that of the data set, which no setting names
    ],
)
def test_the_content_of_a_file_that_a_setting_names_counts(toy, setting, file, monkeypatch):
    monkeypatch.setitem(EMBEDDED, "embedded", Path("embedded"))
    monkeypatch.setattr(ledger, "CLASSNAMES", Path("classnames"))
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
    settings.write_text(settings.read_text().replace("seed: 1", "seed: 0\nlr: 0.001"))  # 0.1 in the YAML file
    with pytest.raises(UserError, match="1 of the runs failed or do not count"):
        toy("--table", "1", "--noise", "sym_0.2")
    assert "was made with lr 0.001, not 0.1" in capsys.readouterr().out
    settings.write_text(settings.read_text().replace("lr: 0.001", "lr: 0.1"))
    toy("--table", "1", "--noise", "sym_0.2")
    write_summary(path, with_checksum(read_summary(path) | {"decisions": 2}))
    with pytest.raises(UserError, match="1 of the runs failed or do not count"):
        toy("--table", "1", "--noise", "sym_0.2")
    assert "was trained on labels that a person decided about" in capsys.readouterr().out


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
    for wait in (0.02, 0.3):
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
        (["--table", "1", "--seeds", "-1"], "--seeds: expected a whole number, not '-1'"),
        (["--table", "1", "--jobs", "-1"], "--jobs: expected a whole number, not '-1'"),
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


def test_every_run_says_where_it_is(cell, capsys):
    """What reproduce.py waits for, also where nothing is trained."""
    out, _ = cell
    summary = main_phase2.main(phase2(out, "--adaptation", "none"))
    folder = out / "digits/sym-0.4/seed0" / summary["name"]
    assert summary["acc_last"] and f"results: {folder}" in capsys.readouterr().out.splitlines()
    shutil.rmtree(folder)
