"""One epoch on data of CIFAR-100's size, untrained ViT-B/16 on synthetic pixels: training, evaluation, phase 2.

    python -m benchmarks.epoch              all batches
    python -m benchmarks.epoch --steps 2    two batches of each part, extrapolated. An overestimate, since it includes
                                            warm-up and counts text features for every batch of an evaluation

Flags not listed by --help are settings of the project.
"""

import time

from benchmarks.common import parser, report, settings, synchronize, synthetic
from benchmarks.step import functions, kept_of_each_batch
from utils.device import pick_device, precision
from utils.memory import keep_freed_memory, peak_gb


def main():
    p = parser(__doc__)
    p.add_argument("--num_classes", type=int, default=100)
    p.add_argument("--noise", type=float, default=0.4, help="part of each batch that phase 2 leaves out")
    p.add_argument("--steps", type=int, default=0, help="time that many batches of each part and extrapolate; 0 = all")
    p.add_argument("--epochs", type=int, default=10, help="of each phase, for the time of a whole cell")
    args, flags = p.parse_known_args()
    keep_freed_memory()
    device, sizes, rows = pick_device(settings("--device", args.device)), {"train": 50_000, "test": 10_000}, []
    for phase, tuned in ((1, ["--vpt_deep"]), (2, ["--finetune", "--lr", "5e-4"])):
        cfg = settings("--pretrained", "none", *tuned, *flags)
        part = {name: min(n, args.steps * cfg.batch_size) if args.steps else n for name, n in sizes.items()}
        data = synthetic(*part.values(), args.num_classes)
        keep = kept_of_each_batch(data.train.labels, args.num_classes, cfg.batch_size, args.noise)
        todo = functions(phase, cfg, data, device, keep)
        if phase == 1:
            todo["record"]()
        for name, what in (("train", "training"), ("test", "evaluation")):
            synchronize(device)
            start = time.perf_counter()
            todo[name]()
            synchronize(device)
            rows.append(
                {
                    "part": f"phase {phase}, {what}",
                    "s": (time.perf_counter() - start) * sizes[name] / part[name],
                    "extrapolated from": f"{args.steps} batches" if args.steps else "",
                    "peak GB so far": peak_gb(device),
                }
            )
    rows.append(
        {
            "part": f"cell of {args.epochs} + {args.epochs} epochs",
            "s": args.epochs * sum(row["s"] for row in rows),
            "extrapolated from": "the above",
        }
    )
    report(rows, args, settings=flags, prec=precision(device, cfg.prec))


if __name__ == "__main__":
    main()
