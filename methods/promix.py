"""ProMix: a selection by small loss, extended by confident matches and by guesses on which the networks agree."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from dataloader.loaders import ViewBatch
from methods.losses import batch_mean, cross_entropy, one_hot
from methods.selection import lowest_of_each_class
from methods.semi_supervised import Forward, Outputs, SemiSupervised, blend, ramp, sharpen
from model.classifier import Head
from utils.device import upload
from utils.distributed import total


class ProMix(SemiSupervised):
    """ProMix (Wang et al., IJCAI 2023), with one weak and one strong view.

    Selected are the ceil(rho N / K) smallest losses of each class (class-wise small loss, before the epoch) and samples with
    p_y > tau in their batch (matched high confidence). In the last 250 / 600 of the epochs, samples on which the networks
    agree with a confidence above tau are added with their guessed label, until 90 % of the batch is selected. The loss of
    selected samples, with logits + delta log pi, is

        CE(weak) + w (CE(strong) + CE(MixUp of the weak, Beta(4, 4)))

    where w ramps up over the first 1/12 of the epochs. A second linear head has the same loss and, in the first 1/6 of the
    epochs with a weight that ramps up to 0.1, learns sharpened debiased guesses (T = 0.5) for unselected samples; it shapes
    the features and is discarded. pi is the moving average (0.9999) of the mean prediction, separately for selected and
    other samples; guesses are softmax(logits - delta log pi). rho, tau and delta (`debias`) are by default those of the
    released commands: tau 0.99 and delta 0.8 on CIFAR-10, 0.95 and 0.5 on CIFAR-100, and rho 0.5, at sym 0.2 0.7.
    Fractions of the epochs refer to its 600.

    Simplified: the strong view is that of `strong_view`, without the code's third operation and its Cutout; MixUp only, no
    FMix; one MixUp for both heads, where the code draws two; guesses are ranked by the lower of the two confidences, where
    the code takes their mean.
    """

    weak, strong, beta, share = 1, 1, 4.0, 0.9
    bias: Tensor  # (2, M, K)

    def __init__(self, cfg: SimpleNamespace, num_samples: int, num_classes: int) -> None:
        super().__init__(cfg, num_samples, num_classes)
        few, little = num_classes < 100, cfg.noise_mode == "sym" and cfg.noise_ratio <= 0.2
        self.rho, self.tau, self.debias = (
            value if value >= 0 else published
            for value, published in (
                (cfg.rho, 0.7 if little else 0.5),
                (cfg.tau, 0.99 if few else 0.95),
                (cfg.debias, 0.8 if few else 0.5),
            )
        )
        self.register_buffer("bias", torch.full((2, self.count, num_classes), 1 / num_classes))  # others, selected

    @staticmethod
    def extra_head(width: int, num_classes: int) -> nn.Module:
        return Head(width, num_classes)

    def divide(self, outputs: Outputs, labels: Tensor, epoch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        losses = [cross_entropy(logits, labels).numpy() for logits in outputs.logits]
        chosen = [class_small_loss(row, labels.numpy(), self.num_classes, self.rho) for row in losses]
        self.plan = {"small": torch.from_numpy(np.stack(chosen))}
        p_clean = outputs.logits.softmax(-1)[:, torch.arange(len(labels)), labels]
        return (self.plan["small"] | (p_clean > self.tau)).all(0), p_clean.mean(0)

    def step(self, run: Forward, batch: ViewBatch, part: float, epoch: int, rng: np.random.Generator) -> Tensor:
        cfg, (weak, strong), done = self.cfg, batch.views, epoch - 1 + part
        logits = run.guess([weak])[:, 0]  # (M, B, K)
        p, log_bias = logits.softmax(-1), self.bias.log()
        given = one_hot(batch.labels, self.num_classes)
        selected = self.plan["small"][:, batch.index] | ((p * given).sum(-1) > self.tau)  # (M, B)
        guesses = one_hot((logits - self.debias * log_bias[1, :, None]).argmax(-1), self.num_classes)
        targets = torch.where(selected[..., None], given, guesses)
        soft = sharpen((logits - self.debias * log_bias[0, :, None]).softmax(-1))
        if epoch > cfg.epochs * (1 - 250 / 600):
            confidence, predicted = p.max(-1)
            agreed = (predicted == predicted[0]).all(0)
            selected = torch.stack(
                [s | label_guessing(s, confidence.amin(0), agreed, self.tau, self.share) for s in selected]
            )
        mixed = [self.mix_selected(weak, t, s, rng) for t, s in zip(targets, selected)]
        outs = run.train([torch.cat([weak, strong, images]) for images, _ in mixed])
        w, unselected_weight = ramp(done, cfg.epochs / 12), 0.1 * ramp(done, cfg.epochs / 6)
        if done >= cfg.epochs / 6:
            unselected_weight = 0.0
        loss: Any = 0
        for m, heads in enumerate(outs):
            for head in heads:
                on_weak, on_strong, on_mixed = (head + self.debias * log_bias[1, m]).chunk(3)
                losses = cross_entropy(on_weak, targets[m]) + w * cross_entropy(on_strong, targets[m])
                losses = losses + w * cross_entropy(on_mixed, mixed[m][1])
                loss = loss + batch_mean(losses, selected[m])
            on_weak, on_strong, _ = (heads[1] + self.debias * log_bias[0, m]).chunk(3)
            losses = cross_entropy(on_weak, soft[m]) + w * cross_entropy(on_strong, soft[m])
            loss = loss + unselected_weight * batch_mean(losses, ~selected[m])
        self.follow_bias(p, selected)
        return loss

    def mix_selected(
        self, images: Tensor, targets: Tensor, selected: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """MixUp in which every sample's partner is one of the selected (B,) bool, if there are any."""
        keys = upload(torch.from_numpy(rng.random(len(images), dtype=np.float32)), images.device)
        order = torch.where(selected, keys, 2.0).argsort()  # the selected first, in random order
        turn = torch.arange(len(images), device=images.device) % selected.sum().clamp(min=1)
        return blend(images, images[order[turn]], targets, targets[order[turn]], rng.beta(self.beta, self.beta))

    def follow_bias(self, p: Tensor, selected: Tensor, momentum: float = 0.9999) -> None:
        """Move the biases towards the mean predictions p (M, B, K) over the selected (M, B) bool and over the others."""
        parts = torch.stack([~selected, selected]).float()  # (2, M, B)
        sums, counts = total(torch.einsum("smb,mbk->smk", parts, p)), total(parts.sum(-1))[..., None]
        mean = torch.where(counts > 0, sums / counts.clamp(min=1), self.bias)
        self.bias.mul_(momentum).add_(mean, alpha=1 - momentum)


def class_small_loss(losses: np.ndarray, labels: np.ndarray, num_classes: int, rho: float) -> np.ndarray:
    """ProMix's class-wise small-loss selection (N,) bool, numpy: the ceil(rho N / K) smallest losses (N,) of each class."""
    return lowest_of_each_class(losses, labels, max(math.ceil(rho * len(labels) / num_classes), 1))


def label_guessing(selected: Tensor, confidence: Tensor, agreed: Tensor, tau: float, share: float) -> Tensor:
    """ProMix's label guessing by agreement: which samples of a batch join the selected ones, (B,) bool.

    A sample joins if the networks agree (B,) bool and the lower of their confidences (B,) exceeds tau, the most confident
    first, until a fraction of `share` of the batch is selected.
    """
    candidates = agreed & (confidence > tau) & ~selected
    rank = torch.where(candidates, -confidence, torch.inf).argsort(stable=True).argsort(stable=True)
    return candidates & (rank < int(share * len(selected)) - selected.sum())
