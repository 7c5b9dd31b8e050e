"""Fine-tune on the samples with the smallest losses of each batch, for comparison.

python main_small_loss.py --cfg config/PEFT/cifar100.yaml --noise_mode sym --noise_ratio 0.2
"""

from typing import Any

from main_baseline import main as baseline
from utils.start import run_main


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """main_baseline.py with the method small-loss, regardless of lnl_methods in the YAML file."""
    return baseline(argv, __doc__, "main_small_loss", lnl_methods="small-loss")


if __name__ == "__main__":
    run_main(main)
