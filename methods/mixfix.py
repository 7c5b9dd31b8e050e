"""MixFix, the training of CLIPCleaner: the network's predictions extend a clean mask."""

import torch

from methods.division import absorb_and_relabel, class_balanced_order
from methods.losses import batch_mean, one_hot, soft_cross_entropy
from methods.semi_supervised import SemiSupervised, mixup


class MixFix(SemiSupervised):
    """MixFix, CLIPCleaner's training (Feng et al., ACM MM 2024): the network's predictions extend a clean mask.

    The first epoch trains on the samples of `mask`, later epochs also on those that absorb_and_relabel adds (theta_r,
    theta_r2). Classes are sampled evenly, with floor(N / batch_size) batches per epoch; one strong view (`strong_view`),
    MixUp with Beta(b, b), b = `mixup_beta`; cross-entropy; no warm-up.
    """

    pair, weak, strong, takes_mask = False, 0, 1, True

    def is_warm(self, epoch):
        return False

    def train_epoch(self, epoch, training):
        self.initial = torch.from_numpy(training.mask)
        return super().train_epoch(epoch, training)

    def divide(self, outputs, labels, epoch, rng):
        p = outputs.logits.softmax(-1).mean(0)
        thetas = (self.cfg.theta_r, self.cfg.theta_r2) if epoch > 1 else (torch.inf, torch.inf)
        fixed, self.selected = absorb_and_relabel(p, labels, self.initial, *thetas)
        self.plan, self.fixed = {"labels": fixed}, fixed.numpy()
        return self.selected & (fixed == labels), p.gather(1, labels[:, None])[:, 0]

    def order(self, labels, rng):
        batches = max(self.num_samples // self.cfg.batch_size, 1)
        length = min(batches * self.cfg.batch_size, self.num_samples)
        return class_balanced_order(self.fixed, self.selected.numpy(), length, rng)

    def step(self, run, batch, part, epoch, rng):
        targets = one_hot(self.plan["labels"][batch.index], self.num_classes)
        mixed = [mixup(batch.views[0], targets, self.cfg.mixup_beta, rng) for _ in range(self.count)]
        outs, everyone = run.train([images for images, _ in mixed]), torch.ones_like(batch.labels, dtype=torch.bool)
        return sum(
            batch_mean(soft_cross_entropy(logits, target), everyone) for (logits, _), (_, target) in zip(outs, mixed)
        )
