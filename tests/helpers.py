"""What several test files share: data in official layouts, flags of a quick run, checkpoints compared."""

import csv
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from dataloader.digits import digits, enlarge_digits, load_digits_8x8
from dataloader.load import DATASETS, load_data
from methods.inputs import Inputs
from utils.config import default_values, load_config
from utils.device import pick_device
from utils.runs import Run

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).resolve().parents[2] / "shared"  # the papers' figures and real images, where they are at hand
# for the tests that run on a GPU as well: CUDA_VISIBLE_DEVICES=0 python -m pytest tests/test_golden_detector.py …
DEVICE = pick_device(load_config(["--device", "cuda" if torch.cuda.is_available() else "cpu"]))
CELL = ["--noise_mode", "sym", "--noise_ratio", "0.4"]
# what every summary.json holds
SUMMARY = {"name": "x", "dataset": "toy", "noise": "none", "seed": 0, "backbone": "toy", "identity": {}}
LABEL_MATCH = ["--cfg", str(Path(__file__).parents[1] / "config/PEFT/own.yaml"), "--detector", "label-match"]
FEW = ["--test_fraction", "0.8", "--device", "cpu"]  # 359 training images
TESTED = 200  # images that are then tested, see digits_with_few_tests
FAST = [*FEW, "--epochs", "2"]
# own images: a table of two classes, and a flag by which none of its images are held out for testing
SIX = "path,label\na.png,x\nb.png,x\nc.png,x\nd.png,y\ne.png,y\nf.png,y\n"
NO_TEST = ("--test_fraction", "0")


def digits_with_few_tests(cfg):
    """The digits, of which at most 360 are tested: where FEW holds out 1,438, testing would take longer than training."""
    data = digits(cfg)
    if cfg.test_fraction <= 0.2:
        return data
    return replace(data, test=data.test.take(np.arange(TESTED)), held_out=data.held_out[:TESTED])


DATASETS["digits"] = digits_with_few_tests  # also in the processes that tests start: they import this module


def golden(name):
    """Arrays and meta data of one file of numbers that the official code gave."""
    arrays = dict(np.load(GOLDEN / f"{name}.npz", allow_pickle=False))
    return arrays, json.loads(str(arrays.pop("meta")))


def write_clip(folder, weights, cfg):
    """A folder in open_clip's format from weights in OpenAI's names."""
    model_cfg = {
        "embed_dim": cfg["embed_dim"],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": cfg["image_resolution"],
            "patch_size": cfg["vision_patch_size"],
            "layers": cfg["vision_layers"],
            "width": cfg["vision_width"],
            "head_width": 64,
        },
        "text_cfg": {
            "context_length": cfg["context_length"],
            "vocab_size": cfg["vocab_size"],
            "layers": cfg["transformer_layers"],
            "width": cfg["transformer_width"],
            "heads": cfg["transformer_width"] // 64,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    save_file({k: torch.from_numpy(v) for k, v in weights.items()}, str(folder / "open_clip_model.safetensors"))
    return str(folder)


def write_cifar(folder, name, n_train=60, n_test=20):
    """Small files in CIFAR's official layout, made from the digits; returns their true labels."""
    levels, labels = load_digits_8x8()
    K, label_key = (10, "labels") if name == "cifar10" else (100, "fine_labels")
    big = np.repeat(np.kron(levels * 15, np.ones((1, 4, 4), dtype=np.uint8))[:, None], 3, 1).reshape(-1, 3072)
    labels = labels if K == 10 else np.arange(len(labels)) % K
    folder.mkdir(parents=True, exist_ok=True)

    def write(file, part):
        batch = {"data": big[part], label_key: labels[part].tolist(), "filenames": ["x"] * len(labels[part])}
        (folder / file).write_bytes(pickle.dumps(batch, protocol=2))

    if name == "cifar10":
        for i, part in enumerate(np.array_split(np.arange(n_train), 5)):
            write(f"data_batch_{i + 1}", part)
        write("test_batch", np.arange(n_train, n_train + n_test))
    else:
        write("train", np.arange(n_train))
        write("test", np.arange(n_train, n_train + n_test))
    return labels[:n_train]


def write_folder(root, counts, suffix="png"):
    """Class folders of digit pictures; counts = {class folder: number}."""
    levels, _ = load_digits_8x8()
    i = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for _ in range(count):
            Image.fromarray(levels[i] * 15).save(root / name / f"{i:04d}.{suffix}")
            i += 1


NASTY = ["<script>", "ends<", '"quo\'te" & $x$', "plain, with comma", "Ünï 数字"]  # names of classes
DIGITS = "zero one two three four five six seven eight nine".split()


def load_own(source, *flags):
    """The Dataset of a person's own images."""
    return load_data(
        load_config(
            ["--dataset", "own", "--data_path", str(source), "--output_dir", str(source.parent / "runs"), *flags]
        )
    )


def write_table(folder, text, name="labels.csv", images="abcdef", **settings):
    """A table beside small images of different colours; the path of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.new("RGB", (8, 8), (40 * i, 200 - 30 * i, 9)).save(folder / f"{image}.png")
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def write_messy_table(tmp_path, monkeypatch):
    """A table of 13 images, five of which cannot be read, and two copies of others; its path."""
    path = write_table(
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


def rows_of(path):
    """The rows of a CSV file, {column: value} each."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def own_flags(path, out, *more):
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


def write_digits(root, ratio, every=1, table=False):
    """Every n-th digit as a PNG file, a share of them mislabelled: in class folders, or below a table with their truth.

    Returns what data_path should be, {path: true label} and {path: given label}.
    """
    levels, labels = (x[::every] for x in load_digits_8x8())
    rng = np.random.default_rng(0)
    wrong = rng.random(len(labels)) < ratio
    given = np.where(wrong, (labels + rng.integers(1, 10, len(labels))) % 10, labels)
    paths = [root / ("img" if table else DIGITS[k]) / f"{i}.png" for i, k in enumerate(given)]
    for path, pixels in zip(paths, enlarge_digits(levels)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    if table:
        rows = [f"d{i},img/{i}.png,{DIGITS[g]},{DIGITS[t]}" for i, (g, t) in enumerate(zip(given, labels))]
        (root / "labels.csv").write_text("\n".join(["id,image,label,true_label", *rows, ""]))
    names = [str(p) for p in paths]
    return (
        root / "labels.csv" if table else root,
        dict(zip(names, (DIGITS[k] for k in labels))),
        dict(zip(names, (DIGITS[k] for k in given))),
    )


def detection(out, *flags):
    """The flags of phase1() that main_detect.py reads as well."""
    return ["--cfg", "config/PEFT/digits.yaml", *CELL, *FEW, "--output_dir", str(out), *flags]


def phase1(out, *flags):
    """With the default learning rate and warm-up: in two epochs there is one to select in."""
    return detection(out, "--epochs", "2", "--lr", "0.03", "--warmup", "1", *flags)


def phase2(out, *flags):
    return ["--cfg", "config/FFT/digits.yaml", *CELL, *FAST, "--output_dir", str(out), *flags]


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def unit(x):
    """The rows of x (N, D) scaled to unit length, float32."""
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def clusters(n=120, K=4, D=16, wrong=0.25, seed=0, spread=0.35):
    """Unit-length features around K centres, given labels, whether they are right, and the centres."""
    rng = np.random.default_rng(seed)
    centres, true = rng.normal(0, 1, (K, D)), rng.integers(0, K, n)
    features = unit(centres[true] + rng.normal(0, spread, (n, D)))
    labels = np.where(rng.random(n) < wrong, (true + rng.integers(1, K, n)) % K, true)
    return features, labels, labels == true, unit(centres)


def make_inputs(features, labels, K, text=None, **settings):
    cfg = SimpleNamespace(**default_values() | settings)
    logits = None if text is None else 50 * features[:, : text.shape[1]] @ text.T
    return Inputs(features, labels, K, cfg, text, logits)


def copy_after_epoch_1(patch, out):
    """Have a run that begins copy its folder into `out` after its first epoch, as a kill at that moment would leave it."""
    end_epoch = Run.end_epoch

    def copying(run, line, *args, **rest):
        end_epoch(run, line, *args, **rest)
        if line["epoch"] == 1:
            shutil.copytree(run.folder, out / run.folder.relative_to(run.cfg.output_dir))

    patch.setattr(Run, "end_epoch", copying)


class Killed(BaseException):
    pass


def kill_at(patch, place, name, call):
    """Make the n-th call of place.name end like a kill."""
    real, calls = getattr(place, name), []

    def killed(*args, **rest):
        calls.append(name)
        if len(calls) == call:
            raise Killed
        return real(*args, **rest)

    patch.setattr(place, name, killed)
