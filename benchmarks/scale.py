"""Scaling: time and memory until training on a long list of files starts, and images/s of one and two processes.

    python -m benchmarks.scale

The list has WebVision's format, with N images of 50 classes that refer to a few files; the model is the embedded one.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.common import parser, report, settings
from utils.memory import keep_freed_memory, peak_gb

START = "--start"


def write_list(root, n):
    """Write WebVision's layout with n training images."""
    for folder in ("info", "val_images_256", "google"):
        (root / folder).mkdir(parents=True)
    Image.fromarray(np.full((32, 32, 3), 128, dtype=np.uint8)).save(root / "google/0.jpg")
    Image.fromarray(np.full((32, 32, 3), 128, dtype=np.uint8)).save(root / "val_images_256/0.jpg")
    # a million names of one file: before training, only the first batches are read
    lines = (f"google/{'./' * (i % 40)}0.jpg {i % 50}\n" for i in range(n))
    (root / "info/train_filelist_google.txt").write_text("".join(lines))
    (root / "info/val_filelist.txt").write_text("".join(f"0.jpg {k}\n" for k in range(50)))


def start(root):
    """Seconds and memory from the list to the end of the second step; runs in its own process."""
    from dataloader.load import load_data
    from dataloader.loaders import EpochRandomness, make_loaders
    from methods.deft import Rules, train_detector_epoch
    from model.classifier import build_optimizer
    from model.clip import input_pixels, load_clip
    from model.detector import Detector
    from model.prompts import DualPrompts
    from model.tuners import tune
    from utils.device import Amp

    cfg = settings("--dataset", "webvision", "--data_path", root, "--backbone", "tiny-clip-digits", "--vpt_deep")
    keep_freed_memory()
    begin, device = time.perf_counter(), torch.device("cpu")
    data = load_data(cfg)
    clip, tokenizer = load_clip(cfg.backbone)
    train, _ = make_loaders(data, cfg, input_pixels(clip, cfg), device)
    tune(clip.visual, cfg)
    model = Detector(clip, DualPrompts(clip, tokenizer, data.classnames, cfg.n_ctx))
    randomness = EpochRandomness(0, 1, data.train.labels, data.num_classes)
    batches = iter(train.train(randomness))
    train_detector_epoch(
        model,
        [next(batches), next(batches)],
        randomness.complementary,
        build_optimizer(model, cfg),
        Rules(warm=True, use_pseudo_labels=False),
        Amp(device),
    )
    print(json.dumps({"s": time.perf_counter() - begin, "peak GB": peak_gb()}))


def main():
    if sys.argv[1:2] == [START]:
        return start(sys.argv[2])
    p = parser(__doc__)
    p.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    args = p.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n in args.sizes:
            write_list(Path(folder) / str(n), n)
            out = subprocess.run(
                [sys.executable, "-m", "benchmarks.scale", START, str(Path(folder) / str(n))],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            rows.append({"what": f"two steps of a list of {n:,} images", **json.loads(out.splitlines()[-1])})
        for processes in (1, 2):
            run = Path(folder) / f"run{processes}"
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--standalone",
                    f"--nproc_per_node={processes}",
                    "main_phase1.py",
                    "--cfg",
                    "config/PEFT/digits.yaml",
                    "--epochs",
                    "3",
                    "--batch_size",
                    "64",
                    "--output_dir",
                    str(run),
                ],
                check=True,
                capture_output=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            summary = json.loads(next(run.rglob("summary.json")).read_text())
            rows.append(
                {
                    "what": f"digits, {processes} process(es) of one thread",
                    "images/s": summary["images_per_second"],
                    "peak GB": summary["peak_memory_gb"],
                }
            )
    report(rows, args)


if __name__ == "__main__":
    main()
