"""Shared by the benchmarks: interleaved timing, tables, JSON, synthetic data."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataloader.dataset import Dataset, Split, View
from dataloader.digits import enlarge_digits, load_digits_8x8
from report.tables import format_table
from utils.config import load_config
from utils.files import write_text
from utils.version import git_commit


def parser(doc):
    """Parser with the flags that all benchmarks share; `doc` is the description."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--json", default="", help="write the figures to this file")
    return p


def add_repeats(p):
    """The flag of those that run their variants in turns."""
    p.add_argument("--repeats", type=int, default=3, help="rounds; in each, every variant runs once")


def synchronize(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def in_turns(variants, repeats, device="cpu", warm=True):
    """{name: seconds of each round}; every round runs all functions once, so that noise of the machine affects all."""
    seconds = {name: [] for name in variants}
    for round_ in range(repeats + warm):
        for name, function in variants.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            if round_ >= warm:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def machine(device):
    """The machine and versions that figures were measured with."""
    cpu = torch.cpu.get_capabilities()
    where = [
        cpu.get("cpu_name", "CPU"),
        torch.backends.cpu.get_cpu_capability(),
        *["bf16"] * cpu.get("avx512_bf16", False),
    ]
    return {
        "device": torch.cuda.get_device_name() if torch.device(device).type == "cuda" else ", ".join(where),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": git_commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def report(rows, args, **more):
    """Print rows (dicts with the same keys) as a Markdown table and write them, with the machine, to --json."""

    def cell(value):
        if not isinstance(value, float):
            return str(value)
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    keys = list(dict.fromkeys(key for row in rows for key in row))
    words = next(i for i, key in enumerate(keys) if any(isinstance(row.get(key), float) for row in rows))
    print(format_table([keys, *([cell(row.get(key, "")) for key in keys] for row in rows)], words))
    if args.json:
        write_text(
            args.json,
            json.dumps(
                {**machine(getattr(args, "device", "cpu")), "arguments": vars(args), **more, "rows": rows},
                indent=1,
                default=str,
            )
            + "\n",
        )


def synthetic(num_train, num_test, num_classes, seed=0):
    """A data set of CIFAR's shape with random pixels and labels, K classes named after numbers, and no true labels."""
    rng = np.random.default_rng(seed)

    def split(n):
        return Split(rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, num_classes, n))

    names = [f"thing number {k}" for k in range(num_classes)]
    return Dataset("synthetic", split(num_train), split(num_test), names, View(pad=4))


def digits_folder(root, number, ratio=0.2, seed=0):
    """Write the first digits as class folders, a fraction `ratio` of them in a wrong one: {path: true label}."""
    levels, labels = load_digits_8x8()
    rng = np.random.default_rng(seed)
    names = "zero one two three four five six seven eight nine".split()
    truth = {}
    for i, pixels in enumerate(enlarge_digits(levels[:number])):
        given = (labels[i] + rng.integers(1, 10)) % 10 if rng.random() < ratio else labels[i]
        path = Path(root) / names[given] / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        truth[str(path)] = names[labels[i]]
    return truth


def settings(*flags):
    """A configuration from flags alone."""
    return load_config([str(flag) for flag in flags])
