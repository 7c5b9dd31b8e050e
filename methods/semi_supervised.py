"""Label-noise methods that divide the samples anew in every epoch.

All share one semi-supervised epoch; a published method defines how to divide the training set and the loss of a batch.
Before each epoch, a method divides the samples, using the networks' output on un-augmented images.
The epoch goes over batches of augmented views. Two networks step together, each with its own targets and MixUp, and are
evaluated as an ensemble with averaged logits; `networks: 1` trains a single one. They start from the same pre-trained
weights with different heads.

With several processes, each draws MixUp within its own share of a batch and takes what compares samples of a batch (the
uniformity term, the contrastive loss, ProMix's 90 %) over that share, so that a step is like that of one process, not equal.
"""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dataloader.dataset import Dataset
from dataloader.loaders import Batches, Loader, ViewBatch, draw_view
from dataloader.transforms import Pixels
from methods.loops import check_finite, progress, run_batch, watched
from methods.losses import batch_mean, cross_entropy
from methods.method import Method, Training
from model.classifier import build_classifier, head_input
from model.ensemble import Networks
from utils.device import Amp, torch_generator, upload
from utils.distributed import in_order, total
from utils.errors import UserError


class Outputs(NamedTuple):
    """What M networks say of N images."""

    logits: Tensor  # (M, N, K)
    features: Any  # tensor (N, D) of the first, or None


class SemiSupervised(Method):
    """Base class: a warm-up on all given labels, a division before each epoch, and a loss per batch.

    pair: whether the paper trains two networks. weak, strong: number of views of each image in a batch, weak ones first.
    extra_head(width, num_classes): a second head of each network. features: whether the division uses image features.
    warm_entropy: whether the warm-up keeps predictions uncertain under asymmetric noise.

    With batch normalisation, guesses of all networks are made in training mode, as in ProMix; the code of DivideMix, LongReMix and
    UNICON takes those of the other network in evaluation mode. A ViT has none, and guesses the same in both.
    """

    selects, pair, weak, strong, features, warm_entropy = True, True, 2, 0, False, True
    extra_head: Callable[[int, int], nn.Module] | None = None

    def __init__(self, cfg: SimpleNamespace, num_samples: int, num_classes: int) -> None:
        super().__init__(cfg, num_samples, num_classes)
        if cfg.is_coop:
            raise UserError(
                f"is_coop: {type(self).__name__} trains linear heads, which the text classifier does not have."
            )
        if cfg.full_batch:
            raise UserError(
                f"full_batch: {type(self).__name__} makes its batches itself, of the samples that it trains on."
            )
        self.num_samples, self.num_classes = num_samples, num_classes
        self.count = cfg.networks or 1 + self.pair
        self.plan: dict[str, Tensor] = {}  # per-sample tensors for the steps of an epoch, by name

    def build(self, data: Dataset) -> tuple[nn.Module, Pixels]:
        cfg = self.cfg
        built = [build_classifier(cfg, data, torch_generator(cfg.seed, m)) for m in range(self.count)]
        with torch.random.fork_rng(devices=[]):  # the same second heads whenever the run is started
            torch.manual_seed(torch_generator(cfg.seed, self.count).initial_seed())
            return Networks([net for net, _ in built], self.extra_head, self.num_classes), built[0][1]

    # --- defined by each method

    def divide(self, outputs: Outputs, labels: Tensor, epoch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Divide the samples: (mask (N,) bool of trusted labels, p_clean (N,)).

        Takes Outputs and the given labels (N,), on the CPU, and stores what the steps need in self.plan. `rng` is the numpy
        generator of this epoch.
        """
        raise NotImplementedError

    def step(self, run: "Forward", batch: ViewBatch, part: float, epoch: int, rng: np.random.Generator) -> Tensor:
        """The loss of this process's share of a batch; `run` evaluates the networks."""
        raise NotImplementedError

    def order(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The samples visited in an epoch, in order; numpy."""
        return rng.permutation(self.num_samples)

    def is_warm(self, epoch: int) -> bool:
        return self.stage(epoch)[0] <= self.cfg.warmup

    # --- the epoch

    def train_epoch(self, epoch: int, training: Training) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        loader, rng = training.loader, np.random.default_rng([self.cfg.seed, epoch, 1])
        outputs = network_outputs(training.model, loader, training.amp, self.features)
        confidence, predicted = outputs.logits.mean(0).softmax(1).max(1)
        mask, p_clean = self.divide(outputs, loader.labels.cpu(), epoch, rng)
        self.plan = {name: value.to(loader.device) for name, value in self.plan.items()}

        warm, run = self.is_warm(epoch), Forward(training)
        take, views = (self.warm_up_step, [None]) if warm else (self.step, [None] * self.weak)
        views += [] if warm else [self.cfg.strong_view] * self.strong
        order = rng.permutation(self.num_samples) if warm else self.order(loader.labels.cpu().numpy(), rng)
        batches = loader.views(order, [draw_view(len(order), rng, policy) for policy in views])
        result = semi_supervised_epoch(
            training.parallel,
            batches,
            training.optimizer,
            lambda batch, part: take(run, batch, part, epoch, rng),
            training.amp,
            f"epoch {epoch}/{self.cfg.epochs}",
        )
        return result, {"mask": mask, "p_clean": p_clean.float(), "predicted": predicted, "confidence": confidence}

    def warm_up_step(
        self, run: "Forward", batch: ViewBatch, part: float, epoch: int, rng: np.random.Generator
    ) -> Tensor:
        """Cross-entropy with all given labels; for asymmetric noise, minus the entropy of the prediction (DivideMix, eq. 4)."""
        everyone = torch.ones_like(batch.labels, dtype=torch.bool)
        loss: Any = 0
        for logits, extra in run.train([batch.views[0]] * self.count):
            losses = cross_entropy(logits, batch.labels)
            if self.warm_entropy and self.cfg.noise_mode.startswith("asym"):
                losses = losses + (logits.softmax(1) * logits.log_softmax(1)).sum(1)
            loss = loss + batch_mean(losses, everyone) + 0 * extra.sum()  # DDP needs a gradient for the extra head
        return loss


class Forward:
    """Runs the networks of a Training in its precision."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def train(self, images: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """(logits (B, K), extra head's output) of each network, on its own images, for the loss."""
        with self.training.amp():
            return self.training.parallel(images)

    @torch.no_grad()
    def guess(self, views: list[Tensor]) -> Tensor:
        """Logits (M, V, B, K) of every network for all views of a batch, without gradients."""
        with self.training.amp():
            logits = torch.stack([run_batch(net, torch.cat(views)) for net in self.training.model.networks]).float()
        return logits.unflatten(1, (len(views), len(views[0])))


@torch.no_grad()
def network_outputs(model: Networks, loader: Loader, amp: Amp, features: bool = False) -> Outputs:
    """Outputs of Networks for the un-augmented images of a loader, in order, on the CPU."""
    model.eval()
    seen = []
    for images, _, index in progress(loader.eval(), "divide"):
        with amp():
            logits = torch.stack([net(images) for net in model.networks], 1).float()  # (B, M, K)
            rest = [head_input(model.networks[0], images).float()] if features else []
        seen.append((index, logits, *rest))
    logits, *rest = in_order(seen)
    return Outputs(logits.transpose(0, 1), rest[0] if rest else None)


def semi_supervised_epoch(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    step: Callable[[ViewBatch, float], Tensor],
    amp: Amp,
    title: str = "train",
) -> dict[str, Any]:
    """One epoch over batches (views, labels, index, samples) from Loader.views.

    step(batch, part) returns the loss of this process's share; part in [0, 1) is the fraction of the epoch completed.
    Returns `loss` (mean over the batches), `samples` and `seconds`. Raises NonFinite.
    """
    model.train()
    start, losses, samples = time.perf_counter(), [], 0
    bar = progress(batches, title)
    for number, batch in enumerate(bar):
        loss = step(batch, number / len(batches))
        amp.step(loss, optimizer)
        losses.append(loss.detach())
        samples += len(batch.samples)
        if watched(bar, number):
            bar.set_postfix(loss=f"{loss.item():.3f}")
    means = total(torch.stack(losses)).cpu()
    check_finite(means, title)
    return {
        "loss": means.mean().item(),
        "samples": int(total(torch.tensor(samples))),
        "seconds": time.perf_counter() - start,
    }


def sharpen(p: Tensor, temperature: float = 0.5) -> Tensor:
    """Sharpened probabilities (…, K): p^(1/T) / sum p^(1/T)."""
    p = p ** (1 / temperature)
    return p / p.sum(-1, keepdim=True)


def mixup(images: Tensor, targets: Tensor, beta: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """MixUp (Zhang et al., ICLR 2018) of a batch with a permutation of itself: lambda ~ Beta(beta, beta).

    images (B, 3, H, W), targets (B, K). The sample itself gets the larger weight, max(lambda, 1 - lambda).
    """
    partner = upload(torch.from_numpy(rng.permutation(len(images))), images.device)
    return blend(images, images[partner], targets, targets[partner], rng.beta(beta, beta))


def blend(
    images: Tensor, others: Tensor, targets: Tensor, their_targets: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """Weighted means of images and targets with those of others; the first get the weight max(share, 1 - share)."""
    share = max(share, 1 - share)
    return share * images + (1 - share) * others, share * targets + (1 - share) * their_targets


def ramp(epochs: float, length: float) -> float:
    """Linear ramp from 0 at the start to 1 after `length` epochs."""
    return min(max(epochs / max(length, 1e-9), 0.0), 1.0)
