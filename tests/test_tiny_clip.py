"""The script that pre-trains the embedded CLIP of digits, with few steps."""

import json
import shutil
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

from dataloader.digits import load_digits_8x8
from model.clip import load_clip
from model.prompts import zero_shot_features
from scripts import make_tiny_clip
from utils.files import EMBEDDED


def test_the_script_runs_and_stores_a_clip(tmp_path, monkeypatch, capsys):
    levels, labels = load_digits_8x8()
    pages = np.stack([np.asarray(Image.fromarray(x * 15).resize((28, 28), Image.Resampling.BICUBIC)) for x in levels])
    images = {"train_images": pages[:100], "test_images": pages[100:150]}
    np.savez(tmp_path / "mnist.npz", train_labels=labels[:100], test_labels=labels[100:150], **images)
    shutil.copy(EMBEDDED["tiny-clip-digits"] / "open_clip_config.json", tmp_path)
    fonts = Path(matplotlib.get_data_path()) / "fonts/ttf"
    flags = ["--mnist", tmp_path / "mnist.npz", "--fonts", fonts, "--out", tmp_path, "--batch_size", 32]
    flags += ["--steps", 2, "--text_steps", 2]
    monkeypatch.setattr(make_tiny_clip, "TEXT_BATCHES", 1)
    monkeypatch.setattr(sys, "argv", ["make_tiny_clip.py", *map(str, flags)])
    make_tiny_clip.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("100 handwritten and ") and "zero-shot" in printed[1]
    assert json.loads(printed[-1]).keys() == {"mnist_test_zero_shot", "sklearn_digits_zero_shot"}
    clip, tokenizer = load_clip(str(tmp_path))
    text = zero_shot_features(clip, tokenizer, ["one", "seven"])
    assert torch.isfinite(text).all() and text[0] @ text[1] < 0.9999
