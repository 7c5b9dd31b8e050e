"""One step of phase 1, of evaluation and of phase 2: images/s, where the time goes, memory.

    python -m benchmarks.step --as_published --prec fp32 bf16     two precisions, ours and the plain way in turns, and ratios
    python -m benchmarks.step --num_classes 1000 --checkpoint_text --micro_batch 8

Every turn runs in a process of its own, so peak memory is its way's own. Flags not listed here are settings of the project.
"""

import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, nullcontext
from statistics import median

import numpy as np
import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import add_repeats, in_turns, parser, report, settings, synchronize, synthetic
from benchmarks.published import plain
from dataloader import loaders
from dataloader.loaders import EpochRandomness, make_loaders
from methods.baselines import METHODS
from methods.deft import Rules, build_detector, train_detector_epoch
from methods.loops import evaluate
from methods.method import train_classifier_epoch
from model.classifier import build_classifier, build_optimizer
from model.clip import input_pixels
from model.graphs import recorded_encoders
from utils.device import Amp, pick_device, precision
from utils.memory import keep_freed_memory, peak_gb

ROWS = {"phase 1": (1, "train"), "evaluation": (1, "test"), "phase 2": (2, "train")}  # phase, and what of it is timed


def build(phase, cfg, data, device):
    """The model of a phase on the device, and the Pixels it takes."""
    if phase == 2:
        model, pixels = build_classifier(cfg, data, torch.Generator().manual_seed(0))
        return model.to(device), pixels
    model = build_detector(cfg, data.classnames, device)
    return model, input_pixels(model.clip, cfg)


class FixedLogits(nn.Module):
    """In a Detector's place: what is left of a step without its towers."""

    def __init__(self, batch, num_classes):
        super().__init__()
        self.pos, self.neg = (nn.Parameter(torch.zeros(batch, num_classes)) for _ in range(2))

    def forward(self, images):
        return self.pos[: len(images)], self.neg[: len(images)]


def functions(phase, cfg, data, device, keep=None, as_published=False):
    """What is timed of a phase: {"train": one epoch, "test": one evaluation, and of phase 1 the parts of a step}.

    Of phase 1, `record` makes what follows replay CUDA graphs, as the script does. keep (N,) bool numpy: the samples that
    phase 2 trains on.
    """
    (model, pixels), num_classes = build(phase, cfg, data, device), data.num_classes
    train, tests = make_loaders(data, cfg, pixels, device)
    randomness = EpochRandomness(0, 1, data.train.labels, num_classes)
    complementary = randomness.complementary.to(device)
    if as_published:
        plain(model)
    if cfg.compile:
        (model.clip.visual if phase == 1 else model).compile()
    optimizer, amp, graphs = build_optimizer(model, cfg), Amp(device, cfg.prec), ExitStack()

    def train_detector(model=model, optimizer=optimizer):
        train_detector_epoch(
            model, train.train(randomness), complementary, optimizer, Rules(warm=True, use_pseudo_labels=False), amp
        )

    def train_classifier():
        chosen, in_loss = (None, torch.from_numpy(keep).to(device)) if as_published else (keep, None)
        train_classifier_epoch(
            model,
            train.train(randomness, chosen),
            optimizer,
            METHODS["CE"](cfg, len(train), num_classes),
            amp,
            in_loss,
        )

    def test():
        model.eval()
        with torch.no_grad(), amp():
            predict = model.classifier() if phase == 1 else model
        evaluate(predict, tests["test"].eval(), num_classes, amp)

    if phase == 2:
        return {"train": train_classifier, "test": test}
    images = next(iter(train.train(randomness)))[0]
    fixed = FixedLogits(cfg.batch_size, num_classes).to(device)
    fixed_optimizer = build_optimizer(fixed, cfg)

    def text():
        with amp():
            pos, neg = model.text_features(model.prompts.pos_ctx, model.prompts.neg_ctx)
        (pos.sum() + neg.sum()).backward()

    def image():
        with amp():
            features = model.image_features(images)
        features.sum().backward()

    return {
        "train": train_detector,
        "test": test,
        "text": text,
        "image": image,
        "loader, loss": lambda: train_detector(fixed, fixed_optimizer),
        "optimizer": optimizer.step,
        "record": lambda: graphs.enter_context(recorded_encoders(model, cfg, train, amp)),
    }


def kept_of_each_batch(labels, num_classes, batch_size, noise):
    """(N,) bool: the same number in every batch of the epoch that `functions` trains."""
    keep, order = np.zeros(len(labels), dtype=bool), EpochRandomness(0, 1, labels, num_classes).order
    for start in range(0, len(labels), batch_size):
        keep[order[start : start + round(batch_size * (1 - noise))]] = True
    return keep


def end_with_parent():
    """Do not outlive the command, which may be killed."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def turn(row, cfg, args, as_published):
    """One line of the table, {column: number}, measured in the process this runs in."""
    (phase, name), device = ROWS[row], pick_device(settings("--device", args.device))
    # what is computed twice to save memory is no useful work, and what is compiled is not seen
    count = not (as_published or cfg.compile or cfg.micro_batch or cfg.checkpoint_text)
    if as_published:
        loaders.EVAL_BATCHES = 1
    else:
        keep_freed_memory()
    data = synthetic(cfg.batch_size * args.steps, cfg.batch_size * args.steps, args.num_classes)
    keep = kept_of_each_batch(data.train.labels, args.num_classes, cfg.batch_size, args.noise)
    todo = functions(phase, cfg, data, device, keep, as_published)

    def milliseconds(name, calls):
        synchronize(device)
        start = time.perf_counter()
        todo[name]()
        synchronize(device)
        return 1000 * (time.perf_counter() - start) / calls

    with FlopCounterMode(display=False) if count else nullcontext() as counter:
        todo[name]()  # the first time does not count
    if row == "phase 1" and device.type == "cuda" and not as_published:
        todo["record"]()  # what is replayed cannot be counted
        todo[name]()
    line = {"ms": milliseconds(name, args.steps), "peak GB": peak_gb(device)}
    if row == "phase 1" and not (cfg.compile or as_published):
        line |= {
            f"{part} ms": milliseconds(part, calls)
            for part, calls in (("text", 1), ("image", 1), ("loader, loss", args.steps), ("optimizer", 1))
        }
    return line | ({"flops": counter.get_total_flops() / args.steps} if count else {})


def matmul_rate(device, dtype):
    """FLOP/s of a large matrix product, the best of some."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / min(in_turns({"": lambda: a @ b}, 5, device)[""])


def measure(row, ways, args, rates):
    """The lines of one row of ROWS, one for each way: {name: (settings, whether it is the plain way)}."""
    turns = {way: [] for way in ways}
    for _ in range(args.repeats):
        for way, (cfg, as_published) in ways.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as alone:
                turns[way].append(alone.submit(turn, row, cfg, args, as_published).result())
    lines = {way: {key: median(t[key] for t in results) for key in results[0]} for way, results in turns.items()}
    # the same work in every way; the counter sees the products of attention in some kernels alone
    flops = max(line.pop("flops", 0) for line in lines.values())
    first_plain = next((way for way, (_, as_published) in ways.items() if as_published), None)
    for way, (cfg, as_published) in ways.items():
        line = lines[way]
        if flops and not as_published:
            line["of matmul rate"] = f"{100 * flops / (line['ms'] / 1000) / rates[cfg.prec]:.0f} %"
        if first_plain:
            line["ratio"] = f"{lines[first_plain]['ms'] / line['ms']:.2f}"
    return [
        {"step": row, "way": way, "images/s": 1000 * ways[way][0].batch_size / line["ms"], **line}
        for way, line in lines.items()
    ]


def main():
    p = parser(__doc__)
    add_repeats(p)
    p.add_argument("--num_classes", type=int, default=100)
    p.add_argument("--noise", type=float, default=0.4, help="part of each batch that phase 2 leaves out")
    p.add_argument(
        "--steps", type=int, default=1, help="batches a round; a multiple of 4 on a GPU, which evaluates four at once"
    )
    p.add_argument("--prec", nargs="*", default=["auto"], choices=["auto", "fp32", "bf16", "fp16"])
    p.add_argument("--rows", nargs="*", default=list(ROWS), choices=ROWS)
    p.add_argument("--as_published", action="store_true", help="each precision in the plain way as well")
    p.add_argument("--compile", action="store_true", help="each precision with torch.compile as well")
    args, flags = p.parse_known_args()
    device = torch.device(args.device)
    names = list(dict.fromkeys(precision(device, prec) for prec in args.prec))
    rates = {
        prec: matmul_rate(device, {"fp32": torch.float32, "fp16": torch.float16}.get(prec, torch.bfloat16))
        for prec in names
    }
    lines = []
    for row, (phase, _) in ROWS.items():
        tuned = ["--vpt_deep"] if phase == 1 else ["--finetune", "--lr", "5e-4"]

        def way(prec, *more):
            return settings("--pretrained", "none", "--prec", prec, *tuned, *flags, *more)

        ways = {prec: (way(prec), False) for prec in names}
        if args.compile:
            ways |= {f"{prec}, compiled": (way(prec, "--compile"), False) for prec in names}
        if args.as_published:
            ways |= {f"plain {prec}": (way(prec), True) for prec in names}
        if row in args.rows:
            lines += measure(row, ways, args, rates)
    report(lines, args, settings=flags, matmul_tflops={prec: rate / 1e12 for prec, rate in rates.items()})


if __name__ == "__main__":
    main()
