"""Decode the training photographs of model/tiny-clip-photos to arrays, without the images that must stay unseen.

    python -m scripts.unpack_photos data/cifar-10 data/cifar-100 data/tiny-imagenet-200 --out unseen
    python -m scripts.prepare_photos --images cifar10=CIFAR-10/train cifar100=CIFAR-100/train \
        tiny=data/tiny-imagenet-200/train --exclude unseen/* --out photos

Every folder of a set is a class; its images lie anywhere beneath. An image is left out if its decoded pixels, at the
size of the file, equal those of an excluded image. --exclude takes folders of CIFAR-10, CIFAR-100 or Tiny-ImageNet in the
layouts they are published in, and npz files: arrays `*images` (N, H, W, 3), or JPEG bytes `X_jpeg` with `X_offsets`.
Writes NAME_images.npy, uint8 (N, 32, 32, 3), NAME_labels.npy and NAME_classes.json.
"""

import argparse
import hashlib
import io
import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataloader.transforms import decode
from scripts.unpack_photos import read_npz, read_published
from utils.config import parse_flags
from utils.errors import UserError
from utils.files import write_text, write_whole
from utils.start import run_main

SIZE = 32  # pixels
SUFFIXES = {".png", ".jpg", ".jpeg"}


def fingerprint(pixels):
    """Hash of decoded pixels (H, W, 3) and their shape."""
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).digest()


def unpack_jpegs(jpeg, offsets):
    """Pillow images of the files jpeg[offsets[i]:offsets[i + 1]]."""
    for start, end in itertools.pairwise(offsets):
        yield Image.open(io.BytesIO(jpeg[start:end].tobytes())).convert("RGB")


def excluded_fingerprints(sources):
    """Fingerprints of all images of published data sets and npz files; UserError for a source without images."""
    seen = set()
    for source in sources:
        data, found = read_published(source)[0] if Path(source).is_dir() else read_npz(source), 0
        for key in data:
            if key.endswith("_jpeg"):
                images = map(np.asarray, unpack_jpegs(data[key], data[key.replace("_jpeg", "_offsets")]))
            elif data[key].ndim == 4 and data[key].dtype == np.uint8:
                images = data[key]
            else:
                continue
            prints = [fingerprint(image) for image in tqdm(images, desc=f"{Path(source).name} {key}", leave=False)]
            seen.update(prints)
            found += len(prints)
        if not found:
            raise UserError(f"{source}: holds no images (arrays N x H x W x 3, or *_jpeg with *_offsets).")
    return seen


def prepare(name, folder, excluded, out):
    """Write the arrays of one set; returns how many images were kept and how many left out."""
    classes = sorted(f.name for f in Path(folder).iterdir() if f.is_dir())
    files = [
        (path, label)
        for label, c in enumerate(classes)
        for path in sorted((Path(folder) / c).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    images, labels = [], []
    for path, label in tqdm(files, desc=name, mininterval=5):
        with Image.open(path) as file:
            image = file.convert("RGB")
        if fingerprint(np.asarray(image)) not in excluded:
            images.append(decode(image, SIZE).permute(1, 2, 0).numpy())
            labels.append(label)
    for what, array in (("images", np.stack(images)), ("labels", np.array(labels))):
        with write_whole(Path(out) / f"{name}_{what}.npy") as file:
            np.save(file, array)
    write_text(Path(out) / f"{name}_classes.json", json.dumps(classes))
    return len(images), len(files) - len(images)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", required=True, metavar="NAME=FOLDER", help="sets of class folders")
    parser.add_argument("--exclude", nargs="*", default=[], help="folders and npz files of images to leave out")
    parser.add_argument("--out", required=True, help="folder for the arrays")
    args = parse_flags(parser)
    if wrong := [item for item in args.images if "=" not in item]:
        raise UserError(f"--images: {wrong[0]}: expected NAME=FOLDER.")
    Path(args.out).mkdir(parents=True, exist_ok=True)
    excluded = excluded_fingerprints(args.exclude)
    print(f"{len(excluded)} different images to leave out")
    for name, folder in (item.split("=", 1) for item in args.images):
        kept, left_out = prepare(name, folder, excluded, args.out)
        print(f"{name}: {kept} images, {left_out} left out")


if __name__ == "__main__":
    run_main(main)
