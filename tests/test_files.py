"""Files are whole or not there, on a full disk too."""

import csv
import io
import resource

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from utils.errors import UserError
from utils.files import csv_text, write_whole

BIG = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)


def picture(file):
    figure = Figure(figsize=(8, 8))
    figure.subplots().imshow(BIG)
    figure.savefig(file, format="png")


WRITERS = {
    "checkpoint": lambda file: torch.save({"weights": torch.zeros(100_000)}, file),
    "features": lambda file: np.savez(file, features=BIG),
    "picture": picture,
    "text": lambda file: file.write(b"x" * 30_000),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, what):
    path = tmp_path / "made" / "file"
    path.parent.mkdir()
    path.write_text("before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (20_000, limits[1])
    )  # what is longer cannot be written, as on a full disk
    try:
        with pytest.raises(UserError) as error, write_whole(path) as file:
            WRITERS[what](file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value) == f"{path}: cannot be written (File too large)."
    assert [p.name for p in path.parent.iterdir()] == ["file"] and path.read_text() == "before"


def test_a_carriage_return_in_a_field_is_read_back():
    rows = [["a", "b"], ["one\rtwo", '"x";,\n'], ["", "plain"]]
    assert list(csv.reader(io.StringIO(csv_text(rows), newline=""))) == rows
    assert csv_text([["a", None]]) == "a,\n"


def test_other_errors_while_a_file_is_written_pass_through(tmp_path):
    (tmp_path / "copy").write_text("old")
    with pytest.raises(FileNotFoundError), write_whole(tmp_path / "copy") as file:
        file.write(b"new")
        file.write((tmp_path / "nowhere").read_bytes())
    assert [p.name for p in tmp_path.iterdir()] == ["copy"] and (tmp_path / "copy").read_text() == "old"
