"""The interface of a label-noise learning method, as methods/fine_tuning.py calls it."""

import torch.nn as nn

from methods.losses import cross_entropy


class Method(nn.Module):
    """The loss of each sample, and which samples count; what must survive a stop is a buffer."""

    selects = False  # whether the samples it trains on in the last epoch make a clean mask

    def __init__(self, cfg, num_samples, num_classes):
        super().__init__()
        self.cfg = cfg

    def forward(self, logits, labels, index):
        """Losses (B,) of logits (B, K), given labels (B,) and positions in the training set (B,); here cross-entropy."""
        return cross_entropy(logits, labels)

    def prepare(self, model, loader, seed, amp):
        """Before the first epoch: what the method does with the pre-trained network and the un-augmented training set."""

    def epoch_selection(self, epoch, score):
        """Before an epoch: `mask` (N,) bool, the samples to train on, with p_clean, predicted and
        confidence (N,); or None for all.

        score() runs the network over the un-augmented training set: losses, predicted, confidence, CPU tensors (N,).
        """
        return None

    def batch_mask(self, epoch):
        """A function losses (B,) -> (B,) bool that picks the samples of each batch, or None for all."""
        return None
