"""WebVision 1.0."""

from pathlib import Path
from types import SimpleNamespace

from dataloader.dataset import Dataset, View
from dataloader.files import image_files
from dataloader.listings import ENLARGE, IMAGENET, need_folder, read_pairs, to_split


def webvision(cfg: SimpleNamespace) -> Dataset:
    """WebVision 1.0, Google part, first 50 classes (num_class); the ILSVRC12 validation set, if present, is a second test set."""
    root, K = Path(cfg.data_path), cfg.num_class or 50
    train, test = (
        [(f"{root}/{folder}{path}", label) for path, label in read_pairs(root / "info" / name) if label < K]
        for folder, name in (("", "train_filelist_google.txt"), ("val_images_256/", "val_filelist.txt"))
    )
    more, imagenet = {}, root / "imagenet" / "val"
    if imagenet.is_dir():
        more["imagenet"] = to_split(
            [(path, k) for k in range(K) for path in image_files(need_folder(imagenet / str(k)))[0]]
        )
    else:
        print(f"{imagenet} does not exist: running without the second test set (ILSVRC12 validation)")
    view = View(enlarge=ENLARGE, test_enlarge=ENLARGE, **IMAGENET)
    return Dataset(
        "webvision", to_split(train), to_split(test), classnames=[], view=view, trusted=False, more_tests=more
    )
