"""Seconds to draw label noise for a data set of CIFAR-100's size.

python -m benchmarks.noise --as_published       also the plain implementation: a loop over samples, all of W at once
"""

import random
from statistics import median

import numpy as np
from scipy.stats import truncnorm

from benchmarks.common import add_repeats, in_turns, parser, report
from dataloader.noise import asym, idn, official_class_noise, official_idn, sym


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
    p.add_argument("--many", type=int, default=10_000_000, help="labels of the two rows that show numpy's own speed")
    p.add_argument("--num_classes", type=int, default=100)
    p.add_argument("--pixels", type=int, default=3 * 32 * 32)
    p.add_argument("--as_published", action="store_true", help="the plain way as well")
    args = p.parse_args()
    rng, K = np.random.default_rng(0), args.num_classes
    labels, pixels = rng.integers(0, K, args.n), rng.integers(0, 256, (args.n, args.pixels), dtype=np.uint8)
    many = rng.integers(0, K, args.many)

    cases = {
        f"sym, {args.many:,} labels": lambda: sym(many, 0.4, K, rng),
        f"asym, {args.many:,} labels": lambda: asym(many, 0.4, K, rng),
        "sym, official stream": lambda: official_class_noise("sym", labels, 0.4, K, random.Random(0)),
        "idn, official stream": lambda: official_idn(labels, 0.4, K, pixels),
        "idn, numpy": lambda: idn(labels, 0.4, K, np.random.default_rng(0), pixels),
    }
    plain = {
        "plain sym": lambda: plain_sym(labels, 0.4, K),
        "plain idn": lambda: plain_idn(labels, 0.4, K, pixels),
    }
    found = in_turns(cases | (plain if args.as_published else {}), args.repeats)
    rows = [{"noise": name, "s": median(found[name])} for name in cases]
    for row in rows[2:] if args.as_published else []:
        seconds = median(found[f"plain {row['noise'][:3]}"])
        row |= {"plain s": seconds, "ratio": f"{seconds / row['s']:.1f}"}
    report(rows, args)


if __name__ == "__main__":
    main()
