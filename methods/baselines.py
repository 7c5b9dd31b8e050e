"""Label-noise learning methods to compare with: METHODS[name](cfg, num_samples, num_classes) -> Method."""

from methods.co_teaching import CoTeaching
from methods.dividemix import UNICON, DivideMix, LongReMix
from methods.dynamics import AUM, Forgetting, MeanProbability
from methods.mixfix import MixFix
from methods.promix import ProMix
from methods.robust_losses import CE, ELR, GCE, SCE
from methods.rolt import RoLT
from methods.sample_selection import GMM, TURN, SmallLoss

METHODS = {
    "CE": CE,
    "SCE": SCE,
    "GCE": GCE,
    "ELR": ELR,
    "GMM": GMM,
    "TURN": TURN,
    "small-loss": SmallLoss,
    "AUM": AUM,
    "forgetting": Forgetting,
    "mean-p": MeanProbability,
    "Co-teaching": CoTeaching,
    "DivideMix": DivideMix,
    "LongReMix": LongReMix,
    "UNICON": UNICON,
    "ProMix": ProMix,
    "RoLT": RoLT,
    "MixFix": MixFix,
}
