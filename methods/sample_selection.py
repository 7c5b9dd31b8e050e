"""Label-noise methods that train on samples selected as clean."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from dataloader.dataset import Dataset
from dataloader.loaders import Loader
from dataloader.transforms import Pixels
from methods.losses import generalized_cross_entropy
from methods.method import Method
from methods.selection import class_mixtures, gmm_clean_probability
from model.classifier import head_inputs, linear_head
from utils.device import Amp
from utils.distributed import from_the_first, gather_parts, rank
from utils.errors import UserError


class GMM(Method):
    """Cross-entropy on samples with small loss, selected by a two-component mixture before each epoch after warm-up.

    The selection of DivideMix (Li et al., ICLR 2020); see methods.selection.gmm_clean_probability.
    """

    selects = True

    def is_warm(self, epoch: int) -> bool:
        return epoch <= self.cfg.warmup

    def epoch_selection(
        self, epoch: int, score: Callable[[], tuple[Tensor, Tensor, Tensor]]
    ) -> dict[str, Tensor] | None:
        if self.is_warm(epoch):
            return None
        losses, predicted, confidence = score()
        seed = np.random.default_rng([self.cfg.seed, epoch, 1]).integers(2**31)
        p_clean = torch.from_numpy(gmm_clean_probability(losses.numpy(), int(seed)))
        return {"mask": p_clean > 0.5, "p_clean": p_clean, "predicted": predicted, "confidence": confidence}


class TURN(Method):
    """Linear probing, cleaning, fine-tuning (Ahn et al., IJCAI 2024).

    A linear head is trained with GCE on the frozen network, so that wrong labels cannot distort its features. A
    two-component mixture per class on the head's losses selects the clean samples. The whole network, starting with that
    head, is then fine-tuned on them.

    The steps are the paper's; its settings were not available, so these are ours: features of un-augmented images,
    computed once; PROBE_EPOCHS epochs of AdamW; clean if P(lower mean) > 0.5, as in GMM above.
    """

    selects = True
    PROBE_EPOCHS, PROBE_LR = 20, 1e-3
    mask: Tensor  # (N,), as the others
    p_clean: Tensor
    predicted: Tensor
    confidence: Tensor

    def __init__(self, cfg: SimpleNamespace, num_samples: int, num_classes: int) -> None:
        super().__init__(cfg, num_samples, num_classes)
        if cfg.is_coop:
            raise UserError("is_coop: TURN trains a linear head, which the text classifier does not have.")
        self.register_buffer("mask", torch.zeros(num_samples, dtype=torch.bool))
        self.register_buffer("predicted", torch.zeros(num_samples, dtype=torch.int64))
        for name in ("p_clean", "confidence"):
            self.register_buffer(name, torch.zeros(num_samples))

    def prepare(self, model: nn.Module, loader: Loader, amp: Amp) -> None:
        features, labels = head_inputs(model, loader, amp), loader.labels
        head = linear_head(model)
        with torch.enable_grad():
            linear_probe(head, features, labels, self.PROBE_EPOCHS, self.PROBE_LR, self.cfg.seed)
        with torch.no_grad():
            logits = head(features)
            losses = generalized_cross_entropy(logits, labels).cpu().numpy()
            confidence, predicted = logits.softmax(1).max(1)
        p_clean = class_mixtures(losses, labels.cpu().numpy(), self.cfg.seed)
        for buffer, value in (
            (self.p_clean, torch.from_numpy(p_clean)),
            (self.mask, torch.from_numpy(p_clean > 0.5)),
            (self.predicted, predicted),
            (self.confidence, confidence),
        ):
            buffer.copy_(value)
        from_the_first(self)

    def epoch_selection(
        self, epoch: int, score: Callable[[], tuple[Tensor, Tensor, Tensor]]
    ) -> dict[str, Tensor] | None:
        return {k: v.cpu() for k, v in self.named_buffers()}


def linear_probe(
    head: nn.Linear, features: Tensor, labels: Tensor, epochs: int, lr: float, seed: int, batch_size: int = 64
) -> None:
    """Train a linear head with GCE and AdamW on fixed features (N, D) and labels (N,); `seed` fixes the sample order."""
    optimizer, order = torch.optim.AdamW(head.parameters(), lr=lr), torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for index in torch.randperm(len(labels), generator=order).to(labels.device).split(batch_size):
            optimizer.zero_grad()
            generalized_cross_entropy(head(features[index]), labels[index]).mean().backward()
            optimizer.step()


class SmallLoss(Method):
    """Cross-entropy on the int((1 - rate) n) smallest losses of each batch (as in Co-teaching, Han et al., NeurIPS 2018).

    `rate` is that of forget_rates. UserError where labels may be wrong, but noise_ratio is 0.
    """

    selects = True

    def build(self, data: Dataset) -> tuple[nn.Module, Pixels]:
        require_estimate(self.cfg, data)
        return super().build(data)

    def batch_mask(self, epoch: int) -> Callable[[Tensor], Tensor]:
        cfg = self.cfg
        rate = forget_rates(cfg.noise_mode, cfg.noise_ratio, cfg.epochs, cfg.warmup)[epoch - 1]
        return lambda losses: smallest(losses, rate)


def require_estimate(cfg: SimpleNamespace, data: Dataset) -> None:
    """UserError for noise_ratio 0, with which small loss selects everything, unless all labels are known to be right."""
    known = data.known()
    if cfg.noise_ratio == 0 and (known is None or not known[1].all()):
        raise UserError(
            f"noise_ratio: {cfg.lnl_methods} needs an estimate of the fraction of wrong labels, e.g. 0.2; with 0, all "
            "samples are selected."
        )


def forget_rates(noise_mode: str, noise_ratio: float, epochs: int, warmup: int) -> np.ndarray:
    """Fraction of each batch that small-loss drops, per epoch, (epochs,): from 0 to ratio in the warm-up, then constant.

    For `str` noise, which affects half of the classes, the ratio is halved; for `asym_similar` on CIFAR-10, which does too, it is not.
    """
    ratio = noise_ratio / 2 if noise_mode == "str" else noise_ratio
    rates = np.full(epochs, ratio, dtype=np.float64)
    rates[:warmup] = np.linspace(0, ratio, warmup)[:epochs]
    return rates


def smallest(losses: Tensor, rate: float) -> Tensor:
    """Mask (B,) bool of the int((1 - rate) B) smallest losses (B,)."""
    parts = gather_parts(losses.detach())  # the whole batch, including the shares of other processes
    whole, before = torch.cat(parts), sum(len(part) for part in parts[: rank()])
    kept = whole.argsort(stable=True)[: int((1 - rate) * len(whole))]
    mask = torch.zeros_like(whole, dtype=torch.bool).index_fill_(0, kept, True)
    return mask[before : before + len(losses)].to(losses.device, non_blocking=losses.is_cuda)
