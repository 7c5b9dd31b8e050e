"""The paper's image sets: small copies in each official layout, made of real images, through both phases."""

import functools
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import main_detect
import main_phase1
import main_phase2
import main_real_phase1
import main_real_phase2
from dataloader import load
from dataloader.dataset import Split, View, image_keys
from dataloader.digits import load_digits_8x8
from dataloader.load import load_data
from dataloader.loaders import EpochRandomness, Loader
from dataloader.transforms import Pixels
from tests.helpers import SHARED, write_cifar
from utils.config import load_config
from utils.errors import UserError
from utils.files import read_lines

TINY_IMAGENET = SHARED / "data" / "tiny_imagenet_train20k_val2k.npz"
NAMES = Path("config/classnames")


@functools.cache
def jpegs():
    """Contents of real JPEG files: Tiny-ImageNet's where they are at hand, else digits."""
    if TINY_IMAGENET.is_file():
        data = np.load(TINY_IMAGENET, allow_pickle=False)
        jpeg, offsets = data["train_jpeg"], data["train_offsets"]
        return [jpeg[offsets[i] : offsets[i + 1]].tobytes() for i in range(0, 20000, 17)]
    found = []
    for level in load_digits_8x8()[0]:
        buffer = io.BytesIO()
        Image.fromarray(level * 15).resize((64, 72)).save(buffer, format="JPEG")
        found.append(buffer.getvalue())
    return found


class Pictures:
    """Writes one of `jpegs` after the other."""

    def __init__(self):
        self.count = 0

    def write(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpegs()[self.count % len(jpegs())])
        self.count += 1


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))


def make_tiny_imagenet(root, put, test="test"):
    wnids = [f"n{i:08d}" for i in range(200)]
    for k, wnid in enumerate(wnids):
        for i in range(2):
            put(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        if test == "test":
            put(root / "test" / wnid / "images" / f"{wnid}_9.JPEG")
        else:
            put(root / "val" / "images" / f"val_{k}.JPEG")
    if test == "val":
        lines(root / "val" / "val_annotations.txt", [f"val_{k}.JPEG\t{w}\t0\t0\t62\t62" for k, w in enumerate(wnids)])


def make_cars(root, put, devkit=False):
    names = read_lines(NAMES / "stanford_cars.txt")
    if not devkit:
        for name in names:
            put(root / "train" / name / "0.jpg")
            put(root / "test" / name / "1.jpg")
        return
    order = [names[0], names[2], names[1], *names[3:]]  # not sorted, as in the devkit
    order[order.index("Ram C-V Cargo Van Minivan 2012")] = "Ram C/V Cargo Van Minivan 2012"
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array([order], dtype=object)})
    for part, name in (("train", "cars_train_annos"), ("test", "cars_test_annos_withlabels")):
        rows = np.zeros((1, 196), dtype=[("class", object), ("fname", object)])
        for i in range(196):
            rows[0, i] = (i + 1, f"{i:05d}.jpg")
            put(root / f"cars_{part}" / f"{i:05d}.jpg")
        savemat(root / "devkit" / f"{name}.mat", {"annotations": rows})


def make_cub(root, put):
    names = [f"{k + 1:03d}.{n}" for k, n in enumerate(read_lines(NAMES / "cub-200-2011.txt"))]
    paths = [f"{n}/{n}_{i}.jpg" for n in names for i in range(2)]
    for path in paths:
        put(root / "images" / path)
    lines(root / "images.txt", [f"{i + 1} {p}" for i, p in enumerate(paths)])
    lines(root / "image_class_labels.txt", [f"{i + 1} {i // 2 + 1}" for i in range(400)])
    lines(root / "train_test_split.txt", [f"{i + 1} {i % 2}" for i in range(400)])


def make_clothing(root, put, prefix=False):
    keys = [f"images/{i % 10}/{i}.jpg" for i in range(140)]
    for key in keys:
        put(root / (key if prefix else key.removeprefix("images/")))
    lines(root / "noisy_label_kv.txt", [f"{k} {min(i % 20, 13)}" for i, k in enumerate(keys)])
    lines(root / "clean_label_kv.txt", [f"{k} {i % 14}" for i, k in enumerate(keys)])
    lines(root / "noisy_train_key_list.txt", keys[:112])
    lines(root / "clean_test_key_list.txt", keys[112:])


def make_webvision(root, put):
    train = [(f"google/q{k:04d}/{i}.jpg", k) for k in range(60) for i in range(2)]
    for path, _ in train:
        put(root / path)
    lines(root / "info" / "train_filelist_google.txt", [f"{p} {k}" for p, k in train])
    lines(root / "info" / "val_filelist.txt", [f"val{k}.jpg {k}" for k in range(60)])
    for k in range(60):
        put(root / "val_images_256" / f"val{k}.jpg")
        put(root / "imagenet" / "val" / str(k) / "a.JPEG")


def make_animal10n(root, put):
    for k in range(10):
        for i in range(4):
            put(root / "training" / f"{k}_{i:05d}.jpg")
        put(root / "testing" / f"{k}_{9 - k:05d}.jpg")
    (root / "training" / "labels.txt").write_text("no image")


def make_mini_imagenet(root, put, base="mini-imagenet", validation="validation/{k}"):
    """Red: the last fifth of the images is from the web; blue: the last fifth has the next label."""
    base = root / base
    names = [f"n{k:04d}{i}.jpg" for k in range(100) for i in range(2)]
    web = {name: f"web{name[1:]}" for name in names[160:]}
    for name in [*names, *web.values()]:
        put(base / "all_images" / name)
    for color in ("red", "blue"):
        lines(base / "split" / f"{color}_noise_nl_0.0", [f"{name} {i // 2}" for i, name in enumerate(names)])
    red = [f"{web.get(name, name)} {i // 2}" for i, name in enumerate(names)]
    lines(base / "split" / "red_noise_nl_0.2", red[::-1])  # in an order of its own
    blue = [f"{name} {(i // 2 + (i >= 160)) % 100}" for i, name in enumerate(names)]
    lines(base / "split" / "blue_noise_nl_0.2", blue[::-1])
    lines(base / "split" / "clean_validation", [f"val{k}.jpg {k}" for k in range(100)])
    for k in range(100):
        put(base / validation.format(k=k) / f"val{k}.jpg")


def make_food101n(root, put, release="Food-101N_release"):
    base, names = root / release, [name.replace(" ", "_") for name in read_lines(NAMES / "food101n.txt")]
    keys = [f"{name}/{i}.jpg" for name in names for i in range(2)]
    for key in keys:
        put(base / "images" / key)
    lines(base / "meta" / "classes.txt", ["class_name", *names[::-1]])
    lines(base / "meta" / "imagelist.tsv", ["class_name/key", *keys])
    heading = "class_name/key\tverification_label"
    lines(
        base / "meta" / "verified_train.tsv", [heading, *(f"{key}\t{i % 4 > 0:d}" for i, key in enumerate(keys[:40]))]
    )
    lines(base / "meta" / "verified_val.tsv", [heading, f"{keys[-1]}\t0"])
    lines(base.parent / "food-101" / "meta" / "test.txt", [f"{name}/7" for name in names])
    for name in names:
        put(base.parent / "food-101" / "images" / name / "7.jpg")


def make_imagenet(root, put, listed=False):
    synsets = ["n01440764", "n01443537", "unknown_class"]
    for k, synset in enumerate(synsets):
        for i in range(4):
            put(root / "train" / synset / f"{synset}_{i}.JPEG")
        put(root / "val" / f"v{k}.JPEG" if listed else root / "val" / synset / f"v{k}.JPEG")
    if listed:
        lines(root / "val.txt", [f"v{k}.JPEG {k}" for k in range(3)])
        names = [f"{synset}/{synset}_{i}.JPEG" for synset in synsets for i in range(4)]
        lines(root / "train.txt", [f"{name} {(i // 4 + (i == 0)) % 3}" for i, name in enumerate(names)])


SETS = {  # name: (make, YAML, training images, test images, classes)
    "tiny_imagenet": (make_tiny_imagenet, "tiny_imagenet", 400, 200, 200),
    "tiny_imagenet val": (lambda r, p: make_tiny_imagenet(r, p, "val"), "tiny_imagenet", 400, 200, 200),
    "stanford_cars": (make_cars, "stanford_cars", 196, 196, 196),
    "stanford_cars devkit": (lambda r, p: make_cars(r, p, True), "stanford_cars", 196, 196, 196),
    "cub": (make_cub, "cub200", 200, 200, 200),
    "clothing1m": (make_clothing, "clothing1m", 56, 28, 14),
    "clothing1m prefix": (lambda r, p: make_clothing(r, p, True), "clothing1m", 56, 28, 14),
    "webvision": (make_webvision, "webvision", 100, 50, 50),
    "animal10n": (make_animal10n, "animal10n", 40, 10, 10),
    "red": (make_mini_imagenet, "red_mini_imagenet", 200, 100, 100),
    "blue": (lambda r, p: make_mini_imagenet(r, p, ".", "all_validation"), "blue_mini_imagenet", 200, 100, 100),
    "food101n": (make_food101n, "food101n", 202, 101, 101),
    "imagenet": (make_imagenet, "imagenet", 12, 3, 3),
    "imagenet listed": (lambda r, p: make_imagenet(r, p, True), "imagenet", 12, 3, 3),
}


def cfg_of(name, root, *flags, phase="PEFT"):
    extra = ["--num_samples", "56"] if name.startswith("clothing") else []
    extra = ["--noise_ratio", "0.2"] if name in ("red", "blue") else extra
    return ["--cfg", f"config/{phase}/{SETS[name][1]}.yaml", "--data_path", str(root), *extra, *flags]


@pytest.mark.parametrize("name", SETS)
def test_layout(tmp_path, name):
    make, yaml_name, n_train, n_test, K = SETS[name]
    make(tmp_path, Pictures().write)
    data, again, other = (load_data(load_config(cfg_of(name, tmp_path, "--seed", seed))) for seed in "001")
    assert (len(data.train.images), len(data.test.images), data.num_classes) == (n_train, n_test, K)
    assert all(Path(p).is_file() for p in [*data.train.images, *data.test.images])
    assert data.train.images == again.train.images and np.array_equal(data.train.labels, again.train.labels)
    if "clothing" in name:  # balanced, and fixed by the seed
        assert np.bincount(data.train.labels, minlength=14).max() <= 4 and data.train.images != other.train.images
        assert data.true_labels is None
    else:
        assert data.train.images == other.train.images
    if "devkit" in name:  # the devkit's second class is the third by name
        assert data.train.labels[:3].tolist() == [0, 2, 1]
    if name == "webvision":
        assert data.more_tests["imagenet"].labels.tolist() == list(range(50))
    if name == "animal10n":
        assert data.train.labels.tolist() == np.repeat(np.arange(10), 4).tolist() and data.true_labels is None
        assert data.test.labels.tolist() == list(range(10))


def test_mini_imagenet_knows_its_noise(tmp_path):
    make_mini_imagenet(tmp_path, Pictures().write)
    red, blue = (load_data(load_config(cfg_of(color, tmp_path))) for color in ("red", "blue"))
    assert red.place == "red_mini_imagenet/red-0.2" and red.true_labels is None
    index, is_clean = red.known()
    assert index.tolist() == list(range(200))
    assert is_clean.tolist() == ["web" not in path for path in red.train.images] and is_clean.sum() == 160
    assert red.facts()["noise_rate"] == pytest.approx(0.2)
    assert [int(Path(path).name[1:5]) for path in blue.train.images] == blue.true_labels.tolist()
    assert (blue.true_labels != blue.train.labels).sum() == 40 and blue.noise_name == "blue-0.2"
    with pytest.raises(UserError, match="noise_ratio: there is no .*red_noise_nl_0.3; levels there: 0.0, 0.2"):
        load_data(load_config(cfg_of("red", tmp_path, "--noise_ratio", "0.3")))
    with pytest.raises(UserError, match="red_mini_imagenet has its own noise"):
        load_data(load_config(cfg_of("red", tmp_path, "--noise_mode", "sym")))


def test_food101n_knows_what_was_checked(tmp_path, capsys):
    make_food101n(tmp_path, Pictures().write)
    data = load_data(load_config(cfg_of("food101n", tmp_path)))
    index, is_clean = data.known()
    assert index.tolist() == [*range(40), 201] and is_clean.tolist() == [*(i % 4 > 0 for i in range(40)), False]
    assert data.facts()["num_known"] == 41 and data.facts()["noise_rate"] == pytest.approx(11 / 41)
    for split in (data.train, data.test):
        assert all(Path(p).parent.name == data.label_names[k] for p, k in zip(split.images, split.labels))
    (tmp_path / "food-101").rename(tmp_path / "elsewhere")
    assert load_data(load_config(cfg_of("food101n", tmp_path))).test is None
    assert "running without a test set (Food-101)" in capsys.readouterr().out


def test_quality_is_of_the_checked_labels(tmp_path):
    """Broken files are left out with their verification, and a record's figures are those of checked labels."""
    make_food101n(tmp_path, Pictures().write)
    paths = load_data(load_config(cfg_of("food101n", tmp_path))).train.images
    for i in (0, 1, 199):
        Path(paths[i]).write_text("broken")
    flags = [
        "--skip_broken",
        "--backbone",
        "tiny-clip-digits",
        "--output_dir",
        str(tmp_path / "runs"),
        "--device",
        "cpu",
    ]
    summary = main_detect.main(cfg_of("food101n", tmp_path, *flags))
    data = load_data(load_config(cfg_of("food101n", tmp_path, *flags)))
    index, is_clean = data.known()
    assert [data.train.images[i] for i in index] == [*paths[2:40], paths[201]] and is_clean.sum() == 29
    with np.load(tmp_path / "runs" / data.place / "seed0" / "label-match" / "clean_mask.npz") as file:
        hits = file["mask"][index] & is_clean
    assert summary["recall"] == pytest.approx(hits.sum() / 29) and summary["num_known"] == 39


def test_imagenet_names_and_lists(tmp_path):
    make_imagenet(tmp_path / "folders", Pictures().write)
    make_imagenet(tmp_path / "lists", Pictures().write, listed=True)
    (tmp_path / "lists" / "train" / "@eaDir").mkdir()  # of a network drive, and no class
    folders, lists = (load_data(load_config(cfg_of("imagenet", tmp_path / kind))) for kind in ("folders", "lists"))
    assert folders.classnames == ["tench", "goldfish", "unknown class"] == lists.classnames
    assert folders.true_labels is not None and lists.true_labels is None
    assert lists.train.labels.tolist() == [1, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert [Path(p).name for p in lists.test.images] == ["v0.JPEG", "v1.JPEG", "v2.JPEG"]


@pytest.mark.parametrize("name", ["tiny_imagenet", "stanford_cars", "cub", "clothing1m", "webvision", "red"])
def test_both_phases(tmp_path, name):
    SETS[name][0](tmp_path / "data", Pictures().write)
    synthetic = name in ("tiny_imagenet", "stanford_cars", "cub")
    phase1, phase2 = (main_phase1, main_phase2) if synthetic else (main_real_phase1, main_real_phase2)
    flags = [
        "--backbone",
        "tiny-clip-digits",
        "--epochs",
        "1",
        "--output_dir",
        str(tmp_path / "runs"),
        "--device",
        "cpu",
    ]
    flags += ["--noise_mode", "sym", "--noise_ratio", "0.2"] if synthetic else []
    flags += ["--batch_size", "400"]  # most of a step are the prompts of the 200 classes
    first = phase1.main(cfg_of(name, tmp_path / "data", *flags))
    mask = []
    if not first["selected"]:  # the tiny CLIP knows digits only and may find nothing clean
        np.save(tmp_path / "all.npy", np.ones(first["num_train"], dtype=bool))
        mask = ["--mask", str(tmp_path / "all.npy")]
    second = phase2.main(cfg_of(name, tmp_path / "data", *flags, *mask, phase="FFT"))
    for summary in (first, second):
        assert summary["num_classes"] == SETS[name][4]
        assert ("acc_imagenet_last" in summary) == (name == "webvision")
        assert ("noise_rate" in summary) == (synthetic or name == "red")


def test_cars_in_folders_of_other_names_are_not_named_by_their_order(tmp_path):
    """Numbers, say: CLIP would read "Ferrari 458 Italia" for folder 19, whatever is in it."""
    make_cars(tmp_path, Pictures().write)
    for part in ("train", "test"):
        for i, folder in enumerate(sorted((tmp_path / part).iterdir())):
            folder.rename(tmp_path / part / f"{i + 1:03}")
    with pytest.raises(UserError, match="train/001: expected the class folder 'AM General Hummer SUV 2000'"):
        load_data(load_config(cfg_of("stanford_cars", tmp_path)))
    (tmp_path / "names.txt").write_text("\n".join(f"car {i}" for i in range(196)))
    data = load_data(load_config(cfg_of("stanford_cars", tmp_path, "--classnames", str(tmp_path / "names.txt"))))
    assert data.classnames[19] == "car 19" and Path(data.train.images[19]).parent.name == "020"


def test_no_two_classes_have_one_name():
    """CLIP could not tell them apart, and label-match would trust none of the second."""
    for path in NAMES.glob("*.txt"):
        names = [line.partition(" ")[2] if path.stem == "imagenet-1k" else line for line in read_lines(path)]
        assert len({name.lower() for name in names}) == len(names), path


def test_check_data_counts_images(tmp_path, monkeypatch):
    write_cifar(tmp_path, "cifar10")
    cfg = load_config(["--dataset", "cifar10", "--data_path", str(tmp_path)])
    report, is_whole = load.check_data(cfg)
    assert "training: 60 images" in report and "published 50000" in report and not is_whole
    monkeypatch.setitem(load.PUBLISHED, "cifar10", (60, 20))
    assert load.check_data(cfg)[1]


def test_check_data_and_skip_broken(tmp_path, capsys):
    make_cub(tmp_path, Pictures().write)
    paths = load_data(load_config(cfg_of("cub", tmp_path))).train.images
    Path(paths[3]).unlink()
    Path(paths[5]).write_bytes(Path(paths[5]).read_bytes()[:300])
    check = load_config(cfg_of("cub", tmp_path, "--check_data", "--output_dir", str(tmp_path / "runs")))
    with pytest.raises(SystemExit) as done:
        load_data(check)
    printed = capsys.readouterr().out
    assert done.value.code == 1  # not as if all were well
    assert (
        f"training: 200 images of 200 classes, published 5994; 1 files missing, 1 broken, first {paths[3]}" in printed
    )
    assert load.check_data(load_config(["--dataset", "digits"]))[1]
    data = load_data(load_config(cfg_of("cub", tmp_path, "--skip_broken", "--output_dir", str(tmp_path / "runs"))))
    assert [p for p, _ in data.skipped] == [paths[3], paths[5]] and data.skipped[0][1] == "missing"
    assert len(data.train.images) == 198 == len(data.train.labels)
    sound = np.flatnonzero(~np.isin(np.arange(200), [3, 5]))  # images are the same whether or not their files were read
    Path(paths[3]).touch()
    plain = image_keys(load_data(load_config(cfg_of("cub", tmp_path))).train, data.root)
    Path(paths[3]).unlink()
    assert np.array_equal(plain[sound], image_keys(data.train, data.root))
    flags = ["--backbone", "tiny-clip-digits", "--device", "cpu", "--output_dir"]
    assert main_detect.main(cfg_of("cub", tmp_path, *flags, str(tmp_path / "runs"), "--skip_broken"))["skipped"] == 2
    with pytest.raises(UserError, match="not a readable image.*--skip_broken"):
        main_detect.main(cfg_of("cub", tmp_path, *flags, str(tmp_path / "runs2")))


@pytest.mark.parametrize(
    "name, file, content, message",
    [
        (
            "clothing1m",
            "noisy_train_key_list.txt",
            "images/nowhere.jpg\n",
            "line 1, images/nowhere.jpg, has no label in",
        ),
        (
            "clothing1m",
            "noisy_label_kv.txt",
            "images/0/0.jpg one\n",
            "line 1 has the label 'one', expected a whole number",
        ),
        ("clothing1m", "clean_label_kv.txt", None, "clean_label_kv.txt is missing"),
        ("webvision", "info/val_filelist.txt", "a\nb 3\n", "line 1 has 1 words, expected 2"),
        ("webvision", "info/val_filelist.txt", "a b\n", "line 1 has the label 'b', expected a whole number"),
        ("clothing1m", "noisy_train_key_list.txt", "\n", "noisy_train_key_list.txt: line 1 has 0 words, expected 1"),
        ("cub", "image_class_labels.txt", "1 x\n", "image_class_labels.txt: line 1 has the label 'x'"),
        ("stanford_cars devkit", "devkit/cars_meta.mat", "x", "cars_meta.mat: not an annotation file of the devkit"),
        ("cub", "train_test_split.txt", "1 1\n", "no line for image 2"),
        ("animal10n", "training/cat_1.jpg", "x", "cat_1.jpg: expected a name that begins with the label"),
        ("animal10n", "training/²_1.jpg", "x", "²_1.jpg: expected a name that begins with the label"),
        ("webvision", "info/val_filelist.txt", "a --5\n", "line 1 has the label '--5', expected a whole number"),
        ("blue", "split/blue_noise_nl_0.0", "a.jpg 0\n", "line 1 names n00991.jpg, which is not in blue_noise_nl_0.0"),
        ("red", "split/clean_validation", None, "clean_validation is missing"),
        (
            "food101n",
            "Food-101N_release/meta/imagelist.tsv",
            "class_name/key\nsoup/1.jpg\n",
            "imagelist.tsv: line 2 names soup/1.jpg, whose class is not in",
        ),
        (
            "food101n",
            "Food-101N_release/meta/verified_val.tsv",
            "heading x\nwaffles/1.jpg\t2\n",
            "line 2 has the verification label '2', expected 0 or 1",
        ),
        ("imagenet listed", "val.txt", "v0.JPEG 3\n", "label 3 of test image 0 is out of range"),
        (
            "tiny_imagenet val",
            "val/val_annotations.txt",
            "val_0.JPEG\tn99\n",
            "line 1 names n99, which is not a folder in",
        ),
    ],
)
def test_broken_lists(tmp_path, name, file, content, message):
    SETS[name][0](tmp_path, Pictures().write)
    file = file.replace("split/", "mini-imagenet/split/") if name == "red" else file
    (tmp_path / file).write_text(content) if content else (tmp_path / file).unlink()
    with pytest.raises(UserError, match=message):
        load_data(load_config(cfg_of(name, tmp_path)))


def test_files_cut_by_their_short_side(tmp_path):
    """Clothing1M's view: short side resized, cut at random or in the centre, the same whatever the batch."""
    pixels = np.zeros((40, 120, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, 120).astype(np.uint8)  # brighter from left to right
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    split, labels = Split([str(tmp_path / "wide.png")] * 6, np.zeros(6, dtype=np.int64)), np.zeros(6, dtype=np.int64)
    view = View(enlarge=8 / 7, test_enlarge=8 / 7, short_side=True, flip=False)
    plain = Pixels(28, (0.0,) * 3, (1.0,) * 3)
    loader = Loader(split, view, plain, 4, torch.device("cpu"), False)
    images = torch.cat([x for x, _, _ in loader.eval()])
    assert images.shape == (6, 3, 28, 28) and images[0, 0].mean().item() == pytest.approx(0.5, abs=0.02)
    randomness = EpochRandomness(0, 1, labels, 2)
    by_index = {}
    for batch_size in (4, 3):
        loader = Loader(split, view, plain, batch_size, torch.device("cpu"), True)
        for x, _, index in loader.train(randomness):
            for image, i in zip(x, index.tolist()):
                assert torch.equal(by_index.setdefault(i, image), image)
    brightness = [float(x[0].mean()) for _, x in sorted(by_index.items())]
    assert np.array_equal(np.argsort(brightness), np.argsort(randomness.crop[:, 1].numpy()))


def test_yaml_headers_and_names_are_complete():
    for phase in ("PEFT", "FFT"):
        for path in Path(f"config/{phase}").glob("*.yaml"):
            cfg = load_config(["--cfg", str(path)])
            names = NAMES / f"{cfg.dataset}.txt"
            if cfg.num_class:
                assert len(read_lines(names)) == cfg.num_class, path
            assert path.read_text().startswith("#") and f"--cfg {path}" in path.read_text(), path
            assert cfg.finetune == (phase == "FFT") and cfg.vpt_deep == (phase == "PEFT"), path
    assert json.dumps(read_lines(NAMES / "webvision.txt")).count("kite (bird of prey)") == 1
