"""DeFT, phase 1, on real-world label noise.

    python main_real_phase1.py --cfg config/PEFT/clothing1m.yaml

main_phase1.py with the settings of the official real-world script: a clean sample must also have argmax p_yes = label,
the warm-up loss is SCE, pseudo-labels are used from epoch 2 on, the learning rate is constant.
"""

from typing import Any

from main_phase1 import main as phase1
from utils.config import REAL_WORLD
from utils.start import run_main


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Phase 1 with the real-world settings, which a YAML file or a flag can override."""
    return phase1(argv, __doc__, **REAL_WORLD)


if __name__ == "__main__":
    run_main(main)
