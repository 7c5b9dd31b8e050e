"""DeFT, phase 2, on real-world label noise.

    python main_real_phase2.py --cfg config/FFT/clothing1m.yaml

main_phase2.py with the settings of the official real-world script: five epochs, constant learning rate.
"""

from typing import Any

from main_phase2 import main as phase2
from utils.start import run_main


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Phase 2 with the real-world settings, which a YAML file or a flag can override."""
    return phase2(argv, __doc__, epochs=5, schedule="constant")


if __name__ == "__main__":
    run_main(main)
