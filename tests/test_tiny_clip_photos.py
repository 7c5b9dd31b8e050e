"""The embedded CLIP of photographs: what it must not see, how its training stops and goes on, and what it can do."""

import argparse
import contextlib
import functools
import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file

from dataloader.load import load_data
from model import blocks
from model.clip import load_clip
from model.prompts import zero_shot_features
from scripts import make_tiny_clip_photos, prepare_photos, unpack_photos
from scripts.photos import processes, student, teacher
from scripts.photos.captions import Captions, read_classes
from tests.helpers import SHARED
from utils.config import load_config
from utils.errors import UserError
from utils.files import EMBEDDED

ROOT = Path(__file__).resolve().parents[1]
DATA = SHARED / "data"


def jpeg(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write_images(folder, classes, number, size, form="PNG"):
    """{"class/file": pixels as they are decoded} of images written to class folders."""
    rng, written = np.random.default_rng(0), {}
    for name in classes:
        (folder / name / "images").mkdir(parents=True)
        for i in range(number):
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            path = folder / name / "images" / f"{i:03}.{form}"
            path.write_bytes(jpeg(pixels)) if form == "JPEG" else Image.fromarray(pixels).save(path)
            written[f"{name}/{i}"] = np.asarray(Image.open(path))
    return written


def test_excluded_images_do_not_get_in(tmp_path, monkeypatch, capsys):
    small = write_images(tmp_path / "small", ["cat", "dog"], 5, 32)
    large = write_images(tmp_path / "large", ["n1", "n2"], 4, 64, "JPEG")
    np.savez(tmp_path / "seen.npz", test_images=np.stack([small["cat/1"], small["dog/4"]]), test_labels=np.zeros(2))
    packed = [(tmp_path / "large" / f).read_bytes() for f in ("n2/images/000.JPEG", "n1/images/003.JPEG")]
    np.savez(
        tmp_path / "seen64.npz",
        val_jpeg=np.frombuffer(b"".join(packed), np.uint8),
        val_offsets=np.cumsum([0, *map(len, packed)]),
    )
    flags = ["--images", f"cifar10={tmp_path / 'small'}", f"tiny={tmp_path / 'large'}", "--out", str(tmp_path / "out")]
    exclude = ["--exclude", str(tmp_path / "seen.npz"), str(tmp_path / "seen64.npz")]
    monkeypatch.setattr(sys, "argv", ["prepare_photos.py", *flags, *exclude])
    prepare_photos.main()
    assert "cifar10: 8 images, 2 left out" in capsys.readouterr().out

    kept = np.load(tmp_path / "out" / "cifar10_images.npy")
    rest = [name for name in small if name not in ("cat/1", "dog/4")]
    np.testing.assert_array_equal(kept, np.stack([small[name] for name in rest]))
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "cifar10_labels.npy"), [n[:3] == "dog" for n in rest])
    kept = np.load(tmp_path / "out" / "tiny_images.npy")
    rest = [pixels for name, pixels in large.items() if name not in ("n2/0", "n1/3")]
    halves = np.stack([np.asarray(Image.fromarray(p).resize((32, 32), Image.BILINEAR)) for p in rest])
    np.testing.assert_array_equal(kept, halves)

    from_files = prepare_photos.excluded_fingerprints([tmp_path / "seen.npz"])
    ten = {"class_names": np.arange(10), "train_labels": np.arange(5) % 2, "test_labels": np.arange(2)}
    ten |= {"train_images": np.stack([small[f"dog/{i}"] for i in range(5)])}
    np.savez(tmp_path / "ten.npz", test_images=np.stack([small["cat/1"], small["dog/4"]]), **ten)
    folder = unpack_photos.unpack(tmp_path / "ten.npz", tmp_path / "unseen")
    assert from_files < prepare_photos.excluded_fingerprints([folder]) and len(from_files) == 2

    np.savez(tmp_path / "labels.npz", labels=np.zeros(3))
    with pytest.raises(UserError, match="labels.npz: holds no images"):
        prepare_photos.excluded_fingerprints([tmp_path / "labels.npz"])


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """settings(name) -> the settings of a training on 160 images of two classes, which reach zero loss in no time."""
    rng = np.random.default_rng(0)
    images = (
        rng.integers(0, 128, (160, 32, 32, 3), dtype=np.uint8)
        + 120 * (np.arange(160) % 2).astype(np.uint8)[:, None, None, None]
    )
    threads = torch.get_num_threads()
    monkeypatch.setattr(blocks, "attention", blocks.attention)  # the training sets its own
    monkeypatch.setattr(student, "TEXT_STEPS", 3)
    monkeypatch.setattr(teacher, "Teacher", functools.partial(teacher.Teacher, widths=(8, 16, 32)))
    for part in (teacher, student):  # bf16 takes a minute where the processor has to emulate it
        monkeypatch.setattr(part, "autocast", contextlib.nullcontext)

    def make(name):
        for folder in (tmp_path / name / "work", tmp_path / name / "model"):
            folder.mkdir(parents=True)
        np.save(tmp_path / name / "work" / "cifar10_images.npy", images)
        np.save(tmp_path / name / "work" / "cifar10_labels.npy", np.arange(160) % 2)
        (tmp_path / name / "work" / "cifar10_classes.json").write_text(json.dumps(["cat", "ship"]))
        config = json.loads((make_tiny_clip_photos.MODEL / "open_clip_config.json").read_text())
        config["model_cfg"]["vision_cfg"]["width"] = 64
        (tmp_path / name / "model" / "open_clip_config.json").write_text(json.dumps(config))
        shutil.copy(make_tiny_clip_photos.MODEL / "classes.txt", tmp_path / name / "model")
        return argparse.Namespace(
            work=str(tmp_path / name / "work"), sets=["cifar10"], out=str(tmp_path / name / "model"), teacher_epochs=1,
            epochs=1, teacher_batch_size=32, batch_size=16, save_every=2, processes=1,
        )  # fmt: skip

    yield make
    torch.set_num_threads(threads)


def train(args):
    with make_tiny_clip_photos.socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    try:
        make_tiny_clip_photos.work(0, args, port)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return load_file(str(Path(args.out) / "open_clip_model.safetensors"))


def test_a_stopped_training_goes_on_to_the_same_weights(settings, monkeypatch, capsys):
    whole = train(settings("whole"))
    args, saved, save_state = settings("stopped"), [], processes.save_state

    def killed(path, **state):
        save_state(path, **state)
        saved.append(path)
        if len(saved) in (1, 4):  # in the teacher, then in the CLIP
            raise KeyboardInterrupt

    monkeypatch.setattr(processes, "save_state", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(args)
    assert {path.name for path in saved} == {"teacher.pt", "clip.pt"}
    on = train(args)
    assert whole.keys() == on.keys() and all(torch.equal(whole[k], on[k]) for k in whole)
    printed = capsys.readouterr().out
    assert "images 9/9: loss" in printed
    card = Path(args.out, "README.md")
    (row,) = [line for line in card.read_text().splitlines() if line.startswith("| cifar10 |")]
    held_back = re.findall(r"images 9/9: loss .* held back % (.*)", printed)[-1]
    assert row == f"| cifar10 | 2 | 156 | 4 | {held_back} % |"
    assert "\n9 updates" in card.read_text()
    card.write_text("# Mine\n\n" + card.read_text().replace("156", "?") + "\nLimits.\n")
    train(args)  # has nothing to do but to write the card again
    assert row in card.read_text() and card.read_text().startswith("# Mine\n\n<!--")
    assert card.read_text().endswith("-->\n\nLimits.\n")

    clip, tokenizer = load_clip(args.out)
    text = zero_shot_features(clip, tokenizer, ["cat", "ship", "violin", "maple tree", "zebra crossing"])
    assert torch.isfinite(text).all() and (text @ text.T - torch.eye(5)).max() < 1 - 1e-5


def test_captions_say_what_is_in_the_image():
    table = read_classes(make_tiny_clip_photos.MODEL / "classes.txt")
    assert [sum(key.startswith(s) for key in table) for s in ("cifar10/", "cifar100/", "tiny/")] == [10, 100, 200]
    _, tokenizer = load_clip("tiny-clip-digits")
    classes = ["cifar10/dog", "tiny/n02113799", "cifar100/apple"]  # the second is a poodle
    captions = Captions(classes, table, tokenizer)
    match, ignore = (
        {captions.terms[t] for t in row.nonzero().flatten()} for row in (captions.match[0], captions.ignore[0])
    )
    assert {"dog", "puppy", "animal"} <= match and "fruit" not in match and ignore == {"standard poodle"}
    assert "dog" in {captions.terms[t] for t in captions.match[1].nonzero().flatten()}

    rows, eos, terms = captions.draw(5)
    texts = [
        " ".join(tokenizer.decoder[int(captions.used_ids[r])] for r in row[:e] if r >= 0) for row, e in zip(rows, eos)
    ]
    for text, term in zip(texts, terms):
        spoken = " ".join(tokenizer.decoder[i] for i in tokenizer.encode(captions.terms[term]))
        assert spoken in text
    assert (rows == captions.CONTEXT).any() and (rows.gather(1, eos[:, None]) == captions.eos).all()


@pytest.mark.skipif(not DATA.is_dir(), reason="the images are not here")
@pytest.mark.parametrize(
    "file, bar",
    [("cifar10_train10k_test2k", 65), ("cifar100_train10k_test2k", 35), ("tiny_imagenet_train20k_val2k", 20)],
)
def test_embedded_clip_knows_photographs_zero_shot(file, bar, monkeypatch, capsys):
    """Of every tenth test image; the model card has the figures of all."""
    images, labels, names = make_tiny_clip_photos.load_npz(DATA / f"{file}.npz")
    monkeypatch.setattr(make_tiny_clip_photos, "load_npz", lambda path: (images[::10], labels[::10], names))
    make_tiny_clip_photos.evaluate("tiny-clip-photos", [DATA / f"{file}.npz"])
    said = capsys.readouterr().out
    assert float(said.split("zero-shot ")[1].split(" %")[0]) >= bar
    assert float(said.split("random context ")[1].split(" %")[0]) >= bar - 5


def test_embedded_clip_is_small():
    folder = EMBEDDED["tiny-clip-photos"]
    assert (folder / "open_clip_model.safetensors").stat().st_size <= 16e6
    clip, _ = load_clip("tiny-clip-photos")
    assert sum(p.numel() for p in clip.visual.parameters()) <= 8e6


def test_npz_files_become_data_sets_in_their_published_layouts(tmp_path):
    rng = np.random.default_rng(0)
    cifar = {
        f"{part}_images": rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for part, n in (("train", 23), ("test", 4))
    }
    cifar |= {f"{part}_labels": rng.integers(10, size=n).astype(np.uint8) for part, n in (("train", 23), ("test", 4))}
    human = {
        f"train_cifar10n_{k}": rng.integers(10, size=23) for k in ("aggre", "worse", "random1", "random2", "random3")
    }
    np.savez(tmp_path / "ten.npz", class_names=[f"c{k}" for k in range(10)], **cifar, **human)
    np.savez(tmp_path / "hundred.npz", class_names=[f"c{k}" for k in range(100)], **cifar)
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 90)]  # of an image each
    files = [jpeg(np.full((64, 64, 3), colour, np.uint8)) for colour in colours]
    packed = {"jpeg": np.frombuffer(b"".join(files), np.uint8), "offsets": np.cumsum([0, *map(len, files)])}
    wnids = [line.split()[0] for line in (ROOT / "config/classnames/imagenet-1k.txt").read_text().splitlines()[:2]]
    of_split = {
        "train": ("b/x_1.JPEG", "a/x_0.JPEG", "a/x_2.JPEG", "b/x_9.JPEG"),
        "val": ("9.JPEG", "1.JPEG", "2.JPEG", "3.JPEG"),
    }
    tiny = {f"{split}_{key}": value for split in of_split for key, value in packed.items()}
    tiny |= {f"{split}_labels": np.array([1, 0, 0, 1]) for split in of_split}
    tiny |= {f"{split}_filenames": np.array(names) for split, names in of_split.items()}
    np.savez(tmp_path / "tiny.npz", wnids=np.array(wnids), class_names=np.array(["a", "b"]), **tiny)
    unpack_photos.main(
        [*(str(tmp_path / f"{n}.npz") for n in ("ten", "hundred", "tiny")), "--out", str(tmp_path / "out")]
    )

    def load(name, folder, *flags):
        return load_data(load_config(["--dataset", name, "--data_path", str(tmp_path / "out" / folder), *flags]))

    ten, hundred = load("cifar10", "cifar-10", "--noise_mode", "random2"), load("cifar100", "cifar-100")
    for data in (ten, hundred):
        assert np.array_equal(data.train.images, cifar["train_images"])
        assert np.array_equal(data.test.images, cifar["test_images"])
        assert np.array_equal(data.true_labels, cifar["train_labels"])
        assert np.array_equal(data.test.labels, cifar["test_labels"])
    assert np.array_equal(ten.train.labels, human["train_cifar10n_random2"])
    names = tmp_path / "names.txt"
    names.write_text("thing a\nthing b\n")
    images = load("tiny_imagenet", "tiny-imagenet-200", "--classnames", str(names))
    for split, number in ((images.train, 4), (images.test, 4)):
        seen = {
            tuple(np.asarray(Image.open(path)).mean((0, 1)).round(-1).astype(int)): int(label)
            for path, label in zip(split.images, split.labels)
        }
        assert seen == {colour: label for colour, label in zip(colours, [1, 0, 0, 1])}
    unpack_photos.main(
        [str(tmp_path / "ten.npz"), "--out", str(tmp_path / "out" / "few"), "--train", "10", "--test", "3"]
    )
    few = load("cifar10", "few/cifar-10", "--noise_mode", "random2")
    labels = cifar["train_labels"]
    first = sorted({label: i for i, label in reversed(list(enumerate(labels)))}.values())  # of each class
    assert np.array_equal(few.train.images, cifar["train_images"][first])
    assert np.array_equal(few.true_labels, labels[first])
    assert np.array_equal(few.train.labels, human["train_cifar10n_random2"][first])
    assert len(few.test.labels) <= 3
    for number, chosen in ((2, [0, 1]), (300, [0, 1, 2, 3])):  # more than a label of 8 bits can hold
        assert unpack_photos.first_of_each_class(np.array([1, 0, 1, 1], np.uint8), number).tolist() == chosen
    with pytest.raises(UserError, match="tiny-imagenet-200: is there already"):
        unpack_photos.unpack(tmp_path / "tiny.npz", tmp_path / "out", n_train=2)
    with pytest.raises(UserError, match="--train: must be at least 1, not -5"):
        unpack_photos.main([str(tmp_path / "ten.npz"), "--out", str(tmp_path / "none"), "--train", "-5"])
    np.savez(tmp_path / "other.npz", numbers=np.arange(3))
    with pytest.raises(UserError, match="other.npz: expected train_jpeg, or train_images"):
        unpack_photos.unpack(tmp_path / "other.npz", tmp_path)


def test_unseen_images_of_published_data_sets(tmp_path, monkeypatch, capsys):
    """Of a published data set, in whatever order, the listed images are taken: the same files as from the npz files."""
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8), rng.integers(10, size=40, dtype=np.uint8)
    chosen = rng.permutation(39)[:25]
    images[39], labels[39] = images[chosen[0]], labels[chosen[0]]  # twins, of which the list means the first
    human = {
        f"train_cifar10n_{k}": rng.integers(10, size=40) for k in ("aggre", "worse", "random1", "random2", "random3")
    }
    ten = {"class_names": np.arange(10), "train_images": images, "train_labels": labels, **human}
    ten |= {"test_images": images[::-1], "test_labels": labels}
    files = [jpeg(np.full((64, 64, 3), shade, np.uint8)) for shade in range(0, 240, 20)]
    wnids = [line.split()[0] for line in (ROOT / "config/classnames/imagenet-1k.txt").read_text().splitlines()[:2]]
    packed = {"jpeg": np.frombuffer(b"".join(files), np.uint8), "offsets": np.cumsum([0, *map(len, files)])}
    names = np.array([f"x_{i}.JPEG" for i in rng.permutation(12)])
    packed |= {"labels": np.arange(12) % 2, "filenames": names}
    tiny = {f"{split}_{key}": value for split in ("train", "val") for key, value in packed.items()}
    for name, data in (("public", ten), ("tiny", tiny | {"wnids": np.array(sorted(wnids))})):
        np.savez(tmp_path / f"{name}.npz", **data)
        unpack_photos.unpack(tmp_path / f"{name}.npz", tmp_path / "public")
    part = {key: values[chosen] if key.startswith("train_") else values for key, values in ten.items()}
    np.savez(tmp_path / "part.npz", **part)
    monkeypatch.setattr(unpack_photos, "UNSEEN", tmp_path / "unseen.npz")
    unpack_photos.list_unseen(
        {"cifar10": tmp_path / "part.npz", "tiny_imagenet": tmp_path / "tiny.npz"}, tmp_path / "unseen.npz"
    )
    for file, folder in (("part", "cifar-10"), ("tiny", "tiny-imagenet-200")):
        few = ["--train", "10", "--test", "8"]
        unpack_photos.main([str(tmp_path / f"{file}.npz"), "--out", str(tmp_path / "expected"), *few])
        unpack_photos.main([str(tmp_path / "public" / folder), "--out", str(tmp_path / "found"), *few])
    expected = [p.relative_to(tmp_path / "expected") for p in (tmp_path / "expected").rglob("*") if p.is_file()]
    assert len(expected) == 5 + 1 + 1 + 10 + 8 + 1
    for path in expected:
        assert (tmp_path / "found" / path).read_bytes() == (tmp_path / "expected" / path).read_bytes(), path
    assert "CIFAR-10N" not in capsys.readouterr().out
    public = tmp_path / "public" / "cifar-10"
    (public / "CIFAR-10_human.pt").unlink()
    shutil.copy(public / "data_batch_2", public / "data_batch_1")
    with pytest.raises(UserError, match=r"cifar-10: \d of the 25 images of train that unseen.npz lists are not in it"):
        unpack_photos.unpack(public, tmp_path / "again")
    assert "has no CIFAR-10_human.pt, so its part gets no labels of CIFAR-10N" in capsys.readouterr().out


def test_no_published_data_set_is_overwritten_and_no_other_folder_taken_for_one(tmp_path, monkeypatch):
    images, labels = np.zeros((10, 32, 32, 3), np.uint8), np.arange(10, dtype=np.uint8)
    split = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    np.savez(tmp_path / "ten.npz", class_names=np.arange(10), **split)
    monkeypatch.setattr(unpack_photos, "UNSEEN", tmp_path / "unseen.npz")
    unpack_photos.list_unseen({"cifar10": tmp_path / "ten.npz"}, tmp_path / "unseen.npz")
    folder = unpack_photos.unpack(tmp_path / "ten.npz", tmp_path)
    shutil.copytree(folder, folder / "cifar-10-batches-py")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for source in (folder, folder / "cifar-10-batches-py"):
        with pytest.raises(UserError, match="--out: would write into .*cifar-10, where .* is"):
            unpack_photos.main([str(source), "--out", str(tmp_path), "--train", "5"])
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="other: holds neither CIFAR-10 nor CIFAR-100"):
        unpack_photos.unpack(tmp_path / "other", tmp_path / "out")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "ten.npz").read_bytes()[:200])
    with pytest.raises(UserError, match="cut.npz: not an npz file of arrays, nor a folder"):
        unpack_photos.unpack(tmp_path / "cut.npz", tmp_path / "out")


@pytest.mark.skipif(not DATA.is_dir(), reason="the images are not in the repository")
def test_the_list_of_unseen_images_is_that_of_the_experiments():
    """Identities of the first images, since all of them take seconds."""
    with np.load(unpack_photos.UNSEEN) as listed:
        for name, number in (("cifar10", 10_000), ("cifar100", 10_000), ("tiny_imagenet", 20_000)):
            assert len(listed[f"{name}_train"]) == number
        data = dict(np.load(DATA / "cifar10_train10k_test2k.npz"))
        first = {key: values[:50] for key, values in data.items()}
        assert np.array_equal(unpack_photos.identities(first, "train"), listed["cifar10_train"][:50])
