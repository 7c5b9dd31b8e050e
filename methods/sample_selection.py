"""Label-noise methods that train on the samples they take for clean."""

import numpy as np
import torch

from methods.losses import generalized_cross_entropy
from methods.method import Method
from methods.selection import gmm_clean_probability
from model.classifier import image_features, linear_head
from utils.config import UserError
from utils.distributed import from_the_first, gather_parts, rank


class GMM(Method):
    """Cross-entropy on the samples of small loss: a two-component mixture on the losses before each epoch after warm-up.

    As DivideMix (Li et al., ICLR 2020) selects; see methods.selection.gmm_clean_probability.
    """

    selects = True

    def epoch_selection(self, epoch, score):
        if epoch <= self.cfg.warmup:
            return None
        losses, predicted, confidence = score()
        seed = np.random.default_rng([self.cfg.seed, epoch, 1]).integers(2**31)
        p_clean = torch.from_numpy(gmm_clean_probability(losses.numpy(), int(seed)))
        return {"mask": p_clean > 0.5, "p_clean": p_clean, "predicted": predicted, "confidence": confidence}


class TURN(Method):
    """Probe, clean, fine-tune (Ahn et al., IJCAI 2024): a linear head is trained with GCE on the frozen network, so that
    wrong labels cannot distort its features; per class, a two-component mixture on the head's losses tells the clean
    samples; the whole network is then fine-tuned on them, from that head on.

    The steps are the paper's. Its settings were not at hand, these are ours: features of un-augmented images, computed
    once; PROBE_EPOCHS of AdamW; clean where P(lower mean) > 0.5, the threshold of GMM above.
    """

    selects = True
    PROBE_EPOCHS, PROBE_LR = 20, 1e-3

    def __init__(self, cfg, num_samples, num_classes):
        super().__init__(cfg, num_samples, num_classes)
        if cfg.is_coop:
            raise UserError("is_coop: TURN probes a linear head; the text classifier has none.")
        self.register_buffer("mask", torch.zeros(num_samples, dtype=torch.bool))
        self.register_buffer("predicted", torch.zeros(num_samples, dtype=torch.int64))
        for name in ("p_clean", "confidence"):
            self.register_buffer(name, torch.zeros(num_samples))

    def prepare(self, model, loader, seed, amp):
        features, labels = image_features(model, loader, amp), loader.labels
        head = linear_head(model)
        with torch.enable_grad():
            linear_probe(head, features, labels, self.PROBE_EPOCHS, self.PROBE_LR, seed)
        with torch.no_grad():
            logits = head(features)
            losses = generalized_cross_entropy(logits, labels).cpu().numpy()
            confidence, predicted = logits.softmax(1).max(1)
        p_clean = np.ones(len(losses))
        for k in np.unique(given := labels.cpu().numpy()):
            if len(np.unique(losses[given == k])) > 1:  # a mixture of two needs two points
                p_clean[given == k] = gmm_clean_probability(losses[given == k], seed)
        for buffer, value in (
            (self.p_clean, torch.from_numpy(p_clean)),
            (self.mask, torch.from_numpy(p_clean > 0.5)),
            (self.predicted, predicted),
            (self.confidence, confidence),
        ):
            buffer.copy_(value)
        from_the_first(self)

    def epoch_selection(self, epoch, score):
        return {k: v.cpu() for k, v in self.named_buffers()}


def linear_probe(head, features, labels, epochs, lr, seed, batch_size=64):
    """Train a linear head with GCE on fixed features (N, D) and labels (N,); AdamW, orders fixed by `seed`."""
    optimizer, order = torch.optim.AdamW(head.parameters(), lr=lr), torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for index in torch.randperm(len(labels), generator=order).to(labels.device).split(batch_size):
            optimizer.zero_grad()
            generalized_cross_entropy(head(features[index]), labels[index]).mean().backward()
            optimizer.step()


class SmallLoss(Method):
    """Cross-entropy on the int((1 - rate) n) smallest losses of each batch (as in Co-teaching, Han et al., NeurIPS 2018)."""

    selects = True

    def batch_mask(self, epoch):
        cfg = self.cfg
        rate = forget_rates(cfg.noise_mode, cfg.noise_ratio, cfg.epochs, cfg.warmup)[epoch - 1]
        return lambda losses: smallest(losses, rate)


def forget_rates(noise_mode, noise_ratio, epochs, warmup):
    """Part of each batch that small-loss leaves out, per epoch, (epochs,): 0 -> ratio over the warm-up, then constant.

    `str` noise hits half of the classes, so the ratio is halved.
    """
    ratio = noise_ratio / 2 if noise_mode == "str" else noise_ratio
    rates = np.full(epochs, ratio, dtype=np.float64)
    rates[:warmup] = np.linspace(0, ratio, warmup)[:epochs]
    return rates


def smallest(losses, rate):
    """(B,) bool: the int((1 - rate) B) smallest of the losses (B,)."""
    parts = gather_parts(losses.detach())  # the whole batch, of which other processes hold their shares
    whole, before = torch.cat(parts), sum(len(part) for part in parts[: rank()])
    kept = whole.argsort(stable=True)[: int((1 - rate) * len(whole))]
    mask = torch.zeros_like(whole, dtype=torch.bool).index_fill_(0, kept, True)
    return mask[before : before + len(losses)].to(losses.device)
