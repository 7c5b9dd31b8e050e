"""Files are whole or not there, on a full disk too."""

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest

from utils.files import csv_text, write_whole

FULL = """
import io, resource, sys
import numpy as np
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # what is longer cannot be written, as on a full disk
from utils.start import run_main
from utils.files import write_whole
big = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)

def checkpoint(file):
    import torch
    torch.save({"weights": torch.zeros(100_000)}, file)

def features(file):
    np.savez(file, features=big)

def picture(file):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 8))
    figure.subplots().imshow(big)
    figure.savefig(file, format="png")

def text(file):
    file.write(b"x" * 30_000)

def main():
    with write_whole(sys.argv[2]) as file:
        globals()[sys.argv[1]](file)

run_main(main)
"""


@pytest.mark.parametrize("what", ["checkpoint", "features", "picture", "text"])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, what):
    path = tmp_path / "made" / "file"
    path.parent.mkdir()
    path.write_text("before")
    done = subprocess.run([sys.executable, "-c", FULL, what, str(path)], capture_output=True, text=True, cwd=Path.cwd())
    assert done.returncode == 2 and done.stderr == f"error: {path}: cannot be written (File too large).\n"
    assert [p.name for p in path.parent.iterdir()] == ["file"] and path.read_text() == "before"


def test_a_carriage_return_in_a_field_is_read_back():
    rows = [["a", "b"], ["one\rtwo", '"x";,\n'], ["", "plain"]]
    assert list(csv.reader(io.StringIO(csv_text(rows), newline=""))) == rows
    assert csv_text([["a", None]]) == "a,\n"


def test_other_errors_while_a_file_is_written_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError), write_whole(tmp_path / "copy") as file:
        file.write((tmp_path / "nowhere").read_bytes())
    assert not list(tmp_path.iterdir())
