"""The record of whole runs through the scripts' main(), on the digits with the embedded CLIP, and their masks."""

import importlib.metadata
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import main_detect
import main_phase1
import main_phase2
from dataloader.files import pixel_digests
from dataloader.load import load_data
from methods.deft import train_detector
from methods.fine_tuning import milestones_of
from methods.masks import find_mask, load_mask, mask_name, positions
from methods.selection import precision_recall
from model.classifier import build_classifier, build_optimizer
from model.clip import load_clip
from model.tuners import tune
from report import tables
from report.record import say_if_worse
from tests.helpers import (
    CELL,
    SUMMARY,
    detection,
    phase1,
    phase2,
    write_folder,
)
from utils import runs, version
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.config import known_keys, load_config
from utils.device import pick_device, precision
from utils.errors import UserError
from utils.files import EMBEDDED, write_text
from utils.runs import Run, in_time, in_words, own_files, show
from utils.summaries import REQUIRED, code_of, read_summary, with_checksum, write_summary


def test_a_run_leaves_its_record(cell):
    out, summaries = cell
    root = out / "digits" / "sym-0.4" / "seed0"
    assert {p.name for p in root.iterdir()} == set(summaries)
    data = load_data(load_config(phase1(out)))
    for name, summary in summaries.items():
        folder = root / name
        files = {p.name for p in folder.iterdir()}
        trained = {"log.jsonl", "checkpoint.pt"} if name != "label-match" else set()
        made = {"clean_mask.npz", "suspects.csv", "scores.csv"}
        if name not in ("deft", "label-match"):
            made = {"model.json", "model.safetensors"}
        assert files == {"config.yaml", "summary.json"} | trained | made
        assert json.loads((folder / "summary.json").read_text()) == summary
        config = yaml.safe_load((folder / "config.yaml").read_text())
        script = {"label-match": "main_detect", "deft": "main_phase1"}.get(name, "main_baseline")
        script = "main_phase2" if name.startswith("phase2") else script
        assert config.keys() == {key for key, k in known_keys().items() if k.read_by(script)}
        assert config["noise_ratio"] == 0.4 and config["prec"] == summary["prec"] != "auto"
        assert summary["noise_rate"] == pytest.approx(np.mean(data.train.labels != data.true_labels))
        assert f'version = "{summary["version"]}"' in Path("pyproject.toml").read_text().splitlines()
        assert summary["num_train"] == 359 and summary["versions"]["torch"] == importlib.metadata.version("torch")
        if trained:
            lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
            assert [line["epoch"] for line in lines] == [1, 2]
            accs = [line["acc_test"] for line in lines]
            assert (summary["acc_last"], summary["acc_best"]) == (accs[-1], max(accs))
            per_class = np.array(summary["acc_per_class"])
            sizes = np.bincount(data.test.labels)
            assert (per_class * sizes).sum() / sizes.sum() == pytest.approx(summary["acc_last"], abs=1e-3)
            assert summary["images_per_second"] > 0 and summary["seconds"] > 0 and summary["device"].startswith("cpu")


@pytest.mark.skipif(precision(torch.device("cpu"), "auto") != "bf16", reason="bf16 without hardware takes minutes")
def test_bf16_finds_the_same_labels(tmp_path):
    flags = ["--cfg", "config/PEFT/digits.yaml", *CELL, "--device", "cpu", "--epochs", "2", "--test_fraction", "0.6"]
    flags += ["--lr", "0.03", "--warmup", "1"]
    found = []
    for prec in ("fp32", "bf16"):
        assert main_phase1.main([*flags, "--prec", prec, "--output_dir", str(tmp_path / prec)])["prec"] == prec
        found.append(np.load(tmp_path / prec / "digits/sym-0.4/seed0/deft/clean_mask.npz"))
    # of few images after few epochs; chance is near a half
    assert np.mean(found[0]["mask"] == found[1]["mask"]) >= 0.93
    assert 1e-4 < np.abs(found[0]["p_clean"] - found[1]["p_clean"]).mean() < 0.06


def test_the_precision_of_a_run_is_settled_once(tmp_path, monkeypatch, capsys):
    """What `auto` was when a run began is kept where it is resumed on another device; a new run looks again."""
    flags = ["--output_dir", str(tmp_path), "--device", "cpu", "--epochs", "3"]
    run = Run(load_config(flags), "d/none", "deft", {})
    began = precision(torch.device("cpu"), "auto")
    assert run.cfg.prec == began
    run._write_settings()
    del run
    other = {"fp32": "bf16", "bf16": "fp32"}[began]
    monkeypatch.setattr(runs, "precision", lambda device, prec: other)
    assert Run(load_config(flags), "d/none", "deft", {}).cfg.prec == began
    assert f"prec: {began}, as this run began; a new run on this device would use {other}" in capsys.readouterr().out
    assert Run(load_config(flags), "d/none", "another", {}).cfg.prec == other
    with pytest.raises(UserError, match=f"prec: the run .* used '{began}', not '{other}'"):
        Run(load_config([*flags, "--prec", other]), "d/none", "deft", {})


def test_momentum_is_never_uninitialised(tmp_path):
    """A fused step that is skipped, since scaled gradients overflow, would leave it so; the next steps are as usual.

    The checkpoint is of a run that began on a CPU, where steps are not fused.
    """
    cfg, plain = (
        load_config(["--lr", "0.5", "--momentum", "0.5", "--weight_decay", "0"]),
        torch.nn.Linear(1, 1, bias=False),
    )
    save_checkpoint(tmp_path / "x.pt", plain, build_optimizer(plain, cfg), history="[]", identity={})
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.5, 0.5, fused=True)
    load_checkpoint(tmp_path / "x.pt", model, optimizer)
    assert torch.equal(optimizer.state[model.weight]["momentum_buffer"], torch.zeros(1, 1))
    scaler, weights = torch.amp.GradScaler("cpu", init_scale=2.0**100), []
    for factor in (1e30, 1.0, 1.0):
        optimizer.zero_grad()
        scaler.scale(factor * model.weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        weights.append(model.weight.item() - plain.weight.item())
    assert weights == pytest.approx([0, -0.5, -1.25])


def test_adamw_has_the_settings_of_a_run():
    cfg = load_config(["--optimizer", "adamw", "--lr", "0.5", "--weight_decay", "0.25"])
    model = torch.nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    optimizer = build_optimizer(model, cfg)
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.AdamW and (group["lr"], group["weight_decay"]) == (0.5, 0.25)
    assert group["params"] == [model.weight]


def test_the_time_to_go(tmp_path, monkeypatch, capsys):
    """After an epoch: as long as it took, for each that is left; nothing after the last."""
    now = [100.0]
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    run = Run(load_config(["--output_dir", str(tmp_path), "--device", "cpu", "--epochs", "3"]), "d/none", "deft", {})
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    first, _ = run.resume(model, optimizer)
    for epoch, seconds in zip((first, 2, 3), (70.0, 31.5, 31.5)):
        now[0] += seconds
        run.end_epoch({"epoch": epoch, "seconds": 1.0}, model, optimizer)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("; ")[2] for line in lines] == ["about 2 min 20 s to go", "about 32 s to go", ""]
    assert [in_time(s) for s in (0.2, 61, 3599.5, 5000)] == ["1 s", "1 min 1 s", "1 h 0 min", "1 h 23 min"]


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
    assert "already finished" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="lr: the run .*deft used 0.03, not 0.02.*--tag"):
        main_phase1.main(phase1(out, "--lr", "0.02"))


def test_other_data_under_the_same_settings_are_refused(tmp_path):
    flags = [
        "--dataset",
        "own",
        "--name",
        "photos",  # else a folder that was renamed is another data set
        "--backbone",
        "tiny-clip-digits",
        "--output_dir",
        str(tmp_path / "runs"),
        "--device",
        "cpu",
        "--name",
        "letters",
        "--data_path",
    ]
    for name, counts in (("a", {"x": 6, "y": 6}), ("b", {"x": 6, "z": 6})):
        write_folder(tmp_path / name, counts)
    first = main_detect.main([*flags, str(tmp_path / "a")])
    (tmp_path / "a").rename(tmp_path / "moved")
    assert main_detect.main([*flags, str(tmp_path / "moved")]) == first  # the same images elsewhere
    with pytest.raises(UserError, match="data_path: the run .* used other images"):
        main_detect.main([*flags, str(tmp_path / "b")])
    for path in (tmp_path / "runs" / "cache").glob("images-*.json"):  # older versions did not list the images
        path.unlink()
    with pytest.raises(UserError, match="used other images, or was made by an older version"):
        main_detect.main([*flags, str(tmp_path / "b")])


def test_another_mask_is_not_the_same_run(cell, tmp_path):
    for n in (3, 4):
        np.save(tmp_path / "m.npy", np.arange(359) % n == 0)
        flags = phase2(tmp_path, "--mask", str(tmp_path / "m.npy"), "--epochs", "1")
        if n == 3:
            main_phase2.main(flags)
    with pytest.raises(UserError, match="mask: the run .* used another mask, or was made before other decisions. To"):
        main_phase2.main(flags)


def test_settings_that_would_do_nothing_are_refused():
    with pytest.raises(UserError, match="partial: is 9, but tiny-clip-digits has 4 blocks"):
        tune(load_clip("tiny-clip-digits")[0].visual, load_config(phase1("", "--partial", "9")))
    with pytest.raises(UserError, match="schedule: steps is for phase 2 and baselines"):
        train_detector(load_config(phase1("", "--schedule", "steps")), None, None)
    with pytest.raises(UserError, match="schedule: steps needs milestones"):
        milestones_of(load_config(phase2("", "--schedule", "steps")))
    with pytest.raises(UserError, match="lora: works with CLIP backbones only"):
        flags = ["--backbone", "timm:test_vit", "--pretrained", "none", "--lora"]
        build_classifier(load_config(phase2("", *flags)), SimpleNamespace(num_classes=10))


def test_tag_makes_another_run_and_phase_2_takes_its_mask(cell, tmp_path, capsys):
    out = shutil.copytree(cell[0], tmp_path / "runs")
    main_phase1.main(phase1(out, "--lr", "0.02", "--epochs", "1", "--tag", "slow"))
    assert "warmup: 1 leaves none of the epochs (1) to train" in capsys.readouterr().out
    summary = main_phase2.main(phase2(out, "--mask", "deft-slow", "--epochs", "1"))
    assert summary["mask"].endswith("deft-slow/clean_mask.npz") and summary["name"].startswith("phase2-deft-slow-")


def test_tables(cell, capsys):
    out, summaries = cell
    tables.main([str(out)])
    printed = capsys.readouterr().out
    for name, summary in summaries.items():
        row = next(line for line in printed.splitlines() if f"| {name} " in line)
        assert f"{summary['acc_last']:.2f}" in row and f"{100 * summary['noise_rate']:.1f}" in row
    twice = tables.make_table([{**summaries["deft"], "f1": f} for f in (0.9, 0.94)])
    assert "92.00 ± 2.83" in twice[1]
    # runs of other data under one name are no seeds of each other
    deft = summaries["deft"]
    apart = tables.make_table([{**deft, "f1": f, "source": x} for f, x in ((0.9, "a1"), (0.94, "a1"), (0.5, "b2"))])
    assert [row[0] for row in apart[1:]] == ["digits (a1)", "digits (b2)"] and "92.00 ± 2.83" in apart[1]
    assert "50.00" in apart[2] and [row[4] for row in apart[1:]] == ["2", "1"]
    # data that differ by their noise, as mini-ImageNet's levels, need no other name
    levels = tables.make_table([{**deft, "noise": x, "source": x} for x in ("red-0.2", "red-0.4")])
    assert [row[:2] for row in levels[1:]] == [["digits", "red-0.2"], ["digits", "red-0.4"]]
    both = tables.make_table([deft, {**deft, "name": "knn", "all_judged": True}])
    assert [row[2] for row in both[1:]] == ["deft", "knn *"]
    updated = tables.make_table([{**deft, "code": c} for c in "aab"])
    assert updated[1][4] == "3 (different code)"


def test_the_code_of_a_run(tmp_path, monkeypatch):
    """It is known by the content of the files that results depend on, whatever git says of them."""
    monkeypatch.setattr(version, "HERE", tmp_path)
    found = []
    for name in ("main_a.py", "model/a.py", "model/deep/b.py", "docs/a.md", "tests/a.py", "model/a.txt", "model/.a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n")
        found.append(version.code_hash())
    assert len(set(found)) == 3 and len(set(found[2:])) == 1
    (tmp_path / "model" / "a.py").write_text("2\n")
    changed = version.code_hash()
    assert changed not in found
    (tmp_path / "model" / "a.py").write_bytes(b"2\r\n")  # as a checkout on Windows has it
    (tmp_path / "model" / "c.py").symlink_to("nowhere")
    assert version.code_hash() == changed
    assert (
        code_of({"code": changed, "git_commit": "a" * 40}) == changed
        and code_of({"git_commit": "a" * 40}) == "commit aaaaaaa"
    )


def test_runs_of_other_settings_are_no_seeds(tmp_path):
    """Neither are two runs of one seed, in two folders; keys that a run of an older version lacks have their default."""
    for out, seed, settings in (
        ("a", 0, "epochs: 10\nseed: 0\ndevice: cpu"),
        ("a", 1, "seed: 1\ndevice: cuda"),
        ("a", 2, "epochs: 20\nseed: 2"),
        ("b", 2, "epochs: 20\nseed: 2"),
    ):
        folder = tmp_path / out / f"toy/none/seed{seed}/x"
        write_text(folder / "config.yaml", settings)
        write_summary(folder / "summary.json", with_checksum(SUMMARY | {"seed": seed, "acc_last": 10.0 * seed}))
    rows = tables.make_table(tables.read_summaries([tmp_path]))
    last = rows[0].index("last acc.")
    found = {row[2]: (row[4], row[last]) for row in rows[1:]}
    assert found == {
        "x (epochs 10)": ("2", "5.00 ± 7.07"),
        f"x (epochs 20 in {tmp_path / 'a'})": ("1", "20.00"),
        f"x (epochs 20 in {tmp_path / 'b'})": ("1", "20.00"),
    }


def test_masks_of_detectors_with_other_settings_are_no_seeds(tmp_path):
    for seed, lr in ((0, 0.03), (1, 0.001), (2, 0.001)):
        detector, run = (tmp_path / f"toy/none/seed{seed}/{name}" for name in ("deft", "x"))
        write_text(detector / "config.yaml", f"lr: {lr}\nseed: {seed}")
        write_text(run / "config.yaml", f"lr: 0.1\nseed: {seed}")
        summary = SUMMARY | {"seed": seed, "acc_last": 10.0, "mask": str(detector / "clean_mask.npz")}
        write_summary(run / "summary.json", with_checksum(summary))
    rows = tables.make_table(tables.read_summaries([tmp_path]))
    expected = {"x (mask's lr 0.03)": "1", "x (mask's lr 0.001)": "2"}
    assert {row[2]: row[4] for row in rows[1:]} == expected
    (tmp_path / "toy").rename(tmp_path / "moved")  # the detectors beside the runs count, wherever these lie
    rows = tables.make_table(tables.read_summaries([tmp_path]))
    assert {row[2]: row[4] for row in rows[1:]} == expected
    shutil.rmtree(tmp_path / "moved/none/seed2/deft")
    rows = tables.make_table(tables.read_summaries([tmp_path]))
    assert {row[2]: row[4] for row in rows[1:]} == {
        "x (mask's settings known, mask's lr 0.03)": "1",
        "x (mask's settings known, mask's lr 0.001)": "1",
        "x (mask's settings not found)": "1",
    }


def test_runs_on_decisions_of_a_person_are_no_seeds_of_others(tmp_path):
    for seed, decisions in ((0, {"decisions": 3}), (1, {}), (2, {})):
        folder = tmp_path / f"toy/none/seed{seed}/x"
        write_text(folder / "config.yaml", f"seed: {seed}")
        write_summary(folder / "summary.json", with_checksum(SUMMARY | {"seed": seed, "acc_last": 10.0} | decisions))
    rows = tables.make_table(tables.read_summaries([tmp_path]))
    assert {row[2]: row[4] for row in rows[1:]} == {
        "x (a person's decisions followed)": "1",
        "x (a person's decisions none)": "2",
    }


def test_the_screen_speaks_in_words():
    line = {
        "epoch": 1,
        "loss": 1.23456,
        "selected": 0.5342,
        "precision": 1.0,
        "acc_test": 75.47,
        "lr": 0.03,
        "seconds": 7.0,
    }
    expected = (
        "loss 1.235, 53.4 % of the labels kept, 100.0 % of the kept labels are right, test accuracy 75.47 %, 7.0 s"
    )
    assert in_words(line) == expected
    assert in_words({"acc_test": 50.0, "acc_imagenet": 40.0}) == "test accuracy 50.00 %, accuracy on imagenet 40.00 %"
    summary = {"acc_last": 75.0, "acc_best": 76.5, "acc_imagenet_last": 40.0, "noise_rate": 0.4, "auroc": None}
    assert in_words(summary).startswith(
        "40.0 % of the labels are wrong, test accuracy 75.00 % after the last epoch, 76.50 % after the best"
    )


def test_a_run_without_training_prints_its_test_accuracy_once(capsys):
    show({"acc_last": 75.0, "acc_best": 75.0, "selected": 0.5})
    assert capsys.readouterr().out == "50.0 % of the labels kept, test accuracy 75.00 %\n"
    show(
        {"acc_last": 75.0, "acc_best": 75.0, "selected": 0.5, "script": "main_detect"}
    )  # the texts', not the detector's
    assert capsys.readouterr().out == "50.0 % of the labels kept, zero-shot test accuracy 75.00 %\n"
    show({"acc_last": 75.0, "acc_best": 75.0, "epochs": 1})
    assert "75.00 % after the last epoch, 75.00 % after the best" in capsys.readouterr().out


def test_equal_names_are_found_in_their_order():
    names, wanted = np.array([7, 3, 7, 9], dtype=np.uint64), np.array([9, 7, 7, 7, 4], dtype=np.uint64)
    assert positions(names, wanted).tolist() == [3, 0, 2, -1, -1]


# --- masks


def test_masks_that_do_not_fit_are_refused(cell, tmp_path, capsys):
    out, _ = cell
    data = load_data(load_config(phase1(out)))
    ours, train = out / "digits/sym-0.4/seed0/deft/clean_mask.npz", data.train
    whole = load_mask(ours, data, 0)
    assert whole.dtype == bool and len(whole) == 359
    # each image by what it is: some of them, in another order
    some = np.random.default_rng(0).permutation(359)[:100]
    assert np.array_equal(load_mask(ours, replace(data, train=train.take(some)), 0), whole[some])
    other = train.take(np.arange(359))
    other.images = other.images.copy()
    five = np.flatnonzero(whole)[5]
    other.images[five], other.digests = 0, None
    other.digests = pixel_digests(other.images)
    assert np.array_equal(load_mask(ours, replace(data, train=other), 0), whole & (np.arange(359) != five))
    assert (
        f"made without 1 of the 359 training images, which are not trained on unless you decided about them: number {five}\n"
        in capsys.readouterr().out
    )
    other.digests = [digest if i > 300 else f"{i:016x}" + "0" * 16 for i, digest in enumerate(other.digests)]
    for here, seed, message in [
        (data, 1, "made for seed 0, this run has 1"),
        (replace(data, name="cifar10"), 0, "made for dataset digits, this run has cifar10"),
        (replace(data, noise_name="sym-0.2"), 0, "made for noise sym-0.4, this run has sym-0.2"),
        (replace(data, train=other), 0, "made without 301 of the 359 training images: number 0, "),
        (replace(data, train=replace(train, labels=(train.labels + 1) % 10)), 0, "other labels; 359 of 359 differ"),
    ]:
        with pytest.raises(UserError, match=f"clean_mask.npz: .*{message}"):
            load_mask(ours, here, seed)
    np.save(tmp_path / "short.npy", whole[1:])
    with pytest.raises(UserError, match="short.npy: made for 358 samples, this run has 359"):
        load_mask(tmp_path / "short.npy", data, 0)
    np.save(tmp_path / "none.npy", np.zeros(359, dtype=bool))
    with pytest.raises(UserError, match="none.npy: selects no sample"):
        main_phase2.main(phase2(out, "--mask", str(tmp_path / "none.npy")))
    begun = tmp_path / "begun" / "aum-ViT-B-16"
    begun.mkdir(parents=True)
    (begun / "checkpoint.pt").touch()
    with pytest.raises(UserError, match="mask: the run .*aum-ViT-B-16 is not finished; the command that began it"):
        find_mask("aum-ViT-B-16", begun.parent)
    with pytest.raises(UserError, match="mask: no clean mask at .*Masks there: .*Did you mean deft"):
        main_phase2.main(phase2(out, "--mask", "defd"))
    with pytest.raises(UserError, match="mask: no such file: .*nowhere.pt"):
        main_phase2.main(phase2(out, "--mask", "nowhere.pt"))


def test_a_mask_is_found_by_detector_folder_or_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seed, now = Path("runs/own-photos/none/seed0"), Path("runs/own-renamed/none/seed0")
    (seed / "auto-lr-0.1").mkdir(parents=True)
    path = seed / "auto-lr-0.1" / "clean_mask.npz"
    path.touch()
    for mask, of in (
        ("auto-lr-0.1", seed),
        (str(path.parent), now),
        (str(path.parent.absolute()), now),
        (str(path), now),
    ):
        assert find_mask(mask, of).samefile(path) and mask_name(mask) == "auto-lr-0.1"
    with pytest.raises(UserError, match="If your images had another name when it ran, give that: --name photos"):
        find_mask("auto-lr-0.1", now)


def test_the_official_mask_file(cell, tmp_path):
    """A numpy bool array pickled by torch.save, as numpy 1 and numpy 2 name their parts; nothing else is unpickled."""
    out, _ = cell
    data = load_data(load_config(phase1(out)))
    mask = data.train.labels % 2 == 0
    torch.save(mask, tmp_path / "sym0.4.pt")
    assert np.array_equal(load_mask(tmp_path / "sym0.4.pt", data, 0), mask)
    given = phase2(out, "--mask", str(tmp_path / "sym0.4.pt"), "--epochs", "1")
    with pytest.raises(UserError, match="official mask is of labels that the official code drew; --noise_rng official"):
        main_phase2.main(given)
    summary = main_phase2.main([*given, "--noise_rng", "official"])
    assert summary["selected"] == mask.mean() and summary["name"] == "phase2-sym0.4-tiny-clip-digits"

    class Evil:
        def __reduce__(self):
            return (print, ("owned",))

    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(UserError, match="evil.pt: not a mask file"):
        load_mask(tmp_path / "evil.pt", data, 0)
    (tmp_path / "evil.npy").write_bytes(b"\x93NUMPY\x01\x00" + pickle.dumps(Evil()))
    with pytest.raises(UserError, match="evil.npy: not a mask file"):
        load_mask(tmp_path / "evil.npy", data, 0)
    np.savez(tmp_path / "old.npz", mask=mask, labels=data.train.labels)  # without the names of the images
    with pytest.raises(
        UserError, match="old.npz: not a mask file of this version .*an older version's detector must run"
    ):
        load_mask(tmp_path / "old.npz", data, 0)


def test_nothing_is_written_by_a_run_that_cannot_start(tmp_path):
    for flag, value, message in (
        ("--backbone", "ViT-B/17", "there is no CLIP named 'ViT-B/17'"),
        ("--resolution", "224", "resolution: is 224, but tiny-clip-digits takes images of 32 pixels"),
        ("--n_ctx", "80", "n_ctx: 80 context vectors and the class name '.*' do not fit"),
        ("--device", "cuda:9", "device: cuda:9 is not available"),
    ):
        with pytest.raises(UserError, match=message):
            main_phase1.main(phase1(tmp_path / "runs", flag, value))
    assert {p.parent.name for p in (tmp_path / "runs").rglob("*") if p.is_file()} <= {"locks"}


def test_gpuid_without_cuda_falls_back_and_says_so(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert pick_device(load_config(["--gpuid", "0"])).type == "cpu"
    assert "gpuid 0: CUDA is not available, running on the CPU" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        patch.setattr("utils.device.world_size", lambda: 2)
        for device, message in (("cuda", "cuda:0 is not available"), ("cuda:1", "cuda:1 is one GPU for 2 processes")):
            with pytest.raises(UserError, match=f"device: {message}"):
                pick_device(load_config(["--device", device]))
        assert pick_device(load_config(["--device", "auto"])).type == "cpu"
    with pytest.raises(UserError, match="device: cuda is not available"):
        pick_device(load_config(["--device", "cuda"]))


def test_other_weights_under_the_same_path(tmp_path):
    """A finished run does not answer for them, nor are seeds of both averaged."""
    folder, flags = tmp_path / "clip", detection(tmp_path / "runs", "--detector", "label-match")
    shutil.copytree(EMBEDDED["tiny-clip-digits"], folder)
    flags += ["--backbone", str(folder)]
    found = main_detect.main(flags)
    (folder / "README.md").write_text("Mine.")
    (folder / ".DS_Store").touch()
    assert main_detect.main(flags)["f1"] == found["f1"]
    path = folder / "open_clip_model.safetensors"
    weights = load_file(path)
    weights["visual.proj"] = -weights["visual.proj"]
    save_file(weights, path)
    with pytest.raises(UserError, match="backbone: the run .* used other weights. To keep it, use --tag"):
        main_detect.main(flags)
    main_detect.main([*flags, "--seed", "1"])
    rows = tables.make_table(tables.read_summaries([tmp_path / "runs"]))[1:]
    assert [row[4] for row in rows] == ["1", "1"] and all("label-match (weights " in row[2] for row in rows)


def test_weight_files_in_the_identity_of_a_run(tmp_path):
    """FILE and TAG=FILE, whatever is in its name; what is no file has none."""
    (tmp_path / "lr=0.1.pt").write_bytes(b"weights")
    flags = ["--output_dir", str(tmp_path), "--device", "cpu", "--pretrained"]

    def weights(pretrained):
        return Run(load_config([*flags, pretrained]), "d/none", "deft", {}).identity.get("weights")

    path = str(tmp_path / "lr=0.1.pt")
    assert weights(path) and weights(path) == weights(f"openai={path}")
    assert not any(map(weights, ("", "none", "openai", "openai=nowhere.pt")))


def test_phase2_says_if_the_detector_predicts_better(tmp_path, capsys):
    same = {"images": "a", "test labels": "b"}
    before = {key: kind() for key, kind in REQUIRED.items()}
    before |= {"script": "main_detect", "identity": same, "acc_last": 42.0}
    write_summary(tmp_path / "summary.json", with_checksum(before))
    for accuracy, path in ((43.0, True), (13.0, False)):
        say_if_worse({"identity": same, "acc_last": accuracy}, tmp_path / "clean_mask.npz" if path else None, True)
    say_if_worse({"identity": same}, tmp_path / "clean_mask.npz", True)  # without test images
    assert not capsys.readouterr().out
    say_if_worse({"identity": same, "acc_last": 13.0}, tmp_path / "clean_mask.npz", True)
    said = capsys.readouterr().out
    assert "worse than zero-shot CLIP" in said and "13.00 % of the test images right, 42.00 % there" in said
    assert "or training the head alone" in said
    say_if_worse({"identity": {**same, "images": "c"}, "acc_last": 13.0}, tmp_path / "clean_mask.npz", True)
    assert "42.00 % there, of other test images. " in capsys.readouterr().out
    for script, saved in (("main_phase1", True), ("main_baseline", False), (None, False)):  # None: an older version's
        before["script"] = script
        write_summary(tmp_path / "summary.json", with_checksum({k: v for k, v in before.items() if v is not None}))
        say_if_worse({"identity": same, "acc_last": 13.0}, tmp_path / "clean_mask.npz", False)
        said = capsys.readouterr().out
        assert "training the head" not in said  # that is what was done
        assert "worse than the detector's own classifier" in said and ("--adaptation none" in said) == saved


def test_summaries_carry_a_checksum(tmp_path):
    summary = with_checksum({**SUMMARY, "acc_last": 0.1 + 0.2, "name": "ü", "per_class": (1, None)})
    write_summary(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path / "summary.json") == summary and read_summary(tmp_path / "none.json") == {}
    del summary["checksum"]
    (tmp_path / "old.json").write_text(json.dumps(summary))
    assert read_summary(tmp_path / "old.json") == summary


def test_the_weights_of_an_embedded_clip_are_those_of_its_files(tmp_path, monkeypatch):
    folder = shutil.copytree(EMBEDDED["tiny-clip-digits"], tmp_path / "clip")
    monkeypatch.setitem(EMBEDDED, "clip", folder)
    cfg = load_config(["--backbone", "clip"])
    before = own_files(cfg)["weights"]
    (folder / "README.md").write_text("Mine.")
    assert own_files(cfg)["weights"] == before
    with (folder / "open_clip_model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert own_files(cfg)["weights"] != before
