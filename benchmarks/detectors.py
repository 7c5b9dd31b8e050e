"""Seconds of every detector on cached features: N images of K classes, D numbers each.

    python -m benchmarks.detectors

Features are drawn around K centres, which stand for the texts too, so widely that the zero-shot prediction is right for seven
in ten; 30 % of the labels are wrong. What detectors share (neighbours, a regression, a linear probe) counts once, for the
first that asks for it. CPU seconds are those of all threads together: on a machine that others use too, they tell more than
the seconds on the clock.
"""

import time
from types import SimpleNamespace

import numpy as np

from benchmarks.common import parser, report
from methods.detectors import DETECTORS
from methods.inputs import Inputs
from utils.config import default_values
from utils.memory import peak_gb


def synthetic_inputs(num_images, num_classes, width, wrong=0.3, spread=7, seed=0):
    """Inputs of unit-length features around class centres, with wrong labels, and whether each label is right."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 1, (num_classes, width))
    true = rng.integers(0, num_classes, num_images)
    features = centres[true] + rng.normal(0, spread, (num_images, width)) + rng.normal(0, 2, width)
    labels = np.where(rng.random(num_images) < wrong, rng.integers(0, num_classes, num_images), true)

    def unit(x):
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    features, text = unit(features), unit(centres)
    cfg = SimpleNamespace(**default_values())
    return Inputs(features, labels, num_classes, cfg, text, 20 * features @ text.T), labels == true


def main():
    p = parser(__doc__)
    p.add_argument("--images", type=int, default=50_000)
    p.add_argument("--classes", type=int, default=100)
    p.add_argument("--width", type=int, default=512)
    args = p.parse_args()
    inputs, is_clean = synthetic_inputs(args.images, args.classes, args.width)
    rows = []
    for name, detector in DETECTORS.items():
        start, cpu = time.perf_counter(), time.process_time()
        mask = detector.find(inputs).mask
        rows.append(
            {
                "detector": name,
                "seconds": time.perf_counter() - start,
                "CPU seconds": time.process_time() - cpu,
                "right, %": 100 * float(np.mean(mask == is_clean)),
            }
        )
        print(rows[-1], flush=True)
    rows.append(
        {
            "detector": "all",
            "seconds": sum(r["seconds"] for r in rows),
            "CPU seconds": sum(r["CPU seconds"] for r in rows),
        }
    )
    report(rows, args, peak_gb=peak_gb())


if __name__ == "__main__":
    main()
