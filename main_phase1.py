"""DeFT, phase 1: learn the noisy-label detector and write the clean mask.

python main_phase1.py --cfg config/PEFT/cifar100.yaml --noise_mode sym --noise_ratio 0.2
"""

from types import SimpleNamespace
from typing import Any

from utils.config import load_config, settle_epochs
from utils.start import run_main


def main(argv: list[str] | None = None, description: str | None = __doc__, **settings: Any) -> dict[str, Any]:
    """Train the detector described by the flags and return its summary. `settings` are the script's own defaults.

    With `score`, the finished detector scores other labels, and the summary describes these.
    """
    cfg = load_config(argv, description, "main_phase1", **settings)
    from dataloader.load import load_data, to_score
    from methods.deft import score_labels, train_detector
    from methods.estimates import limit_suspects
    from report.record import finish, say_where
    from utils.runs import Run

    training = SimpleNamespace(**vars(cfg) | {"score": ""})
    data = load_data(training)
    scored = to_score(cfg, data) if cfg.score else None  # before training: it may not fit
    settle_epochs(training, len(data.train.labels))
    run = Run(training, data.place, "deft", data.identity)
    if not run.summary:
        selection, numbers = train_detector(training, data, run)
        finish(run, data, numbers, limit_suspects(selection, training))
        say_where(run)
    if scored is not None:
        scoring = SimpleNamespace(**vars(training) | {"score": cfg.score})
        run = Run(scoring, scored.place, "deft", scored.identity)
        if not run.summary:
            finish(run, scored, {}, limit_suspects(score_labels(scoring, scored, run), scoring))
            say_where(run)
    return run.summary


if __name__ == "__main__":
    run_main(main)
