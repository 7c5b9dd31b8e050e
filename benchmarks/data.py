"""Data loading: images/s of each way to get training images to the device, and of torchvision's per-image transforms.

python -m benchmarks.data
"""

import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.common import add_repeats, in_turns, parser, report, synthetic
from dataloader.dataset import Split, View
from dataloader.listings import IMAGENET
from dataloader.loaders import EpochRandomness, Loader, Reading
from dataloader.transforms import Pixels, decode

STATISTICS = (IMAGENET["mean"], IMAGENET["std"])


class Images(torch.utils.data.Dataset):
    """One image and label at a time, through torchvision's transforms."""

    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = self.images[i]
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(image).convert("RGB")
        return self.transform(image), 0


def write_photos(folder, n, size, name):
    """n JPEGs of `size` with the smoothness of photographs."""
    rng, paths = np.random.default_rng(0), []
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)
        fine = rng.normal(0, 12, (size[1], size[0], 1))
        paths.append(str(folder / f"{name}{i:05d}.jpg"))
        Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(paths[-1], quality=88)
    return paths


def main():
    p = parser(__doc__)
    add_repeats(p)
    p.add_argument("--n", type=int, default=512)
    p.add_argument("--workers", type=int, default=2)
    args = p.parse_args()
    device = torch.device(args.device)
    labels = np.zeros(args.n, dtype=np.int64)
    randomness = EpochRandomness(0, 1, labels, 2)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        paths = write_photos(folder, args.n, (500, 375), "small")
        large = write_photos(folder, args.n // 8, (2000, 1500), "large")

        def drain(loader):
            for images, _, _ in loader.train(randomness):
                pass

        def theirs(images, *transforms):
            chain = T.Compose([*transforms, T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(*STATISTICS)])
            batches = DataLoader(Images(images, chain), 64, shuffle=True, num_workers=args.workers)
            return lambda: [images.to(device) for images, _ in batches]

        def ours(images, view, cache_gb=0.0):
            return Loader(
                Split(images, labels),
                view,
                Pixels(224, *STATISTICS),
                64,
                device,
                True,
                Reading(args.workers, cache_gb, folder / "cache"),
            )

        arrays = synthetic(args.n, 1, 2).train.images
        files, short = View(enlarge=8 / 7), View(enlarge=8 / 7, short_side=True)
        loaders = {
            "arrays 32x32 -> 224": ours(arrays, View(pad=4)),
            "files, decoded each epoch": ours(paths, files),
            "files, short side": ours(paths, short),
            "files, cached": ours(paths, files, 4.0),
        }
        variants = {name: (lambda loader=loader: drain(loader)) for name, loader in loaders.items()}
        splits = np.split(randomness.order, range(64, args.n, 64))
        variants["files, cached, host alone"] = lambda: list(
            loaders["files, cached"]._pixels(splits, None, [None] * len(splits))
        )
        variants["arrays, torchvision"] = theirs(arrays, T.RandomCrop(32, 4), T.Resize((224, 224)))
        variants["files, torchvision"] = theirs(paths, T.Resize((256, 256)), T.RandomCrop(224))
        seconds = {name: median(s) for name, s in in_turns(variants, args.repeats, device).items()}
        rows = [{"loader": name, "images/s": args.n / s} for name, s in seconds.items()]
        draft = in_turns(
            {
                "draft": lambda: [decode(path, 256) for path in large],
                "whole": lambda: [Image.open(path).convert("RGB").resize((256, 256), Image.BILINEAR) for path in large],
            },
            args.repeats,
        )
        rows += [
            {"loader": f"2000x1500 JPEG, {name}, one thread", "images/s": len(large) / median(s)}
            for name, s in draft.items()
        ]
    report(rows, args)


if __name__ == "__main__":
    main()
