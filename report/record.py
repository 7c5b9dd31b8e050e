"""The record of a finished run: its selection, lists and summary as files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dataloader.dataset import Dataset
from methods.detectors import run_detector
from methods.estimates import limit_suspects
from methods.masks import save_mask
from methods.selection import detection_quality
from methods.verdict import judge, trained_evidence
from report.suspects import write_scores, write_suspects
from utils.distributed import rank
from utils.errors import UserError
from utils.runs import Run
from utils.summaries import read_summary


def finish(
    run: Run, data: Dataset, numbers: dict[str, Any], selection: dict[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """Write the record of a run on a Dataset; returns the summary.

    numbers go into the summary as they are; selection, of a run that made one, is `mask`, `p_clean`, `predicted` and
    `confidence`, (N,) numpy each: it is written as clean_mask.npz, suspects.csv and scores.csv; the verdict on it, and its
    quality, where the truth is known, go into the summary too.
    """
    if selection is not None:
        numbers = {**numbers, "selected": float(selection["mask"].mean())}
        numbers |= {"root": data.root, "classes": data.label_names}  # of the paths and the labels in the lists
        numbers |= {"class_names": data.classnames}
        known = numbers.get("evidence") or trained_evidence(
            data, selection, numbers.get("acc_per_class"), scored=bool(run.score)
        )
        numbers |= {"evidence": known, "verdict": judge(data, selection["mask"], known, run.accuracies())}
        labels = data.train.labels
        if (truth := data.known()) is not None:
            index, is_clean = truth
            numbers |= detection_quality(selection["mask"][index], selection["p_clean"][index], is_clean)
        if rank() == 0:
            arrays = {**selection, "labels": labels}
            if data.all_judged and data.held_out is not None:
                arrays["held_out"] = np.isin(np.arange(len(labels)), data.held_out)
                if suspects := int((arrays["held_out"] & ~selection["mask"]).sum()):
                    print(
                        f"suspects among the images held out for testing: {suspects} (split: test); phase 2 does not train on these"
                    )
            for write in (write_scores, write_suspects):
                write(run.folder, data, arrays)
            save_mask(run.folder / "clean_mask.npz", selection, data, run.cfg.seed)
    return run.finish(data.facts(), numbers, data.tables())


def detector_run(cfg: SimpleNamespace, data: Dataset) -> Run:
    """The finished Run of the detector that `cfg` names on a Dataset; own images held out for testing are judged, too."""
    if cfg.dataset == "own" and data.noise_name == "none":  # noise that we made is in the training labels alone
        data = data.whole()
        if data.all_judged:
            print(f"judging all {len(data.train.labels)} labels, including those of the images held out for testing")
    run = Run(cfg, data.place, cfg.detector, data.identity)
    if not run.summary:
        selection, accuracy = run_detector(cfg, data, run.device)
        finish(run, data, accuracy, limit_suspects(selection, cfg))
        say_where(run)
    return run


def say_where(run: Run) -> None:
    """Print which labels a detector's run has not judged, where its suspects are, and what to do next."""
    if run.summary.get("held_out") or (
        run.summary["num_test"] and run.cfg.dataset == "own" and not run.summary.get("all_judged")
    ):
        kind = "held out for testing" if run.summary.get("held_out") else "of the test split"
        print(f"not judged: the labels of the {run.summary['num_test']} images {kind}; --score test judges them")
    print(f"suspects, worst first: {run.folder / 'suspects.csv'}\nto review them: python -m report.review {run.folder}")
    print(f"how many labels are wrong: python -m report.estimate {run.folder}")


def result_of_phase1(
    mask_path: Path | None, backbone: str, identity: dict[str, str]
) -> tuple[Path, dict[str, float | None]]:
    """(folder, {acc_…: value}) of the run of phase 1 that made a mask, for `adaptation: none`.

    UserError where it was another detector, has another backbone, or was tested on others than a run of this identity.
    """
    if mask_path is None or not is_phase1(mask_path.parent):
        raise UserError(f"adaptation: none takes the classifier of phase 1, and {mask_path or '--mask all'} has none.")
    folder = mask_path.parent
    summary = read_summary(folder / "summary.json")
    if summary["backbone"] != backbone:
        raise UserError(
            f"backbone: adaptation none takes the classifier of {folder}, which is of {summary['backbone']}."
        )
    if not _same_test(summary["identity"], identity):
        raise UserError(
            f"adaptation: none shows the accuracy of {folder}, which was tested on other images; run it again."
        )
    return folder, {key: value for key, value in summary.items() if key.startswith("acc_")}


def zero_shot_beside(folder: Path) -> Path | None:
    """The mask of a run of main_detect.py beside a run, if there is one; its accuracy is that of zero-shot CLIP."""
    paths = sorted(folder.parent.glob("*/clean_mask.npz"))
    return next((p for p in paths if read_summary(p.with_name("summary.json")).get("script") == "main_detect"), None)


def is_phase1(folder: Path) -> bool:
    """Whether the run in a folder is one of DeFT, by phase 1 or in a notebook, and not of a detector that trains nothing."""
    script = str(read_summary(folder / "summary.json").get("script"))
    return script.endswith("phase1") or (script == "detect" and (folder / "checkpoint.pt").is_file())


def _same_test(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether runs of these identities were tested on the same images and labels; older ones are known by all their images."""
    images = "test images" if "test images" in one.keys() & other.keys() else "images"
    return all(one.get(key) == other.get(key) for key in (images, "test labels"))


def say_if_worse(summary: dict[str, Any], mask_path: Path | None, finetune: bool) -> None:
    """Print if the predictions of the detector's run that made the mask are right on more of the test images.

    finetune: whether the whole network of a CLIP was trained, and not its head alone.
    """
    if mask_path is None:
        return
    before = read_summary(mask_path.parent / "summary.json")
    if before.get("acc_last", 0) > summary.get("acc_last", 100):
        others = "" if _same_test(before.get("identity", {}), summary["identity"]) else ", of other test images"
        who = "zero-shot CLIP" if before.get("script") == "main_detect" else "the detector's own classifier"
        head = ", or training the head alone (--finetune false --lr 5e-3 --tag head)" if finetune else ""
        instead = ", and --adaptation none saves that classifier" if is_phase1(mask_path.parent) else ""
        print(
            f"warning: this model is worse than {who} ({mask_path.parent}): {summary['acc_last']:.2f} % of the test images "
            f"right, {before['acc_last']:.2f} % there{others}. More epochs can help{head}{instead}"
        )
