"""CLIPCleaner (Feng et al., ACM MM 2024): select clean samples with CLIP, then train a network with MixFix.

    python main_clipcleaner.py --cfg config/CLIPCleaner/cifar100.yaml --noise_mode sym --noise_ratio 0.5

The two steps are also `main_detect.py --detector clipcleaner` and `main_baseline.py --lnl_methods MixFix --mask NAME`, with
any detector and any mask. The published selection describes each class by several features that a language model wrote;
these files are not included, and without --descriptions a class has the texts of `templates`.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from utils.config import default_values, load_config, settle_epochs
from utils.start import run_main

if TYPE_CHECKING:
    from dataloader.dataset import Dataset

# settings of the training, which the selection does not depend on
TRAINING = """resolution epochs warmup batch_size lr optimizer momentum weight_decay schedule milestones ema finetune networks
strong_view theta_r theta_r2 mixup_beta lnl_methods mask tag""".split()


def main(argv: list[str] | None = None, **settings: Any) -> dict[str, Any]:
    """Select and train; returns the summary of the training. `settings` are the script's own defaults."""
    own = {"detector": "clipcleaner", "lnl_methods": "MixFix"}
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
    path, mask, labels = trusted_samples(selected_by, data, seed_folder(cfg, data.place))
    data.train = data.train.relabelled(labels)
    name = f"mixfix-{cfg.detector}-{backbone_name(cfg)}"
    run = Run(cfg, data.place, name, {**data.identity, "mask": label_hash(mask)})
    if not run.summary:
        trained, grown = fine_tune(cfg, data, run, MixFix(cfg, len(mask), data.num_classes), mask)
        finish(run, data, {"mask": str(path), **trained}, grown)
    return run.summary


def select(cfg: SimpleNamespace, data: "Dataset") -> Path:
    """Run the detector, if it has not run yet; returns the path of its clean mask."""
    from methods.detectors import run_detector
    from report.record import finish
    from utils.runs import Run

    defaults = default_values()
    own = {key: defaults[key] for key in TRAINING} | {"backbone": cfg.clip_backbone, "pretrained": cfg.clip_pretrained}
    own["script"] = "main_detect"
    cfg = SimpleNamespace(**vars(cfg) | own)
    run = Run(cfg, data.place, cfg.detector, data.identity)
    if not run.summary:
        selection, numbers = run_detector(cfg, data, run.device)
        finish(run, data, numbers, selection)
    return run.folder / "clean_mask.npz"


if __name__ == "__main__":
    run_main(main)
