"""Fine-tune on all samples with a label-noise learning method, for comparison. MixFix starts from a clean mask.

python main_baseline.py --cfg config/FFT/cifar100.yaml --noise_mode sym --noise_ratio 0.2 --lnl_methods CE
"""

from typing import Any

from utils.config import load_config, settle_epochs
from utils.errors import pick
from utils.start import run_main


def main(
    argv: list[str] | None = None, description: str | None = __doc__, script: str = "main_baseline", **settings: Any
) -> dict[str, Any]:
    """Train with the method in the flags and return the summary. `settings` are the script's own defaults."""
    cfg = load_config(argv, description, script, **settings)
    from dataloader.dataset import label_hash
    from dataloader.load import load_data
    from methods.baselines import METHODS
    from methods.fine_tuning import fine_tune
    from methods.masks import mask_name, trusted_samples
    from report.record import finish
    from utils.runs import Run, backbone_name, seed_folder

    build = pick(METHODS, cfg.lnl_methods, "lnl_methods")
    data = load_data(cfg)
    settle_epochs(cfg, len(data.train.labels))
    name, identity, mask = [cfg.lnl_methods.lower()], data.identity, None
    numbers: dict[str, Any] = {}
    if build.takes_mask:
        _, mask, data.train, numbers = trusted_samples(cfg, data, seed_folder(cfg, data.place))
        name.append(mask_name(cfg.mask))
        identity = {**data.identity, "mask": label_hash(mask)}
    run = Run(cfg, data.place, "-".join(filter(None, [*name, backbone_name(cfg), cfg.adaptation])), identity)
    if run.summary:
        return run.summary

    method = build(cfg, len(data.train.labels), data.num_classes)
    trained, selection = fine_tune(cfg, data, run, method, mask)
    return finish(run, data, {**numbers, **trained}, selection)


if __name__ == "__main__":
    run_main(main)
