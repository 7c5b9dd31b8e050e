"""A person's own images in folders: classes, splits, and what systems leave behind."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataloader.files import below
from dataloader.listings import class_folders
from tests.helpers import NO_TEST, SIX, load_own, write_folder, write_table
from utils.errors import UserError


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
    data = load_own(tmp_path / "plain")
    assert (data.label_names, data.classnames, data.true_labels, data.ids) == (["a", "b_2"], ["a", "b 2"], None, None)
    assert Counter(data.train.labels.tolist()) == {0: 16, 1: 8} and len(data.test.images) == 6
    assert not set(data.train.images) & set(data.test.images)
    again = load_own(tmp_path / "plain", "--noise_mode", "sym", "--noise_ratio", "0.5")
    assert again.train.images == data.train.images and np.array_equal(again.true_labels, data.train.labels)

    write_folder(tmp_path / "blanks", {"a ": 3, "b": 3})  # as labels in tables, which the report writes, too
    assert load_own(tmp_path / "blanks").label_names == ["a", "b"]

    write_folder(tmp_path / "split" / "train", {"a": 3, "b": 4, "c": 2})
    write_folder(tmp_path / "split" / "val", {"a": 2, "c": 2})
    data = load_own(tmp_path / "split")
    assert len(data.train.images) == 9 and data.test.labels.tolist() == [0, 0, 2, 2]
    write_folder(tmp_path / "split" / "test", {"b": 3})
    assert load_own(tmp_path / "split").test.labels.tolist() == [1, 1, 1]  # val is left out where there is a test split


def test_folder_errors(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="data_path: there is no folder or file .*imags.*Did you mean .*images"):
        load_own(tmp_path / "imags")
    with pytest.raises(UserError, match="images holds no class folder with an image in it"):
        load_own(tmp_path / "images")
    write_table(tmp_path / "images", SIX)
    with pytest.raises(UserError, match="holds no class folder.*Did you mean .*labels.csv"):
        load_own(tmp_path / "images")
    write_folder(tmp_path / "one", {"a": 3})
    with pytest.raises(
        UserError, match="a holds no class folder .*; 3 images lie in it directly, expected one folder for each"
    ):
        load_own(tmp_path / "one" / "a")
    with pytest.raises(UserError, match="one holds training images of 1 class, expected two or more"):
        load_own(tmp_path / "one")
    write_table(tmp_path / "one", SIX)
    with pytest.raises(UserError, match="of 1 class.* A table of labels is named itself, as .*labels.csv"):
        load_own(tmp_path / "one")
    write_folder(tmp_path / "other" / "train", {"cat": 3, "dog": 3})
    write_folder(tmp_path / "other" / "test", {"cats": 3})
    with pytest.raises(UserError, match="cats.*: 'cats' is no class of the training images.*Did you mean cat"):
        load_own(tmp_path / "other")


@pytest.mark.parametrize(
    "names",
    [("Train", "Test"), ("training", "validation"), ("TRAIN", "dev"), ("train", "Testing"), ("Training", "eval")],
)
def test_split_folders_by_any_of_their_names(tmp_path, names):
    for name, counts in zip(names, ({"a": 3, "b": 4}, {"a": 2, "b": 1})):
        write_folder(tmp_path / "data" / name, counts)
    write_folder(tmp_path / "data" / "@eaDir" / "a", {"x": 1})  # a network drive's
    write_folder(tmp_path / "data" / "__MACOSX", {"a": 1})
    data = load_own(tmp_path / "data")
    assert data.label_names == ["a", "b"] and (len(data.train.images), len(data.test.images)) == (7, 3)
    assert data.held_out is None and not any("@eaDir" in path for path in data.train.images)


def test_what_metadata_does_not_list_is_said(tmp_path, capsys):
    write_folder(tmp_path, {"img": 5})
    names = sorted(path.name for path in (tmp_path / "img").iterdir())
    lines = [f"img/{name},{'xy'[i % 2]}" for i, name in enumerate(names[:4])]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    data = load_own(tmp_path, *NO_TEST)
    assert len(data.train.labels) == 4 and data.label_names == ["x", "y"]
    assert f"metadata.csv does not list (1): {tmp_path / 'img' / names[4]}\n" in capsys.readouterr().out


@pytest.mark.parametrize("name, text", [("metadata.csv", "key,value\nnote,a,b\n"), ("metadata.jsonl", "[1]\nnone\n")])
def test_metadata_of_something_else_is_no_table(tmp_path, name, text):
    write_folder(tmp_path, {"a": 2, "b": 2})
    (tmp_path / name).write_text(text)
    assert load_own(tmp_path, *NO_TEST).label_names == ["a", "b"]


def test_system_folders_are_no_classes(tmp_path):
    write_folder(tmp_path / "data", {"a": 5, "b": 5})
    system = ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN", "System Volume Information"]
    write_folder(tmp_path / "data", {name: 2 for name in system})
    write_folder(tmp_path / "data" / "a", {"@eaDir/thumbs": 2})
    data = load_own(tmp_path / "data", *NO_TEST)
    assert data.label_names == ["a", "b"] and len(data.train.images) == 10


def test_splits_are_never_taken_for_classes(tmp_path, capsys):
    write_folder(tmp_path / "flat", {"Train": 3, "test": 3})  # images and no class folders
    with pytest.raises(UserError, match="the only classes of .*flat are Train, test, names of splits"):
        load_own(tmp_path / "flat")
    with pytest.raises(UserError, match="the only classes of .* are test, train, names of splits"):
        load_own(write_table(tmp_path, SIX.replace("x", "train").replace("y", "test")))
    write_folder(tmp_path / "two" / "train", {"a": 3, "b": 3})
    write_folder(tmp_path / "two" / "Training", {"a": 3, "b": 3})
    with pytest.raises(UserError, match="two/Training and .*two/train are both a train split"):
        load_own(tmp_path / "two")
    write_folder(tmp_path / "none" / "test", {"a": 3, "b": 3})
    write_folder(tmp_path / "none", {"a": 3, "b": 3})
    with pytest.raises(UserError, match="none/test is a test split, but there is no training split"):
        load_own(tmp_path / "none")
    write_folder(tmp_path / "vehicles", {"train": 4, "bus": 4, "dev": 4})  # the rail kind
    assert load_own(tmp_path / "vehicles").label_names == ["bus", "dev", "train"]
    write_folder(tmp_path / "extra" / "train", {"a": 3, "b": 3})
    write_folder(tmp_path / "extra", {"sample": 2})
    assert load_own(tmp_path / "extra").label_names == ["a", "b"]
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
    data = load_own(tmp_path)
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


def test_images_without_a_suffix_and_classes_without_an_image(tmp_path, capsys):
    write_folder(tmp_path / "data", {"a": 3, "b": 3, "c": 1})
    first = min((tmp_path / "data" / "a").iterdir())
    first.rename(first.with_suffix(""))
    (tmp_path / "data" / "a" / "LICENSE").write_text("free")
    (broken,) = (tmp_path / "data" / "c").iterdir()
    broken.write_bytes(b"no image")
    data = load_own(tmp_path / "data", *NO_TEST)
    assert len(data.train.labels) == 6 and data.path(0) == f"a/{first.stem}"
    printed = capsys.readouterr().out
    assert "ignored files that are not images: without a suffix (1)" in printed
    assert "classes of which no image can be read: c" in printed
