"""Whole runs through the scripts' main(), on the digits with the embedded CLIP."""
import csv
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import main_baseline
import main_detect
import main_phase1
import main_phase2
import main_real_baseline
import main_real_phase1
import main_real_phase2
import main_small_loss
from dataloader.datasets import load_data
from tests.test_data import write_cifar, write_folder
from utils import report, tables
from utils.checkpoint import load_mask, write_whole
from utils.config import DEFAULTS, UserError, load_config
from utils.selection import precision_recall

CELL = ["--noise_mode", "sym", "--noise_ratio", "0.4"]
FAST = ["--test_fraction", "0.8", "--epochs", "2", "--device", "cpu"]  # 359 training images


def phase1(out, *flags):
    return ["--cfg", "config/PEFT/digits.yaml", *CELL, *FAST, "--output_dir", str(out), *flags]


def phase2(out, *flags):
    return ["--cfg", "config/FFT/digits.yaml", *CELL, *FAST, "--output_dir", str(out), *flags]


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """One finished cell: label-match, phase 1, phase 2, CE."""
    out = tmp_path_factory.mktemp("runs")
    return out, {"label-match": main_detect.main(phase1(out)), "deft": main_phase1.main(phase1(out)),
                 "phase2-deft-tiny-clip-digits": main_phase2.main(phase2(out)),
                 "ce-tiny-clip-digits": main_baseline.main(phase2(out))}


def test_a_run_leaves_its_record(cell):
    out, summaries = cell
    root = out / "digits" / "sym-0.4" / "seed0"
    assert {p.name for p in root.iterdir()} == set(summaries)
    data = load_data(load_config(phase1(out)))
    for name, summary in summaries.items():
        folder = root / name
        files = {p.name for p in folder.iterdir()}
        trained = {"log.jsonl", "checkpoint.pt"} if name != "label-match" else set()
        mask = {"clean_mask.npz"} if name in ("deft", "label-match") else set()
        assert files == {"config.yaml", "summary.json"} | trained | mask
        assert json.loads((folder / "summary.json").read_text()) == summary
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config.keys() == yaml.safe_load(DEFAULTS.read_text()).keys() and config["noise_ratio"] == 0.4
        assert summary["noise_rate"] == np.mean(data.train.labels != data.true_labels)
        assert summary["num_train"] == 359 and summary["versions"]["torch"] == torch.__version__
        if trained:
            lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
            assert [line["epoch"] for line in lines] == [1, 2]
            accs = [line["acc_test"] for line in lines]
            assert (summary["acc_last"], summary["acc_best"]) == (accs[-1], max(accs))
            per_class = np.array(summary["acc_per_class"])
            sizes = np.bincount(data.test.labels)
            assert (per_class * sizes).sum() / sizes.sum() == pytest.approx(summary["acc_last"], abs=1e-3)
            assert summary["images_per_second"] > 0 and summary["seconds"] > 0 and summary["device"].startswith("cpu")


def test_the_mask_holds_what_it_was_made_for(cell):
    out, summaries = cell
    data = load_data(load_config(phase1(out)))
    for name in ("deft", "label-match"):
        with np.load(out / "digits/sym-0.4/seed0" / name / "clean_mask.npz", allow_pickle=False) as file:
            mask = dict(file)
        assert np.array_equal(mask["labels"], data.train.labels) and mask["mask"].shape == (359,)
        assert (str(mask["dataset"]), str(mask["noise"]), int(mask["seed"])) == ("digits", "sym-0.4", 0)
        quality = precision_recall(mask["mask"], data.true_labels == data.train.labels)
        assert {k: summaries[name][k] for k in quality} == quality
    assert quality["precision"] > 0.9  # label-match; 64 % of the labels are right
    assert np.array_equal(mask["predicted"] == mask["labels"], mask["mask"])  # label-match
    with np.load(out / "digits/sym-0.4/seed0/deft/clean_mask.npz") as file:
        assert np.array_equal(file["p_clean"] > 0.5, file["mask"])


def test_started_again_a_finished_run_prints_its_summary(cell, capsys):
    out, summaries = cell
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert main_phase1.main(phase1(out, "--num_workers", "1")) == summaries["deft"]
    assert "finished before" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="lr: the run .*deft was made with 0.03, not 0.02.*--tag"):
        main_phase1.main(phase1(out, "--lr", "0.02"))


def test_other_data_under_the_same_settings_are_refused(tmp_path):
    flags = ["--dataset", "imagefolder", "--backbone", "tiny-clip-digits", "--output_dir", str(tmp_path / "runs"),
             "--device", "cpu", "--data_path"]
    for name, counts in (("a", {"x": 6, "y": 6}), ("b", {"x": 6, "z": 6})):
        write_folder(tmp_path / name, counts)
    first = main_detect.main([*flags, str(tmp_path / "a")])
    (tmp_path / "a").rename(tmp_path / "moved")
    assert main_detect.main([*flags, str(tmp_path / "moved")]) == first  # the same images elsewhere
    with pytest.raises(UserError, match="data_path: the run .* was made with other images"):
        main_detect.main([*flags, str(tmp_path / "b")])


def test_another_mask_is_not_the_same_run(cell, tmp_path):
    for n in (3, 4):
        np.save(tmp_path / "m.npy", np.arange(359) % n == 0)
        flags = phase2(tmp_path, "--mask", str(tmp_path / "m.npy"), "--epochs", "1")
        if n == 3:
            main_phase2.main(flags)
    with pytest.raises(UserError, match="mask: the run .* was made with other mask"):
        main_phase2.main(flags)


def test_settings_that_would_do_nothing_are_refused(cell, tmp_path):
    with pytest.raises(UserError, match="partial: is 9, but tiny-clip-digits has 4 blocks"):
        main_phase1.main(phase1(tmp_path, "--partial", "9"))
    out, _ = cell
    with pytest.raises(UserError, match="lora: works with CLIP backbones only"):
        main_phase2.main(phase2(out, "--backbone", "timm:test_vit", "--pretrained", "none", "--lora"))


def test_tag_makes_another_run_and_phase_2_takes_its_mask(cell):
    out, _ = cell
    main_phase1.main(phase1(out, "--lr", "0.02", "--epochs", "1", "--tag", "slow"))
    summary = main_phase2.main(phase2(out, "--mask", "deft-slow", "--epochs", "1"))
    assert summary["mask"].endswith("deft-slow/clean_mask.npz") and summary["name"].startswith("phase2-deft-slow-")


def test_tables_and_report(cell, capsys):
    out, summaries = cell
    tables.main([str(out)])
    printed = capsys.readouterr().out
    for name, summary in summaries.items():
        row = next(line for line in printed.splitlines() if f"| {name} " in line)
        assert f"{summary['acc_last']:.2f}" in row and f"{100 * summary['noise_rate']:.1f}" in row
    twice = tables.make_table([{**summaries["deft"], "f1": f} for f in (0.9, 0.94)])
    assert "92.00 ± 2.83" in twice[1]
    folder = out / "digits/sym-0.4/seed0/deft"
    report.main([str(folder)])
    assert (folder / "suspects.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "suspects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 359 - round(359 * summaries["deft"]["selected"])
    scores = [float(row["label_score"]) for row in rows]
    assert scores == sorted(scores) and rows[0]["rank"] == "1" and rows[0]["true_label"] in "zero one two three four five six seven eight nine"
    for name in ("suspects.png", "suspects.csv"):
        (folder / name).unlink()
    p_clean, mask = np.array([0.4, 0.9, 0.1, 0.2]), np.array([False, True, False, False])
    assert report.suspects(p_clean, mask).tolist() == [2, 3, 0]


# --- masks

def test_masks_that_do_not_fit_are_refused(cell, tmp_path):
    out, _ = cell
    labels = load_data(load_config(phase1(out))).train.labels
    ours = out / "digits/sym-0.4/seed0/deft/clean_mask.npz"
    assert load_mask(ours, labels, "digits", "sym-0.4", 0).dtype == bool
    for args, message in [((labels, "digits", "sym-0.4", 1), "made for seed 0, this run has 1"),
                          ((labels, "cifar10", "sym-0.4", 0), "made for dataset digits, this run has cifar10"),
                          ((labels, "digits", "sym-0.2", 0), "made for noise sym-0.4, this run has sym-0.2"),
                          ((labels[1:], "digits", "sym-0.4", 0), "made for 359 samples, this run has 358"),
                          (((labels + 1) % 10, "digits", "sym-0.4", 0), "other labels; 359 of 359 differ")]:
        with pytest.raises(UserError, match=f"clean_mask.npz: .*{message}"):
            load_mask(ours, *args)
    np.save(tmp_path / "none.npy", np.zeros(359, dtype=bool))
    with pytest.raises(UserError, match="none.npy: selects no sample"):
        main_phase2.main(phase2(out, "--mask", str(tmp_path / "none.npy")))
    with pytest.raises(UserError, match="mask: no clean mask at .*Masks there: .*Did you mean deft"):
        main_phase2.main(phase2(out, "--mask", "defd"))
    with pytest.raises(UserError, match="mask: there is no file .*nowhere.pt"):
        main_phase2.main(phase2(out, "--mask", "nowhere.pt"))


def test_the_official_mask_file(cell, tmp_path):
    """A numpy bool array pickled by torch.save, as numpy 1 and numpy 2 name their parts; nothing else is unpickled."""
    out, _ = cell
    labels = load_data(load_config(phase1(out))).train.labels
    mask = labels % 2 == 0
    torch.save(mask, tmp_path / "sym0.4.pt")
    assert np.array_equal(load_mask(tmp_path / "sym0.4.pt", labels, "digits", "sym-0.4", 0), mask)
    summary = main_phase2.main(phase2(out, "--mask", str(tmp_path / "sym0.4.pt"), "--epochs", "1"))
    assert summary["selected"] == mask.mean() and summary["name"] == "phase2-sym0.4-tiny-clip-digits"

    class Evil:
        def __reduce__(self):
            return (print, ("owned",))
    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(UserError, match="evil.pt: not a mask file"):
        load_mask(tmp_path / "evil.pt", labels, "digits", "sym-0.4", 0)
    (tmp_path / "evil.npy").write_bytes(b"\x93NUMPY\x01\x00" + pickle.dumps(Evil()))
    with pytest.raises(UserError, match="evil.npy: not a mask file"):
        load_mask(tmp_path / "evil.npy", labels, "digits", "sym-0.4", 0)


# --- stop and go on

def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Killed(BaseException):
    pass


@pytest.mark.parametrize("script, flags", [(main_phase1, phase1), (main_phase2, phase2)])
@pytest.mark.parametrize("moment", ["before the checkpoint", "between checkpoint and log", "in the next epoch"])
def test_killed_and_resumed_ends_the_same(cell, tmp_path, monkeypatch, script, flags, moment):
    """Interrupted after epoch 1 of 2 at three moments: the same mask and the same weights, bit for bit."""
    out, _ = cell
    whole = out / "digits/sym-0.4/seed0" / ("deft" if script is main_phase1 else "phase2-deft-tiny-clip-digits")
    mask = [] if script is main_phase1 else ["--mask", str(out / "digits/sym-0.4/seed0/deft/clean_mask.npz")]
    from utils import runs
    with monkeypatch.context() as patch:
        if moment == "between checkpoint and log":
            patch.setattr(runs.Run, "_write_log", lambda self: (_ for _ in ()).throw(Killed()))
        elif moment == "before the checkpoint":
            patch.setattr(torch, "save", lambda value, file: (file.write(b"half"), (_ for _ in ()).throw(Killed())))
        else:
            real, calls = script.evaluate_all, []
            patch.setattr(script, "evaluate_all", lambda *a, **k: calls.append(1) or real(*a, **k) if not calls
                          else (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            script.main(flags(tmp_path, *mask))
    folder = next((tmp_path / "digits/sym-0.4/seed0").iterdir())
    assert not list(folder.glob(".*"))  # no half-written file
    assert (folder / "checkpoint.pt").exists() == (moment != "before the checkpoint")
    script.main(flags(tmp_path, *mask))
    a, b = checkpoint(whole), checkpoint(folder)
    assert same(a["model"], b["model"]) and same(a["optimizer"], b["optimizer"])
    if script is main_phase1:
        assert (whole / "clean_mask.npz").read_bytes() == (folder / "clean_mask.npz").read_bytes()
    assert len((folder / "log.jsonl").read_text().splitlines()) == 2


def test_a_process_killed_with_signal_9_goes_on(cell, tmp_path):
    flags = phase1(tmp_path, "--epochs", "6")
    process = subprocess.Popen([sys.executable, "main_phase1.py", *flags], stdout=subprocess.DEVNULL)
    log = tmp_path / "digits/sym-0.4/seed0/deft/log.jsonl"
    deadline = time.time() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 2):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (log.parent / "summary.json").exists()
    main_phase1.main(flags)
    other = tmp_path / "whole"
    main_phase1.main(phase1(other, "--epochs", "6"))
    whole = other / "digits/sym-0.4/seed0/deft"
    assert same(checkpoint(log.parent)["model"], checkpoint(whole)["model"])
    assert (log.parent / "clean_mask.npz").read_bytes() == (whole / "clean_mask.npz").read_bytes()


def test_files_are_whole_or_not_there(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError):
        with write_whole(tmp_path / "a") as file:
            file.write(b"new")
            1 / 0
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_nothing_is_written_by_a_run_that_cannot_start(tmp_path):
    for flags in (["--backbone", "ViT-B/17"], ["--resolution", "224"], ["--n_ctx", "80"], ["--device", "cuda:9"]):
        with pytest.raises(UserError):
            main_phase1.main(phase1(tmp_path / "runs", *flags))
    assert not (tmp_path / "runs").exists()


def test_a_damaged_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="checkpoint.pt: not a checkpoint of this run"):
        main_phase1.main(phase1(tmp_path, "--epochs", "1"))
        folder = tmp_path / "digits/sym-0.4/seed0/deft"
        (folder / "summary.json").unlink()
        (folder / "checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes()[:1000])
        main_phase1.main(phase1(tmp_path, "--epochs", "1"))


# --- other data, other settings

def test_real_world_scripts_on_a_folder(tmp_path):
    write_folder(tmp_path / "data", {"zero": 30, "one": 30, "two": 30})
    flags = ["--dataset", "imagefolder", "--data_path", str(tmp_path / "data"), "--backbone", "tiny-clip-digits",
             "--n_ctx", "4", "--output_dir", str(tmp_path / "runs"), "--device", "cpu"]
    summary = main_real_phase1.main([*flags, "--vpt_deep", "--vpt_len", "2", "--epochs", "2", "--warmup", "1"])
    assert "precision" not in summary and "noise_rate" not in summary  # nobody knows the truth
    config = yaml.safe_load((tmp_path / "runs/imagefolder/none/seed0/deft/config.yaml").read_text())
    assert {k: config[k] for k in ("require_agreement", "warmup_loss", "pseudo_from", "schedule", "warmup")} == {
        "require_agreement": True, "warmup_loss": "sce", "pseudo_from": 2, "schedule": "constant", "warmup": 1}
    if summary["selected"] == 0:  # a mask that selects nothing cannot train anything
        with pytest.raises(UserError, match="selects no sample"):
            main_real_phase2.main([*flags, "--finetune", "--lr", "0.001"])
    else:
        summary = main_real_phase2.main([*flags, "--finetune", "--lr", "0.001"])
        assert summary["epochs"] == 5
        lines = (tmp_path / "runs/imagefolder/none/seed0/phase2-deft-tiny-clip-digits/log.jsonl").read_text()
        assert {json.loads(line)["lr"] for line in lines.splitlines()} == {0.001}


def test_untrained_vit_b16_takes_a_step_through_both_scripts(tmp_path):
    """The real architecture, through the real scripts, on four CIFAR-100 images."""
    write_cifar(tmp_path / "data", "cifar100", n_train=4, n_test=2)
    flags = ["--data_path", str(tmp_path / "data"), "--pretrained", "none", "--epochs", "1", "--device", "cpu",
             "--output_dir", str(tmp_path / "runs"), *CELL]
    summary = main_phase1.main(["--cfg", "config/PEFT/cifar100.yaml", *flags])
    saved = checkpoint(tmp_path / "runs/cifar100/sym-0.4/seed0/deft")["model"]
    assert summary["backbone"] == "ViT-B/16" and len(saved) == 2 + 12
    assert saved["prompts.pos_ctx"].shape == (16, 512)
    assert saved["clip.visual.transformer.resblocks.11.prompts"].shape == (20, 768)
    np.save(tmp_path / "mask.npy", np.array([True, True, False, True]))
    summary = main_phase2.main(["--cfg", "config/FFT/cifar100.yaml", *flags, "--mask", str(tmp_path / "mask.npy")])
    saved = checkpoint(tmp_path / "runs/cifar100/sym-0.4/seed0/phase2-mask-ViT-B-16")["model"]
    assert saved["head.weight"].shape == (100, 768)
    assert {k.split(".")[0] for k in saved} == {"head", "backbone"} and len(saved) == 2 + 12 * 12


def test_nan_stops_the_run_and_nothing_of_it_is_kept(tmp_path):
    with pytest.raises(UserError, match=r"epoch 1/2, batch \d+ of 6: the loss is (nan|inf)"):
        main_phase1.main(phase1(tmp_path, "--lr", "1e30"))
    assert not list(tmp_path.rglob("checkpoint.pt"))


@pytest.mark.parametrize("script, method", [(main_baseline, "SCE"), (main_baseline, "GCE"), (main_baseline, "ELR"),
                                            (main_baseline, "GMM"), (main_small_loss, "small-loss"), (main_real_baseline, "GMM")])
def test_baselines_leave_the_same_record(cell, tmp_path, script, method):
    flags = [] if script is main_small_loss else ["--lnl_methods", method]
    summary = script.main(phase2(tmp_path, *flags))
    folder = tmp_path / "digits/sym-0.4/seed0" / f"{method.lower()}-tiny-clip-digits"
    assert json.loads((folder / "summary.json").read_text()) == summary and summary["epochs"] == 2
    lrs = {json.loads(line)["lr"] for line in (folder / "log.jsonl").read_text().splitlines()}
    assert len(lrs) == (1 if script is main_real_baseline else 2)
    if method in ("GMM", "small-loss"):  # detectors too: their mask trains phase 2
        assert 0 < summary["selected"] < 1 and summary["precision"] > 1 - summary["noise_rate"]
        again = main_phase2.main(phase2(tmp_path, "--mask", folder.name, "--epochs", "1"))
        assert again["selected"] == summary["selected"]


def test_elr_targets_survive_a_stop(tmp_path, monkeypatch):
    flags = ["--lnl_methods", "ELR"]
    main_baseline.main(phase2(tmp_path / "whole", *flags))
    real, calls = main_phase2.evaluate_all, []
    with monkeypatch.context() as patch:
        patch.setattr(main_phase2, "evaluate_all", lambda *a, **k: calls.append(1) or real(*a, **k) if not calls
                      else (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            main_baseline.main(phase2(tmp_path / "cut", *flags))
    main_baseline.main(phase2(tmp_path / "cut", *flags))
    a, b = (checkpoint(tmp_path / d / "digits/sym-0.4/seed0/elr-tiny-clip-digits") for d in ("whole", "cut"))
    assert a["method"]["target"].abs().sum() > 0 and same(a["method"], b["method"]) and same(a["model"], b["model"])


@pytest.mark.parametrize("flags, parameter", [
    (["--finetune", "false", "--vpt_deep", "--vpt_len", "2"], "backbone.transformer.resblocks.3.prompts"),
    (["--finetune", "false", "--lora", "--ssf"], "backbone.transformer.resblocks.0.attn.parametrizations.in_proj_weight.1.q_A"),
    (["--is_coop", "--n_ctx", "4", "--csc"], "detector.prompts.pos_ctx")])
def test_peft_and_text_classifier_as_adaptation(cell, tmp_path, flags, parameter):
    out, _ = cell
    mask = str(out / "digits/sym-0.4/seed0/deft/clean_mask.npz")
    main_phase2.main(phase2(tmp_path, "--mask", mask, "--epochs", "1", *flags))
    saved = checkpoint(tmp_path / "digits/sym-0.4/seed0/phase2-deft-tiny-clip-digits")["model"]
    assert parameter in saved and "detector.prompts.neg_ctx" not in saved


def test_timm_backbones(cell, tmp_path):
    out, _ = cell
    mask = ["--mask", str(out / "digits/sym-0.4/seed0/deft/clean_mask.npz"), "--epochs", "1", "--pretrained", "none"]
    summary = main_phase2.main(phase2(tmp_path, *mask, "--backbone", "timm:test_vit"))
    assert summary["name"] == "phase2-deft-timm-test_vit"
    with pytest.raises(UserError, match="timm knows no model 'test_vitt'. Did you mean test_vit"):
        main_phase2.main(phase2(tmp_path, *mask, "--backbone", "timm:test_vitt"))
    (tmp_path / "mae.yaml").write_text("backbone: mae\nlr: 0.5\n")
    cfg = load_config(["--cfg", str(tmp_path / "mae.yaml")])
    assert (cfg.lr, cfg.optimizer, cfg.weight_decay) == (0.5, "adamw", 1e-3)  # what the file says itself stays
    for name, (optimizer, lr, weight_decay) in {"vit": ("sgd", 1e-2, 1e-5), "resnet": ("adamw", 1e-3, 1e-5),
                                                "convnext": ("adamw", 1e-4, 1e-4), "mae": ("adamw", 1e-4, 1e-3)}.items():
        cfg = load_config(phase2(tmp_path, "--backbone", name))
        assert (cfg.optimizer, cfg.lr, cfg.weight_decay) == (optimizer, lr, weight_decay)
    assert load_config(phase2(tmp_path, "--backbone", "vit", "--lr", "0.5")).lr == 0.5


def test_gpuid_without_cuda_falls_back_and_says_so(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    flags = [f for f in phase1(tmp_path, "--epochs", "1") if f not in ("--device", "cpu")]
    main_phase1.main([*flags, "--gpuid", "0"])
    assert "gpuid 0: no CUDA here, running on the CPU" in capsys.readouterr().out
    with pytest.raises(UserError, match="device: cuda cannot be used here"):
        main_phase1.main([*flags, "--device", "cuda", "--tag", "x"])


def test_official_yaml_runs_with_small_data(tmp_path):
    """The keys of an official YAML, with data path, backbone and epochs changed."""
    write_cifar(tmp_path / "data", "cifar100", n_train=128, n_test=20)
    names = [n.replace("_", " ") for n in Path("config/classnames/cifar100.txt").read_text().split("\n")[:100]]
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump({
        "dataset": "cifar100", "data_path": str(tmp_path / "data"), "num_class": 100, "model": "clip",
        "backbone": "tiny-clip-digits", "seed": 0, "gpuid": 0, "num_workers": 8, "epochs": 1, "warmup": 1,
        "batch_size": 64, "lr": 0.03, "weight_decay": "5e-4", "momentum": 0.9, "lnl_methods": "CE", "vpt_deep": True,
        "vpt_len": 20, "N_CTX": 16, "CLASS_TOKEN_POSITION": "end", "class_names": names}))
    summary = main_phase1.main(["--cfg", str(tmp_path / "cfg.yaml"), *CELL, "--output_dir", str(tmp_path / "runs")])
    assert summary["num_classes"] == 100 and summary["noise_rate"] == pytest.approx(0.4, abs=0.06)
