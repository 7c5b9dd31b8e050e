"""Runs on a person's own images: what tells one data set from another, and whole runs without a test split."""

import csv
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main_detect
import main_real_phase1
import main_real_phase2
from dataloader.dataset import hold_out
from dataloader.files import inspect_files
from dataloader.load import load_data
from dataloader.loaders import Loader
from dataloader.transforms import Pixels
from methods.masks import load_mask
from report import tables
from report.suspects import read_run
from tests.helpers import (
    LABEL_MATCH,
    NO_TEST,
    SIX,
    load_own,
    own_flags,
    write_digits,
    write_folder,
    write_messy_table,
    write_table,
)
from utils.config import load_config, settle_epochs
from utils.errors import UserError


def test_seeds_of_one_data_set_share_its_identity_and_other_data_have_another(tmp_path):
    write_folder(tmp_path / "data", {"a": 10, "b": 10})
    first, second = (load_own(tmp_path / "data", "--seed", seed) for seed in "01")
    assert first.source == second.source and first.fingerprint != second.fingerprint  # others are held out
    assert (
        first.source
        == load_own(tmp_path / "data", *NO_TEST).source
        == load_own(tmp_path / "data", "--name", "x").source
    )
    assert (first.name, load_own(tmp_path / "data", "--name", "my photos").place) == ("own-data", "own-my-photos/none")
    noisy = load_own(tmp_path / "data", "--noise_mode", "sym", "--noise_ratio", "0.5")
    assert noisy.source == first.source and noisy.identity["labels"] != first.identity["labels"]
    moved = tmp_path / "data" / "a" / "0003.png"
    moved.rename(tmp_path / "data" / "b" / "0003.png")  # another label of the same image
    assert load_own(tmp_path / "data").source != first.source
    (tmp_path / "data" / "b" / "0003.png").rename(moved)
    assert load_own(tmp_path / "data").source == first.source
    digits = [load_data(load_config(["--seed", seed])) for seed in "01"]
    assert digits[0].source == digits[1].source and digits[0].fingerprint != digits[1].fingerprint


def test_tables_keep_data_sets_apart(tmp_path, capsys):
    """Two of one name, two of two names, and two seeds of one."""
    out, counts = tmp_path / "runs", {"a": 5, "b": 6}
    for place, seed in (("x/photos", 0), ("x/photos", 1), ("y/photos", 2), ("z/pets", 0)):
        if not (tmp_path / place).exists():
            write_folder(tmp_path / place, counts)
            counts["b"] += 1
        main_detect.main([*LABEL_MATCH, *own_flags(tmp_path / place, out, "--seed", str(seed))])
    capsys.readouterr()
    tables.main([str(out)])
    *lines, note = capsys.readouterr().out.splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:6]] for line in lines]
    assert sorted(row[4] for row in rows if row[0].startswith("own-photos (")) == ["1", "2"]
    assert ["own-pets", "none", "label-match *", "not usable", "1"] in rows and len(rows) == 3 and note[0] == "*"


def test_an_image_that_changed_under_its_name_is_another(tmp_path):
    """Same name, same size: a finished run says which, and takes it for no run of these data."""
    for i, name in enumerate("abcdef"):
        (tmp_path / f"{name}.ppm").parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * i, 0, 9)).save(tmp_path / f"{name}.ppm")
    path = write_table(tmp_path, SIX.replace(".png", ".ppm"), images="")
    run = ["--cfg", "config/PEFT/own.yaml", *own_flags(path, tmp_path / "runs")]
    summary = main_detect.main(run)
    assert main_detect.main(run) == summary
    size = (tmp_path / "c.ppm").stat().st_size
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "c.ppm")
    assert (tmp_path / "c.ppm").stat().st_size == size
    with pytest.raises(
        UserError,
        match=r"used other images \(1 changed: c.ppm\). To keep it, use --tag .* now, or --name NAME for other data",
    ):
        main_detect.main(run)
    Image.new("RGB", (8, 8), (80, 0, 9)).save(tmp_path / "c.ppm")  # as it was
    assert main_detect.main(run) == summary
    path.write_text(path.read_text() + "g.ppm,x\n")
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "g.ppm")
    with pytest.raises(UserError, match=r"other images \(1 new: g.ppm\)"):
        main_detect.main(run)
    assert main_detect.main([*run, "--name", "second"])["dataset"] == "own-second"


def test_what_a_finished_run_rests_on_has_changed(tmp_path):
    """The same images and numbers of labels, but other class names or another truth: never the figures from before."""
    text = "path,label,true_label,split\n" + "".join(
        f"{name}.png,{label},{label},{split}\n"
        for name, label, split in zip("abcdef", "xxxyyy", ["train", "train", "test"] * 2)
    )
    path, names = write_table(tmp_path, text), tmp_path / "names.txt"
    names.write_text("zero\none\n")
    run = ["--cfg", "config/PEFT/own.yaml", *own_flags(path, tmp_path / "runs", "--classnames", str(names))]
    summary = main_detect.main(run)
    assert main_detect.main(run) == summary
    names.write_text("zero\ntwo\n")
    with pytest.raises(UserError, match="used other class names. To keep it"):
        main_detect.main(run)
    names.write_text("zero\none\n")
    path.write_text(text.replace("y,", "z,"))  # the labels' own names, in the same order
    with pytest.raises(UserError, match="used other class names"):
        main_detect.main(run)
    path.write_text(text.replace("c.png,x,x", "c.png,x,y"))
    with pytest.raises(UserError, match="used other test labels"):
        main_detect.main(run)
    path.write_text(text.replace("a.png,x,x", "a.png,x,y"))
    with pytest.raises(UserError, match="used other true labels"):
        main_detect.main(run)
    path.write_text(text.replace(",true_label", ",").replace("y,y,", "y,,").replace("x,x,", "x,,"))
    assert main_detect.main(run) == summary  # without a truth there is nothing to compare
    path.write_text(text)
    (record,) = tmp_path.rglob("summary.json")
    older = json.loads(record.read_text())
    older["identity"] = {key: older["identity"][key] for key in ("images", "labels")}
    del older["checksum"], older["version"]
    record.write_text(json.dumps(older))
    assert main_detect.main(run) == older  # of a version that recorded no more


def test_every_label_is_judged_and_the_mask_fits_those_that_are_trained_on(tmp_path, capsys):
    write_folder(tmp_path / "data", {"a": 10, "b": 10})
    run = own_flags(tmp_path / "data", tmp_path / "runs")
    summary = main_detect.main([*LABEL_MATCH, *run])
    assert (summary["num_train"], summary["num_test"], summary["all_judged"]) == (20, 4, True)
    assert "judging all 20 labels" in (printed := capsys.readouterr().out) and "not judged" not in printed
    folder = tmp_path / "runs/own-data/none/seed0/label-match"
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert [Path(row["path"]).name for row in rows] == [f"{i:04d}.png" for i in range(20)]  # where they stood
    data = load_own(tmp_path / "data")
    assert {row["path"].rpartition("/")[2] for row in rows if row["split"] == "test"} == {
        Path(p).name for p in data.test.images
    }
    _, arrays, judged, _ = read_run(folder)
    assert [judged.path(i) for i in np.flatnonzero(arrays["held_out"])] == [
        r["path"] for r in rows if r["split"] == "test"
    ]
    with np.load(folder / "clean_mask.npz") as file:
        by_name = dict(zip([Path(row["path"]).name for row in rows], file["mask"]))
    mask = load_mask(folder / "clean_mask.npz", data, 0)
    assert len(mask) == 16 and mask.tolist() == [by_name[Path(p).name] for p in data.train.images]

    trained = main_real_phase1.main(
        ["--cfg", "config/PEFT/own.yaml", *run, "--n_ctx", "2", "--vpt_len", "1", "--epochs", "1"]
    )
    assert trained["num_train"] == 16 and trained["held_out"] == 4
    assert "not judged: the labels of the 4 images held out for testing; --score test" in capsys.readouterr().out
    Image.new("RGB", (8, 8)).save(data.train.images[3])
    data = load_own(tmp_path / "data", *NO_TEST)
    mask = load_mask(folder / "clean_mask.npz", data, 0)
    assert not mask[4] and len(mask) == 20
    assert (
        "made before a change of 1 of the 20 training images, which are not trained on unless you decided about them: a/0004.png"
        in capsys.readouterr().out
    )


def test_the_check_is_made_once(tmp_path, monkeypatch):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for i, path in enumerate(paths):
        Image.new("L", (4 + i, 4)).save(path)
    first = inspect_files(paths, tmp_path / "cache.json")
    assert first[0][0] != first[0][1] and first[1] == ["", ""]
    with monkeypatch.context() as patch:
        patch.setattr("dataloader.files.inspect_file", lambda path: 1 / 0)
        assert inspect_files(paths, tmp_path / "cache.json") == first
    there, before = paths[0].read_bytes(), paths[0].stat()
    paths[0].write_bytes(b"spoilt".ljust(len(there)))
    os.utime(paths[0], ns=(before.st_atime_ns, before.st_mtime_ns))  # as cp -p and rsync do
    assert inspect_files(paths, tmp_path / "cache.json")[1] == ["not an image", ""]
    with monkeypatch.context() as patch:  # a network drive that fails, and is there again
        (tmp_path / "c.png").write_bytes(paths[1].read_bytes())
        patch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        assert inspect_files([tmp_path / "c.png"], tmp_path / "cache.json")[1] == ["Input/output error"]
    assert inspect_files([tmp_path / "c.png"], tmp_path / "cache.json")[1] == [""]
    entry = json.loads((tmp_path / "cache.json").read_text())[str(tmp_path / "c.png")]
    older = {str(tmp_path / "c.png"): [*entry[:2], "", "Input/output error"]}  # of a version that kept failures
    (tmp_path / "cache.json").write_text(json.dumps(older))
    assert inspect_files([tmp_path / "c.png"], tmp_path / "cache.json")[1] == [""]
    (tmp_path / "cache.json").write_text('{"x": 3')
    assert inspect_files(paths, tmp_path / "cache.json")[1] == ["not an image", ""]


def test_a_file_that_breaks_later_is_named(tmp_path):
    path = write_table(tmp_path, SIX)
    data = load_own(path, *NO_TEST)
    (tmp_path / "b.png").write_bytes(b"x")
    with pytest.raises(UserError, match="b.png: not a readable image"):
        list(Loader(data.train, data.view, Pixels(28, (0.5,) * 3, (0.5,) * 3), 4, torch.device("cpu"), False).eval())


def test_a_mask_is_good_for_data_with_one_more_class(tmp_path, capsys):
    """Which sorts first, so that every class has another number; labels are compared by name."""
    root = write_digits(tmp_path / "data", 0.2, every=9)[0]
    flags = own_flags(root, tmp_path / "runs", *NO_TEST)
    main_detect.main([*LABEL_MATCH, *flags])
    (run,) = (path.parent for path in tmp_path.rglob("clean_mask.npz"))
    before = load_data(load_config(["--dataset", "own", *flags]))
    mask = dict(zip(before.train.images, load_mask(run / "clean_mask.npz", before, 0)))
    write_folder(root, {"aardvark": 3})
    after = load_data(load_config(["--dataset", "own", *flags]))
    assert after.label_names == ["aardvark", *before.label_names]
    found = load_mask(run / "clean_mask.npz", after, 0)
    assert dict(zip(after.train.images, found)) == mask | {p: False for p in after.train.images if "aardvark" in p}
    capsys.readouterr()
    summary = main_real_phase2.main(
        ["--cfg", "config/FFT/own.yaml", *flags, "--mask", "label-match", "--epochs", "1", "--device", "cpu"]
    )
    assert summary["num_classes"] == 11 and "the model will not know aardvark" in capsys.readouterr().out


def test_hold_out_leaves_small_classes_in_training():
    labels = np.repeat(np.arange(4), [1, 3, 5, 20])
    train, test = hold_out(labels, 0.2, 0)
    assert (
        Counter(labels[test].tolist()) == {2: 1, 3: 4} and not set(train) & set(test) and len(train) + len(test) == 29
    )
    assert len(hold_out(labels, 0, 0)[1]) == 0 and len(hold_out(labels[:3], 0.2, 0)[1]) == 0


@pytest.mark.parametrize(
    "n, batch_size, epochs, warmup", [(100, 64, 100, 50), (1437, 64, 66, 7), (1437, 16, 17, 2), (50_000, 64, 10, 1)]
)
def test_small_sets_get_more_epochs(n, batch_size, epochs, warmup):
    cfg = load_config(["--epochs", "0", "--warmup", "-1", "--batch_size", str(batch_size)])
    settle_epochs(cfg, n)
    assert (cfg.epochs, cfg.warmup) == (epochs, warmup)
    given = load_config(["--epochs", "3", "--warmup", "2"])
    settle_epochs(given, n)
    assert (given.epochs, given.warmup) == (3, 2)


def test_without_a_test_split_everything_runs(tmp_path, monkeypatch, capsys):
    path, out = write_messy_table(tmp_path, monkeypatch), tmp_path / "runs"
    first = main_detect.main([*LABEL_MATCH, *own_flags(path, out, *NO_TEST)])
    real = [
        "--cfg",
        "config/PEFT/own.yaml",
        *own_flags(path, out, *NO_TEST, "--n_ctx", "2", "--vpt_len", "1", "--epochs", "1"),
    ]
    second = main_real_phase1.main(real)
    mask = tmp_path / "mask.npy"
    np.save(mask, np.ones(8, dtype=bool))
    third = main_real_phase2.main(
        ["--cfg", "config/FFT/own.yaml", *own_flags(path, out, *NO_TEST, "--epochs", "1"), "--mask", str(mask)]
    )
    for summary in (first, second, third):
        assert summary["num_test"] == 0 and summary.get("acc_last") is None and summary["skipped"] == 5
        folder = out / f"own-{tmp_path.name}-labels/none/seed0" / summary["name"]
        with (folder / "skipped.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        assert rows[0] == ["path", "reason"] and ["gone.png", "missing"] in rows and len(rows) == 6
        with (folder / "duplicates.csv").open(newline="") as file:
            paths = {row["path"] for row in csv.DictReader(file)}
        assert paths and all((tmp_path / path).is_file() and not path.startswith("/") for path in paths)
    tables.main([str(out)])
    assert "| label-match" in capsys.readouterr().out
    with pytest.raises(UserError, match="score: this data set has no test split"):
        main_real_phase1.main([*real, "--score", "test"])


def test_hundreds_of_classes(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for k in range(300):
        (tmp_path / "data" / f"class{k:04d}").mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
            tmp_path / "data" / f"class{k:04d}" / "0.png"
        )
    summary = main_detect.main([*LABEL_MATCH, *own_flags(tmp_path / "data", tmp_path / "runs")])
    assert summary["num_classes"] == 300 and summary["num_test"] == 0
    assert "… (300 in all)" in capsys.readouterr().out


def test_an_output_folder_that_cannot_be_written_to(tmp_path):
    path = write_table(tmp_path, SIX)
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file.*: cannot be written"):
            main_detect.main([*LABEL_MATCH, *own_flags(path, out)])
        with pytest.raises(UserError, match="output_dir: .*file.* is not writable"):
            main_detect.main(["--cfg", "config/PEFT/digits.yaml", "--output_dir", str(out)])


def test_data_that_nobody_would_read(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="digits reads no files, but data_path is .*own.yaml"):
        main_detect.main(["--data_path", str(tmp_path), "--backbone", "tiny-clip-digits"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--data_path names your folder"):
        load_data(load_config(["--dataset", "own"]))
