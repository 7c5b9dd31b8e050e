"""Phase 2 on all samples: labels for those outside the clean mask, by CLIP's zero-shot classifier or by the detector."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataloader.dataset import Dataset, label_hash
from dataloader.loaders import make_loader
from dataloader.transforms import Pixels
from methods.deft import load_detector
from methods.loops import progress
from methods.losses import cross_entropy, one_hot
from methods.method import Method
from model.clip import cosine_logits, input_pixels
from model.encoder import load_encoder
from model.features import image_features
from model.prompts import zero_shot_features
from model.saved import load_classifier
from utils.config import is_timm, recorded_settings
from utils.device import Amp
from utils.distributed import in_order
from utils.errors import UserError

SOURCES = {  # what each value of `noisy_samples` asks for a label
    "zero_shot": ("zero_shot",),
    "detector": ("detector",),
    "confidence": ("zero_shot", "detector"),
    "entropy": ("zero_shot", "detector"),
}


class PseudoLabels(Method):
    """Cross-entropy with the given label on the samples of a mask, with another target on some of the others.

    mask (N,) bool and targets (N, K) of which the rows of the others count, 0 for those that are not trained on. The loss of
    a sample outside the mask is multiplied by `weight`; a batch's loss is the mean over its samples, whatever their weight.

    A checkpoint keeps a hash of mask and target classes: UserError where a run would go on with others.
    """

    trusted: Tensor  # (N,)
    targets: Tensor  # (N, K)
    made_for: Tensor

    def __init__(self, cfg: SimpleNamespace, mask: np.ndarray, targets: np.ndarray, weight: float) -> None:
        super().__init__(cfg, len(mask), targets.shape[1])
        self.register_buffer("trusted", torch.from_numpy(mask), persistent=False)
        self.register_buffer("targets", torch.from_numpy(targets), persistent=False)
        classes = np.where(mask, -1, np.where(targets.any(1), targets.argmax(1), -2))
        self.register_buffer("made_for", torch.tensor(int(label_hash(classes), 16)))
        self.weight = weight

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        if state_dict["made_for"] != self.made_for.to(state_dict["made_for"].device):
            raise UserError(
                "noisy_samples: the run was begun with other labels for the samples outside the mask, as their detector was "
                "another; use --tag NAME for another run, or delete the folder to start over."
            )
        return super().load_state_dict(state_dict, *args, **kwargs)

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        trusted = self.trusted[index]
        targets = torch.where(trusted[:, None], one_hot(labels, logits.shape[1]), self.targets[index])
        return torch.where(trusted, 1.0, self.weight) * cross_entropy(logits, targets)


def choose_labels(
    probabilities: np.ndarray, rule: str, min_confidence: float, max_entropy: float
) -> tuple[np.ndarray, np.ndarray]:
    """Distributions p (N, K) and which of them are to be used (N,) bool, from those of one or more sources (S, N, K); numpy.

    rule confidence takes the source with the highest max p, if it reaches min_confidence; entropy the one with the lowest
    entropy, if that is at most max_entropy log K; any other rule takes the first source, always.
    """
    N, K = probabilities.shape[1:]
    confidence = probabilities.max(2)
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-30))).sum(2) / np.log(max(K, 2))
    if rule == "confidence":
        best, used = confidence.argmax(0), confidence.max(0) >= min_confidence
    elif rule == "entropy":
        best, used = entropy.argmin(0), entropy.min(0) <= max_entropy
    else:
        best, used = np.zeros(N, dtype=np.int64), np.ones(N, dtype=bool)
    return probabilities[best, np.arange(N)], used


def pseudo_labels(
    cfg: SimpleNamespace, data: Dataset, mask: np.ndarray, folder: Path, device: torch.device
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """(targets (N, K) float32, used (N,) bool outside the mask (N,), numbers for the summary), numpy; 0 where not used.

    folder: of the run that made the mask, whose CLIP is asked. The targets are one-hot unless `soft_labels`. The numbers are
    how many samples outside the mask are used and, where the truth is known, how many of their new labels are right.
    """
    ask = {"zero_shot": zero_shot_probabilities, "detector": detector_probabilities}
    asked = np.stack([ask[source](cfg, data, folder, device) for source in SOURCES[cfg.noisy_samples]])
    p, used = choose_labels(asked, cfg.noisy_samples, cfg.min_confidence, cfg.max_entropy)
    used &= ~mask
    numbers = {"pseudo_labels": int(used.sum())}
    if data.true_labels is not None:
        numbers["pseudo_labels_right"] = int((p.argmax(1) == data.true_labels)[used].sum())
    targets = p if cfg.soft_labels else np.eye(data.num_classes)[p.argmax(1)]
    return np.where(used[:, None], targets, 0).astype(np.float32), used, numbers


def settings_of(folder: str | Path, cfg: SimpleNamespace) -> SimpleNamespace | None:
    """The settings of the run in a folder, but batches, workers and precision as now; None where there is no run."""
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        return None
    now = {
        key: getattr(cfg, key) for key in ("batch_size", "num_workers", "cache_gb", "output_dir", "prec", "micro_batch")
    }
    return SimpleNamespace(**recorded_settings(path) | now)


def zero_shot_probabilities(
    cfg: SimpleNamespace, data: Dataset, folder: str | Path, device: torch.device
) -> np.ndarray:
    """softmax of CLIP's zero-shot logits (N, K), numpy, by the CLIP of the run that made the mask, or `backbone`."""
    templates, cfg = cfg.templates, settings_of(folder, cfg) or cfg
    if is_timm(cfg.backbone):
        raise UserError(
            f"noisy_samples: {cfg.backbone} has no zero-shot classifier, and no run of a CLIP lies in {folder}."
        )
    encoder = load_encoder(cfg, device)
    text_features = zero_shot_features(encoder.clip, encoder.tokenizer, data.classnames, templates)
    features = image_features(encoder, data.train, data.view, cfg, device)
    with torch.no_grad():
        return cosine_logits(encoder.clip, features.to(device), text_features).softmax(1).cpu().numpy()


@torch.no_grad()
def detector_probabilities(cfg: SimpleNamespace, data: Dataset, folder: str | Path, device: torch.device) -> np.ndarray:
    """Class probabilities (N, K), numpy, of the un-augmented training images by the trained model of the run in a folder:
    the positive prompts of phase 1, or the classifier of a baseline that selects. UserError if it was trained on other classes.
    """
    folder, settings = Path(folder), settings_of(folder, cfg)
    if (folder / "model.json").is_file():
        model, info = load_classifier(folder)
        if info["classes"] != data.label_names:
            raise UserError(
                f"noisy_samples: {folder} was trained on other classes; run it again, or discard the samples."
            )
        pixels = Pixels(info["pixels"], info["mean"], info["std"])
        predict: Callable[[Tensor], Tensor] = model.to(device)
    elif settings is not None and (folder / "checkpoint.pt").is_file():
        model = load_detector(folder, settings, data, device)
        pixels, predict = input_pixels(model.clip, settings), model.classifier()
    else:
        raise UserError(f"noisy_samples: {folder} holds no trained detector; zero_shot takes CLIP as it is.")
    loader = make_loader(data.train, data.view, settings or cfg, pixels, device, augmented=False)
    amp, seen = Amp(device, cfg.prec), []
    for images, _, index in progress(loader.eval(), "detector"):
        with amp():
            seen.append((index, predict(images).float().softmax(1)))
    return in_order(seen)[0].numpy()
