"""DivideMix, and LongReMix and UNICON, which build on it."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from dataloader.dataset import Dataset
from dataloader.loaders import ViewBatch
from dataloader.transforms import Pixels
from methods.losses import batch_mean, cross_entropy, one_hot
from methods.method import Training
from methods.selection import gmm_clean_probability, lowest_of_each_class
from methods.semi_supervised import Forward, Outputs, SemiSupervised, mixup, ramp, sharpen
from utils.device import upload
from utils.distributed import world_size


class DivideMix(SemiSupervised):
    """DivideMix (Li, Socher and Hoi, ICLR 2020).

    Division, by the other network: w = P(lower mean) of a two-component mixture on the losses; labelled if w > 0.5.
    Targets from two weak views (mixmatch_targets) with T = 0.5. MixUp of all views with Beta(4, 4). Loss of a network:

        mean over labelled samples of CE + lambda_u ramp (mean over others of mean_k (p_k - t_k)^2) + KL(uniform || mean p)

    The ramp takes 16 epochs after the warm-up, as in the code, which trains for 300; a run of 10 with one of warm-up ends at
    9/16 of lambda_u. The paper's lambda_u is 25 (also 0, 50, 150, depending on noise and data set); the other constants are
    those of its code.

    Simplified: batches are drawn from the whole training set; the code pairs labelled with unlabelled batches. At a noise of
    0.9 the code divides by the mean loss of the last five epochs; here it is always that of the last one.
    """

    lambda_u, beta, rampup, contrast = 25.0, 4.0, 16, 0.0

    def divide(self, outputs: Outputs, labels: Tensor, epoch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        seed = int(rng.integers(2**31))
        losses = [cross_entropy(logits, labels).numpy() for logits in outputs.logits]
        p_clean = torch.from_numpy(np.stack([gmm_clean_probability(row, seed) for row in losses])).float()
        self.plan = {"weight": p_clean.flip(0), "labelled": p_clean.flip(0) > 0.5}  # each divides for the other
        return p_clean.mean(0) > 0.5, p_clean.mean(0)

    def step(self, run: Forward, batch: ViewBatch, part: float, epoch: int, rng: np.random.Generator) -> Tensor:
        weight, labelled = (self.plan[name][:, batch.index] for name in ("weight", "labelled"))  # (M, B)
        p = run.guess(batch.views[: self.weak]).softmax(-1).mean(1)
        trained = batch.views[self.weak :] or batch.views
        mixed = [
            mixup(torch.cat(trained), torch.cat([target] * len(trained)), self.beta, rng)
            for target in mixmatch_targets(p, batch.labels, weight, labelled)
        ]
        plain = self.contrasted(trained, batch.samples)
        outs = run.train([torch.cat([images, *plain]) for images, _ in mixed])
        lambda_u = self.lambda_u if self.cfg.lambda_u < 0 else self.cfg.lambda_u
        lambda_u *= ramp(self.stage(epoch)[0] - 1 + part - self.cfg.warmup, self.rampup)
        loss: Any = 0
        for (logits, extra), (images, target), known in zip(outs, mixed, labelled):
            logits, known = logits[: len(images)], known.repeat(len(trained))
            loss = loss + batch_mean(cross_entropy(logits, target), known) + even_prediction_penalty(logits)
            loss = loss + lambda_u * batch_mean(((logits.softmax(1) - target) ** 2).mean(1), ~known) + 0 * extra.sum()
            if self.contrast:
                first, second = extra[len(images) :].chunk(2)
                loss = loss + self.contrast * contrastive_loss(first, second)
        return loss

    def contrasted(self, views: list[Tensor], samples: np.ndarray) -> list[Tensor]:
        """The views of a batch that a contrastive loss compares, un-mixed; here none."""
        return []


class LongReMix(DivideMix):
    """LongReMix (Cordeiro et al., Pattern Recognition 2023): DivideMix in two stages of half the epochs each.

    In stage 1, samples are labelled if they were clean in each of the last 5 divisions, including those of the warm-up.
    The division before the first epoch, by untrained heads, does not count. The largest such set of the first network
    in the second half of the stage is the set of high-confidence samples. They keep w = 1 in stage 2, which starts
    again from the pre-trained networks and otherwise divides as DivideMix. The paper uses 5 divisions and stages of 300
    epochs. As published, an epoch of stage 2 has as many batches as the whole training set.
    """

    consecutive = 5
    history: Tensor  # (consecutive, M, N)
    core: Tensor  # (N,)

    def __init__(self, cfg: SimpleNamespace, num_samples: int, num_classes: int) -> None:
        super().__init__(cfg, num_samples, num_classes)
        self.register_buffer("history", torch.ones(self.consecutive, self.count, num_samples, dtype=torch.bool))
        self.register_buffer("core", torch.zeros(num_samples, dtype=torch.bool))

    def build(self, data: Dataset) -> tuple[nn.Module, Pixels]:
        model, pixels = super().build(data)
        self.start = {name: value.clone() for name, value in model.state_dict().items()}
        return model, pixels

    def stage(self, epoch: int) -> tuple[int, int]:
        half = math.ceil(self.cfg.epochs / 2)
        return (epoch, half) if epoch <= half else (epoch - half, self.cfg.epochs - half)

    def train_epoch(self, epoch: int, training: Training) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        if epoch > 1 and self.stage(epoch)[0] == 1:
            training.start_again(self.start)
        return super().train_epoch(epoch, training)

    def divide(self, outputs: Outputs, labels: Tensor, epoch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        super().divide(outputs, labels, epoch, rng)
        weight = self.plan["weight"].flip(0)  # as each network divides
        in_stage, length = self.stage(epoch)
        if in_stage == epoch > 1:
            self.history.copy_(torch.cat([self.history[1:].cpu(), (weight > 0.5)[None]]))
            labelled = self.history.all(0).cpu()
            if 2 * epoch > length and labelled[0].sum() >= self.core.sum():
                self.core.copy_(labelled[0])
        else:
            weight[:, self.core.cpu()] = 1.0  # of stage 2; no sample before
            labelled = weight > 0.5
        self.plan = {"weight": weight.flip(0), "labelled": labelled.flip(0)}
        return labelled.float().mean(0) > 0.5, weight.mean(0)


class UNICON(DivideMix):
    """UNICON (Karim et al., CVPR 2022): uniform selection and a contrastive loss.

    Division by the mean prediction of the networks: the lowest Jensen-Shannon divergences d from the given label, equally
    many per class (uniform_selection, d_mu 0.7, tau 5); w = 1 if d < 0.5, else 1 - d. Targets come from two
    weak views, as in DivideMix. DivideMix's loss with lambda_u 30 is applied to two mixed strong views (`strong_view`), plus
    0.025 NT-Xent (temperature 0.05) between the un-mixed strong views of unlabelled samples, after a projection head
    (width, width, 128). Constants: defaults of the released code, whose head is one linear layer with batch normalisation, and
    whose strong view is AutoAugment's policy for CIFAR-10 (`strong_view`: cifar10).

    The divergence uses base 2, so that it reaches 1; the released code uses base e, with which no mean reaches d_mu.
    Simplified as DivideMix; the code also repeats the division between the epochs of the two networks.
    """

    strong, lambda_u, contrast = 2, 30.0, 0.025

    @staticmethod
    def extra_head(width: int, num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))

    def divide(self, outputs: Outputs, labels: Tensor, epoch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        p = outputs.logits.softmax(-1).mean(0)
        onehot = np.eye(self.num_classes)[labels]
        d = torch.from_numpy(jensenshannon(p, onehot, base=2, axis=1) ** 2).float()  # scipy's is the square root
        self.mask = uniform_selection(d.numpy(), labels.numpy(), self.num_classes)
        mask = torch.from_numpy(self.mask)
        rows = {"weight": torch.where(d < 0.5, 1.0, 1 - d), "labelled": mask}
        self.plan = {name: row.expand(self.count, -1) for name, row in rows.items()}
        return mask, 1 - d

    def contrasted(self, views: list[Tensor], samples: np.ndarray) -> list[Tensor]:
        unlabelled = upload(torch.from_numpy(np.flatnonzero(~self.mask[samples])), views[0].device)
        return [view[unlabelled] for view in views]


def uniform_selection(
    divergence: np.ndarray, labels: np.ndarray, num_classes: int, d_mu: float = 0.7, tau: float = 5.0
) -> np.ndarray:
    """UNICON's selection (N,) bool, numpy: the samples with the lowest divergence (N,), equally many per class.

    The cut-off is the mean divergence d_avg, or d_avg - (d_avg - d_min) / tau if d_avg exceeds d_mu. If R is the
    fraction of all samples below the cut-off, the int(R N / K) lowest of each class are kept (or all of a smaller class).
    """
    cutoff = divergence.mean()
    if cutoff > d_mu:
        cutoff -= (cutoff - divergence.min()) / tau
    return lowest_of_each_class(divergence, labels, int((divergence < cutoff).sum() / num_classes))


def mixmatch_targets(p: Tensor, labels: Tensor, weight: Tensor, labelled: Tensor) -> Tensor:
    """Targets (M, B, K) of M networks from their probabilities p (M, B, K), averaged over the weak views.

    Labelled samples (M, B) bool: co-refinement, w y + (1 - w) p with the network's own p and weight w (M, B). Others:
    co-guessing, the mean of all networks' p. Both are sharpened (DivideMix, eq. 7 and algorithm 1).
    """
    given = one_hot(labels, p.shape[-1])
    refined = weight[..., None] * given + (1 - weight[..., None]) * p
    return sharpen(torch.where(labelled[..., None], refined, p.mean(0)))


def even_prediction_penalty(logits: Tensor) -> Tensor:
    """KL(uniform || mean prediction) of logits (B, K); 0 if all classes are predicted equally often."""
    if not len(logits):
        return logits.sum()
    return -(logits.softmax(1).mean(0) * logits.shape[1]).log().mean() / world_size()


def contrastive_loss(first: Tensor, second: Tensor, temperature: float = 0.05) -> Tensor:
    """NT-Xent (SimCLR, Chen et al., ICML 2020) of the projections (B, D) of two views."""
    if not len(first):
        return first.sum()
    z = F.normalize(torch.cat([first, second]), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    other = torch.arange(2 * len(first), device=z.device).roll(len(first))
    return F.cross_entropy(similarity, other) / world_size()
