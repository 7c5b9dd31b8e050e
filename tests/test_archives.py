"""Data sets of other libraries: read as own images, known by their keys, and what is exported read back by them."""

import csv
import io
import json
import os
import re
import shutil
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import main_detect
from dataloader.archives import opened
from dataloader.files import below
from dataloader.load import load_data
from dataloader.notebook import from_dataset, in_memory
from main_detect import detect
from report import export, page
from tests.helpers import DIGITS, write_digits, write_folder
from utils.config import load_config
from utils.errors import UserError

TINY = ["--cfg", "config/PEFT/own.yaml", "--backbone", "tiny-clip-digits", "--device", "cpu"]


def load(source, *flags, out=None):
    out = str((out or source.parent) / "runs")
    return load_data(load_config(["--dataset", "own", "--data_path", str(source), "--output_dir", out, *flags]))


def by_name(data, split=None):
    """{file below the root: (label, pixels of its corner)} of a split, the training images by default."""
    split = split or data.train
    return {
        below(data.root, path): (data.label_names[k], Image.open(path).convert("RGB").getpixel((1, 1)))
        for path, k in zip(split.images, split.labels)
    }


def png(value):
    """The bytes of a small PNG image, whose red is the value."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 9)).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members):
    """A tar file of {name: bytes or text}."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in members.items():
            content = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_parquet(path, rows, **columns):
    """A Parquet file as Hugging Face datasets writes it: rows of (key, red, number of the class), and more columns."""
    datasets = pytest.importorskip("datasets")
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    features |= {name: datasets.Value("string") for name in columns}
    content = {"image": [{"bytes": png(red), "path": key} for key, red, _ in rows], "label": [k for *_, k in rows]}
    datasets.Dataset.from_dict(content | columns, datasets.Features(features)).to_parquet(str(path))
    return path


ROWS = [("a.png", 10, 0), ("b.png", 20, 1), ("c.png", 30, 0), ("d.png", 40, 1)]
FOUND = {key: (("cat", "dog")[k], (red, 0, 9)) for key, red, k in ROWS}
ALL = ("--test_fraction", "0")


# --- Hugging Face datasets


def test_parquet_with_image_bytes(tmp_path):
    """Class names are the labels; files are called by their keys, whatever the order of the rows."""
    path = write_parquet(tmp_path / "pets.parquet", ROWS, id=list("wxyz"))
    data = load(path, *ALL)
    assert by_name(data) == FOUND and sorted(zip(data.ids, map(data.path, range(4)))) == list(
        zip("wxyz", sorted(FOUND))
    )
    again = load(write_parquet(tmp_path / "turned" / "pets.parquet", ROWS[::-1]), *ALL)
    assert by_name(again) == FOUND and again.source == data.source  # the same data set, to all tables


def test_images_without_a_key_are_called_by_their_content(tmp_path):
    rows = [("a.png", 10, 0), (None, 20, 1), ("a.png", 30, 1), (None, 20, 1), (None, 20, 0)]
    names = []
    for part, order in (("one", rows), ("two", rows[::-1])):
        data = load(write_parquet(tmp_path / part / "p.parquet", order), *ALL)
        assert sorted(by_name(data).values()) == sorted((("cat", "dog")[k], (red, 0, 9)) for _, red, k in rows)
        names.append(by_name(data))
    assert names[0] == names[1] and len(names[0]) == 5  # one name an image, and the order does not matter
    assert sum(name.startswith("a-") for name in names[0]) == 2


def test_columns_of_a_parquet_file(tmp_path):
    """Columns are found or named as those of a table; plain bytes without Hugging Face's notes are images as well."""
    pd = pytest.importorskip("pandas")
    pytest.importorskip("datasets")
    frame = pd.DataFrame({"photo": [png(10), png(20)], "kind": ["x", "y"], "other": [b"1", b"2"]})
    frame.to_parquet(tmp_path / "p.parquet")
    with pytest.raises(
        UserError, match="images in 2 of its columns photo, other, expected one; --path_column names it"
    ):
        load(tmp_path / "p.parquet")
    with pytest.raises(UserError, match="path_column: .*p.parquet has no column 'foto', only photo, kind, other"):
        load(tmp_path / "p.parquet", "--path_column", "foto")
    with pytest.raises(UserError, match="none of its columns photo, kind is called label; .*--label_column"):
        load(tmp_path / "p.parquet", "--path_column", "photo")
    data = load(tmp_path / "p.parquet", "--path_column", "photo", "--label_column", "kind", *ALL)
    assert sorted(by_name(data).values()) == [("x", (10, 0, 9)), ("y", (20, 0, 9))]
    write_parquet(tmp_path / "q.parquet", [*ROWS, ("e.png", 50, -1)])
    with pytest.raises(UserError, match="images.jsonl: line 5 has nothing in column 'label'"):
        load(tmp_path / "q.parquet")
    (tmp_path / "r.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="data_path: .*r.parquet cannot be read"):
        load(tmp_path / "r.parquet")
    assert not list((tmp_path / "runs" / "images").glob("*r.parquet*"))  # nothing half-written


def test_other_columns_of_a_parquet_file_may_hold_anything(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("datasets")
    frame = {
        "image": [png(10), png(20)],
        "label": ["x", "y"],
        "path": ["raw/a.png", "raw/b.png"],
        "mask": [b"\0\xff" * 90_000, b""],
        "html": ["<p>" * 60_000, ""],
        "note;x;y;z": ["one\rtwo\n\0", '";,\t'],
    }
    pd.DataFrame(frame).to_parquet(tmp_path / "p.parquet")
    data = load(tmp_path / "p.parquet", "--path_column", "image", *ALL)
    assert by_name(data) == {"raw/a.png": ("x", (10, 0, 9)), "raw/b.png": ("y", (20, 0, 9))}


def test_rows_without_bytes_name_files(tmp_path):
    """A path is read where it is a file, and no device; other rows are listed as left out, as broken files are."""
    pd = pytest.importorskip("pandas")
    pytest.importorskip("datasets")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(png(10))
    paths = [str(tmp_path / "cat" / "a.png"), "/dev/zero", "gone.png", None]
    images = [{"bytes": None, "path": path} for path in paths] + [{"bytes": png(20), "path": "b.png"}, None]
    pd.DataFrame({"image": images, "label": list("xxxxyy")}).to_parquet(tmp_path / "p.parquet")
    data = load(tmp_path / "p.parquet", *ALL)
    assert by_name(data) == {"cat/a.png": ("x", (10, 0, 9)), "b.png": ("y", (20, 0, 9))}
    assert len(data.skipped) == 4 and {reason for _, reason in data.skipped} == {"empty"}


def test_a_folder_of_parquet_files_and_a_saved_data_set_have_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet", ROWS)
    write_parquet(tmp_path / "hub" / "data" / "validation-00000-of-00001.parquet", [("v.png", 50, 1)])
    data = load(tmp_path / "hub")
    assert by_name(data) == FOUND and by_name(data, data.test) == {"v.png": ("dog", (50, 0, 9))}
    data = load(tmp_path / "hub" / "data" / "train-*.parquet", *ALL, out=tmp_path)
    assert by_name(data) == FOUND and data.test is None
    parts = {
        name: datasets.Dataset.from_parquet(str(p))
        for name, p in zip(("train", "test"), sorted((tmp_path / "hub/data").iterdir()))
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved")
    assert by_name(data) == FOUND and by_name(data, data.test) == {"v.png": ("dog", (50, 0, 9))}
    parts["train"].save_to_disk(tmp_path / "one")
    assert by_name(load(tmp_path / "one", *ALL)) == FOUND


def test_imagefolder_with_a_metadata_table(tmp_path):
    """Images lie beside metadata.csv or metadata.jsonl, which gives their labels, in one folder or one a split."""
    for part, rows in (("train", ROWS), ("test", [("v.png", 50, 1)])):
        (tmp_path / "f" / part).mkdir(parents=True)
        for key, red, _ in rows:
            (tmp_path / "f" / part / key).write_bytes(png(red))
        lines = [json.dumps({"file_name": key, "label": ("cat", "dog")[k]}) for key, _, k in rows]
        (tmp_path / "f" / part / "metadata.jsonl").write_text("\n".join(lines))
    data = load(tmp_path / "f")
    assert by_name(data) == {f"train/{key}": found for key, found in FOUND.items()}
    assert by_name(data, data.test) == {"test/v.png": ("dog", (50, 0, 9))}
    assert by_name(load(tmp_path / "f" / "train", *ALL)) == FOUND
    write_folder(tmp_path / "g", {"cat": 2, "dog": 2})
    (tmp_path / "g" / "metadata.csv").write_text("file_name,text\ncat/0000.png,a caption\n")
    assert len(by_name(load(tmp_path / "g", *ALL))) == 4  # no labels in it: the folders are the classes


# --- WebDataset


def test_webdataset_shards(tmp_path):
    """A label is in .cls, .txt or a field of .json; numbers of classes are in the order of numbers."""
    pytest.importorskip("webdataset")
    (tmp_path / "s").mkdir()
    write_tar(tmp_path / "s/p-000.tar", {"a/1.png": png(10), "a/1.cls": "2", "a/2.png": png(20), "a/2.cls": "10"})
    write_tar(tmp_path / "s/p-001.tar", {"a/1.png": png(30), "a/1.cls": "10", "b.c.PNG": png(40), "b.cls": "2"})
    expected = [("10", (20, 0, 9)), ("10", (30, 0, 9)), ("2", (10, 0, 9)), ("2", (40, 0, 9))]
    for source in ("s", "s/p-{000..001}.tar", "s/p-*.tar"):
        data = load(tmp_path / source, *ALL)
        assert sorted(by_name(data).values()) == expected and data.label_names == ["2", "10"]
        assert {"a/2.png", "b.c.png"} < by_name(data).keys()  # a key of two shards gets a part of the content's hash
    for pattern, message in [
        ("p-{001..002}.tar", "there is no file .*p-002.tar, which .*{001..002}.tar stands for"),
        ("q-*.tar", "there is no file .*q-[*].tar"),
        ("p-{001..002.tar", "is no pattern of files"),
    ]:
        with pytest.raises(UserError, match=message):
            load(tmp_path / "s" / pattern)
    assert len(load(tmp_path / "s/{p,p}-00*.tar", *ALL).train.labels) == 4  # a shard named twice is one
    sample = {"1.png": png(10), "1.json": json.dumps({"label": "cat", "uid": "u1"}), "1.txt": "a caption"}
    sample |= {"2.png": png(20), "2.json": json.dumps({"label": "dog", "uid": "u2"}), "2.txt": "another"}
    data = load(write_tar(tmp_path / "j.tar.gz", sample), *ALL)
    assert by_name(data) == {"1.png": ("cat", (10, 0, 9)), "2.png": ("dog", (20, 0, 9))} and data.ids == ["u1", "u2"]
    data = load(write_tar(tmp_path / "t.tar", {k: v for k, v in sample.items() if "json" not in k}), *ALL)
    assert data.label_names == ["a caption", "another"]


def test_samples_without_an_image_are_counted(tmp_path, monkeypatch, capsys):
    """By suffix; HEIC is unpacked all the same, and read as soon as pillow-heif is there."""
    pytest.importorskip("webdataset")
    monkeypatch.setattr("dataloader.files.READS_HEIF", False)
    sample = {f"{i}.{kind}": png(i) if kind == "png" else "xy"[i % 2] for i in range(4) for kind in ("png", "cls")}
    more = {"h.heic": b"not read", "h.cls": "x", "i.img": png(9), "i.cls": "y", "j.jpg": png(8), "j.cls": "x"}
    data = load(write_tar(tmp_path / "t.tar", sample | more), *ALL)
    assert "ignored samples without image: .img (1)\n" in capsys.readouterr().out and len(data.train.labels) == 5
    assert [(Path(p).name, why) for p, why in data.skipped] == [
        ("h.heic", "HEIC is read by pillow-heif, which is not installed")
    ]
    load(tmp_path / "t.tar", *ALL, "--path_column", "png")
    assert "ignored samples without .png: .heic (1), .img (1), .jpg (1)\n" in capsys.readouterr().out


def test_splits_of_shards_are_in_their_names(tmp_path):
    pytest.importorskip("webdataset")
    (tmp_path / "s" / "val").mkdir(parents=True)
    sample = {"1.png": png(10), "1.cls": "x", "2.png": png(20), "2.cls": "y"}
    write_tar(tmp_path / "s" / "my-train-0.tar", sample)
    write_tar(tmp_path / "s" / "val" / "0.tar", {"3.png": png(30), "3.cls": "x"})
    data = load(tmp_path / "s")
    assert set(by_name(data)) == {"1.png", "2.png"} and set(by_name(data, data.test)) == {"3.png"}
    (tmp_path / "s" / "my-train-0.tar").rename(tmp_path / "s" / "val" / "train-0.tar")
    (tmp_path / "s" / "val" / "0.tar").rename(tmp_path / "s" / "val" / "test-0.tar")
    for source in ("s", "s/val/t*.tar", "s/val/{train,test}-0.tar"):  # a file's own name counts before its folder's
        data = load(tmp_path / source, out=tmp_path)
        assert set(by_name(data)) == {"1.png", "2.png"} and set(by_name(data, data.test)) == {"3.png"}


@pytest.mark.parametrize(
    "members, message",
    [
        (
            {"1.png": b"", "1.jpg": b"", "1.cls": "x"},
            r"1 has the images png, jpg, expected one; --path_column names it",
        ),
        ({"1.png": b"", "1.json": "[1"}, r"1 has a .json, .cls or .txt that cannot be read"),
        ({"1.png": b"", "1.cls": b"\xff"}, r"1 has a .json, .cls or .txt that cannot be read"),
        ({"1.png": b"", "1.json": "[1]"}, "1 has a .json that is no object"),
        ({"1.cls": "x"}, "holds no image"),
        ({"1.png": b"x"}, "none of its columns path is called label"),
        ({"1.png": b"x", "1.cls": "x"}, "none of the 1 images of .* can be read"),
    ],
)
def test_what_is_wrong_with_a_tar_file(tmp_path, members, message):
    pytest.importorskip("webdataset")
    with pytest.raises(UserError, match=message):
        load(write_tar(tmp_path / "t.tar", members))


def test_a_damaged_tar_file(tmp_path):
    pytest.importorskip("webdataset")
    path = write_tar(tmp_path / "t.tar", {f"{i}.png": png(i) for i in range(20)})
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="data_path: .*t.tar cannot be read"):
        load(path)
    assert not list((tmp_path / "runs" / "images").iterdir())
    for name in ("w.tar", "w.tar.gz"):
        load(
            write_tar(
                tmp_path / name,
                {f"{i}.{x}": png(i) if x == "png" else "xy"[i % 2] for i in range(4) for x in ("png", "cls")},
            ),
            *ALL,
        )
    whole = (tmp_path / "w.tar").read_bytes()
    with tarfile.open(tmp_path / "w.tar") as tar:
        at = tar.getmember("2.png").offset
    for content in (  # cut off between members or in a header; a header that was overwritten
        whole[:at],
        whole[: at + 100],
        whole[:at] + bytes(512) + whole[at + 512 :],
        whole[:at] + b"\x07" * 512 + whole[at + 512 :],
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match="t.tar: is cut off or damaged after member 1.cls; copy"):
            load(path)


def test_missing_shards_are_named(tmp_path, capsys):
    for k in (0, 3):
        write_parquet(tmp_path / "hub" / "data" / f"train-0000{k}-of-00004.parquet", ROWS[:2])
    write_parquet(tmp_path / "whole" / "p-1-of-1.parquet", ROWS)  # counted from 1
    load(tmp_path / "hub", *ALL)
    assert "train-*-of-00004.parquet: 2 of 4 files are not there: number 1, 2\n" in capsys.readouterr().out
    load(tmp_path / "whole", *ALL)
    assert "not there" not in capsys.readouterr().out


def test_keys_cannot_leave_the_folder(tmp_path):
    pytest.importorskip("webdataset")
    names = ["../../up.png", "/etc/root.png", "a/../../b.png", "n\n:1.png", ".hidden/x.png"]
    path = write_tar(tmp_path / "t.tar", {name: png(i) for i, name in enumerate(names)})
    settings = load_config(["--dataset", "own", "--output_dir", str(tmp_path / "runs")])
    table = opened(path, settings)
    rows = list(map(json.loads, table.open()))
    assert len(rows) >= 3 and all((table.parent / row["path"]).resolve().is_relative_to(table.parent) for row in rows)
    assert not list(tmp_path.glob("up.png"))


# --- for all of them


def test_an_archive_is_unpacked_once_and_again_when_it_changes(tmp_path, capsys, monkeypatch):
    pytest.importorskip("webdataset")
    sample = {f"{i}.{kind}": png(i) if kind == "png" else "xy"[i % 2] for i in range(6) for kind in ("png", "cls")}
    path = write_tar(tmp_path / "t.tar", sample)
    before = load(path, *ALL)
    assert "6 images unpacked to" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "webdataset", None)  # no longer needed
        assert load(path, *ALL).fingerprint == before.fingerprint and "images unpacked" not in capsys.readouterr().out
        write_tar(path, sample | {"6.png": png(6), "6.cls": "x"})
        with pytest.raises(UserError, match="data_path: .* package webdataset.*`pip install webdataset`"):
            load(path, *ALL)
    after = load(path, *ALL)
    assert "7 images unpacked" in capsys.readouterr().out and len(after.train.labels) == 7
    assert by_name(before).items() <= by_name(after).items()


def test_folders_of_images_are_no_archives(tmp_path):
    """An archive that is left beside class folders is what they were unpacked from."""
    write_folder(tmp_path / "f", {"cat": 2, "dog": 2})
    write_tar(tmp_path / "f" / "download.tar", {"x.png": png(1)})
    assert len(load(tmp_path / "f", *ALL).train.labels) == 4


def test_from_shards_to_a_corrected_folder_and_back(tmp_path, capsys):
    """Detector, decisions by the keys, report, export; and the exported folder as torchvision and Hugging Face read it."""
    pytest.importorskip("webdataset")
    _, truth, given = write_digits(tmp_path / "png", 0.3, every=60)
    keys = {path: f"d/{i:03d}" for i, path in enumerate(given)}
    members = {}
    for path, label in given.items():
        members |= {f"{keys[path]}.png": open(path, "rb").read(), f"{keys[path]}.cls": label}
    flags = [
        *TINY,
        "--data_path",
        str(write_tar(tmp_path / "digits.tar", members)),
        "--output_dir",
        str(tmp_path / "runs"),
    ]
    main_detect.main([*flags, *ALL])
    (run,) = (tmp_path / "runs").glob("own-*-digits/none/seed0/auto")
    scores = {row["path"]: row for row in csv.DictReader((run / "scores.csv").open())}
    assert {path: row["given_label"] for path, row in scores.items()} == {f"{keys[p]}.png": k for p, k in given.items()}
    kept, suspect = (next(r for r in scores.values() if r["is_label_issue"] == flag) for flag in ("False", "True"))
    other = next(name for name in DIGITS if name != kept["given_label"])
    (tmp_path / "decisions.csv").write_text(
        "path,content,given_label,decision,new_label\n"
        f"{kept['path']},{kept['content']},{kept['given_label']},wrong,{other}\n"
        f"{suspect['path']},{suspect['content']},{suspect['given_label']},right,\n"
    )
    page.main([str(run), "--decisions", str(tmp_path / "decisions.csv")])
    fixed = {row["path"]: row for row in csv.DictReader((run / "labels_fixed.csv").open())}
    root = json.loads((run / "summary.json").read_text())["root"]
    assert fixed[f"{root}/{kept['path']}"]["label"] == other
    assert fixed[f"{root}/{suspect['path']}"]["label"] == suspect["given_label"]
    again = load_data(
        load_config(
            [*TINY[:2], "--data_path", str(run / "labels_fixed.csv"), "--output_dir", str(tmp_path / "runs"), *ALL]
        )
    )
    assert len(again.train.labels) == len(fixed)  # the data set of another run
    shutil.rmtree(root)  # the archive gives the images back
    export.main([str(run), "--to", str(tmp_path / "out"), "--fixed", "--data_path", str(tmp_path / "digits.tar")])
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")}
    assert len(written) == len(fixed) and f"{other}/{kept['path'].split('/')[1]}" in written


# --- what is written, read by other libraries


@pytest.fixture(scope="module")
def digits_of_a_table(tmp_path_factory):
    """Confident learning on digits below a table, which has ids, one of them saved twice; the run's folder, with its report."""
    root = tmp_path_factory.mktemp("table")
    path, *_ = write_digits(root / "digits", 0.3, every=15, table=True)
    Image.open(root / "digits/img/0.png").convert("RGB").save(root / "digits/img/again.jpg", quality=97)
    path.write_text(path.read_text() + "again,img/again.jpg,zero,zero\n")
    flags = [*TINY, "--data_path", str(path), "--output_dir", str(root / "runs"), "--detector", "confident-learning"]
    flags += ["--test_fraction", "0"]  # so that Datalab and the run judge the labels of the same images
    main_detect.main(flags)
    page.main([str(root / "runs/own-digits-labels/none/seed0/confident-learning"), "--relabel_above", "0.5"])
    return root / "runs/own-digits-labels/none/seed0/confident-learning"


def test_an_exported_folder_is_read_by_hugging_face_torchvision_and_here(digits_of_a_table, tmp_path):
    datasets = pytest.importorskip("datasets")
    run, to = digits_of_a_table, tmp_path / "out"
    export.main([str(run), "--to", str(to), "--fixed", "--relabel_above", "0.5"])
    fixed = {row["id"]: row for row in csv.DictReader((run / "labels_fixed.csv").open())}
    rows = datasets.load_dataset("imagefolder", data_dir=str(to), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == len(fixed) > 80 and any(row["label"] != row["original_label"] for row in rows)
    for row in rows:
        assert row["label"] == fixed[row["id"]]["label"] and row["trusted_by"] == "detector"
        assert row["image"].tobytes() == Image.open(fixed[row["id"]]["path"]).convert(row["image"].mode).tobytes()
    folder = torchvision.datasets.ImageFolder(to)
    assert Counter(folder.classes[k] for _, k in folder.samples) == Counter(row["label"] for row in fixed.values())
    again = load(to, *ALL)
    names = [again.label_names[k] for k in again.train.labels]
    assert dict(zip(again.ids, names)) == {i: row["label"] for i, row in fixed.items()}
    export.main([str(run), "--to", str(to), "--fixed", "--relabel_above", "0.5"])  # whole already


def test_corrected_labels_as_shards(digits_of_a_table, tmp_path):
    """labels_fixed.csv, written as a tar file by WebDataset's own writer, comes back image by image."""
    wds = pytest.importorskip("webdataset")
    fixed = {row["id"]: row for row in csv.DictReader((digits_of_a_table / "labels_fixed.csv").open())}
    with wds.TarWriter(str(tmp_path / "fixed.tar")) as tar:
        for name, row in fixed.items():
            content = open(row["path"], "rb").read()
            tar.write({"__key__": name, "png": content, "json": {"label": row["label"], "id": name}})
    data = load(tmp_path / "fixed.tar", *ALL)
    found = {name: (data.label_names[k], data.path(i)) for i, (name, k) in enumerate(zip(data.ids, data.train.labels))}
    assert found == {name: (row["label"], f"{name}.png") for name, row in fixed.items()}


def block_of_the_documentation(word):
    """The Python block of docs/own-images.md that has the word in it."""
    blocks = re.findall(r"```python\n(.*?)```", Path("docs/own-images.md").read_text(), re.S)
    return next(block for block in blocks if word in block)


def test_datalab_reads_a_run(digits_of_a_table):
    """The documented lines; labels are in the run's order, and near-duplicates and label scores are those of the run."""
    pytest.importorskip("datasets")
    pytest.importorskip("cleanlab")
    run = digits_of_a_table
    lines = block_of_the_documentation("Datalab").splitlines()
    assert sum(line.startswith("run = ") for line in lines) == 1
    names = {"run": str(run)}
    exec("\n".join(line for line in lines if not line.startswith("run = ")), names)
    found, rows = names["lab"].get_issues(), list(csv.DictReader((run / "scores.csv").open()))
    near = {int(row["index"]) for row in csv.DictReader((run / "near_duplicates.csv").open())}
    assert set(np.flatnonzero(found["is_near_duplicate_issue"])) == near and len(near) > 0
    assert np.allclose(found["label_score"], [float(row["label_score"]) for row in rows], atol=1e-4)
    issues = np.array([row["is_label_issue"] == "True" for row in rows])
    assert (
        found["is_label_issue"].any() and (~found["is_label_issue"] | issues).all()
    )  # it is more careful on few images
    assert names["lab"].get_issues("label")["given_label"].tolist() == [row["given_label"] for row in rows]


def test_fiftyone_reads_a_run(digits_of_a_table, monkeypatch):
    """The documented lines ask for a CSVDataset: a column of files below data_path, and columns with their parsers.

    FiftyOne's own importer makes the samples where it is installed.
    """
    asked = {}
    try:
        import fiftyone
        from fiftyone.utils.csv import CSVDatasetImporter
    except ImportError:
        fiftyone, CSVDatasetImporter = SimpleNamespace(types=SimpleNamespace(CSVDataset=1)), None
        fiftyone.Classification = lambda label: SimpleNamespace(label=label)
        monkeypatch.setitem(sys.modules, "fiftyone", fiftyone)
    monkeypatch.setattr(
        fiftyone, "Dataset", SimpleNamespace(from_dir=lambda **flags: asked.update(flags)), raising=False
    )
    monkeypatch.setattr(fiftyone, "launch_app", lambda dataset: None, raising=False)
    names, lines = {"run": str(digits_of_a_table)}, block_of_the_documentation("fiftyone").splitlines()
    exec("\n".join(line for line in lines if not line.startswith("run = ")), names)
    assert asked.pop("dataset_type") is fiftyone.types.CSVDataset
    rows = list(csv.DictReader(open(asked["labels_path"])))
    assert os.path.isabs(asked["labels_path"]) and os.path.isabs(asked["data_path"])
    assert all(os.path.isfile(os.path.join(asked["data_path"], row[asked["media_field"]])) for row in rows)
    parsed = [{name: parse(row[name]) for name, parse in asked["fields"].items()} for row in rows]
    assert all(isinstance(row["is_label_issue"], bool) and 0 <= row["label_score"] <= 1 for row in parsed)
    assert {row["given_label"].label for row in parsed} == set(DIGITS)
    if CSVDatasetImporter:
        importer = CSVDatasetImporter(**asked)
        importer.setup()
        samples = list(importer)
        assert len(samples) == len(rows)
        by_path = {os.path.join(asked["data_path"], row["path"]): row for row in rows}
        for sample in samples:
            row = by_path[sample.filepath]
            assert sample["given_label"].label == row["given_label"]
            assert sample["is_label_issue"] == (row["is_label_issue"] == "True")


# --- data sets in a notebook


class Pairs(torch.utils.data.Dataset):
    """A map-style data set of (image, label) that is none of torchvision's."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_names_of_classes_are_the_first_of_their_synonyms(tmp_path, monkeypatch):
    """As in torchvision's ImageNet; and a person's own module may be called datasets."""
    write_folder(tmp_path / "data", {"cat": 2, "dog": 2})
    folder = torchvision.datasets.ImageFolder(tmp_path / "data")
    folder.classes = [("cat", "true cat"), ("dog", "domestic dog", "Canis familiaris")]
    monkeypatch.setattr(torchvision.datasets.ImageFolder, "__module__", "datasets.mine")
    assert from_dataset(folder, None)[2] == ["cat", "dog"]


def test_data_sets_of_torchvision(tmp_path):
    """Files stay files, the transform is left out, and a data set keeps it; classes are those of the data set."""
    write_folder(tmp_path / "data", {"cat": 2, "dog": 3})
    folder = torchvision.datasets.ImageFolder(tmp_path / "data", torchvision.transforms.ToTensor())
    paths, labels = [path for path, _ in folder.samples], [0, 0, 1, 1, 1]
    assert from_dataset(folder, None) == (paths, labels, ["cat", "dog"])
    assert from_dataset(torch.utils.data.Subset(folder, [4, 0]), None) == ([paths[4], paths[0]], [1, 0], ["cat", "dog"])
    swapped = torchvision.datasets.ImageFolder(tmp_path / "data", target_transform=lambda k: 1 - k)
    for data, there in ((swapped, [1, 1, 0, 0, 0]), (torch.utils.data.Subset(swapped, [4, 0]), [0, 1])):
        assert from_dataset(data, None)[1:] == (there, None)  # 1 is cat now, not classes[1]
    assert isinstance(folder[0][0], torch.Tensor)
    fake = torchvision.datasets.FakeData(3, (3, 8, 8), 2, transform=torchvision.transforms.ToTensor())
    images, labels, names = from_dataset(fake, None)
    assert all(isinstance(image, Image.Image) for image in images) and names is None
    assert labels == [label for _, label in fake] and isinstance(labels[0], int)
    for dataset, message in [
        (Pairs([(torch.zeros(3, 8, 8), 0)]), "item 0 of the data set has Tensor as its image.*leave the transform out"),
        (Pairs([3]), r"item 0 of the data set is int, expected \(image, label\)"),
        (paths, "labels: missing; only a data set of torchvision or of Hugging Face brings its own"),
    ]:
        with pytest.raises(UserError, match=message):
            detect(dataset)


def test_data_sets_of_hugging_face(tmp_path):
    """Images with bytes become files called by their keys; those that are files stay them."""
    datasets = pytest.importorskip("datasets")
    _, _, given = write_digits(tmp_path / "data", 0.3, every=60)
    settings, paths, names = {"backbone": "tiny-clip-digits", "device": "cpu"}, list(given), sorted(DIGITS)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    images = [{"bytes": open(path, "rb").read(), "path": path.rpartition("/")[2]} for path in paths]
    numbers = [names.index(label) for label in given.values()]
    table = datasets.Dataset.from_dict({"image": images, "label": numbers}, features)
    p_clean, suggested = detect(paths, numbers, classnames=names, **settings)
    again, same = detect(table, **settings, output_dir=tmp_path / "runs", path_column="image")
    assert np.allclose(again, p_clean, atol=1e-5) and np.array_equal(same, suggested)
    (scores,) = (tmp_path / "runs").rglob("scores.csv")
    assert [row["path"] for row in csv.DictReader(scores.open())] == [image["path"] for image in images]
    unpacked = load_config([*TINY, "--output_dir", str(tmp_path / "runs"), "--path_column", "image"])
    assert [Path(path).name for path in from_dataset(table, unpacked)[0]] == [image["path"] for image in images]
    files = [{"bytes": None, "path": path} for path in paths]
    rows = datasets.Dataset.from_dict({"image": files, "label": numbers}, features)
    assert from_dataset(rows, load_config(TINY)) == (paths, numbers, names)
    no_label = table.rename_column("label", "x").cast_column("x", datasets.Value("int64"))
    for dataset, message in [
        (datasets.DatasetDict(train=table), "images: is a DatasetDict; expected one of its splits: train"),
        (no_label, "labels: which of the columns image, x"),
    ]:
        with pytest.raises(UserError, match=message):
            detect(dataset, **settings)


def test_detect_with_a_model_of_ones_own(tmp_path):
    """Own features give what the encoder's give, and own probabilities exactly cleanlab's issues."""
    from cleanlab.filter import find_label_issues

    _, truth, given = write_digits(tmp_path / "data", 0.3, every=20)
    paths, labels, settings = list(given), list(given.values()), {"backbone": "tiny-clip-digits", "device": "cpu"}
    out = tmp_path / "runs"
    p_clean, suggested = detect(paths, labels, detector="knn", **settings, output_dir=out)
    (file,) = (out / "cache").glob("features-*.npz")
    features = np.load(file)["features"]
    for images in (None, paths):
        again, same = detect(images, labels, features=3 * features, detector="knn")
        assert np.allclose(again, p_clean, atol=1e-4) and same.tolist() == suggested.tolist()
    again, same = detect(labels=labels, features=torch.from_numpy(features))  # auto
    assert (same == np.array(list(truth.values()))).mean() > 0.8
    detect(paths, labels, features=features, output_dir=tmp_path / "kept")
    run = tmp_path / "kept/own-notebook/none/seed0/auto"
    page.main([str(run)])
    assert (run / "near_duplicates.csv").is_file()  # from these features
    with pytest.raises(UserError, match="used other features"):
        detect(paths, labels, features=features[::-1], output_dir=tmp_path / "kept")

    numbers = np.array([DIGITS.index(name) for name in labels])
    p = np.random.default_rng(0).dirichlet(np.ones(10), len(labels)) + 0.7 * np.eye(10)[numbers]
    p /= p.sum(1, keepdims=True)
    p[::7] = np.roll(p[::7], 3, axis=1)
    score, same = detect(labels=numbers, classnames=DIGITS, pred_probs=p)
    issues = find_label_issues(numbers, p)
    assert 3 < issues.sum() < 60 and np.array_equal(score, p[np.arange(len(p)), numbers])
    assert np.array_equal(same, np.where(issues, p.argmax(1), numbers))
    half = detect(labels=numbers, classnames=DIGITS, pred_probs=p.astype(np.float16).astype(np.float64))
    same = detect(labels=numbers, classnames=DIGITS, pred_probs=p.astype(np.float16))  # no sums in half precision
    assert all(np.array_equal(x, y) for x, y in zip(half, same))
    words = [
        str(k + 2) for k in numbers
    ]  # numbers as text: "10" and "11" come first in np.unique, last among the classes
    data, *_ = in_memory(paths, words, DIGITS, load_config(["--output_dir", str(out)]))
    assert dict(zip(data.label_names, data.classnames)) == {str(k + 2): name for k, name in enumerate(DIGITS)}
    again, same = detect(labels=words, classnames=DIGITS, pred_probs=p[:, [8, 9, *range(8)]])
    assert np.array_equal(again, score) and same.tolist() == [
        str(k + 2) for k in np.where(issues, p.argmax(1), numbers)
    ]
    whole, _ = detect(labels=numbers, classnames=DIGITS, pred_probs=np.eye(10, dtype=int)[numbers])
    assert (whole == 1).all()
    large = detect(labels=numbers, classnames=DIGITS, features=1e300 * features.astype(np.float64), detector="knn")
    assert np.allclose(large[0], detect(labels=numbers, classnames=DIGITS, features=features, detector="knn")[0])
    for arrays, message in [
        ({"images": paths, "features": features[:5]}, f"features: has 5 rows, but there are {len(labels)} images"),
        ({"features": features[0]}, r"features: expected numbers, one row an image, found float32 of shape \(128,\)"),
        (
            {"features": np.where(np.arange(len(labels))[:, None] == 4, np.nan, features)},
            "features: not finite for image 4",
        ),
        ({"pred_probs": p[:, :9]}, "pred_probs: has 9 columns, expected 10"),
        ({"pred_probs": 2 * p}, "pred_probs: no probabilities, those of image .* add up to 2"),
        ({"pred_probs": p, "detector": "knn"}, "detector: knn looks at features="),
        ({"features": features, "detector": "lemon"}, "lemon needs texts, which features= has not"),
        ({"features": features, "detector": "deft"}, "detector: unknown name 'deft'"),
        ({}, "images: missing; expected images, features or pred_probs"),
    ]:
        with pytest.raises(UserError, match=message):
            detect(labels=numbers, classnames=DIGITS, **arrays)
