"""One step of phase 1, of evaluation and of phase 2: images/s, where the time goes, memory.

    python -m benchmarks.step --as_published        ours and the plain way in turns, and their ratio
"""
import copy

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import in_turns, median, parser, peak_gb, report, settings, synthetic
from benchmarks.published import plain
from dataloader.loaders import EpochRandomness, make_loaders
from model.classifier import Classifier, build_optimizer
from model.clip import image_statistics, load_clip, resolution
from model.detector import Detector
from model.tuners import tune
from utils.baselines import METHODS
from utils.engine import autocast, evaluate, train_classifier_epoch, train_detector_epoch


def build(cfg, data, device, phase):
    """(model, training loader, test loader) of one phase, untrained."""
    clip, tokenizer = load_clip(cfg.backbone, "none")
    generator = torch.Generator().manual_seed(0)
    train, tests = make_loaders(data, cfg, resolution(clip, cfg), image_statistics(clip), device)
    tune(clip.visual, cfg, generator)
    if phase == 1:
        model = Detector(clip, tokenizer, data.classnames, cfg.n_ctx, generator=generator)
    else:
        model = Classifier(clip.visual, data.num_classes, generator)
    return model.to(device), train, tests["test"]


def matmul_rate(device, dtype):
    """FLOP/s of a large matrix product, the best of some."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / min(in_turns({"": lambda: a @ b}, 5, device)[""])


def main():
    p = parser(__doc__)
    p.add_argument("--backbone", default="ViT-B/16")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--num_classes", type=int, default=100)
    p.add_argument("--noise", type=float, default=0.4, help="part of each batch that phase 2 leaves out")
    p.add_argument("--steps", type=int, default=1, help="batches a round")
    p.add_argument("--prec", default="auto")
    p.add_argument("--as_published", action="store_true", help="the plain way as well")
    p.add_argument("--compile", action="store_true", help="torch.compile the image tower")
    args = p.parse_args()
    device, n = torch.device(args.device), args.batch * args.steps
    data = synthetic(n, n, args.num_classes)
    labels = data.train.labels
    randomness = EpochRandomness(0, 1, labels, args.num_classes)
    keep = np.zeros(n, dtype=bool)
    for start in range(0, n, args.batch):  # the same number in every batch
        keep[randomness.order[start:start + round(args.batch * (1 - args.noise))]] = True
    common = ["--backbone", args.backbone, "--batch_size", args.batch, "--prec", args.prec]
    cfg1, cfg2 = settings(*common, "--vpt_deep"), settings(*common, "--finetune", "--lr", "5e-4")
    complementary = randomness.complementary.to(device)
    clean = torch.from_numpy(keep).to(device)

    def amp_of(name):
        return lambda: autocast(device, "fp32" if name == "plain" else args.prec)

    def variants(phase):
        model, train, test = build(cfg1 if phase == 1 else cfg2, data, device, phase)
        models = {"ours": model}
        if args.as_published:
            models["plain"] = plain(copy.deepcopy(model))
        if args.compile:
            (model.clip.visual if phase == 1 else model).compile()
        return models, {name: build_optimizer(m, cfg1 if phase == 1 else cfg2) for name, m in models.items()}, train, test

    rate = matmul_rate(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    rows = []

    def measure(what, functions, parts=None):
        seconds = {name: median(s) / args.steps for name, s in in_turns(functions, args.repeats, device).items()}
        with FlopCounterMode(display=False) as counter:
            functions["ours"]()
        row = {"step": what, "images/s": args.batch / seconds["ours"], "ms": 1000 * seconds["ours"], **(parts or {}),
               "of matmul rate": f"{100 * counter.get_total_flops() / args.steps / seconds['ours'] / rate:.0f} %"}
        if "plain" in seconds:
            row |= {"plain ms": 1000 * seconds["plain"], "ratio": f"{seconds['plain'] / seconds['ours']:.2f}"}
        rows.append(row | {"peak GB": peak_gb(device)})

    models, optimizers, train, test = variants(1)
    images = next(iter(train.train(randomness)))[0]

    def text():
        pos, neg = models["ours"].text_features(models["ours"].prompts.pos_ctx, models["ours"].prompts.neg_ctx)
        (pos.sum() + neg.sum()).backward()

    def image():
        with amp_of("ours")():
            features = models["ours"].image_features(images)
        features.sum().backward()

    parts = {name: 1000 * median(s) for name, s in in_turns(
        {"text ms": text, "image ms": image, "optimizer ms": optimizers["ours"].step}, args.repeats, device).items()}
    measure("phase 1", {name: lambda name=name: train_detector_epoch(
        models[name], train.train(randomness), complementary, optimizers[name], warm=True, use_pseudo_labels=False,
        amp=amp_of(name)) for name in models}, parts)

    def test_model(name):
        models[name].eval()
        with torch.no_grad(), amp_of(name)():
            predict = models[name].classifier()
        evaluate(predict, test.eval(), args.num_classes, amp_of(name))

    measure("evaluation", {name: lambda name=name: test_model(name) for name in models})
    models, optimizers, train, test = variants(2)
    measure(f"phase 2, {100 * args.noise:.0f} % left out", {name: lambda name=name: train_classifier_epoch(
        models[name], train.train(randomness, keep if name == "ours" else None), optimizers[name],
        METHODS["CE"](cfg2, n, args.num_classes), clean_mask=None if name == "ours" else clean, amp=amp_of(name))
        for name in models})
    report(rows, args, matmul_tflops=rate / 1e12)


if __name__ == "__main__":
    main()
