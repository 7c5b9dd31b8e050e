"""Label-noise learning methods to compare with: METHODS[name](cfg, num_samples, num_classes) -> Method."""

from methods.robust_losses import CE, ELR, GCE, SCE
from methods.sample_selection import GMM, TURN, SmallLoss
from methods.semi_supervised import UNICON, CoTeaching, DivideMix, LongReMix, MixFix, ProMix, RoLT

METHODS = {
    "CE": CE,
    "SCE": SCE,
    "GCE": GCE,
    "ELR": ELR,
    "GMM": GMM,
    "TURN": TURN,
    "small-loss": SmallLoss,
    "Co-teaching": CoTeaching,
    "DivideMix": DivideMix,
    "LongReMix": LongReMix,
    "UNICON": UNICON,
    "ProMix": ProMix,
    "RoLT": RoLT,
    "MixFix": MixFix,
}
