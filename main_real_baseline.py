"""Label-noise learning methods on real-world label noise, for comparison.

    python main_real_baseline.py --cfg config/FFT/clothing1m.yaml --lnl_methods GMM

main_baseline.py with the constant learning rate of the official real-world script.
"""

from typing import Any

from main_baseline import main as baseline
from utils.start import run_main


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Baselines with the real-world settings, which a YAML file or a flag can override."""
    return baseline(argv, __doc__, schedule="constant")


if __name__ == "__main__":
    run_main(main)
