"""Find wrong labels without training, for a first look: `--detector label-match` asks CLIP zero-shot.

    python main_detect.py --cfg config/PEFT/cifar100.yaml --noise_mode sym --noise_ratio 0.2
"""
import torch
import torch.nn.functional as F

from dataloader.datasets import load_data
from dataloader.loaders import make_loaders
from model.clip import cosine_logits, image_statistics, load_clip, resolution
from model.prompts import zero_shot_features
from utils.config import load_config, pick, run_main
from utils.engine import autocast, evaluate_all
from utils.runs import Run, show


def label_match(probabilities, labels):
    """Clean where the zero-shot prediction is the given label: mask (N,), score of the label, prediction, its chance."""
    confidence, predicted = probabilities.max(1)
    return predicted == labels, probabilities.gather(1, labels[:, None])[:, 0], predicted, confidence


DETECTORS = {"label-match": label_match}


def zero_shot_classifier(clip, tokenizer, classnames):
    """images (B, 3, H, W) -> s cos(image, "a photo of a {}.") (B, K)."""
    text_features = zero_shot_features(clip, tokenizer, classnames)
    return lambda images: cosine_logits(clip, F.normalize(clip.encode_image(images).float(), dim=-1), text_features)


@torch.no_grad()
def zero_shot_probabilities(clip, tokenizer, classnames, loader, prec="fp32"):
    """Softmax of the zero-shot logits of every image of a loader, un-augmented, in order: (N, K) on the CPU."""
    with autocast(loader.device, prec):
        predict = zero_shot_classifier(clip, tokenizer, classnames)
        return torch.cat([predict(images).softmax(1) for images, _, _ in loader.eval()]).cpu()


def main(argv=None, **settings):
    """Run the detector that the flags name; returns the summary. `settings` are the script's own defaults."""
    cfg = load_config(argv, __doc__, **settings)
    detector = pick(DETECTORS, cfg.detector, "detector")
    data = load_data(cfg)
    run = Run(cfg, data, cfg.detector)
    if run.summary:
        show(run.summary)
        return run.summary

    clip, tokenizer = load_clip(cfg.backbone, cfg.pretrained)
    clip.to(run.device)
    train, tests = make_loaders(data, cfg, resolution(clip, cfg), image_statistics(clip), run.device)
    labels = data.train.labels
    probabilities = zero_shot_probabilities(clip, tokenizer, data.classnames, train, cfg.prec)
    mask, *scores = (x.numpy() for x in detector(probabilities, torch.from_numpy(labels)))
    with torch.no_grad(), autocast(run.device, cfg.prec):
        predict = zero_shot_classifier(clip, tokenizer, data.classnames)
    accuracy = evaluate_all(predict, tests, data.num_classes, lambda: autocast(run.device, cfg.prec))
    quality = run.save_selection(data, mask, *scores)
    summary = run.finish(data, {**quality, **accuracy["accs"],
                                "acc_last": accuracy["accs"]["acc_test"], "acc_best": accuracy["accs"]["acc_test"],
                                "acc_per_class": accuracy["acc_per_class"]})
    show(summary)
    print(f"clean mask: {run.folder / 'clean_mask.npz'}")
    return summary


if __name__ == "__main__":
    run_main(main)
