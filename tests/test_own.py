"""A person's own images: folders and tables, good and bad, the names CLIP reads, and what cannot be read."""

import csv
import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import main_detect
import main_real_phase1
import main_real_phase2
from dataloader.dataset import hold_out
from dataloader.files import HEIF, below, inspect_file, inspect_files
from dataloader.listings import class_folders
from dataloader.load import load_data
from dataloader.loaders import Loader
from dataloader.rows import shortened, tidy_names
from dataloader.transforms import Pixels, decode, open_image
from methods.decisions import UNDECIDED
from methods.masks import load_mask
from report import export, page, tables
from report.sections import against_truth
from tests.helpers import LABEL_MATCH, SUMMARY, write_cifar, write_folder
from utils.config import load_config, settle_epochs
from utils.errors import UserError
from utils.files import as_path, as_text


def load(source, *flags):
    return load_data(
        load_config(
            ["--dataset", "own", "--data_path", str(source), "--output_dir", str(source.parent / "runs"), *flags]
        )
    )


def table(folder, text, name="labels.csv", images="abcdef", **settings):
    """A table beside small images of different colours; the path of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.new("RGB", (8, 8), (40 * i, 200 - 30 * i, 9)).save(folder / f"{image}.png")
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


SIX = "path,label\na.png,x\nb.png,x\nc.png,x\nd.png,y\ne.png,y\nf.png,y\n"
NO_TEST = ("--test_fraction", "0")


def test_true_labels_count_where_all_are_given(tmp_path):
    """One is missing: nothing is known of any image, on whichever side of the split it comes to lie."""
    rows = "path,label,true_label\na.png,x,x\nb.png,x,y\nc.png,x,x\nd.png,y,\ne.png,y,y\nf.png,y,x\n"
    path = table(tmp_path, rows)
    for seed in range(4):
        data = load(path, "--test_fraction", "0.34", "--seed", str(seed))
        assert len(data.test.images) == 2 and data.train.true_labels is data.test.true_labels is None
        assert len(data.whole().train.labels) == 6
    path.write_text(rows.replace("y,\n", "y,y\n"))
    whole = load(path, "--test_fraction", "0.34").whole()
    assert whole.true_labels.tolist() == [0, 1, 0, 1, 1, 0]


def test_noise_on_labels_that_may_be_wrong_themselves_is_said(tmp_path):
    path = table(tmp_path, SIX)
    data = load(path, *NO_TEST, "--noise_mode", "sym", "--noise_ratio", "0.5")
    assert data.facts()["truth"] == "labels on disk" and data.true_labels.tolist() == [0, 0, 0, 1, 1, 1]
    zeros = {"p_clean": np.linspace(0, 1, 6), "predicted": np.zeros(6, dtype=np.int64), "confidence": np.zeros(6)}
    zeros |= {"labels": data.train.labels, "mask": np.arange(6) > 2, "by_detector": np.arange(6) > 2}
    zeros |= {"decision": np.full(6, UNDECIDED), "new_labels": np.full(6, -1)}
    assert "they may be wrong themselves" in against_truth(data, zeros, 0.9)[2]
    given = path.with_name("given.csv")
    given.write_text(SIX.replace("label\n", "label,true_label\n").replace(",x\n", ",x,x\n").replace(",y\n", ",y,y\n"))
    data = load(given, *NO_TEST, "--noise_mode", "sym", "--noise_ratio", "0.5")
    assert (
        "truth" not in data.facts()
        and "The true labels of these images are known" in against_truth(data, zeros, 0.9)[2]
    )


# --- folders


def test_what_systems_leave_behind_is_no_class_and_no_image(tmp_path):
    write_folder(tmp_path, {"b": 2, "a": 1, "@eaDir": 1})
    (tmp_path / "a" / "._0000.png").write_bytes(b"resource fork")
    (tmp_path / "b" / "@eaDir").mkdir()
    (tmp_path / "b" / "@eaDir" / "thumb.jpg").touch()
    paths, labels, names = class_folders(tmp_path)
    assert names == ["a", "b"] and labels.tolist() == [0, 1, 1]
    assert [Path(p).parent.name for p in paths] == ["a", "b", "b"]


def test_paths_without_a_root_stay_absolute():
    assert (below("", "/data/a.png"), below("/data", "/data/b/a.png"), below("/dat", "/data/a.png")) == (
        "/data/a.png",
        "b/a.png",
        "/data/a.png",
    )


def test_class_folders(tmp_path):
    write_folder(tmp_path / "plain", {"b_2": 10, "a": 20})
    data = load(tmp_path / "plain")
    assert (data.label_names, data.classnames, data.true_labels, data.ids) == (["a", "b_2"], ["a", "b 2"], None, None)
    assert Counter(data.train.labels.tolist()) == {0: 16, 1: 8} and len(data.test.images) == 6
    assert not set(data.train.images) & set(data.test.images)
    again = load(tmp_path / "plain", "--noise_mode", "sym", "--noise_ratio", "0.5")
    assert again.train.images == data.train.images and np.array_equal(again.true_labels, data.train.labels)

    write_folder(tmp_path / "blanks", {"a ": 3, "b": 3})  # as labels in tables, which the report writes, too
    assert load(tmp_path / "blanks").label_names == ["a", "b"]

    write_folder(tmp_path / "split" / "train", {"a": 3, "b": 4, "c": 2})
    write_folder(tmp_path / "split" / "val", {"a": 2, "c": 2})
    data = load(tmp_path / "split")
    assert len(data.train.images) == 9 and data.test.labels.tolist() == [0, 0, 2, 2]
    write_folder(tmp_path / "split" / "test", {"b": 3})
    assert load(tmp_path / "split").test.labels.tolist() == [1, 1, 1]  # val is left out where there is a test split


def test_folder_errors(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="data_path: there is no folder or file .*imags.*Did you mean .*images"):
        load(tmp_path / "imags")
    with pytest.raises(UserError, match="images holds no class folder with an image in it"):
        load(tmp_path / "images")
    table(tmp_path / "images", SIX)
    with pytest.raises(UserError, match="holds no class folder.*Did you mean .*labels.csv"):
        load(tmp_path / "images")
    write_folder(tmp_path / "one", {"a": 3})
    with pytest.raises(
        UserError, match="a holds no class folder .*; 3 images lie in it directly, expected one folder for each"
    ):
        load(tmp_path / "one" / "a")
    with pytest.raises(UserError, match="one holds training images of 1 class, expected two or more"):
        load(tmp_path / "one")
    write_folder(tmp_path / "other" / "train", {"cat": 3, "dog": 3})
    write_folder(tmp_path / "other" / "test", {"cats": 3})
    with pytest.raises(UserError, match="cats.*: 'cats' is no class of the training images.*Did you mean cat"):
        load(tmp_path / "other")


@pytest.mark.parametrize(
    "names",
    [("Train", "Test"), ("training", "validation"), ("TRAIN", "dev"), ("train", "Testing"), ("Training", "eval")],
)
def test_split_folders_by_any_of_their_names(tmp_path, names):
    for name, counts in zip(names, ({"a": 3, "b": 4}, {"a": 2, "b": 1})):
        write_folder(tmp_path / "data" / name, counts)
    write_folder(tmp_path / "data" / "@eaDir" / "a", {"x": 1})  # a network drive's
    write_folder(tmp_path / "data" / "__MACOSX", {"a": 1})
    data = load(tmp_path / "data")
    assert data.label_names == ["a", "b"] and (len(data.train.images), len(data.test.images)) == (7, 3)
    assert data.held_out is None and not any("@eaDir" in path for path in data.train.images)


def test_system_folders_are_no_classes(tmp_path):
    write_folder(tmp_path / "data", {"a": 5, "b": 5})
    system = ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN", "System Volume Information"]
    write_folder(tmp_path / "data", {name: 2 for name in system})
    write_folder(tmp_path / "data" / "a", {"@eaDir/thumbs": 2})
    data = load(tmp_path / "data", *NO_TEST)
    assert data.label_names == ["a", "b"] and len(data.train.images) == 10


def test_splits_are_never_taken_for_classes(tmp_path, capsys):
    write_folder(tmp_path / "flat", {"Train": 3, "test": 3})  # images and no class folders
    with pytest.raises(UserError, match="the only classes of .*flat are Train, test, names of splits"):
        load(tmp_path / "flat")
    with pytest.raises(UserError, match="the only classes of .* are test, train, names of splits"):
        load(table(tmp_path, SIX.replace("x", "train").replace("y", "test")))
    write_folder(tmp_path / "two" / "train", {"a": 3, "b": 3})
    write_folder(tmp_path / "two" / "Training", {"a": 3, "b": 3})
    with pytest.raises(UserError, match="two/Training and .*two/train are both a train split"):
        load(tmp_path / "two")
    write_folder(tmp_path / "none" / "test", {"a": 3, "b": 3})
    write_folder(tmp_path / "none", {"a": 3, "b": 3})
    with pytest.raises(UserError, match="none/test is a test split, but there is no training split"):
        load(tmp_path / "none")
    write_folder(tmp_path / "vehicles", {"train": 4, "bus": 4, "dev": 4})  # the rail kind
    assert load(tmp_path / "vehicles").label_names == ["bus", "dev", "train"]
    write_folder(tmp_path / "extra" / "train", {"a": 3, "b": 3})
    write_folder(tmp_path / "extra", {"sample": 2})
    assert load(tmp_path / "extra").label_names == ["a", "b"]
    assert f"ignored folders beside the training split: {tmp_path}/extra/sample" in capsys.readouterr().out


def test_a_messy_folder(tmp_path, capsys):
    names = ["two words", "ünïcode 猫", "new\nline", "007", "single"]
    tmp_path = tmp_path / "data"
    write_folder(tmp_path, {name: 1 if name == "single" else 6 if name == "007" else 5 for name in names})
    (tmp_path / "nothing in it").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "007" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "007" / "notes.TXT").write_bytes(b"x")
    (tmp_path / "007" / "._0015.png").write_bytes(b"x")
    Image.new("RGB", (8, 8)).save(tmp_path / "loose.png")
    (tmp_path / "about.pdf").write_bytes(b"x")
    (tmp_path / "007" / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "007" / "0015.png").rename(tmp_path / "007" / "sub" / "deep" / "UPPER.PNG")
    (tmp_path / "007" / "sub" / "circle").symlink_to(tmp_path)
    data = load(tmp_path)
    printed = capsys.readouterr().out
    assert data.label_names == sorted(names) and data.classnames[data.label_names.index("new\nline")] == "new line"
    single = data.label_names.index("single")
    assert (data.train.labels == single).sum() == 1 and single not in data.test.labels
    assert set(data.test.labels.tolist()) == {k for k in range(5) if k != single}
    assert "too few images to hold any out for testing: single" in printed and "nothing in it\n" in printed
    assert f"ignored images outside the class folders (1): {tmp_path / 'loose.png'}\n" in printed
    assert (
        "ignored files that are not images: .pdf (1), .txt (1), links to folders (1)\n" in printed
        and "CLIP cannot know 007" in printed
    )
    assert any("UPPER.PNG" in path for path in [*data.train.images, *data.test.images])


# --- tables


@pytest.mark.parametrize(
    "text, name",
    [
        (SIX, "labels.csv"),
        (SIX.replace("\n", "\r\n"), "labels.csv"),
        (b"\xef\xbb\xbf" + SIX.encode(), "labels.csv"),
        (SIX.replace("path,label", "Image Path,Class Name"), "labels.csv"),
        (SIX.replace(",", ";"), "labels.csv"),
        (SIX.replace(",", "\t"), "labels.tsv"),
        (SIX.replace("x", '"x"') + "\n\n", "labels.csv"),
        (
            "note,path,label\n"
            + SIX.split("\n", 1)[1]
            .replace("a.png", '"two, lines\nand ""quotes""",a.png')
            .replace("\nb", "\n,b")
            .replace("\nc", "\n,c")
            .replace("\nd", "\n,d")
            .replace("\ne", "\n,e")
            .replace("\nf", "\n,f"),
            "labels.csv",
        ),
        (
            "\n".join(
                json.dumps({"path": f"{p}.png", "label": k, "id": i})
                for i, (p, k) in enumerate(zip("abcdef", "xxxyyy"))
            ),
            "labels.jsonl",
        ),
        (
            "\r\n".join(
                f'{{"path": "{p}.png", "label": "{k}", "id": {i}, "note": "two\u2028lines\x85or three"}}'
                for i, (p, k) in enumerate(zip("abcdef", "xxxyyy"))
            ),
            "labels.jsonl",
        ),
    ],
)
def test_tables(tmp_path, text, name):
    path = table(tmp_path, text, name)
    data = load(path, *NO_TEST)
    assert data.train.images == [str(tmp_path / f"{c}.png") for c in "abcdef"]
    assert data.label_names == ["x", "y"] and data.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and data.test is None
    assert data.ids == (list("012345") if name.endswith("jsonl") else None)


def test_all_columns(tmp_path):
    text = "k;f;given;part;truth\n" + "".join(
        f"n{i};{tmp_path}/{c}.png;{g};{s};{t}\n"
        for i, (c, g, s, t) in enumerate(
            zip(
                "abcdef",
                ["007", "7", "007", "7", "7", "7"],
                ["train", "", "Training", "train", "test", "test"],
                ["007", "007", "7", "7", "7", "007"],
            )
        )
    )
    path = table(tmp_path / "elsewhere", text)
    table(tmp_path, "")
    data = load(
        path,
        "--path_column",
        "f",
        "--label_column",
        "given",
        "--split_column",
        "part",
        "--id_column",
        "k",
        "--true_label_column",
        "truth",
    )
    assert data.label_names == ["007", "7"] and data.train.labels.tolist() == [0, 1, 0, 1]  # labels stay text
    assert data.ids == ["n0", "n1", "n2", "n3"] and data.true_labels.tolist() == [0, 0, 1, 1]
    assert data.test.labels.tolist() == [1, 1] and data.tests["test"].labels.tolist() == [1, 0]  # tested by the truth
    no_truth = table(
        tmp_path, SIX.replace("path,label", "path,label,true_label").replace("x\n", "x,x\n").replace("y\n", "y,\n")
    )
    assert load(no_truth, *NO_TEST).true_labels is None  # known for some only


@pytest.mark.parametrize(
    "text, flags, message",
    [
        (
            SIX,
            ["--label_column", "lable"],
            "label_column: .*csv has no column 'lable', only path, label. Did you mean label",
        ),
        (
            SIX.replace("label", "lbel"),
            [],
            "none of its columns path, lbel is called label; name the columns with --path_column",
        ),
        (SIX.replace("b.png,x", "b.png,"), [], "labels.csv: line 3 has nothing in column 'label'\\."),
        (SIX.replace(",x", ","), [], r"labels.csv: line 2 has nothing in column 'label' \(in all 3: lines 2, 3, 4\)"),
        (SIX.replace("b.png,x", ",x"), [], "labels.csv: line 3 has nothing in column 'path'"),
        (SIX.replace("b.png,x", "b.png,x,z"), [], "labels.csv: line 3 has 3 fields, the first line has 2"),
        (SIX.replace("label", "id"), ["--label_column", "path"], "line 3 has the id 'x' of line 2; ids must differ"),
        (
            SIX.replace("label", "split"),
            ["--label_column", "path"],
            "line 2 has the split 'x', expected train, test or val",
        ),
        (SIX.replace("e.png,y", 'e.png,"y'), [], "labels.csv: line 6 cannot be read"),
        (SIX.encode("utf-16"), [], "labels.csv: not a UTF-8 text file"),
        ("", [], "labels.csv: holds no row"),
        ("path,label\n", [], "labels.csv: holds no row"),
        ("path,path\n1,2\n", [], "two columns have the same name"),
    ],
)
def test_bad_tables(tmp_path, text, flags, message):
    path = table(tmp_path, text)
    with pytest.raises(UserError, match=message):
        load(path, *flags)


def test_a_zero_character_in_a_json_table(tmp_path):
    path = table(tmp_path, '{"path": "a.png", "label": "x"}\n{"path": "b\\u0000.png", "label": "y"}\n', "labels.jsonl")
    with pytest.raises(UserError, match=r"labels.jsonl: line 2 contains a null character.*b\\x00.png"):
        load(path, *NO_TEST)


def test_classes_that_a_table_of_corrected_labels_has_lost_are_named(tmp_path, capsys):
    checked = (
        SIX.replace("label\n", "label,trusted_by\n").replace(",x\n", ",x,person\n").replace(",y\n", ",y,detector\n")
    )
    path = table(tmp_path, checked, "labels_fixed.csv")
    load(path, *NO_TEST)
    assert "no image left" not in capsys.readouterr().out
    (tmp_path / "summary.json").write_text(json.dumps({**SUMMARY, "classes": ["w", "x", "y", "z"]}))
    load(path, *NO_TEST)
    assert "labels_fixed.csv has no image left of 2 of the run's classes" in (printed := capsys.readouterr().out)
    assert "will not know them: w, z" in printed


def test_a_summary_beside_a_persons_own_table_is_theirs(tmp_path, capsys):
    (tmp_path / "summary.json").write_text('{"anything": 1}')
    assert load(table(tmp_path, SIX), *NO_TEST).num_classes == 2
    assert "summary.json" not in capsys.readouterr().out


def test_other_files_are_no_tables(tmp_path):
    with pytest.raises(UserError, match="line 2 is no JSON object"):
        load(table(tmp_path, '{"path": "a.png", "label": 1}\n[1]\n', "labels.jsonl"))
    with pytest.raises(UserError, match="labels.xlsx is no folder and no .csv, .jsonl, .tsv, .parquet or .tar file"):
        load(table(tmp_path, "x", "labels.xlsx"))
    with pytest.raises(UserError, match="line 8: 'z' is no class of the training images"):
        load(
            table(
                tmp_path,
                SIX.replace("label", "label,split").replace("\n", ",train\n").replace("split,train", "split")
                + "a.png,z,test\n",
            )
        )


# --- names


def test_what_clip_reads(tmp_path, capsys):
    assert tidy_names(["001.Black_footed_Albatross", "200.Common_Yellowthroat"]) == [
        "Black footed Albatross",
        "Common Yellowthroat",
    ]
    assert tidy_names(["goldenRetriever", "hot_dog", "T-Shirt", "3_series"]) == [
        "golden Retriever",
        "hot dog",
        "T-Shirt",
        "3 series",
    ]
    assert tidy_names(["3_series", "5_series"]) == ["3 series", "5 series"]  # they would be the same without
    assert tidy_names(["birds (2)", "cats(1)", "Golf (1998)", "(3)"]) == ["birds", "cats", "Golf (1998)", "(3)"]
    assert tidy_names(["7 up", "1 007"]) == ["7 up", "1 007"]
    assert tidy_names(["cafe\u0301"]) == ["caf\u00e9"]
    assert shortened(["plain, with comma", "dog"]) == "'plain, with comma', dog"
    data = load(table(tmp_path, SIX.replace("x", "hot_dog").replace("y", "Hot dog")), *NO_TEST)
    assert data.num_classes == 2
    assert "the classes 'Hot dog' and 'hot_dog' have the same name for CLIP, 'hot dog'" in capsys.readouterr().out
    load(table(tmp_path, SIX.replace("x", "n01440764").replace("y", "12")), *NO_TEST)
    assert "CLIP cannot know 12, n01440764; --classnames" in (printed := capsys.readouterr().out)
    load(table(tmp_path, SIX.replace("x", "1.0").replace("y", "2.0")), *NO_TEST)  # numbers that passed through pandas
    assert "CLIP cannot know 1.0, 2.0; --classnames" in capsys.readouterr().out
    load(table(tmp_path, SIX.replace("x", "c01").replace("y", "class 2")), *NO_TEST)
    assert "CLIP cannot know c01, class 2; --classnames" in capsys.readouterr().out
    load(table(tmp_path, SIX.replace("x", "A320").replace("y", "glider")), *NO_TEST)
    assert "CLIP cannot know" not in capsys.readouterr().out
    assert "look like missing values" not in printed
    load(table(tmp_path, SIX.replace("x", "nan").replace("y", "N/A")), *NO_TEST)  # as pandas writes them
    assert "labels that look like missing values are classes now: N/A, nan\n" in capsys.readouterr().out


def test_class_names_from_a_file(tmp_path):
    path, names = table(tmp_path, SIX), tmp_path / "names.txt"
    names.write_text("tench\ngreat white shark\n")
    data = load(path, "--classnames", str(names))
    assert data.classnames == ["tench", "great white shark"] and data.label_names == ["x", "y"]
    for text in (
        '\ny,great white shark\nx,"tench, a fish"',
        "label;name\ny; great white shark\nx;tench, a fish\n",
        'y,great white shark\nx,"tench, a fish"\n',
    ):
        names.write_text(text)  # by label, in any order
        assert load(path, "--classnames", str(names)).classnames == ["tench, a fish", "great white shark"]
    for text, message in (
        ("x,a\ny,b\nx,c\n", "has 2 lines of the label 'x', expected one"),
        ("x,a\nY,b\n", "has 0 lines of the label 'y', expected one"),
        ("y,b\nx,\n", "'x,' is no line of a label and a name"),
        ("y,b\nx,a\nz,c\n", "'z,c' is no line of a label and a name"),
    ):
        names.write_text(text)
        with pytest.raises(UserError, match=message):
            load(path, "--classnames", str(names))
    names.write_text("tench\n")
    with pytest.raises(UserError, match="names.txt: holds 1 class names, the data set has 2 classes"):
        load(path, "--classnames", str(names))
    names.write_text("tench\n\nshark\n")
    with pytest.raises(UserError, match="names.txt: line 2 is empty"):
        load(path, "--classnames", str(names))
    with pytest.raises(UserError, match="num_class: is 3, but own has 2 classes"):
        load(path, "--num_class", "3")
    write_cifar(tmp_path / "c", "cifar100")
    with pytest.raises(UserError, match="label 2 of training image 2 is out of range"):
        load_data(
            SimpleNamespace(
                **vars(load_config(["--dataset", "cifar100", "--data_path", str(tmp_path / "c")]))
                | {"class_names": ["a", "b"]}
            )
        )


# --- images


def test_every_kind_of_image_is_read(tmp_path):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(rgb)
    image.convert("L").save(tmp_path / "grey.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.convert("P").save(tmp_path / "palette.png")
    image.convert("1").save(tmp_path / "bits.png")
    image.save(tmp_path / "frames.gif", save_all=True, append_images=[Image.new("RGB", (8, 6))])
    Image.fromarray(np.linspace(0, 4095, 48).reshape(6, 8).astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.linspace(-1, 1, 48, dtype=np.float32).reshape(6, 8)).save(tmp_path / "float.tiff")
    clear = Image.fromarray(np.dstack([rgb, np.full((6, 8), 0, np.uint8)]))
    clear.save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    for path in tmp_path.iterdir():
        assert inspect_file(path)[1] == "", path
        assert open_image(path).mode == "RGB" and decode(path, 4).shape == (3, 4, 4)
    assert open_image(tmp_path / "turned.png").size == (6, 8)
    assert np.array_equal(open_image(tmp_path / "turned.png"), np.rot90(rgb, -1))
    assert np.asarray(open_image(tmp_path / "clear.png")).min() == 255
    for name in ("deep.png", "float.tiff"):
        assert np.ptp(np.asarray(open_image(tmp_path / name))) == 255
    assert np.array_equal(np.asarray(open_image(tmp_path / "frames.gif")).any(), True)


@pytest.mark.parametrize("suffix", [".jfif", ".jp2", ".avif", ".tga", ".psd", ".heic", ".heif"])
def test_every_suffix_that_pillow_reads(tmp_path, suffix):
    if suffix in HEIF:
        pytest.importorskip("pillow_heif")
    formats = Image.registered_extensions()
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            path, image = tmp_path / "data" / name / f"{i}{suffix.upper()}", Image.new("RGB", (64, 48), (80 * i, 99, 9))
            image.save(path, format="PNG" if suffix == ".psd" else formats[suffix])  # Pillow writes no PSD
    data = load(tmp_path / "data", *NO_TEST)
    assert len(data.train.images) == 6 and not data.skipped
    assert abs(int(decode(data.train.images[2], 8).float().mean((1, 2))[0]) - 160) < 8


def test_without_pillow_heif_its_files_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dataloader.files.READS_HEIF", False)
    monkeypatch.setattr("dataloader.files.IMAGE_SUFFIXES", {".png"})
    write_folder(tmp_path / "data", {"a": 3, "b": 3})
    (tmp_path / "data" / "a" / "photo.HEIC").write_bytes(b"not read")
    load(tmp_path / "data")
    assert "ignored files that are not images: .heic (1); `pip install pillow-heif` makes HEIC readable" in (
        capsys.readouterr().out
    )
    path = table(tmp_path, SIX + "data/a/photo.HEIC,x\n")
    assert load(path, *NO_TEST).skipped[0][1] == "HEIC is read by pillow-heif, which is not installed"


# --- file names that are no UTF-8


def latin1(tmp_path):
    """Class folders with one file whose name is Latin-1, its path as Python has it; skips where a file system has none."""
    write_folder(tmp_path / "data", {"a": 6, "b": 6})
    name = os.fsdecode(b"latin\xe9.png")
    try:
        (tmp_path / "data" / "a" / "0000.png").rename(tmp_path / "data" / "a" / name)
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    return tmp_path / "data", str(tmp_path / "data" / "a" / name)


def test_a_name_that_is_no_utf8_goes_through_everything(tmp_path, capsys):
    source, odd = latin1(tmp_path)
    flags_ = flags(source, tmp_path / "runs", "--test_fraction", "0.2")
    main_detect.main([*LABEL_MATCH, *flags_])
    main_detect.main([*LABEL_MATCH, *flags_])  # from the caches
    run = tmp_path / "runs/own-data/none/seed0/label-match"
    scores = (run / "scores.csv").read_text(encoding="utf-8")  # a file that every program reads
    (row,) = [row for row in csv.DictReader(scores.splitlines()) if "latin" in row["path"]]
    assert as_path(row["path"]).endswith("latin\udce9.png") and row["path"].endswith(r"latin\udce9.png")
    with np.load(run / "clean_mask.npz") as file:
        arrays = dict(file)
    arrays["mask"][:] = True
    np.savez(run / "clean_mask.npz", **arrays)
    page.main([str(run)])
    assert r"latin\udce9.png" in (run / "labels_clean.csv").read_text(encoding="utf-8")
    corrected = load(run / "labels_clean.csv", *NO_TEST)  # read back
    assert odd in corrected.train.images and not corrected.skipped and len(corrected.train.images) == 12
    export.main([str(run), "--to", str(tmp_path / "cleaned")])
    assert len(list((tmp_path / "cleaned").rglob("*.png"))) == 12
    (tmp_path / "data" / "b" / os.fsdecode(b"br\xf6ken.png")).write_bytes(b"")
    Path(odd).write_bytes((tmp_path / "data" / "a" / "0001.png").read_bytes())
    with pytest.raises(UserError, match="other images .1 changed"):
        main_detect.main([*LABEL_MATCH, *flags_])
    assert r"br\udcf6ken.png (empty)" in capsys.readouterr().out
    data = load(source)
    assert data.duplicates and all(as_text(row) for row in data.tables()["duplicates.csv"])


def test_a_table_with_a_name_that_is_no_utf8(tmp_path):
    source, odd = latin1(tmp_path)
    lines = [b"path,label", b"data/a/latin\xe9.png,x", *(b"data/b/%04d.png,y" % i for i in range(6, 12))]
    path = table(tmp_path, b"\n".join(lines), images="")
    assert load(path, *NO_TEST).train.images[0] == odd
    with pytest.raises(UserError, match=r"labels.csv: line 2 is not UTF-8 text \(caf.udce9\)"):
        load(table(tmp_path, b"\n".join(lines).replace(b",x", b",caf\xe9"), images=""))
    with pytest.raises(UserError, match=r"labels.csv: line 2 is not UTF-8 text \(data/a/gone.udce9.png"):
        load(table(tmp_path, b"\n".join(lines).replace(b"latin", b"gone"), images=""))


def test_paths_that_windows_wrote(tmp_path):
    """A backslash separates folders, unless a file has one in its name."""
    write_folder(tmp_path / "img", {"x": 1, "y": 2})
    names = sorted((tmp_path / "img" / "y").iterdir())
    names[1].rename(tmp_path / "img\\odd.png")
    text = f"path,label\nimg\\x\\0000.png,x\nimg\\y\\{names[0].name},y\nimg\\odd.png,y\n"
    data = load(table(tmp_path, text, images=""), *NO_TEST)
    assert data.train.images == [
        str(tmp_path / p) for p in ("img/x/0000.png", f"img/y/{names[0].name}", "img\\odd.png")
    ]


def messy(tmp_path, monkeypatch):
    path = table(
        tmp_path, SIX + "gone.png,x\nbroken.png,x\nempty.png,y\ntext.png,y\nhuge.png,y\ntwin.png,x\nsame.png,y\n"
    )
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(
        tmp_path / "broken.png"
    )
    (tmp_path / "broken.png").write_bytes((tmp_path / "broken.png").read_bytes()[:600])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (500, 500)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    for twin, name in (("a", "twin"), ("d", "same")):
        (tmp_path / f"{name}.png").write_bytes((tmp_path / f"{twin}.png").read_bytes())
    return path


def test_what_cannot_be_read_is_left_out_at_the_start_and_said(tmp_path, monkeypatch, capsys):
    path = messy(tmp_path, monkeypatch)
    path.write_text(path.read_text().replace("same.png,y", "same.png,x"))
    data = load(path, *NO_TEST)
    reasons = {p.removeprefix(f"{tmp_path}/"): reason for p, reason in data.skipped}
    assert (
        reasons["gone.png"] == "missing" and reasons["empty.png"] == "empty" and reasons["text.png"] == "not an image"
    )
    assert "exceeds limit" in reasons["huge.png"] and "broken.png" in reasons and len(reasons) == 5
    printed = capsys.readouterr().out
    assert "skipped 5 of 13 images" in printed
    assert "byte-identical images: 4, in 2 groups, 1 of them with different labels" in printed
    assert [(group, Path(p).name, *rest) for group, p, *rest in data.duplicates] == [
        (1, "a.png", "train", "x", False),
        (1, "twin.png", "train", "x", False),
        (2, "d.png", "train", "y", True),
        (2, "same.png", "train", "x", True),
    ]
    assert len(data.train.images) == 8

    for name in "abcdef":
        (tmp_path / f"{name}.png").unlink()
    with pytest.raises(UserError, match="data_path: none of the 6 images of .* can be read; paths are relative to /"):
        load(table(tmp_path / "again", SIX, images=""))


def test_rows_that_are_left_out_are_counted_not_their_files(tmp_path, capsys):
    path = table(tmp_path, SIX + "gone.png,x\n" * 4 + "empty.png,y\n")
    (tmp_path / "empty.png").write_bytes(b"")
    data = load(path, *NO_TEST)
    assert "skipped 5 of 11 images: " in (printed := capsys.readouterr().out)
    assert "gone.png (missing in 4 rows), " in printed and "empty.png (empty)" in printed
    assert len(data.skipped) == 5 == data.facts()["skipped"] and len(data.tables()["skipped.csv"]) == 6


def test_test_images_that_are_trained_on_are_called_out(tmp_path, capsys):
    text = SIX.replace("label\n", "label,split\n").replace(",x\n", ",x,train\n").replace(",y\n", ",y,train\n")
    path = table(tmp_path, text + "g.png,x,test\nh.png,y,test\n", images="abcdefgh")
    (tmp_path / "h.png").write_bytes((tmp_path / "e.png").read_bytes())
    data = load(path)
    assert [(Path(p).name, split) for _, p, split, *_ in data.duplicates] == [("e.png", "train"), ("h.png", "test")]
    assert (
        f"warning: 1 of 2 test images are training images too, so the test accuracy is too high: {tmp_path}/h.png"
        in (capsys.readouterr().out)
    )


def test_what_is_held_out_follows_the_content(tmp_path):
    """The same image is never on both sides, and one that comes or goes hardly changes which are held out."""
    rng, names = np.random.default_rng(0), [f"{i}.png" for i in range(60)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(tmp_path / name)
    for i in range(20):  # every third image twice
        (tmp_path / f"{i}.png").write_bytes((tmp_path / f"{i + 40}.png").read_bytes())

    def held_out(names, *flags):
        lines = [f"{name},{'x' if i % 2 else 'y'}" for i, name in enumerate(names)]
        data = load(table(tmp_path, "\n".join(["path,label", *lines]), images=""), *flags)
        train, test = ({Path(p).read_bytes() for p in split.images} for split in (data.train, data.test))
        assert not train & test and not {row[2] for row in data.duplicates} - {"train", "test"}
        assert [data.train.images, data.test.images] == [
            [str(tmp_path / n) for n in names if (Path(tmp_path / n).read_bytes() in test) == is_test]
            for is_test in (False, True)
        ]
        return {Path(p).name for p in data.test.images}

    first = held_out(names)
    assert 8 <= len(first) <= 12 and first != held_out(names, "--seed", "1")
    assert len(held_out(names[2:]) ^ first - set(names[:2])) <= 4


def test_true_labels_that_are_no_class(tmp_path, capsys):
    """They make no class for the detector, are no right answer in testing, and keep their name in the lists."""
    text = "path,label,true_label,split\n" + "".join(
        f"{name}.png,{given},{true},{split}\n"
        for name, given, true, split in zip("abcdef", "xxyyxy", "xayyzx", ["train"] * 4 + ["test"] * 2)
    )
    data = load(table(tmp_path, text))
    assert data.label_names == data.classnames == ["x", "y"] and data.true_names == ["x", "y", "a", "z"]
    assert data.train.labels.tolist() == [0, 0, 1, 1] and data.true_labels.tolist() == [0, 2, 1, 1]
    assert data.facts()["noise_rate"] == 0.25 and data.facts()["noise_counts"] == [[1, 0], [0, 2], [1, 0], [0, 0]]
    assert data.tests["test"].labels.tolist() == [0] and data.tests["test"].images == [str(tmp_path / "f.png")]
    assert f"not tested on, since their true label is no class: {tmp_path}/e.png" in capsys.readouterr().out
    scored = load(tmp_path / "labels.csv", "--score", "test")
    assert scored.train.labels.tolist() == [0, 1] and scored.true_labels.tolist() == [3, 0]  # what is given is judged
    flags_ = ["--cfg", "config/PEFT/own.yaml", *flags(tmp_path / "labels.csv", tmp_path / "runs")]
    summary = main_detect.main(flags_)
    assert summary["num_classes"] == 2 and summary["noise_rate"] == 0.25
    folder = next((tmp_path / "runs").rglob("scores.csv"))
    rows = list(csv.DictReader(folder.open()))
    assert [row["true_label"] for row in rows] == ["x", "a", "y", "y"]


# --- what tells one data set from another


def test_seeds_of_one_data_set_share_its_identity_and_other_data_have_another(tmp_path):
    write_folder(tmp_path / "data", {"a": 10, "b": 10})
    first, second = (load(tmp_path / "data", "--seed", seed) for seed in "01")
    assert first.source == second.source and first.fingerprint != second.fingerprint  # others are held out
    assert first.source == load(tmp_path / "data", *NO_TEST).source == load(tmp_path / "data", "--name", "x").source
    assert (first.name, load(tmp_path / "data", "--name", "my photos").place) == ("own-data", "own-my-photos/none")
    noisy = load(tmp_path / "data", "--noise_mode", "sym", "--noise_ratio", "0.5")
    assert noisy.source == first.source and noisy.identity["labels"] != first.identity["labels"]
    moved = tmp_path / "data" / "a" / "0003.png"
    moved.rename(tmp_path / "data" / "b" / "0003.png")  # another label of the same image
    assert load(tmp_path / "data").source != first.source
    (tmp_path / "data" / "b" / "0003.png").rename(moved)
    assert load(tmp_path / "data").source == first.source
    digits = [load_data(load_config(["--seed", seed])) for seed in "01"]
    assert digits[0].source == digits[1].source and digits[0].fingerprint != digits[1].fingerprint


def test_tables_keep_data_sets_apart(tmp_path, capsys):
    """Two of one name, two of two names, and two seeds of one."""
    out, counts = tmp_path / "runs", {"a": 5, "b": 6}
    for place, seed in (("x/photos", 0), ("x/photos", 1), ("y/photos", 2), ("z/pets", 0)):
        if not (tmp_path / place).exists():
            write_folder(tmp_path / place, counts)
            counts["b"] += 1
        main_detect.main([*LABEL_MATCH, *flags(tmp_path / place, out, "--seed", str(seed))])
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
    path = table(tmp_path, SIX.replace(".png", ".ppm"), images="")
    run = ["--cfg", "config/PEFT/own.yaml", *flags(path, tmp_path / "runs")]
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
    path, names = table(tmp_path, text), tmp_path / "names.txt"
    names.write_text("zero\none\n")
    run = ["--cfg", "config/PEFT/own.yaml", *flags(path, tmp_path / "runs", "--classnames", str(names))]
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
    run = flags(tmp_path / "data", tmp_path / "runs")
    summary = main_detect.main([*LABEL_MATCH, *run])
    assert (summary["num_train"], summary["num_test"], summary["all_judged"]) == (20, 4, True)
    assert "judging all 20 labels" in (printed := capsys.readouterr().out) and "not judged" not in printed
    folder = tmp_path / "runs/own-data/none/seed0/label-match"
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert [Path(row["path"]).name for row in rows] == [f"{i:04d}.png" for i in range(20)]  # where they stood
    data = load(tmp_path / "data")
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
    data = load(tmp_path / "data", *NO_TEST)
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
    paths[0].write_bytes(b"spoilt")
    assert inspect_files(paths, tmp_path / "cache.json")[1] == ["not an image", ""]
    (tmp_path / "cache.json").write_text('{"x": 3')
    assert inspect_files(paths, tmp_path / "cache.json")[1] == ["not an image", ""]


def test_a_file_that_breaks_later_is_named(tmp_path):
    path = table(tmp_path, SIX)
    data = load(path, *NO_TEST)
    (tmp_path / "b.png").write_bytes(b"x")
    with pytest.raises(UserError, match="b.png: not a readable image"):
        list(Loader(data.train, data.view, Pixels(28, (0.5,) * 3, (0.5,) * 3), 4, torch.device("cpu"), False).eval())


# --- whole runs


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


def flags(path, out, *more):
    return [
        "--data_path",
        str(path),
        "--backbone",
        "tiny-clip-digits",
        "--output_dir",
        str(out),
        "--device",
        "cpu",
        *more,
    ]


def test_without_a_test_split_everything_runs(tmp_path, monkeypatch, capsys):
    path, out = messy(tmp_path, monkeypatch), tmp_path / "runs"
    first = main_detect.main([*LABEL_MATCH, *flags(path, out, *NO_TEST)])
    real = [
        "--cfg",
        "config/PEFT/own.yaml",
        *flags(path, out, *NO_TEST, "--n_ctx", "2", "--vpt_len", "1", "--epochs", "1"),
    ]
    second = main_real_phase1.main(real)
    mask = tmp_path / "mask.npy"
    np.save(mask, np.ones(8, dtype=bool))
    third = main_real_phase2.main(
        ["--cfg", "config/FFT/own.yaml", *flags(path, out, *NO_TEST, "--epochs", "1"), "--mask", str(mask)]
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
    summary = main_detect.main([*LABEL_MATCH, *flags(tmp_path / "data", tmp_path / "runs")])
    assert summary["num_classes"] == 300 and summary["num_test"] == 0
    assert "… (300 in all)" in capsys.readouterr().out


def test_an_output_folder_that_cannot_be_written_to(tmp_path):
    path = table(tmp_path, SIX)
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="output_dir: .*file.* is not writable"):
            main_detect.main([*LABEL_MATCH, *flags(path, out)])
        with pytest.raises(UserError, match="output_dir: .*file.* is not writable"):
            main_detect.main(["--cfg", "config/PEFT/digits.yaml", "--output_dir", str(out)])


def test_own_yaml_asks_for_epochs_by_size():
    for phase in ("PEFT", "FFT"):
        content = yaml.safe_load(open(f"config/{phase}/own.yaml"))
        assert content["epochs"] == 0 and content["warmup"] == -1


def test_data_that_nobody_would_read(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="digits reads no files, but data_path is .*own.yaml"):
        main_detect.main(["--data_path", str(tmp_path), "--backbone", "tiny-clip-digits"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--data_path names your folder"):
        load_data(load_config(["--dataset", "own"]))
