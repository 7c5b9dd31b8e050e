"""Dark, overexposed, blurred and one-coloured images: what CleanVision finds, kept by content, in a list and in the page."""

import csv
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

import main_detect
from dataloader.dataset import Dataset, Split, View
from report import page, quality
from tests.helpers import LABEL_MATCH
from utils.errors import UserError


def pictures():
    """{issue or "": image}: a drawing, and what is wrong with others."""
    image = Image.new("RGB", (320, 240), (200, 180, 90))
    draw = ImageDraw.Draw(image)
    for i in range(60):
        draw.rectangle((i * 5, i * 7 % 200, i * 5 + 30, i * 7 % 200 + 40), fill=(i * 4, 255 - i * 4, i * 37 % 256))
    found = {
        "": image,
        "dark": image.point(lambda x: x // 20),
        "light": image.point(lambda x: 245 + x // 32),
        "low_information": Image.new("RGB", (320, 240), (120, 30, 200)),
    }
    return found


def test_each_issue_is_found(tmp_path, capsys, monkeypatch):
    """In the list and the page; what was checked once is not checked again; images that are gone are left out."""
    pytest.importorskip("cleanvision")
    paths = {name: tmp_path / "data" / f"class{k % 2}" / f"{k}.png" for k, name in enumerate(pictures())}
    for name, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures()[name].save(path)
    out = ["--data_path", str(tmp_path / "data"), "--output_dir", str(tmp_path / "runs"), "--test_fraction", "0"]
    main_detect.main([*LABEL_MATCH, "--backbone", "tiny-clip-digits", "--device", "cpu", *out])
    run = tmp_path / "runs/own-data/none/seed0/label-match"
    quality.main([str(run)])
    assert "1 dark, 1 overexposed, 0 blurred, 1 nearly uniform in colour" in capsys.readouterr().out
    rows = list(csv.DictReader((run / "image_issues.csv").open()))
    assert {tmp_path / "data" / row["path"]: row["issue"] for row in rows} == {
        p: name for name, p in paths.items() if name
    }
    assert all(row["label"] == row["path"].split("/")[0] and 0 <= float(row["score"]) < 1 for row in rows)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cleanvision", None)
        quality.main([str(run)])  # nothing new to look at
        (tmp_path / "runs/cache/image-quality.json").unlink()
        with pytest.raises(UserError, match="quality: needs the package cleanvision: `pip install cleanvision`"):
            quality.main([str(run)])
    paths["dark"].unlink()
    page.main([str(run)])
    html = (run / "report.html").read_text()
    assert "Image quality" in html and "1 overexposed" in html and "1 dark" not in html
    (run / "image_issues.csv").write_text("index,issue,content\n99,dark,x\n")
    with pytest.raises(UserError, match=r"image_issues.csv: not the list of this run; run report.quality again"):
        page.main([str(run)])


def test_images_whose_content_was_not_read_are_told_apart():
    """Two data sets may have the same paths: one cache serves both."""
    split = Split(["/a/x/0.png", "/a/x/1.png"], np.zeros(2, dtype=np.int64))
    data = Dataset("a", split, None, ["x"], View(), root="/a", fingerprint="12345678")
    others = replace(data, train=Split(["/b/x/0.png"], np.zeros(1, dtype=np.int64)), root="/b", fingerprint="87654321")
    assert len({*quality._contents(data), *quality._contents(others)}) == 3


def test_scores_go_with_the_picture_that_they_are_of(tmp_path, monkeypatch):
    pd = pytest.importorskip("pandas")
    columns = {f"{name}_score": [0.1, 0.9] for name in quality.ISSUES} | {"is_dark_issue": [True, False]}
    columns |= {f"is_{name}_issue": [False, False] for name in quality.ISSUES if name != "dark"}
    monkeypatch.setattr(quality, "_look_at", lambda pictures: pd.DataFrame(columns, index=[1, 0]))  # in its own order
    data = Dataset("a", Split(["/a/0.png", "/a/1.png"], np.zeros(2, dtype=np.int64)), None, ["x"], View(), root="/a")
    assert quality.find_issues(data, [0, 1], tmp_path / "cache.json")["dark"] == {1: 0.1}
