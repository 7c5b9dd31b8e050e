"""Malformed inputs: what a person, a broken disk or an attacker may hand to each command, and what each error must name."""

import importlib
import io
import json
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
from safetensors.torch import save_file

import main_detect
import main_phase1
import main_phase2
from dataloader.digits import load_digits_8x8
from model.clip import EMBEDDED
from utils.config import known_keys
from utils.start import run_main

PHASE1 = ["--cfg", "config/PEFT/digits.yaml", "--noise_mode", "sym", "--noise_ratio", "0.4", "--device", "cpu"]
PHASE1 += ["--test_fraction", "0.8", "--epochs", "2", "--warmup", "1"]
PHASE2 = ["--cfg", "config/FFT/digits.yaml", *PHASE1[2:-2]]
OWN = ["--cfg", "config/PEFT/own.yaml", "--backbone", "tiny-clip-digits", "--device", "cpu"]
SEED = Path("digits") / "sym-0.4" / "seed0"
CHARACTERS = "control characters"


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

    def table(self, content, name="labels.csv"):
        """The path of a table beside six digits, 0.png to 5.png."""
        self.images()
        return self.write(name, content)

    def images(self, folder=".", number=6):
        """The folder, with digits in it."""
        levels, _ = load_digits_8x8()
        (self.folder / folder).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            Image.fromarray(levels[i] * 15).save(self.folder / folder / f"{i}.png")
        return self.folder / folder

    def runs(self):
        """A copy of the finished runs; returns the folder of their seed."""
        shutil.copytree(self.base, self.out)
        return self.out / SEED


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
    main_detect.main([*OWN, "--data_path", str(folder / "images"), "--output_dir", str(out)])
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
    """Files whose loading by pickle would create a file: {suffix: bytes}."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(Payload(), protocol=2))
        archive.writestr("x/version", "3\n")
    return {
        "pickle.pt": pickle.dumps(Payload()),
        "nested.pt": pickle.dumps({"mask": [Payload()]}),
        "zip.pt": file.getvalue(),
        "object.npy": array(np.array([Payload()], dtype=object)),
        "object.npz": archive_of_objects(),
    }


def archive_of_objects():
    file = io.BytesIO()
    np.savez(file, mask=np.array([Payload()], dtype=object))
    return file.getvalue()


# --- each kind: (place) -> cases; a generator of functions, since each case has a folder of its own


def yaml_files():
    bad = {
        "not_yaml": ("a: [1,", "not_yaml.yaml"),
        "tabs": ("a:\n\t- b", "tabs.yaml"),
        "binary": (bytes(range(256)), "binary.yaml"),
        "latin1": ("dataset: caf\xe9".encode("latin-1"), "latin1.yaml"),
        "nul": (b"dataset: di\0gits", "nul.yaml"),
        "a_list": ("- dataset", "a_list.yaml"),
        "a_word": ("dataset", "a_word.yaml"),
        "two_documents": ("dataset: digits\n---\ndataset: own", "two_documents.yaml"),
        "python_tag": ("dataset: !!python/object/apply:os.mknod [MARKER]", "python_tag.yaml"),
        "python_name": ("dataset: !!python/name:os.system", "python_name.yaml"),
        "unknown_tag": ("dataset: !mine digits", "unknown_tag.yaml"),
        "unknown_key": ("datast: digits", "datast"),
        "number_key": ("3: digits", "'3'"),
        "null_key": ("null: digits", "null_key.yaml"),
        "list_key": ("? [a, b]\n: digits", "list_key.yaml"),
        "dict_key": ("? {a: b}\n: digits", "dict_key.yaml"),
        "twice": ("seed: 1\nseed: 2", "seed"),
        "twice_by_case": ("seed: 1\nSEED: 2", "SEED"),
        "merge": ("<<: 3\nseed: 1", "merge.yaml"),
        "no_anchor": ("seed: *there", "no_anchor.yaml"),
        "itself": ("templates: &a [*a]", "templates"),
        "deep": ("templates: " + "[" * 3000 + "]" * 3000, "deep.yaml"),
        "nested": ("seed: {a: 1}", "seed"),
        "list_for_number": ("seed: [1]", "seed"),
        "list_for_text": ("dataset: [digits]", "dataset"),
        "text_for_number": ("epochs: many", "epochs"),
        "fraction_for_whole": ("epochs: 1.5", "epochs"),
        "negative": ("epochs: -1", "epochs"),
        "nan": ("lr: .nan", "lr"),
        "infinite": ("lr: .inf", "lr"),
        "date": ("epochs: 2020-01-01", "epochs"),
        "bad_date": ("epochs: 2020-99-99", "bad_date.yaml"),
        "bool_for_number": ("epochs: yes", "epochs"),
        "number_for_bool": ("finetune: 7", "finetune"),
        "null_for_number": ("epochs:", "epochs"),
        "huge_number": ("epochs: " + "9" * 5000, "huge_number.yaml"),
        "huge_int": ("epochs: 1" + "0" * 400, "epochs"),
        "text_for_list": ("templates: a photo", "templates"),
        "no_choice": ("schedule: cosin", "schedule"),
    }
    for name, (content, culprit) in bad.items():

        def make(place, name=name, content=content, culprit=culprit):
            if isinstance(content, str):
                content = content.replace("MARKER", Payload.marker)
            path = place.write(f"{name}.yaml", content)
            return Case("YAML", "main_phase1", ["--cfg", str(path)], culprit)

        yield make
    yield lambda place: Case("YAML", "main_phase1", ["--cfg", str(place.folder / "none.yaml")], "none.yaml")
    yield lambda place: Case("YAML", "main_phase2", ["--cfg", str(place.folder)], str(place.folder.name))
    yield lambda place: Case("YAML", "main_detect", ["--cfg", "/dev/null/x"], "/dev/null/x")
    yield lambda place: Case("YAML", "main_baseline", ["--cfg", "x" * 5000], "--cfg")


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
    own = [
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
    for command, argv, culprit in own:

        def make(place, command=command, argv=argv, culprit=culprit):
            where = (
                ["--output_dir", str(place.out)] if command.startswith("main_") and "--output_dir" not in argv else []
            )
            return Case("flags", command, [*argv, *where], culprit)

        yield make


def tables():
    rows = "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(6))
    good = "path,label\n" + rows
    many = {"path": "0.png", "label": "a"}
    texts = {
        "empty.csv": ("", "empty.csv"),
        "header.csv": ("path,label\n", "header.csv"),
        "no_path.csv": ("where,label\n0.png,a\n", "no_path.csv"),
        "no_label.csv": ("path,what\n0.png,a\n", "no_label.csv"),
        "ragged.csv": (good + "0.png\n", "line 8"),
        "wide.csv": (good + "0.png,a,b\n", "line 8"),
        "quote.csv": (good + '"0.png,a\n', "line 8"),
        "quote_inside.csv": (good + '"0.png"x,a\n', "line 8"),
        "nul.csv": (good + "0.\0png,a\n", "nul.csv"),
        "same_columns.csv": ("path,label,label\n0.png,a,a\n", "same_columns.csv"),
        "latin1.csv": (good.encode() + "0.png,caf\xe9\n".encode("latin-1"), "line 8"),
        "utf16.csv": (good.encode("utf-16"), "utf16.csv"),
        "binary.csv": (bytes(range(1, 256)), "binary.csv"),
        "png.csv": (b"\x89PNG\r\n\x1a\n\x01\x02", "png.csv"),
        "no_label_here.csv": (good + "0.png,\n", "line 8"),
        "no_path_here.csv": (good + ",a\n", "line 8"),
        "split.csv": ("path,label,split\n0.png,a,train\n1.png,b,trian\n", "line 3"),
        "ids.csv": ("id,path,label\n1,0.png,a\n1,1.png,b\n", "line 3"),
        "no_id.csv": ("id,path,label\n1,0.png,a\n,1.png,b\n", "line 3"),
        "one_class.csv": ("path,label\n0.png,a\n1.png,a\n", "one_class.csv"),
        "test_only.csv": ("path,label,split\n0.png,a,test\n1.png,b,test\n", "test_only.csv"),
        "new_class.csv": (
            "path,label,split\n0.png,a,train\n1.png,b,train\n2.png,a,train\n3.png,b,train\n4.png,c,test\n",
            "line 6",
        ),
        "gone.csv": ("path,label\nx.png,a\ny.png,b\n", "gone.csv"),
        "long_field.csv": (good + f"{'x' * 200_000},a\n", "line 8"),
        "folder.csv": ("path,label\n.,a\n.,b\n", "folder.csv"),
        "device.csv": ("path,label\n/dev/zero,a\n/dev/zero,b\n", "device.csv"),
        "long_path.csv": (f"path,label\n{'x' * 5000},a\n{'y' * 5000},b\n", "long_path.csv"),
        "not_json.jsonl": ("path: 0.png", "line 1"),
        "list.jsonl": (json.dumps(many) + "\n[1, 2]\n", "line 2"),
        "half.jsonl": (json.dumps(many) + '\n{"path": "1.png", "la', "line 2"),
        "deep.jsonl": ("[" * 5000 + "]" * 5000, "line 1"),
        "null.jsonl": ('{"path": null, "label": "a"}\n', "line 1"),
        "nul.jsonl": ('{"path": "0\\u0000.png", "label": "a"}\n{"path": "1.png", "label": "b"}\n', "line 1"),
        "nul_label.jsonl": ('{"path": "0.png", "label": "a\\u0000"}\n{"path": "1.png", "label": "b"}\n', "line 1"),
        "surrogate.jsonl": ('{"path": "0.png", "label": "\\ud800"}\n{"path": "1.png", "label": "b"}\n', "line 1"),
        "digits.jsonl": ('{"path": "0.png", "label": ' + "9" * 5000 + "}\n", "line 1"),
        "nested.jsonl": ('{"path": "0.png", "label": {"a": 1}}\n{"path": "1.png", "label": "b"}\n', "line 1"),
        "nothing.jsonl": ("\n\n", "nothing.jsonl"),
        "table.tsv": ("path,label\n0.png,a\n", "table.tsv"),
        "table.xlsx": ("PK", "table.xlsx"),
    }
    for name, (content, culprit) in texts.items():

        def make(place, name=name, content=content, culprit=culprit):
            path = place.table(content, name)
            return Case(
                "tables", "main_detect", [*OWN, "--data_path", str(path), "--output_dir", str(place.out)], culprit
            )

        yield make
    for key in ("path_column", "label_column", "split_column", "id_column", "true_label_column"):

        def make(place, key=key):
            path = place.table(good)
            where = ["--data_path", str(path), "--output_dir", str(place.out), f"--{key}", "nonesuch"]
            return Case("tables", "main_real_phase1", [*OWN, *where], key)

        yield make


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
            where = ["--data_path", str(place.folder / "images"), "--output_dir", str(place.out)]
            return Case("images", "main_detect", [*OWN, *where], "none of the 2 images")

        def to_predict(place, name=name, content=content):
            run = place.runs() / "phase2-deft-tiny-clip-digits"
            return Case("images", "report.predict", [str(run), str(place.write(name, content))], name)

        yield make
        yield to_predict


def pickles():
    for name, content in evil().items():

        def mask(place, name=name, content=content):
            flags = [*PHASE2, "--mask", str(place.write(name, content)), "--output_dir", str(place.out)]
            return Case("pickles", "main_phase2", flags, name)

        yield mask
    for name in ("pickle.pt", "zip.pt"):

        def weights(place, name=name):
            flags = [*PHASE1, "--backbone", "ViT-B-32", "--pretrained", str(place.write(name, evil()[name]))]
            return Case("pickles", "main_phase1", [*flags, "--output_dir", str(place.out)], name)

        def timm(place, name=name):
            flags = [*PHASE2, "--mask", "all", "--backbone", "timm:resnet18"]
            flags += ["--pretrained", str(place.write(name, evil()[name]))]
            return Case("pickles", "main_phase2", [*flags, "--output_dir", str(place.out)], name)

        def checkpoint(place, name=name):
            run = place.runs() / "deft"
            (run / "summary.json").unlink()
            (run / "checkpoint.pt").write_bytes(evil()[name])
            return Case("pickles", "main_phase1", [*PHASE1, "--output_dir", str(place.out)], "checkpoint.pt")

        def cifar(place, name=name):
            for file in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
                place.write(f"cifar/{file}", evil()[name])
            flags = ["--dataset", "cifar10", "--data_path", str(place.folder / "cifar"), "--output_dir", str(place.out)]
            return Case("pickles", "main_phase1", flags, "data_batch_1")

        def page(place, name=name):
            run = place.runs() / "deft"
            (run / "clean_mask.npz").write_bytes(evil()[name])
            return Case("pickles", "report.page", [str(run)], "clean_mask.npz")

        yield from (weights, timm, checkpoint, cifar, page)
    for suffix, command, flag in (("npy", "main_detect", "--noise_file"), ("npy", "main_phase1", "--noise_file")):

        def noise(place, suffix=suffix, command=command, flag=flag):
            path = place.write(f"noise.{suffix}", evil()["object.npy"])
            mode = "file" if command == "main_detect" else "transition"
            flags = ["--cfg", "config/PEFT/digits.yaml", "--noise_mode", mode, flag, str(path)]
            return Case("pickles", command, [*flags, "--output_dir", str(place.out)], "noise.npy")

        yield noise


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

        def make(place, name=name, content=content):
            flags = [*PHASE2, "--mask", str(place.write(name, content)), "--output_dir", str(place.out)]
            return Case("masks", "main_phase2", flags, name)

        yield make
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

        def make(place, name=name, entry=entry, value=value):
            with np.load(place.base / SEED / "deft" / "clean_mask.npz") as file:
                path = place.write(f"{name}.npz", archive(**{**file, entry: value}))
            flags = [*PHASE2, "--mask", str(path), "--output_dir", str(place.out)]
            return Case("masks", "main_phase2", flags, f"{name}.npz")

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
    }
    for name, (text, content) in cases.items():

        def make(place, name=name, text=text, content=content):
            place.write(f"{name}/readme", "")
            if text is not None:
                place.write(f"{name}/open_clip_config.json", text)
            if content is not None:
                place.write(f"{name}/open_clip_model.safetensors", content)
            flags = ["--backbone", str(place.folder / name), "--output_dir", str(place.out)]
            return Case("weights", "main_detect", [*PHASE1[:-4], *flags], name)

        yield make

    def other_tensors(place):
        place.write("others/open_clip_config.json", config)
        save_file(
            {"token_embedding.weight": torch.zeros(3, 3)}, place.folder / "others" / "open_clip_model.safetensors"
        )
        flags = ["--backbone", str(place.folder / "others"), "--output_dir", str(place.out)]
        return Case("weights", "main_detect", [*PHASE1[:-4], *flags], "others")

    yield other_tensors
    damage = {
        "no_json": ("model.json", None),
        "json_half": ("model.json", b"{"),
        "json_list": ("model.json", b"[]"),
        "json_empty": ("model.json", b"{}"),
        "json_words": ("model.json", b'{"classes": 3, "backbone": 7, "networks": "two"}'),
        "no_tensors": ("model.safetensors", None),
        "tensors_empty": ("model.safetensors", b""),
        "tensors_half": ("model.safetensors", "half"),
        "tensors_flipped": ("model.safetensors", "flipped"),
    }
    for name, (file, content) in damage.items():

        def make(place, file=file, content=content):
            run = place.runs() / "phase2-deft-tiny-clip-digits"
            _damage(run / file, content)
            return Case(
                "weights", "report.predict", [str(run), str(place.images("pictures"))], "phase2-deft-tiny-clip-digits"
            )

        yield make


def _damage(path, content):
    """Replace a file by these bytes, by its first half, by itself with one bit flipped, or delete it (None)."""
    before = path.read_bytes() if path.is_file() else b""
    path.unlink(missing_ok=True)
    if content is not None:
        middle = len(before) // 2
        flipped = before[:middle] + bytes([before[middle] ^ 64]) + before[middle + 1 :] if before else b""
        path.write_bytes({"half": before[:middle], "flipped": flipped}.get(content, content))


def checkpoints():
    def change(**entries):
        def content(path):
            value = torch.load(path, weights_only=True)
            return saved({key: v for key, v in {**value, **entries}.items() if v is not ...})

        return content

    damage = {
        "empty": lambda path: b"",
        "text": lambda path: b"checkpoint",
        "half": lambda path: path.read_bytes()[: path.stat().st_size // 2],
        "zeros": lambda path: bytes(path.stat().st_size),
        "flipped": lambda path: path.read_bytes()[:5000] + b"\xff" * 200 + path.read_bytes()[5200:],
        "a_list": lambda path: saved([1, 2]),
        "a_number": lambda path: saved(3),
        "no_model": change(model=...),
        "other_model": change(model={"x": torch.zeros(3)}),
        "no_optimizer": change(optimizer=...),
        "other_optimizer": change(optimizer={"state": {}, "param_groups": []}),
        "no_history": change(history=...),
        "history_no_json": change(history="[{"),
        "no_identity": change(identity=...),
        "other_data": change(identity={"images": "0", "labels": "0"}),
        "no_recent": change(recent=...),
        "half_recent": change(recent={"mask": torch.ones(1, 3)}),
    }
    for name, content in damage.items():

        def make(place, content=content):
            run = place.runs() / "deft"
            (run / "summary.json").unlink()
            (run / "checkpoint.pt").write_bytes(content(run / "checkpoint.pt"))
            return Case("checkpoints", "main_phase1", [*PHASE1, "--output_dir", str(place.out)], "deft")

        yield make


def records():
    """What a run left behind, damaged: summaries, settings, lists, logs."""
    own = Path("own-images") / "none" / "seed0" / "label-match"
    digits = SEED / "deft"
    damage = [
        ("summary.json", "report.tables", b"", digits),
        ("summary.json", "report.tables", b"[]", digits),
        ("summary.json", "report.tables", b"null", digits),
        ("summary.json", "report.tables", "half", digits),
        ("summary.json", "report.tables", b"\xff\xfe", digits),
        ("summary.json", "report.tables", b"{}", digits),
        ("summary.json", "report.tables", b'{"seed": 1}', digits),
        ("summary.json", "report.tables", b"[" * 20_000, digits),
        ("summary.json", "report.page", b"{}", own),
        ("summary.json", "report.export", b'{"classes": 3, "root": 4}', own),
        ("summary.json", "report.estimate", b"[1]", own),
        ("summary.json", "main_phase1", b"{}", digits),
        ("summary.json", "main_phase1", "half", digits),
        ("summary.json", "reproduce", b"{}", digits),
        ("config.yaml", "main_phase1", b"[", digits),
        ("config.yaml", "main_phase1", b"- a", digits),
        ("config.yaml", "main_phase1", b"", digits),
        ("config.yaml", "main_phase1", b"\xff", digits),
        ("config.yaml", "report.page", b"[", own),
        ("config.yaml", "report.page", b"- a", own),
        ("config.yaml", "report.page", b"dataset: [1]", own),
        ("config.yaml", "report.review", b"!!python/name:os.system", own),
        ("config.yaml", "report.training", b"a: [", digits),
        ("clean_mask.npz", "report.page", b"", own),
        ("clean_mask.npz", "report.page", "half", own),
        ("clean_mask.npz", "report.export", archive(mask=np.ones(3)), own),
        ("clean_mask.npz", "report.review", b"text", own),
        ("clean_mask.npz", "report.estimate", None, own),
        ("scores.csv", "report.page", b"", own),
        ("scores.csv", "report.page", b"index\n", own),
        ("scores.csv", "report.page", b"index,path\n0,a\n", own),
        ("scores.csv", "report.page", b"a,b\nx\n", own),
        ("scores.csv", "report.page", b"index,content,given_label\nx,y,a\n", own),
        ("scores.csv", "report.export", "half", own),
        ("scores.csv", "report.export", b"\0", own),
        ("log.jsonl", "report.page", b"{", digits),
        ("log.jsonl", "report.page", b"[1]\n", digits),
        ("log.jsonl", "report.training", b"{", digits),
        ("log.jsonl", "report.training", b"", digits),
        ("log.jsonl", "report.training", b'{"epoch": 1}\n{"loss": 2}\n', digits),
        ("log.jsonl", "report.training", b"[1]\n", digits),
    ]
    for file, command, content, run in damage:

        def make(place, file=file, command=command, content=content, run=run):
            place.runs()
            folder = place.out / run
            _damage(folder / file, content)
            argv = {
                "main_phase1": [*PHASE1, "--output_dir", str(place.out)],
                "report.export": [str(folder), "--to", str(place.folder / "to")],
                "report.tables": [str(place.out)],
                "reproduce": ["--verify", str(folder)],
            }.get(command, [str(folder)])
            kind = {"summary.json": "summaries", "clean_mask.npz": "masks"}.get(file, "records of runs")
            return Case(kind, command, argv, str(run.name))

        yield make


def decisions():
    run = Path("own-images") / "none" / "seed0" / "label-match"
    head = "path,given_label,decision,new_label\n"
    files = {
        "empty.csv": "",
        "header.csv": "path\n",
        "word.csv": head + "a/0.png,a,rihgt,\n",
        "no_image.csv": head + ",a,right,\n",
        "no_class.csv": head + "a/0.png,a,wrong,c\n",
        "contradiction.csv": head + "a/0.png,a,right,b\n",
        "same_label.csv": head + "a/0.png,a,wrong,a\n",
        "both.csv": head + "a/0.png,a,right,\na/0.png,a,wrong,\n",
        "ragged.csv": head + "a/0.png\n",
        "nul.csv": head + "a/0.png,a,ri\0ght,\n",
        "binary.csv": bytes(range(256)),
        "half.jsonl": '{"path": "a/0.png"\n',
        "list.jsonl": "[1]\n",
        "number.jsonl": "3\n",
        "word.jsonl": '{"path": "a/0.png", "decision": "maybe"}\n',
        "binary.jsonl": b"\xff\xfe\n",
        "deep.jsonl": "[" * 20_000 + "\n",
    }
    for i, (name, content) in enumerate(files.items()):
        command = ("report.page", "report.export", "report.estimate", "report.review")[i % 4]

        def make(place, name=name, content=content, command=command):
            place.runs()
            argv = [str(place.out / run), "--decisions", str(place.write(name, content))]
            argv += ["--to", str(place.folder / "to")] if command == "report.export" else []
            return Case("decisions", command, argv, name)

        yield make
    yield lambda place: Case(
        "decisions", "report.page", [str(place.runs().parents[2] / run), "--decisions", "/none.csv"], "/none.csv"
    )

    def log(place):
        place.runs()
        (place.out / run / "decisions.jsonl").write_bytes(b"\xff\n")
        return Case("decisions", "report.page", [str(place.out / run)], "decisions.jsonl")

    yield log


def other_files():
    """Noise files, class names, descriptions and data sets in official layouts."""
    for name, content in {
        "words.txt": "a\nb\n",
        "short.txt": "1\n2\n",
        "outside.txt": "99\n" * 359,
        "half.json": "[1, 2",
        "nested.json": "[[1], [2]]",
        "empty.npy": b"",
        "floats.npy": array(np.full(359, 0.5)),
        "binary.txt": bytes(range(128, 256)),
        "deep.json": "[" * 20_000,
    }.items():

        def noise(place, name=name, content=content):
            flags = ["--noise_mode", "file", "--noise_file", str(place.write(name, content))]
            return Case("noise files", "main_phase1", [*PHASE1, *flags, "--output_dir", str(place.out)], name)

        yield noise
    for name, content in {
        "small.csv": "1,0\n0,1\n",
        "sums.csv": "\n".join(",".join(["0.2"] * 10) for _ in range(10)),
        "words.csv": "a,b\n",
        "negative.npy": array(np.eye(10) * 2 - 0.1),
        "nan.npy": array(np.full((10, 10), np.nan)),
    }.items():

        def matrix(place, name=name, content=content):
            flags = ["--noise_mode", "transition", "--noise_file", str(place.write(name, content))]
            return Case("noise files", "main_detect", [*PHASE1[:-4], *flags, "--output_dir", str(place.out)], name)

        yield matrix
    for name, content in {"few.txt": "a\nb\n", "empty_line.txt": "a\n\n" * 5 + "b", "binary.txt": b"\xff" * 10}.items():

        def names(place, name=name, content=content):
            flags = ["--classnames", str(place.write(name, content)), "--output_dir", str(place.out)]
            return Case("class names", "main_phase1", [*PHASE1, *flags], name)

        yield names
    for name, content in {
        "list.yaml": "- a",
        "half.yaml": "zero: [",
        "class.yaml": "eleven: [x]",
        "text.yaml": "zero: round",
        "template.yaml": "template: a photo",
        "binary.yaml": b"\xff\xfe",
        "deep.yaml": "zero: " + "[" * 3000,
    }.items():

        def descriptions(place, name=name, content=content):
            flags = ["--detector", "clipcleaner", "--descriptions", str(place.write(name, content))]
            return Case("class names", "main_detect", [*PHASE1[:-4], *flags, "--output_dir", str(place.out)], name)

        yield descriptions
    sets = "cifar100 tiny_imagenet stanford_cars cub-200-2011 clothing1m webvision animal10n food101n imagenet".split()
    for name in sets:

        def empty(place, name=name):
            place.write("data/readme", "")
            flags = ["--dataset", name, "--data_path", str(place.folder / "data"), "--output_dir", str(place.out)]
            return Case("data sets", "main_phase1", flags, str(place.folder.name))

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
        problems.append(f"{CHARACTERS}, or {len(lines[0])} characters in the line")
    if Path(Payload.marker).exists():
        problems.append("code was executed")
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    halves = [str(path) for path in folder.rglob("*.tmp")]
    if changed or halves:
        problems.append(f"written: {', '.join(changed + halves)[:200]}")
    return case, "; ".join(problems)
