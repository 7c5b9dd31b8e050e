"""DeFT, phase 2: fine-tune a backbone on the samples selected by the clean mask.

python main_phase2.py --cfg config/FFT/cifar100.yaml --noise_mode sym --noise_ratio 0.2
"""

from typing import Any

from utils.config import is_timm, load_config, settle_epochs
from utils.errors import UserError
from utils.files import slug
from utils.start import run_main


def main(argv: list[str] | None = None, description: str | None = __doc__, **settings: Any) -> dict[str, Any]:
    """Fine-tune on the clean mask given by the flags and return the summary. `settings` are the script's own defaults."""
    cfg = load_config(argv, description, "main_phase2", **settings)
    from dataloader.dataset import label_hash
    from dataloader.load import load_data
    from methods.baselines import METHODS
    from methods.deft import save_text_classifier
    from methods.fine_tuning import fine_tune
    from methods.masks import mask_name, say_lost_classes, trusted_samples
    from methods.pseudo_labels import PseudoLabels, pseudo_labels
    from methods.selection import precision_recall
    from report.record import finish, result_of_phase1, say_if_worse, zero_shot_beside
    from utils.distributed import rank
    from utils.runs import Run, backbone_name, seed_folder

    if cfg.adaptation == "none" and (cfg.noisy_samples, cfg.phase2_loss) != ("discard", "CE"):
        key = "noisy_samples" if cfg.noisy_samples != "discard" else "phase2_loss"
        raise UserError(f"{key}: adaptation none trains nothing; it shows the accuracy of phase 1.")
    data = load_data(cfg)
    settle_epochs(cfg, len(data.train.labels))
    path, mask, data.train, numbers = trusted_samples(cfg, data, seed_folder(cfg, data.place))
    others = "" if cfg.noisy_samples == "discard" or path is None else cfg.noisy_samples + "-soft" * cfg.soft_labels
    if path is None and cfg.noisy_samples != "discard":
        print(f"noisy_samples: {cfg.noisy_samples} labels no image, since all given labels are trusted")
    if others and cfg.phase2_loss != "CE":
        raise UserError(
            f"phase2_loss: {cfg.phase2_loss} trains on the samples of the mask only, so noisy_samples must be discard."
        )
    loss = "" if cfg.phase2_loss == "CE" else cfg.phase2_loss.lower()
    parts = ["phase2", mask_name(cfg.mask), backbone_name(cfg), cfg.adaptation, loss, slug(others)]
    name = "-".join(filter(None, parts))
    run = Run(cfg, data.place, name, {**data.identity, "mask": label_hash(mask)})
    if run.summary:
        return run.summary

    numbers |= {"selected": float(mask.mean())}
    if (known := data.known()) is not None:
        index, is_clean = known
        numbers |= precision_recall(mask[index], is_clean)
    if cfg.adaptation == "none":
        phase1, accuracies = result_of_phase1(path, cfg.backbone, run.identity)
        numbers |= accuracies
        if rank() == 0:
            save_text_classifier(run.folder, phase1, data, run.device)
        summary = finish(run, data, numbers)
        say_if_worse(summary, zero_shot_beside(run.folder), False)
        return summary
    print(f"training on {mask.sum()} of {len(mask)} samples ({path or 'all labels are trusted'})")
    method = METHODS[cfg.phase2_loss](cfg, len(mask), data.num_classes)
    if others and path:
        targets, used, counts = pseudo_labels(cfg, data, mask, path.parent, run.device)
        print(f"and on {counts['pseudo_labels']} of the others with new labels ({cfg.noisy_samples})")
        method, mask, numbers = PseudoLabels(cfg, mask, targets, cfg.noisy_weight), mask | used, numbers | counts
    say_lost_classes(data, mask)
    trained, _ = fine_tune(cfg, data, run, method, mask)
    summary = finish(run, data, {**numbers, **trained})
    say_if_worse(summary, path, cfg.finetune and not is_timm(cfg.backbone))
    return summary


if __name__ == "__main__":
    run_main(main)
