"""Seconds to draw label noise for a data set of CIFAR-100's size.

python -m benchmarks.noise --as_published       also the plain implementation: a loop over samples, all of W at once
"""

import random
import time

import numpy as np
from scipy.stats import truncnorm

from benchmarks.common import add_repeats, parser, report
from dataloader.noise import asym, idn, official_class_noise, official_idn, sym
from utils.memory import peak_gb


def plain_sym(labels, ratio, num_classes):
    """Looks up every index in a list of the chosen samples."""
    chosen = list(range(len(labels)))
    random.Random(0).shuffle(chosen)
    chosen = chosen[: int(ratio * len(labels))]
    return [random.randrange(num_classes) if i in chosen else y for i, y in enumerate(labels)]


def plain_idn(labels, ratio, num_classes, pixels):
    """One matrix-vector product, softmax and np.random.choice per sample."""
    rng = np.random.RandomState(1)
    rates = truncnorm.rvs(-ratio / 0.1, (1 - ratio) / 0.1, loc=ratio, scale=0.1, size=len(labels), random_state=rng)
    W = rng.randn(num_classes, pixels.shape[1], num_classes).astype(np.float32)
    noisy = []
    for x, y, q in zip(pixels, labels, rates):
        a = x.astype(np.float32) @ W[y]
        a[y] = -np.inf
        p = np.exp(a - a.max(), dtype=np.float64)
        p *= q / p.sum()
        p[y] = 1 - q
        noisy.append(rng.choice(num_classes, p=p / p.sum()))
    return noisy


def main():
    p = parser(__doc__)
    add_repeats(p)
    p.add_argument("--n", type=int, default=50_000)
    p.add_argument("--num_classes", type=int, default=100)
    p.add_argument("--pixels", type=int, default=3 * 32 * 32)
    p.add_argument("--as_published", action="store_true", help="the plain way as well")
    args = p.parse_args()
    rng, K = np.random.default_rng(0), args.num_classes
    labels, pixels = rng.integers(0, K, args.n), rng.integers(0, 256, (args.n, args.pixels), dtype=np.uint8)
    many = rng.integers(0, K, 10_000_000)

    def seconds(function):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    rows = [
        {"noise": "sym, 10 million labels", "s": seconds(lambda: sym(many, 0.4, K, rng))},
        {"noise": "asym, 10 million labels", "s": seconds(lambda: asym(many, 0.4, K, rng))},
    ]
    cases = {
        "sym, official stream": (lambda: official_class_noise("sym", labels, 0.4, K, random.Random(0)), plain_sym),
        "idn, official stream": (lambda: official_idn(labels, 0.4, K, pixels), plain_idn),
        "idn, numpy": (lambda: idn(labels, 0.4, K, np.random.default_rng(0), pixels), plain_idn),
    }
    plain_seconds = {}
    for name, (ours, plain) in cases.items():
        row = {"noise": name, "s": min(seconds(ours) for _ in range(args.repeats)), "peak GB": peak_gb("cpu")}
        rows.append(row)
    if args.as_published:  # last: its memory is not ours
        for row, (_, plain) in zip(rows[2:], cases.values()):
            rest = (labels, 0.4, K) + ((pixels,) if plain is plain_idn else ())
            if plain not in plain_seconds:
                plain_seconds[plain] = seconds(lambda: plain(*rest))
            row |= {"plain s": plain_seconds[plain], "ratio": f"{plain_seconds[plain] / row['s']:.1f}"}
    report(rows, args)


if __name__ == "__main__":
    main()
