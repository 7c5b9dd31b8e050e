"""Label-noise learning methods to compare with: METHODS[name](logits (B, K), labels (B,), index (B,)) -> losses (B,)."""
from utils.losses import cross_entropy

METHODS = {"CE": cross_entropy}
