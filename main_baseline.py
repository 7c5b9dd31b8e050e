"""Fine-tune on all given labels with a label-noise learning method, for comparison.

python main_baseline.py --cfg config/FFT/cifar100.yaml --noise_mode sym --noise_ratio 0.2 --lnl_methods CE
"""

from dataloader.load import load_data
from methods.baselines import METHODS
from methods.fine_tuning import fine_tune
from report.record import finish
from utils.config import UserError, load_config, pick, refuse_score, settle_epochs
from utils.distributed import run_main
from utils.runs import Run, backbone_name


def main(argv=None, method=None, **settings):
    """Train with `method`, or with the one in the flags, and return the summary. `settings` are the script's defaults."""
    cfg = load_config(argv, __doc__, **settings)
    refuse_score(cfg)
    cfg.lnl_methods = method or cfg.lnl_methods
    if cfg.adaptation == "none":
        raise UserError("adaptation: none is for phase 2 only; a baseline needs peft or fft.")
    build = pick(METHODS, cfg.lnl_methods, "lnl_methods")
    data = load_data(cfg)
    settle_epochs(cfg, len(data.train.labels))
    name = "-".join(filter(None, [cfg.lnl_methods.lower(), backbone_name(cfg), cfg.adaptation]))
    run = Run(cfg, data.place, name, data.identity)
    if run.summary:
        return run.summary

    numbers, selection = fine_tune(cfg, data, run, build(cfg, len(data.train.labels), data.num_classes))
    finish(run, data, numbers, selection)
    print(f"results: {run.folder}")
    return run.summary


if __name__ == "__main__":
    run_main(main)
