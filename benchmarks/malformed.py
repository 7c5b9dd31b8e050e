"""Malformed inputs: what a person, a broken disk or an attacker may hand to each command, and what each error must name."""

import importlib
import io
import os
import pickle
import re
import shutil
import sys
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

import main_detect
import main_phase1
import main_phase2
from dataloader.digits import load_digits_8x8
from utils.config import known_keys
from utils.files import EMBEDDED
from utils.start import run_main

PHASE1 = ["--cfg", "config/PEFT/digits.yaml", "--noise_mode", "sym", "--noise_ratio", "0.4", "--device", "cpu"]
PHASE1 += ["--test_fraction", "0.8", "--epochs", "2", "--warmup", "1"]
PHASE2 = ["--cfg", "config/FFT/digits.yaml", *PHASE1[2:-2]]
OWN = ["--cfg", "config/PEFT/own.yaml", "--backbone", "tiny-clip-digits", "--device", "cpu"]
SEED = Path("digits") / "sym-0.4" / "seed0"
DEFT, CLASSIFIER = SEED / "deft", SEED / "phase2-deft-tiny-clip-digits"
MATCH = Path("own-images") / "none" / "seed0" / "label-match"


@dataclass(frozen=True)
class Case:
    """One malformed input: its kind, the command (a module with main(argv)) and flags, and what its error must name."""

    kind: str
    command: str
    argv: list
    culprit: str


class Payload:
    """A pickle that creates a file when it is loaded."""

    marker = ""

    def __reduce__(self):
        return os.mknod, (self.marker,)


class Place:
    """An empty folder for the files of one case, and the folder of finished runs (base_runs) to copy from."""

    def __init__(self, folder, base):
        self.folder, self.base, self.out = folder, base, folder / "runs"

    def write(self, name, content):
        """The path of a new file with this content, text or bytes."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def images(self, folder=".", number=6):
        """The folder, with digits in it."""
        levels, _ = load_digits_8x8()
        (self.folder / folder).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            Image.fromarray(levels[i] * 15).save(self.folder / folder / f"{i}.png")
        return self.folder / folder

    def runs(self):
        """Copy the finished runs, once."""
        if not self.out.exists():
            shutil.copytree(self.base, self.out)

    def flags(self, command, *flags):
        """The flags as text, and where the command writes. A Path is below the finished runs, which are copied for it."""
        if any(isinstance(flag, Path) for flag in flags):
            self.runs()
        to = {"main": ["--output_dir", str(self.out)], "report.export": ["--to", str(self.folder / "to")]}
        written = [str(self.out / flag) if isinstance(flag, Path) else flag for flag in flags]
        return written + to.get("main" if command.startswith("main_") else command, [])


def base_runs(folder):
    """Make the runs that cases start from, and return their folder: DeFT and phase 2 on the digits, and own_run."""
    out = own_run(folder)
    main_phase1.main([*PHASE1, "--output_dir", str(out)])
    main_phase2.main([*PHASE2, "--output_dir", str(out)])
    return out


def own_run(folder):
    """A run of label-match on images in `folder`/images; returns the folder of runs."""
    for name in ("a", "b"):
        Place(folder, None).images(f"images/{name}")
    out = folder / "runs"
    main_detect.main(
        [*OWN, "--detector", "label-match", "--data_path", str(folder / "images"), "--output_dir", str(out)]
    )
    return out


def archive(**entries):
    """The bytes of an .npz with these arrays."""
    file = io.BytesIO()
    np.savez(file, **entries)
    return file.getvalue()


def array(value):
    """The bytes of an .npy."""
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


def saved(value):
    """The bytes of torch.save."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def evil():
    """Files whose loading by pickle would create a file: {name: bytes}."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("x/data.pkl", pickle.dumps(Payload(), protocol=2))
        zipped.writestr("x/version", "3\n")
    return {
        "pickle.pt": pickle.dumps(Payload()),
        "nested.pt": pickle.dumps({"mask": [Payload()]}),
        "zip.pt": file.getvalue(),
        "object.npy": array(np.array([Payload()], dtype=object)),
        "object.npz": archive(mask=np.array([Payload()], dtype=object)),
    }


def each(files, suffix=""):
    """(name, content, culprit) of {name: content, or (content, culprit)}; the culprit is the name where none is given."""
    for name, given in files.items():
        yield name + suffix, *(given if isinstance(given, tuple) else (given, name + suffix))


def with_file(kind, command, flags, name, content, culprit=""):
    """The case of a command whose last flag is the path of a file with this content, or what content(b"") returns."""

    def make(place):
        path = place.write(name, content(b"") if callable(content) else content)
        return Case(kind, command, place.flags(command, *flags, str(path)), culprit or name)

    return make


def with_damage(kind, command, flags, file, content, culprit, unfinished=False):
    """The case of a command that finds a file of the finished runs with other content, or none.

    content: bytes, or a function of those before; None deletes the file. unfinished: without summary.json.
    """

    def make(place):
        place.runs()
        path = place.out / file
        before = path.read_bytes() if path.is_file() else b""
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content(before) if callable(content) else content)
        if unfinished:
            path.with_name("summary.json").unlink()
        return Case(kind, command, place.flags(command, *flags), culprit)

    return make


def half(content):
    return content[: len(content) // 2]


def flipped(content):
    """The content with one bit flipped."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]


# --- each kind: functions place -> Case, since each case has a folder of its own

YAML = {
    "not_yaml": "a: [1,",
    "tabs": "a:\n\t- b",
    "binary": bytes(range(256)),
    "latin1": "dataset: caf\xe9".encode("latin-1"),
    "nul": b"dataset: di\0gits",
    "a_list": "- dataset",
    "a_word": "dataset",
    "two_documents": "dataset: digits\n---\ndataset: own",
    "python_tag": lambda _: f"dataset: !!python/object/apply:os.mknod [{Payload.marker}]",
    "python_name": "dataset: !!python/name:os.system",
    "unknown_tag": "dataset: !mine digits",
    "unknown_key": ("datast: digits", "datast"),
    "number_key": ("3: digits", "'3'"),
    "null_key": "null: digits",
    "list_key": "? [a, b]\n: digits",
    "dict_key": "? {a: b}\n: digits",
    "twice": ("seed: 1\nseed: 2", "seed"),
    "twice_by_case": ("seed: 1\nSEED: 2", "SEED"),
    "merge": "<<: 3\nseed: 1",
    "no_anchor": "seed: *there",
    "itself": ("templates: &a [*a]", "templates"),
    "deep": "templates: " + "[" * 3000 + "]" * 3000,
    "nested": ("seed: {a: 1}", "seed"),
    "list_for_number": ("seed: [1]", "seed"),
    "list_for_text": ("dataset: [digits]", "dataset"),
    "text_for_number": ("epochs: many", "epochs"),
    "fraction_for_whole": ("epochs: 1.5", "epochs"),
    "negative": ("epochs: -1", "epochs"),
    "nan": ("lr: .nan", "lr"),
    "infinite": ("lr: .inf", "lr"),
    "date": ("epochs: 2020-01-01", "epochs"),
    "bad_date": "epochs: 2020-99-99",
    "bool_for_number": ("epochs: yes", "epochs"),
    "number_for_bool": ("finetune: 7", "finetune"),
    "null_for_number": ("epochs:", "epochs"),
    "huge_number": "epochs: " + "9" * 5000,
    "huge_int": ("epochs: 1" + "0" * 400, "epochs"),
    "text_for_list": ("templates: a photo", "templates"),
    "no_choice": ("schedule: cosin", "schedule"),
}


def yaml_files():
    for name, content, culprit in each(YAML, ".yaml"):
        yield with_file("YAML", "main_phase1", ["--cfg"], name, content, culprit)
    yield lambda place: Case("YAML", "main_phase1", ["--cfg", str(place.folder / "none.yaml")], "none.yaml")
    yield lambda place: Case("YAML", "main_phase2", ["--cfg", str(place.folder)], str(place.folder.name))
    yield lambda place: Case("YAML", "main_detect", ["--cfg", "/dev/null/x"], "/dev/null/x")
    yield lambda place: Case("YAML", "main_baseline", ["--cfg", "x" * 5000], "--cfg")


FLAGS = [
    ("main_phase1", ["--nonesuch", "1"], "--nonesuch"),
    ("main_phase1", ["stray"], "stray"),
    ("main_phase1", ["--epochs"], "--epochs"),
    ("main_phase1", ["--seed", "-1"], "--seed"),
    ("main_phase1", ["--test_fraction", "2"], "--test_fraction"),
    ("main_phase1", ["--lr", "nan"], "--lr"),
    ("main_phase1", ["--seed", "9" * 5000], "--seed"),
    ("main_phase1", ["--dataset", "cifar"], "cifar"),
    ("main_phase1", ["--noise_mode", "symm"], "symm"),
    ("main_phase1", ["--agree_with", "nobody"], "agree_with"),
    ("main_phase1", [*PHASE1, "--backbone", "ViT-Z/99"], "ViT-Z/99"),
    ("main_phase1", [*PHASE1, "--backbone", "vit"], "backbone"),
    ("main_phase1", [*PHASE1, "--device", "cuda:77"], "device"),
    ("main_phase1", [*PHASE1, "--device", "gpu"], "device"),
    ("main_phase1", [*PHASE1, "--num_class", "3"], "num_class"),
    ("main_phase1", [*PHASE1, "--classnames", "/none.txt"], "/none.txt"),
    ("main_phase1", [*PHASE1, "--output_dir", "/dev/null/x"], "/dev/null"),
    ("main_phase1", [*PHASE1, "--n_ctx", "500"], "n_ctx"),
    ("main_phase1", [*PHASE1, "--resolution", "7"], "resolution"),
    ("main_phase1", [*PHASE1, "--score", "nowhere"], "nowhere"),
    ("main_phase2", [*PHASE2, "--mask", "nobody"], "nobody"),
    ("main_phase2", [*PHASE2, "--mask", "none.npz"], "none.npz"),
    ("main_baseline", [*PHASE2, "--lnl_methods", "Co"], "lnl_methods"),
    ("main_baseline", [*PHASE2, "--adaptation", "none"], "adaptation"),
    ("main_detect", ["--detector", "guess"], "guess"),
    ("main_detect", ["--cfg", "config/PEFT/own.yaml"], "data_path"),
    ("main_detect", [*OWN, "--data_path", "/none"], "/none"),
    ("report.tables", [], "RUNS"),
    ("report.tables", ["/none"], "/none"),
    ("report.tables", ["runs", "--seed"], "--seed"),
    ("report.page", ["/none"], "/none"),
    ("report.page", ["/none", "--relabel_above", "7"], "--relabel_above"),
    ("report.page", ["/none", "--relabel_above", "nan"], "--relabel_above"),
    ("report.export", ["/none"], "--to"),
    ("report.export", ["/none", "--to", "/tmp/x", "--copy", "--link"], "--link"),
    ("report.predict", ["/none"], "IMAGE"),
    ("report.predict", ["/none", "/none.png"], "/none.png"),
    ("report.review", ["/none", "--port", "x"], "--port"),
    ("report.review", ["/none"], "/none"),
    ("report.estimate", ["/none", "--target_precision", "2"], "--target_precision"),
    ("report.training", ["/none"], "/none"),
    ("reproduce", ["--table", "99"], "99"),
    ("reproduce", ["--table", "1", "--format", "word"], "word"),
    ("reproduce", ["--tables", "/none.yaml", "--table", "1"], "/none.yaml"),
    ("reproduce", ["--verify", "/none"], "/none"),
]


def flags():
    scripts = "main_phase1 main_phase2 main_detect main_baseline main_small_loss main_clipcleaner".split()
    for i, (name, key) in enumerate(known_keys().items()):
        bad = {bool: "maybe", int: "1.5", float: "x"}.get(type(key.default))
        if bad is None and key.comment.startswith("{"):
            bad = "nonesuch"
        readers = [script for script in scripts if key.read_by(script)]
        if bad and readers:
            script = readers[i % len(readers)]
            yield lambda place, n=name, b=bad, s=script: Case("flags", s, [f"--{n}={b}"], f"--{n}")
    for command, argv, culprit in FLAGS:

        def make(place, command=command, argv=argv, culprit=culprit):
            given = "--output_dir" in argv or command == "report.export"
            return Case("flags", command, argv if given else place.flags(command, *argv), culprit)

        yield make


GOOD = "path,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(6))
ROW = '{"path": "0.png", "label": "a"}\n'
TABLES = {  # beside six digits, 0.png to 5.png
    "empty.csv": "",
    "header.csv": "path,label\n",
    "no_path.csv": "where,label\n0.png,a\n",
    "no_label.csv": "path,what\n0.png,a\n",
    "ragged.csv": (GOOD + "0.png\n", "line 8"),
    "wide.csv": (GOOD + "0.png,a,b\n", "line 8"),
    "quote.csv": (GOOD + '"0.png,a\n', "line 8"),
    "quote_inside.csv": (GOOD + '"0.png"x,a\n', "line 8"),
    "nul.csv": GOOD + "0.\0png,a\n",
    "same_columns.csv": "path,label,label\n0.png,a,a\n",
    "latin1.csv": (GOOD.encode() + "0.png,caf\xe9\n".encode("latin-1"), "line 8"),
    "utf16.csv": GOOD.encode("utf-16"),
    "binary.csv": bytes(range(1, 256)),
    "png.csv": b"\x89PNG\r\n\x1a\n\x01\x02",
    "no_label_here.csv": (GOOD + "0.png,\n", "line 8"),
    "no_path_here.csv": (GOOD + ",a\n", "line 8"),
    "split.csv": ("path,label,split\n0.png,a,train\n1.png,b,trian\n", "line 3"),
    "ids.csv": ("id,path,label\n1,0.png,a\n1,1.png,b\n", "line 3"),
    "no_id.csv": ("id,path,label\n1,0.png,a\n,1.png,b\n", "line 3"),
    "one_class.csv": "path,label\n0.png,a\n1.png,a\n",
    "test_only.csv": "path,label,split\n0.png,a,test\n1.png,b,test\n",
    "new_class.csv": (
        "path,label,split\n0.png,a,train\n1.png,b,train\n2.png,a,train\n3.png,b,train\n4.png,c,test\n",
        "line 6",
    ),
    "gone.csv": "path,label\nx.png,a\ny.png,b\n",
    "long_field.csv": (GOOD + f"{'x' * 200_000},a\n", "line 8"),
    "folder.csv": "path,label\n.,a\n.,b\n",
    "device.csv": "path,label\n/dev/zero,a\n/dev/zero,b\n",
    "long_path.csv": f"path,label\n{'x' * 5000},a\n{'y' * 5000},b\n",
    "not_json.jsonl": ("path: 0.png", "line 1"),
    "list.jsonl": (ROW + "[1, 2]\n", "line 2"),
    "half.jsonl": (ROW + '{"path": "1.png", "la', "line 2"),
    "deep.jsonl": ("[" * 5000 + "]" * 5000, "line 1"),
    "null.jsonl": ('{"path": null, "label": "a"}\n', "line 1"),
    "nul.jsonl": ('{"path": "0\\u0000.png", "label": "a"}\n{"path": "1.png", "label": "b"}\n', "line 1"),
    "nul_label.jsonl": ('{"path": "0.png", "label": "a\\u0000"}\n{"path": "1.png", "label": "b"}\n', "line 1"),
    "surrogate.jsonl": ('{"path": "0.png", "label": "\\ud800"}\n{"path": "1.png", "label": "b"}\n', "line 1"),
    "digits.jsonl": ('{"path": "0.png", "label": ' + "9" * 5000 + "}\n", "line 1"),
    "nested.jsonl": ('{"path": "0.png", "label": {"a": 1}}\n{"path": "1.png", "label": "b"}\n', "line 1"),
    "nothing.jsonl": "\n\n",
    "table.tsv": "path,label\n0.png,a\n",
    "table.xlsx": "PK",
}


def tables():
    def beside_images(make):
        def both(place):
            place.images()
            return make(place)

        return both

    for name, content, culprit in each(TABLES):
        yield beside_images(with_file("tables", "main_detect", [*OWN, "--data_path"], name, content, culprit))
    for key in ("path_column", "label_column", "split_column", "id_column", "true_label_column"):
        flags = [*OWN, f"--{key}", "nonesuch", "--data_path"]
        yield beside_images(with_file("tables", "main_real_phase1", flags, "labels.csv", GOOD, key))


def pictures():
    png = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(png, "PNG")
    jpeg = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(jpeg, "JPEG")
    png, jpeg = png.getvalue(), jpeg.getvalue()
    huge = png[:16] + (100_000).to_bytes(4, "big") * 2 + png[24:]
    bad = {
        "empty.png": b"",
        "text.png": b"not an image",
        "half.png": png[: len(png) // 2],
        "signature.png": png[:8],
        "crc.png": png[:20] + b"\1" + png[21:],
        "huge.png": huge,
        "half.jpg": jpeg[:100],
        "zeros.jpg": bytes(1000),
        "page.gif": b"<html></html>",
        "gif.gif": b"GIF89a" + bytes(5),
        "tiff.tif": b"II*\0" + b"\xff" * 40,
        "icon.ico": b"\0\0\1\0\xff\xff",
        "drawing.svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "psd.psd": b"8BPS\0\1" + b"\xff" * 30,
        "webp.webp": b"RIFF\x10\0\0\0WEBPVP8 \0",
        "bmp.bmp": b"BM" + b"\xff" * 60,
    }
    for name, content in bad.items():

        def make(place, name=name, content=content):
            for label in ("a", "b"):
                place.write(f"images/{label}/{name}", content)
            argv = place.flags("main_detect", *OWN, "--data_path", str(place.folder / "images"))
            return Case("images", "main_detect", argv, "none of the 2 images")

        yield make
        yield with_file("images", "report.predict", [CLASSIFIER], name, content)


def pickles():
    def content(name):  # made when the case is, since it has the marker in it
        return lambda _: evil()[name]

    for name in evil():
        yield with_file("pickles", "main_phase2", [*PHASE2, "--mask"], name, content(name))
    for name in ("pickle.pt", "zip.pt"):

        def cifar(place, name=name):
            for file in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
                place.write(f"cifar/{file}", evil()[name])
            argv = place.flags("main_phase1", "--dataset", "cifar10", "--data_path", str(place.folder / "cifar"))
            return Case("pickles", "main_phase1", argv, "data_batch_1")

        timm = [*PHASE2, "--mask", "all", "--backbone", "timm:resnet18", "--pretrained"]
        clip = [*PHASE1, "--backbone", "ViT-B-32", "--pretrained"]
        checkpoint, mask = DEFT / "checkpoint.pt", DEFT / "clean_mask.npz"
        yield with_file("pickles", "main_phase1", clip, name, content(name))
        yield with_file("pickles", "main_phase2", timm, name, content(name))
        yield with_damage("pickles", "main_phase1", PHASE1, checkpoint, content(name), checkpoint.name, unfinished=True)
        yield cifar
        yield with_damage("pickles", "report.page", [DEFT], mask, content(name), mask.name)
    for command, mode in (("main_detect", "file"), ("main_phase1", "transition")):
        flags = ["--cfg", "config/PEFT/digits.yaml", "--noise_mode", mode, "--noise_file"]
        yield with_file("pickles", command, flags, "noise.npy", content("object.npy"))


def masks():
    n = 359
    right = np.ones(n, dtype=bool)
    files = {
        "empty.npz": b"",
        "text.npz": b"mask",
        "half.npz": archive(mask=right)[:100],
        "other_entries.npz": archive(clean=right),
        "mask_alone.npz": archive(mask=right),
        "empty.npy": b"",
        "short.npy": array(right[:-1]),
        "two_dimensions.npy": array(right[None]),
        "nothing.npy": array(~right),
        "halves.npy": array(np.full(n, 0.5)),
        "nan.npy": array(np.full(n, np.nan)),
        "words.npy": array(np.array(["yes"] * n)),
        "indices.npy": array(np.arange(n)),
        "header.npy": b"\x93NUMPY\x01\0\x10\0{'descr': ['<f8'",
        "too_long.npy": b"\x93NUMPY\x01\0v\0{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,)}".ljust(
            128
        )
        + b"\n",
        "empty.pt": b"",
        "text.pt": b"mask",
        "dict.pt": saved({"mask": torch.ones(n)}),
        "number.pt": saved(3),
        "short.pt": saved(torch.ones(3, dtype=torch.bool)),
    }
    for name, content in files.items():
        yield with_file("masks", "main_phase2", [*PHASE2, "--mask"], name, content)
    changes = {
        "seed": ("seed", np.array(7)),
        "noise": ("noise", np.array("asym-0.4")),
        "dataset": ("dataset", np.array("cifar10")),
        "labels": ("labels", np.zeros(n, dtype=np.int64)),
        "images": ("images", np.zeros((n, 2), dtype=np.uint64)),
        "shorter": ("mask", right[:5]),
        "shorter_labels": ("labels", np.zeros(5, dtype=np.int64)),
        "flat_images": ("images", np.zeros(n, dtype=np.uint64)),
        "words": ("images", np.array([["a", "b"]] * n)),
    }
    for name, (entry, value) in changes.items():

        def make(place, name=f"{name}.npz", entry=entry, value=value):
            with np.load(place.base / DEFT / "clean_mask.npz") as file:
                content = archive(**{**file, entry: value})
            return with_file("masks", "main_phase2", [*PHASE2, "--mask"], name, content)(place)

        yield make


def weights():
    folder = EMBEDDED["tiny-clip-digits"]
    config = (folder / "open_clip_config.json").read_text()
    tensors = (folder / "open_clip_model.safetensors").read_bytes()
    cases = {
        "no_config": (None, tensors),
        "no_weights": (config, None),
        "config_not_json": ("{", tensors),
        "config_list": ("[]", tensors),
        "config_empty": ("{}", tensors),
        "config_other": (config.replace('"embed_dim": ', '"embed_dim": 1'), tensors),
        "config_words": (re.sub(r'"layers": \d+', '"layers": "many"', config), tensors),
        "config_key": (config.replace('"embed_dim"', '"embed_dimension"'), tensors),
        "weights_empty": (config, b""),
        "weights_half": (config, tensors[: len(tensors) // 2]),
        "weights_header": (config, b"\xff" * 8 + tensors[8:]),
        "weights_text": (config, b"hello"),
        "others": (config, save({"token_embedding.weight": torch.zeros(3, 3)})),
    }
    for name, (text, content) in cases.items():

        def make(place, name=name, text=text, content=content):
            place.write(f"{name}/readme", "")
            if text is not None:
                place.write(f"{name}/open_clip_config.json", text)
            if content is not None:
                place.write(f"{name}/open_clip_model.safetensors", content)
            argv = place.flags("main_detect", *PHASE1[:-4], "--backbone", str(place.folder / name))
            return Case("weights", "main_detect", argv, name)

        yield make
    damaged = [
        ("model.json", None),
        ("model.json", b"{"),
        ("model.json", b"[]"),
        ("model.json", b"{}"),
        ("model.json", b'{"classes": 3, "backbone": 7, "networks": "two"}'),
        ("model.safetensors", None),
        ("model.safetensors", b""),
        ("model.safetensors", half),
        ("model.safetensors", flipped),
    ]
    for file, content in damaged:
        flags = [CLASSIFIER, "docs/suspects.png"]
        yield with_damage("weights", "report.predict", flags, CLASSIFIER / file, content, CLASSIFIER.name)


def checkpoints():
    def change(**entries):
        def content(before):
            value = torch.load(io.BytesIO(before), weights_only=True)
            return saved({key: v for key, v in {**value, **entries}.items() if v is not ...})

        return content

    contents = [
        b"",
        b"checkpoint",
        half,
        lambda before: bytes(len(before)),
        lambda before: before[:5000] + b"\xff" * 200 + before[5200:],
        saved([1, 2]),
        saved(3),
        change(model=...),
        change(model={"x": torch.zeros(3)}),
        change(optimizer=...),
        change(optimizer={"state": {}, "param_groups": []}),
        change(history=...),
        change(history="[{"),
        change(identity=...),
        change(identity={"images": "0", "labels": "0"}),
        change(recent=...),
        change(recent={"mask": torch.ones(1, 3)}),
    ]
    for content in contents:
        file = DEFT / "checkpoint.pt"
        yield with_damage("checkpoints", "main_phase1", PHASE1, file, content, "deft", unfinished=True)


RECORDS = [  # of what a run left behind: file, command that reads it, content, run
    ("summary.json", "report.tables", b"", DEFT),
    ("summary.json", "report.tables", b"[]", DEFT),
    ("summary.json", "report.tables", b"null", DEFT),
    ("summary.json", "report.tables", half, DEFT),
    ("summary.json", "report.tables", b"\xff\xfe", DEFT),
    ("summary.json", "report.tables", b"{}", DEFT),
    ("summary.json", "report.tables", b'{"seed": 1}', DEFT),
    ("summary.json", "report.tables", b"[" * 20_000, DEFT),
    ("summary.json", "report.page", b"{}", MATCH),
    ("summary.json", "report.export", b'{"classes": 3, "root": 4}', MATCH),
    ("summary.json", "report.estimate", b"[1]", MATCH),
    ("summary.json", "main_phase1", b"{}", DEFT),
    ("summary.json", "main_phase1", half, DEFT),
    ("summary.json", "reproduce", b"{}", DEFT),
    ("config.yaml", "main_phase1", b"[", DEFT),
    ("config.yaml", "main_phase1", b"- a", DEFT),
    ("config.yaml", "main_phase1", b"", DEFT),
    ("config.yaml", "main_phase1", b"\xff", DEFT),
    ("config.yaml", "report.page", b"[", MATCH),
    ("config.yaml", "report.page", b"- a", MATCH),
    ("config.yaml", "report.page", b"dataset: [1]", MATCH),
    ("config.yaml", "report.review", b"!!python/name:os.system", MATCH),
    ("config.yaml", "report.training", b"a: [", DEFT),
    ("clean_mask.npz", "report.page", b"", MATCH),
    ("clean_mask.npz", "report.page", half, MATCH),
    ("clean_mask.npz", "report.export", archive(mask=np.ones(3)), MATCH),
    ("clean_mask.npz", "report.review", b"text", MATCH),
    ("clean_mask.npz", "report.estimate", None, MATCH),
    ("scores.csv", "report.page", b"", MATCH),
    ("scores.csv", "report.page", b"index\n", MATCH),
    ("scores.csv", "report.page", b"index,path\n0,a\n", MATCH),
    ("scores.csv", "report.page", b"a,b\nx\n", MATCH),
    ("scores.csv", "report.page", b"index,content,given_label\nx,y,a\n", MATCH),
    ("scores.csv", "report.export", half, MATCH),
    ("scores.csv", "report.export", b"\0", MATCH),
    ("log.jsonl", "report.page", b"{", DEFT),
    ("log.jsonl", "report.page", b"[1]\n", DEFT),
    ("log.jsonl", "report.training", b"{", DEFT),
    ("log.jsonl", "report.training", b"", DEFT),
    ("log.jsonl", "report.training", b'{"epoch": 1}\n{"loss": 2}\n', DEFT),
    ("log.jsonl", "report.training", b"[1]\n", DEFT),
    ("log.jsonl", "report.training", b'{"epoch": 1, "p_clean": 3}\n', DEFT),
]


def records():
    for file, command, content, run in RECORDS:
        flags = {"main_phase1": PHASE1, "report.tables": [Path()], "reproduce": ["--verify", run]}.get(command, [run])
        kind = {"summary.json": "summaries", "clean_mask.npz": "masks"}.get(file, "records of runs")
        yield with_damage(kind, command, flags, run / file, content, run.name)


HEAD = "path,given_label,decision,new_label\n"
DECISIONS = {
    "empty.csv": "",
    "header.csv": "path\n",
    "word.csv": HEAD + "a/0.png,a,rihgt,\n",
    "no_image.csv": HEAD + ",a,right,\n",
    "newlabel.csv": "path,given_label,decision,newlabel\na/0.png,a,wrong,b\n",
    "no_label.csv": "path,decision\na/0.png,right\n",
    "no_class.csv": HEAD + "a/0.png,a,wrong,c\n",
    "contradiction.csv": HEAD + "a/0.png,a,right,b\n",
    "same_label.csv": HEAD + "a/0.png,a,wrong,a\n",
    "both.csv": HEAD + "a/0.png,a,right,\na/0.png,a,wrong,\n",
    "ragged.csv": HEAD + "a/0.png\n",
    "nul.csv": HEAD + "a/0.png,a,ri\0ght,\n",
    "binary.csv": bytes(range(256)),
    "half.jsonl": '{"path": "a/0.png"\n',
    "list.jsonl": "[1]\n",
    "number.jsonl": "3\n",
    "word.jsonl": '{"path": "a/0.png", "decision": "maybe"}\n',
    "binary.jsonl": b"\xff\xfe\n",
    "deep.jsonl": "[" * 20_000 + "\n",
}


def decisions():
    commands = ("report.page", "report.export", "report.estimate", "report.review")
    for i, (name, content) in enumerate(DECISIONS.items()):
        yield with_file("decisions", commands[i % 4], [MATCH, "--decisions"], name, content)
    log, flags = "decisions.jsonl", (MATCH, "--decisions", "/none.csv")
    yield lambda place: Case("decisions", "report.page", place.flags("report.page", *flags), "/none.csv")
    yield with_damage("decisions", "report.page", [MATCH], MATCH / log, b"\xff\n", log)


NOISE_FILES = {
    "words.txt": "a\nb\n",
    "short.txt": "1\n2\n",
    "outside.txt": "99\n" * 359,
    "half.json": "[1, 2",
    "nested.json": "[[1], [2]]",
    "empty.npy": b"",
    "floats.npy": array(np.full(359, 0.5)),
    "binary.txt": bytes(range(128, 256)),
    "deep.json": "[" * 20_000,
}
TRANSITIONS = {
    "small.csv": "1,0\n0,1\n",
    "sums.csv": "\n".join(",".join(["0.2"] * 10) for _ in range(10)),
    "words.csv": "a,b\n",
    "negative.npy": array(np.eye(10) * 2 - 0.1),
    "nan.npy": array(np.full((10, 10), np.nan)),
}
CLASS_NAMES = {"few.txt": "a\nb\n", "empty_line.txt": "a\n\n" * 5 + "b", "binary.txt": b"\xff" * 10}
DESCRIPTIONS = {
    "list.yaml": "- a",
    "half.yaml": "zero: [",
    "class.yaml": "eleven: [x]",
    "text.yaml": "zero: round",
    "template.yaml": "template: a photo",
    "binary.yaml": b"\xff\xfe",
    "deep.yaml": "zero: " + "[" * 3000,
}


def other_files():
    """Noise files, class names, descriptions and data sets in official layouts."""
    detect = PHASE1[:-4]
    described = [*detect, "--detector", "clipcleaner", "--descriptions"]
    for kind, command, flags, files in (
        ("noise files", "main_phase1", [*PHASE1, "--noise_mode", "file", "--noise_file"], NOISE_FILES),
        ("noise files", "main_detect", [*detect, "--noise_mode", "transition", "--noise_file"], TRANSITIONS),
        ("class names", "main_phase1", [*PHASE1, "--classnames"], CLASS_NAMES),
        ("class names", "main_detect", described, DESCRIPTIONS),
    ):
        for name, content in files.items():
            yield with_file(kind, command, flags, name, content)
    sets = "cifar100 tiny_imagenet stanford_cars cub-200-2011 clothing1m webvision animal10n food101n imagenet".split()
    for name in sets:

        def empty(place, name=name):
            place.write("data/readme", "")
            argv = place.flags("main_phase1", "--dataset", name, "--data_path", str(place.folder / "data"))
            return Case("data sets", "main_phase1", argv, place.folder.name)

        yield empty


GROUPS = (yaml_files, flags, tables, pictures, pickles, masks, weights, checkpoints, records, decisions, other_files)


def cases():
    """Functions place -> Case of every malformed input."""
    for group in GROUPS:
        yield from group()


def run_in_process(case):
    """(exit code, lines on stderr) of a command, as utils.start.run_main ends it; code is the exception where it is another."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace") for _ in range(2)
    )
    try:
        with warnings.catch_warnings():
            run_main(lambda: importlib.import_module(case.command).main(case.argv))
        return 0, []
    except SystemExit as error:
        sys.stderr.flush()
        return error.code, sys.stderr.buffer.getvalue().decode().splitlines()
    except BaseException as error:
        return repr(error)[:200], []
    finally:
        sys.stdout, sys.stderr = out, err


def files_of(folder):
    """{path: content} of the files below a folder, but what is only a cache."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and "cache" not in path.relative_to(folder).parts[:2]
    }


def judge(make, folder, base):
    """(the Case, what is wrong with how its command ended: "" if nothing)."""
    Payload.marker = str(folder / "executed")
    place = Place(folder, base)
    folder.mkdir(parents=True)
    case = make(place)
    before = files_of(folder)
    code, lines = run_in_process(case)
    after, problems = files_of(folder), []
    if code != 2:
        problems.append(f"ends with {code}")
    elif len(lines) != 1:
        problems.append(f"{len(lines)} lines of error")
    elif case.culprit not in lines[0]:
        problems.append(f"does not name {case.culprit}: {lines[0][:200]}")
    elif re.search(r"[\x00-\x1f]", lines[0]) or len(lines[0]) > 1000:
        problems.append(f"control characters, or {len(lines[0])} characters in the line")
    if Path(Payload.marker).exists():
        problems.append("code was executed")
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    halves = [str(path) for path in folder.rglob("*.tmp")]
    if changed or halves:
        problems.append(f"written: {', '.join(changed + halves)[:200]}")
    return case, "; ".join(problems)
