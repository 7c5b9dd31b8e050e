"""A person's own image files: every kind is read, odd names are kept, and what cannot be read is left out."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_detect
from dataloader.files import HEIF, inspect_file
from dataloader.transforms import decode, open_image
from report import export, page
from tests.helpers import LABEL_MATCH, NO_TEST, SIX, load_own, own_flags, write_folder, write_messy_table, write_table
from utils.errors import UserError
from utils.files import as_path, as_text


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
    data = load_own(tmp_path / "data", *NO_TEST)
    assert len(data.train.images) == 6 and not data.skipped
    assert abs(int(decode(data.train.images[2], 8).float().mean((1, 2))[0]) - 160) < 8


def test_without_pillow_heif_its_files_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dataloader.files.READS_HEIF", False)
    monkeypatch.setattr("dataloader.files.IMAGE_SUFFIXES", {".png"})
    write_folder(tmp_path / "data", {"a": 3, "b": 3})
    (tmp_path / "data" / "a" / "photo.HEIC").write_bytes(b"not read")
    load_own(tmp_path / "data")
    assert "ignored files that are not images: .heic (1); `pip install pillow-heif` makes HEIC readable" in (
        capsys.readouterr().out
    )
    path = write_table(tmp_path, SIX + "data/a/photo.HEIC,x\n")
    assert load_own(path, *NO_TEST).skipped[0][1] == "HEIC is read by pillow-heif, which is not installed"


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
    flags_ = own_flags(source, tmp_path / "runs", "--test_fraction", "0.2")
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
    corrected = load_own(run / "labels_clean.csv", *NO_TEST)  # read back
    assert odd in corrected.train.images and not corrected.skipped and len(corrected.train.images) == 12
    export.main([str(run), "--to", str(tmp_path / "cleaned")])
    assert len(list((tmp_path / "cleaned").rglob("*.png"))) == 12
    (tmp_path / "data" / "b" / os.fsdecode(b"br\xf6ken.png")).write_bytes(b"")
    Path(odd).write_bytes((tmp_path / "data" / "a" / "0001.png").read_bytes())
    with pytest.raises(UserError, match="other images .1 changed"):
        main_detect.main([*LABEL_MATCH, *flags_])
    assert r"br\udcf6ken.png (empty)" in capsys.readouterr().out
    data = load_own(source)
    assert data.duplicates and all(as_text(row) for row in data.tables()["duplicates.csv"])


def test_a_table_with_a_name_that_is_no_utf8(tmp_path):
    source, odd = latin1(tmp_path)
    lines = [b"path,label", b"data/a/latin\xe9.png,x", *(b"data/b/%04d.png,y" % i for i in range(6, 12))]
    path = write_table(tmp_path, b"\n".join(lines), images="")
    assert load_own(path, *NO_TEST).train.images[0] == odd
    with pytest.raises(UserError, match=r"labels.csv: line 2 is not UTF-8 text \(caf.udce9\)"):
        load_own(write_table(tmp_path, b"\n".join(lines).replace(b",x", b",caf\xe9"), images=""))
    with pytest.raises(UserError, match=r"labels.csv: line 2 is not UTF-8 text \(data/a/gone.udce9.png"):
        load_own(write_table(tmp_path, b"\n".join(lines).replace(b"latin", b"gone"), images=""))


def test_paths_that_windows_wrote(tmp_path):
    """A backslash separates folders, unless a file has one in its name."""
    write_folder(tmp_path / "img", {"x": 1, "y": 2})
    names = sorted((tmp_path / "img" / "y").iterdir())
    names[1].rename(tmp_path / "img\\odd.png")
    text = f"path,label\nimg\\x\\0000.png,x\nimg\\y\\{names[0].name},y\nimg\\odd.png,y\n"
    data = load_own(write_table(tmp_path, text, images=""), *NO_TEST)
    assert data.train.images == [
        str(tmp_path / p) for p in ("img/x/0000.png", f"img/y/{names[0].name}", "img\\odd.png")
    ]


def test_what_cannot_be_read_is_left_out_at_the_start_and_said(tmp_path, monkeypatch, capsys):
    path = write_messy_table(tmp_path, monkeypatch)
    path.write_text(path.read_text().replace("same.png,y", "same.png,x"))
    data = load_own(path, *NO_TEST)
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
        load_own(write_table(tmp_path / "again", SIX, images=""))


def test_rows_that_are_left_out_are_counted_not_their_files(tmp_path, capsys):
    path = write_table(tmp_path, SIX + "gone.png,x\n" * 4 + "empty.png,y\n")
    (tmp_path / "empty.png").write_bytes(b"")
    data = load_own(path, *NO_TEST)
    assert "skipped 5 of 11 images: " in (printed := capsys.readouterr().out)
    assert "gone.png (missing in 4 rows), " in printed and "empty.png (empty)" in printed
    assert len(data.skipped) == 5 == data.facts()["skipped"] and len(data.tables()["skipped.csv"]) == 6


def test_a_test_split_that_is_not_there(tmp_path):
    """Its images are not replaced by others, held out of training."""
    text = SIX.replace("label\n", "label,split\n").replace(",x\n", ",x,train\n").replace(",y\n", ",y,train\n")
    path = write_table(tmp_path, text + "test/g.png,x,test\ntest/h.png,y,test\n")
    with pytest.raises(
        UserError, match=r"none of the 2 test images of .*labels.csv can be read, such as .*test/g.png; cor"
    ):
        load_own(path)
    (tmp_path / "test").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "test" / "g.png")
    assert len(load_own(path).test.labels) == 1


def test_test_images_that_are_trained_on_are_called_out(tmp_path, capsys):
    text = SIX.replace("label\n", "label,split\n").replace(",x\n", ",x,train\n").replace(",y\n", ",y,train\n")
    path = write_table(tmp_path, text + "g.png,x,test\nh.png,y,test\n", images="abcdefgh")
    (tmp_path / "h.png").write_bytes((tmp_path / "e.png").read_bytes())
    data = load_own(path)
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
        data = load_own(write_table(tmp_path, "\n".join(["path,label", *lines]), images=""), *flags)
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
    data = load_own(write_table(tmp_path, text))
    assert data.label_names == data.classnames == ["x", "y"] and data.true_names == ["x", "y", "a", "z"]
    assert data.train.labels.tolist() == [0, 0, 1, 1] and data.true_labels.tolist() == [0, 2, 1, 1]
    assert data.facts()["noise_rate"] == 0.25
    assert data.tests["test"].labels.tolist() == [0] and data.tests["test"].images == [str(tmp_path / "f.png")]
    assert f"not tested on, since their true label is no class: {tmp_path}/e.png" in capsys.readouterr().out
    scored = load_own(tmp_path / "labels.csv", "--score", "test")
    assert scored.train.labels.tolist() == [0, 1] and scored.true_labels.tolist() == [3, 0]  # what is given is judged
    flags_ = ["--cfg", "config/PEFT/own.yaml", *own_flags(tmp_path / "labels.csv", tmp_path / "runs")]
    summary = main_detect.main(flags_)
    assert summary["num_classes"] == 2 and summary["noise_rate"] == 0.25
    folder = next((tmp_path / "runs").rglob("scores.csv"))
    rows = list(csv.DictReader(folder.open()))
    assert [row["true_label"] for row in rows] == ["x", "a", "y", "y"]
