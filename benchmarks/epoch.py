"""One whole epoch of a cell of CIFAR-100's size, untrained ViT-B/16 on synthetic pixels: training, evaluation, phase 2.

    python -m benchmarks.epoch              all batches
    python -m benchmarks.epoch --steps 2    two batches of each part, the rest extrapolated
"""
import time

import numpy as np
import torch

from benchmarks.common import parser, peak_gb, report, settings, synchronize, synthetic
from benchmarks.step import build
from dataloader.loaders import EpochRandomness
from model.classifier import build_optimizer
from utils.baselines import METHODS
from utils.engine import autocast, evaluate, train_classifier_epoch, train_detector_epoch


def main():
    p = parser(__doc__)
    p.add_argument("--backbone", default="ViT-B/16")
    p.add_argument("--num_classes", type=int, default=100)
    p.add_argument("--noise", type=float, default=0.4, help="part of the samples that phase 2 leaves out")
    p.add_argument("--steps", type=int, default=0, help="time that many batches of each part and extrapolate; 0 = all")
    p.add_argument("--prec", default="auto")
    p.add_argument("--epochs", type=int, default=10, help="of each phase, for the time of a whole cell")
    args = p.parse_args()
    device, B, sizes = torch.device(args.device), 64, (50_000, 10_000)
    part = [min(n, args.steps * B) if args.steps else n for n in sizes]
    data = synthetic(*part, args.num_classes)
    randomness = EpochRandomness(0, 1, data.train.labels, args.num_classes)
    keep = np.random.default_rng(0).random(part[0]) > args.noise
    common = ["--backbone", args.backbone, "--prec", args.prec]
    cfg1, cfg2 = settings(*common, "--vpt_deep"), settings(*common, "--finetune", "--lr", "5e-4")
    rows = []

    def amp():
        return autocast(device, args.prec)

    def measure(what, function, whole):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        seconds = (time.perf_counter() - start) * whole
        rows.append({"part": what, "s": seconds, "extrapolated from": f"{args.steps} batches" if args.steps else "",
                     "peak GB": peak_gb(device)})

    for phase, cfg in ((1, cfg1), (2, cfg2)):
        model, train, test = build(cfg, data, device, phase)
        optimizer = build_optimizer(model, cfg)

        def train_epoch():
            if phase == 1:
                return train_detector_epoch(model, train.train(randomness), randomness.complementary.to(device), optimizer,
                                            warm=False, use_pseudo_labels=True, amp=amp)
            return train_classifier_epoch(model, train.train(randomness, keep), optimizer,
                                          METHODS["CE"](cfg, part[0], args.num_classes), amp=amp)

        def test_epoch():
            model.eval()
            with torch.no_grad(), amp():
                predict = model.classifier() if phase == 1 else model
            evaluate(predict, test.eval(), args.num_classes, amp)

        measure(f"phase {phase}, training", train_epoch, sizes[0] / part[0])
        measure(f"phase {phase}, evaluation", test_epoch, sizes[1] / part[1])
    rows.append({"part": f"cell of {args.epochs} + {args.epochs} epochs", "s": args.epochs * sum(row["s"] for row in rows),
                 "extrapolated from": "the above"})
    report(rows, args)


if __name__ == "__main__":
    main()
