"""Fine-tune on all given labels with a label-noise learning method, to compare with.

    python main_baseline.py --cfg config/FFT/cifar100.yaml --noise_mode sym --noise_ratio 0.2 --lnl_methods CE
"""
from dataloader.datasets import load_data
from main_phase2 import fine_tune, refuse_score
from utils.baselines import METHODS
from utils.config import UserError, load_config, pick, settle_epochs
from utils.distributed import run_main
from utils.runs import Run, backbone_name, show


def main(argv=None, method=None, **settings):
    """Train the method that the flags name, or `method`; returns the summary. `settings` are the script's defaults."""
    cfg = load_config(argv, __doc__, **settings)
    refuse_score(cfg)
    cfg.lnl_methods = method or cfg.lnl_methods
    if cfg.adaptation == "none":
        raise UserError("adaptation: none belongs to phase 2; a baseline needs peft or fft.")
    build = pick(METHODS, cfg.lnl_methods, "lnl_methods")
    data = load_data(cfg)
    settle_epochs(cfg, len(data.train.labels))
    run = Run(cfg, data, "-".join(filter(None, [cfg.lnl_methods.lower(), backbone_name(cfg), cfg.adaptation])))
    if run.summary:
        show(run.summary)
        return run.summary
    return fine_tune(cfg, data, run, build(cfg, len(data.train.labels), data.num_classes))


if __name__ == "__main__":
    run_main(main)
