"""What detectors look at: features, labels and texts of a data set, and what is computed from them once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from dataloader.dataset import Dataset
from methods import clipcleaner, dynamics, neighbours
from model.clip import cosine_logits
from model.encoder import Encoder, load_encoder
from model.features import features_name, image_features, keep_features
from model.prompts import mean_of_templates, spoken, template_features, text_features
from utils.config import read_yaml
from utils.errors import UserError, nearest


@dataclass
class Inputs:
    """What detectors look at. Raises UserError where the arrays do not belong together or are not finite.

    features (N, D) float32 of unit length; labels (N,) int64, the given ones; with text also text_features (K, D) of unit
    length and the zero-shot logits (N, K). pred_probs (N, K): out-of-fold probabilities of a person's own model, which
    take the place of those of `confident-learning`. descriptions: unit-length features (P, D) of several texts a class, and the
    class of each (P,), which CLIPCleaner sums over; default: text_features. cfg: the settings, of which detectors read `seed`,
    `neighbours`, `theta_gmm`, `theta_cons` and `fill_empty`.
    """

    features: np.ndarray
    labels: np.ndarray
    num_classes: int
    cfg: Any
    text_features: Any = None  # arrays, or None for an encoder without texts
    logits: Any = None
    descriptions: tuple[np.ndarray, np.ndarray] | None = None
    kept_as: str = ""  # name of the features in the cache, see model.features.features_name
    pred_probs: np.ndarray | None = None

    def __post_init__(self) -> None:
        N, D = self.features.shape
        if len(self.labels) != N:
            raise UserError(f"features: {N} images, but {len(self.labels)} labels; they belong to another data set.")
        bad = ~np.isfinite(self.features).all(1)
        if bad.any():
            raise UserError(
                f"features: those of {bad.sum()} images are not finite, the first is image {int(bad.argmax())}; "
                "prec fp32 may help."
            )
        text = self.text_features
        if self.labels.min() < 0 or self.labels.max() >= self.num_classes:
            raise UserError(
                f"labels: must lie between 0 and {self.num_classes - 1}, as there are {self.num_classes} classes."
            )
        if text is not None and text.shape != (self.num_classes, D):
            raise UserError(
                f"features: {D} numbers an image, but the texts are {text.shape[0]} of {text.shape[1]}, expected "
                f"{self.num_classes} of {D}; they are of another encoder or of other classes."
            )

    def take(self, rows: np.ndarray) -> "Inputs":
        """Those of some of the images, at rows (M,), as if there were no others."""
        logits, p = (None if x is None else x[rows] for x in (self.logits, self.pred_probs))
        return replace(self, features=self.features[rows], labels=self.labels[rows], logits=logits, pred_probs=p)

    @cached_property
    def nearest(self) -> neighbours.Neighbours:
        """The `cfg.neighbours` nearest of each image."""
        return neighbours.find_neighbours(self.features, self.labels, self.cfg.neighbours)

    @cached_property
    def visual(self) -> np.ndarray:
        """p (N, K) of the logistic regression on the given labels that predicts the same images."""
        return clipcleaner.visual_probability(self.features, self.labels, self.num_classes)

    @cached_property
    def zero_shot(self) -> np.ndarray:
        """p (N, K) by the descriptions."""
        descriptions, owner = self.descriptions or (self.text_features, np.arange(self.num_classes))
        return clipcleaner.zero_shot_probability(self.features, descriptions, owner, self.num_classes)

    @cached_property
    def probe(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """margins (E, N), probabilities (E, N), predicted (N,) and its probability (N,) of a linear probe's epochs."""
        margins, probabilities, logits = dynamics.linear_probe_dynamics(
            self.features, self.labels, self.num_classes, self.cfg.seed
        )
        p = softmax(logits, axis=1)
        return margins, probabilities, p.argmax(1), p.max(1)


def given_inputs(cfg: SimpleNamespace, data: Dataset, given: dict[str, np.ndarray]) -> Inputs:
    """Inputs of what a person's own model says of the images of a Dataset: `features` (N, D), `pred_probs` (N, K), or both.

    Features are scaled to unit length, and kept in the cache for the report. Raises UserError for numbers that
    are not finite or are no probabilities, and where the detector looks at what is not given.
    """
    N, K = len(data.train.labels), data.num_classes
    for name, x in given.items():
        if not np.isfinite(x).all():
            raise UserError(f"{name}: not finite for image {int((~np.isfinite(x).all(1)).argmax())}.")
    features, p = given.get("features"), given.get("pred_probs")
    p = None if p is None else p.astype(np.float64)
    if p is not None and (p.min() < 0 or np.abs(p.sum(1) - 1).max() > 1e-2):
        worst = int(np.maximum(np.abs(p.sum(1) - 1), -p.min(1)).argmax())
        raise UserError(f"pred_probs: no probabilities, those of image {worst} add up to {p[worst].sum():.3g}.")
    if features is None:
        if cfg.detector != "confident-learning":
            raise UserError(f"detector: {cfg.detector} looks at features=, pred_probs= are for confident-learning.")
        return Inputs(np.ones((N, 1), dtype=np.float32), data.train.labels, K, cfg, pred_probs=p)
    largest = np.abs(features).max(1, keepdims=True)
    features = (features / np.where(largest > 0, largest, 1)).astype(np.float32)  # so that no square overflows
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    name = keep_features(Path(cfg.output_dir) / "cache", features)
    return Inputs(features, data.train.labels, K, cfg, kept_as=name, pred_probs=p)


def read_descriptions(
    path: str | Path, classnames: list[str], templates: Sequence[str] = ("a photo of a {}.",)
) -> list[list[str]]:
    """Texts of each class, K lists, from a YAML file of class names and their features, such as `tabby cat: [striped fur]`.

    A text is "a photo of a {class} {feature}." with the class in lower case (Feng et al., ACM MM 2024); the key
    `template` says otherwise. A class that the file leaves out, or gives no features, has the texts of the templates. Classes
    of the same name have the same texts.
    UserError for a class that there is not.
    """
    content = read_yaml(path)
    template = content.pop("template", "a photo of a {class} {feature}.")
    if not isinstance(template, str) or "{class}" not in template or "{feature}" not in template:
        raise UserError(f"descriptions: {path}: template must have {{class}} and {{feature}}, not {template!r}.")
    names, texts = [spoken(name).lower() for name in classnames], {}
    for name, features in content.items():
        spoken_name = spoken(str(name)).lower()
        if spoken_name not in names:
            raise UserError(f"descriptions: {path}: there is no class '{name}'.{nearest(name, classnames)}")
        if not isinstance(features, list):
            raise UserError(f"descriptions: {path}: '{name}' must have a list of features, not {features!r}.")
        texts[spoken_name] = [
            template.replace("{class}", spoken_name).replace("{feature}", str(feature)) for feature in features
        ]
    return [texts.get(name) or [t.replace("{}", name) for t in templates] for name in names]


def load_inputs(cfg: SimpleNamespace, data: Dataset, device: torch.device) -> tuple[Inputs, dict[str, np.ndarray]]:
    """Inputs of the training images of a Dataset, and {name: zero-shot logits (N, K)} of its test sets, if there are texts."""
    encoder = load_encoder(cfg, device)
    name = features_name(encoder, data.train, data.view, cfg, device)
    features = image_features(encoder, data.train, data.view, cfg, device, name)
    if encoder.clip is None:
        return Inputs(features.numpy(), data.train.labels, data.num_classes, cfg, kept_as=name), {}
    of_templates = template_features(encoder.clip, encoder.tokenizer, data.classnames, cfg.templates)  # (K, T, D)
    text = mean_of_templates(of_templates)

    def logits(features: torch.Tensor) -> np.ndarray:
        return cosine_logits(encoder.clip, features.to(device), text).detach().cpu().numpy()

    inputs = Inputs(
        features.numpy(),
        data.train.labels,
        data.num_classes,
        cfg,
        text_features=text.cpu().numpy(),
        logits=logits(features),
        descriptions=_descriptions(encoder, cfg, data.classnames, of_templates),
        kept_as=name,
    )
    tests = {}
    for test, split in data.tests.items():
        if data.all_judged and data.held_out is not None and len(split.labels) == len(data.held_out):
            tests[test] = logits(features[data.held_out])
        else:
            tests[test] = logits(image_features(encoder, split, data.view, cfg, device))
    return inputs, tests


def _descriptions(
    encoder: Encoder, cfg: SimpleNamespace, classnames: list[str], of_templates: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Features (P, D) of the descriptions of `cfg`, else of its templates (K, T, D), and the class of each (P,)."""
    if not cfg.descriptions:
        K, T, _ = of_templates.shape
        return of_templates.flatten(0, 1).cpu().numpy(), np.repeat(np.arange(K), T)
    texts = read_descriptions(cfg.descriptions, classnames, cfg.templates)
    features = text_features(encoder.clip, encoder.tokenizer, [t for of_class in texts for t in of_class])
    return features.cpu().numpy(), np.repeat(np.arange(len(texts)), [len(of_class) for of_class in texts])
