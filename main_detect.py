"""Find wrong labels without training a network: by zero-shot predictions, neighbours or a linear classifier.

    python main_detect.py --cfg config/PEFT/own.yaml --data_path DIR_OR_CSV --detector confident-learning

In notebooks, call `detect`.
"""

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import yaml

from utils.config import DEFAULTS, REAL_WORLD, load_config, read_yaml, settle_epochs
from utils.errors import UserError, pick
from utils.start import run_main

if TYPE_CHECKING:
    import numpy as np

# keys that say where data are and what is done to them, which do nothing to what a notebook has in memory
NOT_IN_MEMORY = (
    "dataset data_path split_column id_column true_label_column num_class class_names download check_data "
    "num_samples test_fraction noise_mode noise_ratio noise_file noise_rng image_noise image_noise_level image_noise_on score"
).split()


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the detector that the flags name; returns the summary."""
    cfg = load_config(argv, __doc__, "main_detect")
    from dataloader.load import load_data
    from methods.detectors import DETECTORS
    from report.record import detector_run

    pick(DETECTORS, cfg.detector, "detector")  # before images are read
    return detector_run(cfg, load_data(cfg)).summary


def detect(
    images: Any = None,
    labels: Iterable[Any] | None = None,
    classnames: Sequence[str] | None = None,
    detector: str = "",
    features: Any = None,
    pred_probs: Any = None,
    **settings: Any,
) -> "tuple[np.ndarray, np.ndarray]":
    """p_clean (N,), a score in [0, 1], low where a label looks wrong, and suggested labels (N,): the given one if trusted.

    images: N paths or Pillow images, as a list, array, pandas column or generator, or a uint8 array (N, H, W, 3); or, with
    labels and class names of its own, a data set of torchvision or of Hugging Face. labels: N strings, or whole numbers.
    With skip_broken=True, files that cannot be read have p_clean NaN and keep their label.
    classnames: class names for CLIP; the labels by default. That of whole number k is classnames[k]; strings are sorted, as
    numbers if all of them are whole numbers ("2" before "10").
    features (N, D) and out-of-fold pred_probs (N, K) of your own model take the place of CLIP's; images are then needed for
    a report only. The columns of pred_probs are in the order of np.unique(labels), as in scikit-learn's classes_ ("10"
    before "2").
    detector: a name in DETECTORS, or deft, which trains (phase 1); auto where none is named, confident-learning with
    pred_probs. `settings` are keys of config/default.yaml, e.g. backbone, device, epochs, except for NOT_IN_MEMORY; with
    output_dir the run and the features are kept, and images that are no files, as PNG, for its report. Raises UserError, and
    warns where the verdict is that the result cannot be used.
    """
    import numpy as np

    from dataloader.dataset import array_hash
    from dataloader.notebook import from_dataset, in_memory, own_arrays
    from methods.deft import train_detector
    from methods.detectors import DETECTORS, run_detector
    from methods.estimates import limit_suspects
    from report.record import finish
    from utils.device import tf32_as_before
    from utils.runs import Run
    from utils.summaries import usable, verdict_line

    given = own_arrays(features=features, pred_probs=pred_probs)
    detector = detector or ("confident-learning" if "pred_probs" in given else "auto")
    pick({**DETECTORS, **({} if given else {"deft": None})}, detector, "detector")
    _check_keys(settings, labels is None)
    with tempfile.TemporaryDirectory() as folder, tf32_as_before():
        cfg = _config(detector, {"output_dir": folder} | settings, Path(folder))
        cfg.script = "detect"  # which has its images from a notebook
        cfg.backbone = "own model" if given else cfg.backbone
        if labels is None:
            images, labels, names = from_dataset(images, cfg)
            classnames = names if classnames is None else classnames
        labels = list(labels)
        data, values, rows, given = in_memory(images, labels, classnames, cfg, "output_dir" in settings, given)
        with contextlib.redirect_stdout(io.StringIO()):  # which speaks of files; progress goes on
            if trains := detector == "deft":
                settle_epochs(cfg, len(data.train.labels))
            run = Run(cfg, data.place, detector, data.identity | {name: array_hash(x) for name, x in given.items()})
            if not run.summary:
                found = train_detector(cfg, data, run) if trains else run_detector(cfg, data, run.device, given)
                finish(run, data, found[1], limit_suspects(found[0], cfg))
        if not usable(run.summary):
            warnings.warn(verdict_line(run.summary), stacklevel=2)
        with np.load(run.folder / "clean_mask.npz", allow_pickle=False) as file:
            mask, p_clean, predicted = (file[k] for k in ("mask", "p_clean", "predicted"))
    everyone, suggested = np.full(len(labels), np.nan), np.array(labels, dtype=values.dtype)
    everyone[rows], suggested[rows] = p_clean, values[np.where(mask, data.train.labels, predicted)]
    return everyone, suggested


def _check_keys(settings: dict[str, Any], is_dataset: bool) -> None:
    """UserError for a key that does nothing here; a data set that brings its labels has columns."""
    for key in sorted(settings.keys() & {*NOT_IN_MEMORY, *([] if is_dataset else ["path_column", "label_column"])}):
        instead = "; the argument classnames has them" if key == "class_names" else ""
        raise UserError(f"{key}: has no effect on images in memory{instead}.")


def _config(detector: str, settings: dict[str, Any], folder: Path) -> SimpleNamespace:
    """The configuration of `detect`; lists go through a YAML file in `folder`, since in a flag a word may have no commas."""
    lists = {key: [*map(str, value)] for key, value in settings.items() if isinstance(value, (list, tuple))}
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(read_yaml(DEFAULTS.parent / "PEFT" / "own.yaml") | lists), encoding="utf-8")
    flags = ["--cfg", str(file), *(f"--{key}={value}" for key, value in settings.items() if key not in lists)]
    if detector == "deft":
        return load_config(flags, script="main_phase1", **REAL_WORLD)
    return load_config([*flags, f"--detector={detector}"], script="main_detect")


if __name__ == "__main__":
    run_main(main)
