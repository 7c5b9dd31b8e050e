"""Take parts of CIFAR-10, CIFAR-100 and Tiny-ImageNet that tiny-clip-photos never saw, in the layouts they are published in.

    python -m scripts.unpack_photos data/cifar-10 data/cifar-100 data/tiny-imagenet-200 --out photos
    python -m scripts.unpack_photos data/cifar-10 --out few --train 1500 --test 1000     # the first images of each class
    python main_detect.py --cfg config/PEFT/photos/cifar10.yaml --data_path photos/cifar-10

A folder holds a published data set, with CIFAR-10_human.pt for the labels of CIFAR-10N; which of its images are taken is listed,
by their hashes, in unseen_photos.npz. An npz file is unpacked as a whole: it holds train_labels, test_labels (or val_labels),
class_names and the images, as arrays train_images, test_images (N, 32, 32, 3), or as JPEG bytes train_jpeg with
train_offsets (N + 1), train_filenames, the same with val_, and wnids; train_cifar10n_* are human labels. Ten classes become
cifar-10/, a hundred cifar-100/, JPEGs tiny-imagenet-200/.
"""

import argparse
import hashlib
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

from dataloader.cifar import cifar10, cifar100
from dataloader.noise import read_human
from dataloader.tiny_imagenet import tiny_imagenet
from utils.config import parse_flags
from utils.errors import UserError
from utils.files import write_text, write_whole
from utils.start import run_main

UNSEEN = Path(__file__).with_name("unseen_photos.npz")  # {"<data set>_<split>": identities (N,) uint64, in order}
HUMAN = {  # entry of CIFAR-10_human.pt: array of the npz file
    "clean_label": "train_labels",
    "aggre_label": "train_cifar10n_aggre",
    "worse_label": "train_cifar10n_worse",
    "random_label1": "train_cifar10n_random1",
    "random_label2": "train_cifar10n_random2",
    "random_label3": "train_cifar10n_random3",
}


def first_of_each_class(labels, number):
    """Indices, in order, of the first images of each class: `number` in all, evenly over the classes; None: all.

    A class that is too small gives all its images.
    """
    if number is None:
        return np.arange(len(labels))
    K = int(labels.max()) + 1  # labels are of 8 bits, which a number of images overflows
    counts = np.full(K, number // K)
    counts[: number % K] += 1
    return np.sort(np.concatenate([np.flatnonzero(labels == k)[:count] for k, count in enumerate(counts)]))


def chosen(data, split, number):
    """Indices of `number` images of a split (None: all) of those that are to be taken, in order."""
    rows = data.get(f"{split}_rows", np.arange(len(data[f"{split}_labels"])))
    return rows[first_of_each_class(data[f"{split}_labels"][rows], number)]


def write_cifar(data, folder, n_train, n_test):
    """CIFAR's pickles of the Python version: planar rows of 3,072 bytes, and for ten classes five training batches."""
    ten = len(data["class_names"]) == 10
    train, test = chosen(data, "train", n_train), chosen(data, "test", n_test)
    parts = np.array_split(train, 5 if ten else 1)
    names = [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"]
    files = [(name, "train", rows) for name, rows in zip(names, parts)]
    for name, split, rows in [*files, ("test_batch" if ten else "test", "test", test)]:
        pixels = data[f"{split}_images"][rows].transpose(0, 3, 1, 2).reshape(len(rows), -1)
        batch = {"data": pixels, "labels" if ten else "fine_labels": data[f"{split}_labels"][rows].tolist()}
        with write_whole(folder / name) as file:
            pickle.dump(batch, file, protocol=2)
    if ten and HUMAN["worse_label"] in data:
        with write_whole(folder / "CIFAR-10_human.pt") as file:
            torch.save({entry: data[array][train].astype(np.int64) for entry, array in HUMAN.items()}, file)


def write_tiny_imagenet(data, folder, n_train, n_test):
    """train/<wnid>/images/*.JPEG, and val/images/ with val/val_annotations.txt, as in the published archive."""
    annotations = []
    for split, number in (("train", n_train), ("val", n_test)):
        offsets, jpeg, labels = data[f"{split}_offsets"], data[f"{split}_jpeg"], data[f"{split}_labels"]
        for i in chosen(data, split, number):
            wnid, name = data["wnids"][labels[i]], Path(data[f"{split}_filenames"][i]).name
            place = folder / "train" / wnid / "images" if split == "train" else folder / "val" / "images"
            place.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(jpeg[offsets[i] : offsets[i + 1]].tobytes())
            annotations += [f"{name}\t{wnid}"] if split == "val" else []
    write_text(folder / "val" / "val_annotations.txt", "\n".join(annotations) + "\n")


def read_published(folder):
    """(a data set in the layout it is published in, as an npz file holds it; its name). UserError if there is none."""
    folder = Path(folder)
    cfg = SimpleNamespace(data_path=str(folder), download=False)
    if (folder / "train").is_dir():
        return _read_tiny_imagenet(tiny_imagenet(cfg)), "tiny_imagenet"
    ten, hundred = (
        any((folder / place / file).is_file() for place in ("", inner))
        for file, inner in (("data_batch_1", "cifar-10-batches-py"), ("train", "cifar-100-python"))
    )
    if not (ten or hundred):
        raise UserError(f"{folder}: holds neither CIFAR-10 nor CIFAR-100 (Python versions) nor Tiny-ImageNet.")
    there = (cifar10 if ten else cifar100)(cfg)
    data = {"class_names": np.arange(10 if ten else 100)}
    for split, part in (("train", there.train), ("test", there.test)):
        data |= {f"{split}_images": part.images, f"{split}_labels": part.labels.astype(np.uint8)}
    if ten and (folder / "CIFAR-10_human.pt").is_file():
        for array in set(HUMAN.values()) - {"train_labels"}:
            data[array] = read_human(folder, array.removeprefix("train_cifar10n_"), there.train.labels, 10)
    elif ten:
        print(f"{folder}: has no CIFAR-10_human.pt, so its part gets no labels of CIFAR-10N (worse, aggre, random1–3)")
    return data, there.name


def _read_tiny_imagenet(there):
    data = {"wnids": np.array(there.classnames)}
    for split, part in (("train", there.train), ("val", there.test)):
        files = [Path(path).read_bytes() for path in tqdm(part.images, split, leave=False, disable=None)]
        data |= {
            f"{split}_jpeg": np.frombuffer(b"".join(files), np.uint8),
            f"{split}_offsets": np.cumsum([0, *map(len, files)]),
            f"{split}_labels": part.labels,
            f"{split}_filenames": np.array([Path(path).name for path in part.images]),
        }
    return data


def identities(data, split):
    """Hashes (N,) uint64 of the images of a split with their labels, or of JPEG files with their names."""
    if "train_jpeg" in data:
        jpeg, offsets = data[f"{split}_jpeg"], data[f"{split}_offsets"]
        names = (Path(str(name)).name.encode() for name in data[f"{split}_filenames"])
        contents = (name + jpeg[a:b].tobytes() for name, a, b in zip(names, offsets, offsets[1:]))
    else:
        contents = (bytes([y]) + x.tobytes() for x, y in zip(data[f"{split}_images"], data[f"{split}_labels"]))
    return np.array([int.from_bytes(hashlib.sha256(content).digest()[:8], "little") for content in contents], np.uint64)


def read_unseen(folder):
    """A published data set with the rows of the images that UNSEEN lists, `train_rows` and `test_rows` or `val_rows`, in its order.

    UserError if one of them is missing.
    """
    data, name = read_published(folder)
    with np.load(UNSEEN, allow_pickle=False) as listed:
        for split in ("train", "val" if "train_jpeg" in data else "test"):
            found = list(enumerate(identities(data, split).tolist()))
            row = {identity: i for i, identity in reversed(found)}  # of equal images, the list means the first
            wanted = [int(identity) for identity in listed[f"{name}_{split}"]]
            missing = len(wanted) - sum(identity in row for identity in wanted)
            if missing:
                raise UserError(
                    f"{folder}: {missing} of the {len(wanted)} images of {split} that {UNSEEN.name} lists are not in it; expected "
                    f"the published {name}, all of it."
                )
            data[f"{split}_rows"] = np.array([row[identity] for identity in wanted])
    return data


def read_npz(path):
    """{name: array} of an npz file; UserError if it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # a damaged archive can raise any exception
        raise UserError(f"{path}: not an npz file of arrays, nor a folder ({error}).") from None


def list_unseen(files, path=UNSEEN):
    """Write the list from {data set: its npz file}."""
    out = {}
    for name, file in files.items():
        data = read_npz(file)
        for split in ("train", "val" if "train_jpeg" in data else "test"):
            out[f"{name}_{split}"] = identities(data, split)
    with write_whole(Path(path)) as target:
        np.savez(target, **out)


def unpack(path, out, n_train=None, n_test=None):
    """Unpack one source, or as many training and test images of it, into its folder in `out`, and return that folder.

    UserError if that folder is the source's, whose files it would replace.
    """
    data = read_unseen(path) if Path(path).is_dir() else read_npz(path)
    names = {10: "cifar-10", 100: "cifar-100"}
    name = "tiny-imagenet-200" if "train_jpeg" in data else names.get(len(data.get("class_names", [])))
    if not name or not data.keys() & {"train_jpeg", "train_images"}:
        raise UserError(f"{path}: expected train_jpeg, or train_images with the class_names of CIFAR-10 or CIFAR-100.")
    folder = Path(out) / name
    if Path(path).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"--out: would write into {folder}, where {path} is; expected another folder.")
    if "train_jpeg" in data:
        if (n_train or n_test) and folder.exists():  # images of an earlier, larger part would stay
            raise UserError(f"{folder}: is there already; a part of the images needs a new folder.")
        write_tiny_imagenet(data, folder, n_train, n_test)
    else:
        write_cifar(data, folder, n_train, n_test)
    return folder


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="FOLDER_OR_NPZ")
    parser.add_argument("--out", required=True, help="folder for the data sets")
    parser.add_argument("--train", type=int, metavar="N", help="that many training images, evenly over the classes")
    parser.add_argument("--test", type=int, metavar="N", help="that many test images, evenly over the classes")
    flags = parse_flags(parser, argv)
    for key in ("train", "test"):
        if (number := getattr(flags, key)) is not None and number < 1:
            raise UserError(f"--{key}: must be at least 1, not {number}.")
    for path in flags.sources:
        print(unpack(path, flags.out, flags.train, flags.test))


if __name__ == "__main__":
    run_main(main)
