"""CLIPCleaner (Feng et al., ACM MM 2024): select clean samples with CLIP, then train a network with MixFix.

    python main_clipcleaner.py --cfg config/CLIPCleaner/cifar100.yaml --noise_mode sym --noise_ratio 0.5

The two steps are also `main_detect.py --detector clipcleaner` and `main_baseline.py --lnl_methods MixFix --mask NAME`, with
any detector and any mask. The published selection describes each class by several features that a language model wrote;
these files are not included, and without --descriptions a class has the texts of `templates`.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from utils.config import known_keys, load_config, settle_epochs
from utils.start import run_main

if TYPE_CHECKING:
    from dataloader.dataset import Dataset


def main(argv: list[str] | None = None, **settings: Any) -> dict[str, Any]:
    """Select and train; returns the summary of the training. `settings` are the script's own defaults."""
    own = {"detector": "clipcleaner", "lnl_methods": "MixFix", "is_coop": False, "full_batch": False}  # as MixFix needs
    cfg = load_config(argv, __doc__, "main_clipcleaner", **own | settings)
    from dataloader.dataset import label_hash
    from dataloader.load import load_data
    from methods.fine_tuning import fine_tune
    from methods.masks import trusted_samples
    from methods.mixfix import MixFix
    from report.record import finish
    from utils.runs import Run, backbone_name, seed_folder

    data = load_data(cfg)
    settle_epochs(cfg, len(data.train.labels))
    selected_by = SimpleNamespace(**vars(cfg) | {"mask": str(select(cfg, data))})
    _, mask, data.train, used = trusted_samples(selected_by, data, seed_folder(cfg, data.place))
    name = f"mixfix-{cfg.detector}-{backbone_name(cfg)}"
    run = Run(cfg, data.place, name, {**data.identity, "mask": label_hash(mask)})
    if not run.summary:
        trained, grown = fine_tune(cfg, data, run, MixFix(cfg, len(mask), data.num_classes), mask)
        finish(run, data, {**used, **trained}, grown)
    return run.summary


def select(cfg: SimpleNamespace, data: "Dataset") -> Path:
    """The path of the detector's clean mask; main_detect.py's run of this tag, if there is one, whatever is trained then."""
    from report.record import detector_run

    own = {name: getattr(cfg, name, key.default) for name, key in known_keys().items() if key.read_by("main_detect")}
    own |= {name: known_keys()[name].default for name in ("resolution", "batch_size")}  # of the training
    own |= {"backbone": cfg.clip_backbone, "pretrained": cfg.clip_pretrained, "script": "main_detect"}
    return detector_run(SimpleNamespace(**own), data).folder / "clean_mask.npz"


if __name__ == "__main__":
    run_main(main)
