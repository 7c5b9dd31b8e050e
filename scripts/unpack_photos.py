"""Unpack npz files of images into the layouts in which CIFAR and Tiny-ImageNet are published, so that `--dataset` reads them.

    python -m scripts.unpack_photos cifar10.npz cifar100.npz tiny.npz --out photos
    python -m scripts.unpack_photos cifar10.npz --out few --train 2000 --test 1000     # the first images of each class
    python main_detect.py --cfg config/PEFT/cifar10.yaml --data_path photos/cifar-10 --backbone tiny-clip-photos

For experiments on a part of the images; the whole data sets need no unpacking. A file holds train_labels, test_labels (or
val_labels), class_names and the images: arrays train_images, test_images (N, 32, 32, 3), or JPEG bytes train_jpeg with
train_offsets (N + 1), train_filenames, the same with val_, and wnids. Ten classes become cifar-10/, with the human labels
train_cifar10n_* as CIFAR-10_human.pt; a hundred cifar-100/; JPEGs tiny-imagenet-200/.
"""

import argparse
import pickle
from pathlib import Path

import numpy as np
import torch

from utils.config import UserError, parse_flags
from utils.files import write_text, write_whole
from utils.start import run_main

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


def write_cifar(data, folder, n_train, n_test):
    """CIFAR's pickles of the Python version: planar rows of 3,072 bytes, and for ten classes five training batches."""
    ten = len(data["class_names"]) == 10
    train, test = (
        first_of_each_class(data[f"{split}_labels"], n) for split, n in (("train", n_train), ("test", n_test))
    )
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
        for i in first_of_each_class(labels, number):
            wnid, name = data["wnids"][labels[i]], Path(data[f"{split}_filenames"][i]).name
            place = folder / "train" / wnid / "images" if split == "train" else folder / "val" / "images"
            place.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(jpeg[offsets[i] : offsets[i + 1]].tobytes())
            annotations += [f"{name}\t{wnid}"] if split == "val" else []
    write_text(folder / "val" / "val_annotations.txt", "\n".join(annotations) + "\n")


def unpack(path, out, n_train=None, n_test=None):
    """Unpack one file, or as many training and test images of it, into its folder in `out`, and return that folder."""
    try:
        with np.load(path, allow_pickle=False) as file:
            data = dict(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not an npz file of arrays ({error}).") from None
    folders = {10: "cifar-10", 100: "cifar-100"}
    if "train_jpeg" in data:
        folder = Path(out) / "tiny-imagenet-200"
        if (n_train or n_test) and folder.exists():  # images of an earlier, larger part would stay
            raise UserError(f"{folder}: is there already; a part of the images needs a new folder.")
        write_tiny_imagenet(data, folder, n_train, n_test)
    elif "train_images" in data and len(data.get("class_names", [])) in folders:
        folder = Path(out) / folders[len(data["class_names"])]
        write_cifar(data, folder, n_train, n_test)
    else:
        raise UserError(f"{path}: expected train_jpeg, or train_images with the class_names of CIFAR-10 or CIFAR-100.")
    return folder


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="NPZ")
    parser.add_argument("--out", required=True, help="folder for the data sets")
    parser.add_argument("--train", type=int, metavar="N", help="that many training images, evenly over the classes")
    parser.add_argument("--test", type=int, metavar="N", help="that many test images, evenly over the classes")
    flags = parse_flags(parser, argv)
    for path in flags.files:
        print(unpack(path, flags.out, flags.train, flags.test))


if __name__ == "__main__":
    run_main(main)
