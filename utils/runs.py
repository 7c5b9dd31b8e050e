"""A run and its folder, <output_dir>/<dataset>/<noise>/seed<k>/<name>/ (settings, log, summary, checkpoint)."""

import json
import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn as nn
import yaml
from torch.optim import Optimizer

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.config import FREE_KEYS, recorded_settings
from utils.device import pick_device, precision
from utils.distributed import rank, wait_for_all, world_size
from utils.errors import UserError
from utils.files import file_hash, listed_changes, model_files, slug, write_csv, write_text
from utils.lock import lock
from utils.memory import peak_gb
from utils.summaries import FRACTIONS, code_of, in_time, read_summary, verdict_line, with_checksum, write_summary
from utils.tensorboard import summary_writer, write_epoch
from utils.version import this_code

# in a run's identity where they are known; runs of older versions have none of them
IF_KNOWN = ("class names", "test images", "test labels", "true labels", "descriptions", "weights")
# how numbers are printed
WORDS = {
    "loss": "loss {:.4g}",
    "noise_rate": "{:.1f} % of the labels are wrong",
    "selected": "{:.1f} % of the labels kept",
    "precision": "{:.1f} % of the kept labels are right",
    "recall": "{:.1f} % of the right labels kept",
    "f1": "F1 {:.1f} %",
    "auroc": "AUROC {:.1f} %",
    "auprc_mislabelled": "AUPRC of wrong labels {:.1f} %",
    "acc_zero_shot": "zero-shot test accuracy {:.2f} %",
    "acc_test": "test accuracy {:.2f} %",
    "acc_last": "test accuracy {:.2f} % after the last epoch",
    "acc_best": "{:.2f} % after the best",
    "seconds": "{:.1f} s",
}


def own_files(cfg: SimpleNamespace) -> dict[str, str]:
    """For a run's identity: hashes of the descriptions, and of the weights unless open_clip or timm fetch them."""
    pretrained = getattr(cfg, "pretrained", "")
    files = {
        "descriptions": [Path(getattr(cfg, "descriptions", ""))],
        "weights": [
            *(Path(name) for name in (pretrained, pretrained.partition("=")[2])),  # FILE or TAG=FILE
            *model_files(cfg.backbone),
        ],
    }
    return {
        what: file_hash(*there)[:8] for what, paths in files.items() if (there := [p for p in paths if p.is_file()])
    }


def backbone_name(cfg: SimpleNamespace) -> str:
    """The backbone as part of a folder name. Of a path, the last component is used."""
    return slug(Path(cfg.backbone).name if Path(cfg.backbone).exists() else cfg.backbone)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and peak memory, for the summary."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    out: dict[str, Any] = {"device": f"{device} ({name}, {os.cpu_count()} cores)", "threads": torch.get_num_threads()}
    out["processes"] = world_size()
    out["peak_memory_gb"] = round(peak_gb(), 2)
    if device.type == "cuda":
        out["peak_cuda_memory_gb"] = round(peak_gb(device), 2)
    packages = {"torch": "torch", "open_clip": "open_clip_torch", "numpy": "numpy"}
    out["versions"] = {"python": platform.python_version()} | {k: version(v) for k, v in packages.items()}
    return out


def seed_folder(cfg: SimpleNamespace, place: str) -> Path:
    """The folder of all runs of one data set, noise and seed. place: `<dataset>/<noise>`."""
    return Path(cfg.output_dir) / place / f"seed{cfg.seed}"


class Run:
    """One run: its folder, settings, history and summary.

    place: `<dataset>/<noise>`, see Dataset.place.
    name: of the run's folder.
    identity: {what: hash} of the data that the run uses.

    `history` holds the lines of log.jsonl, one dict per epoch. `summary` is empty until the run is finished; a Run on the
    folder of a finished run with the same settings and identity reads it. Other settings or data raise a UserError that
    names the difference.

    An unfinished run is locked, so that no second process works in its folder. Apart from the lock, nothing is written
    before the first epoch is complete, and files are written atomically.
    """

    def __init__(self, cfg: SimpleNamespace, place: str, name: str, identity: dict[str, str]) -> None:
        self.cfg, self.device = cfg, pick_device(cfg)
        self.seed_folder = seed_folder(cfg, place)
        self.folder = self.seed_folder / (f"{name}-{slug(cfg.tag)}" if cfg.tag else name)
        self.score = getattr(cfg, "score", "")  # only detectors have it
        if self.score:  # a finished detector scores other labels
            self.folder /= f"score-{slug(Path(self.score).name)}"
        there = next(p for p in self.folder.absolute().parents if p.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise UserError(f"output_dir: {there} is not writable.")
        self.history: list[dict[str, Any]] = []
        self.code = this_code()  # which may be edited before the run has finished
        self.identity, self.events, self.lock = {**identity, **own_files(cfg)}, None, None
        self.began = time.monotonic()  # of the epoch that is running
        if cfg.tensorboard:
            summary_writer()  # fail before training and not after the first epoch
        self._settle_precision()
        if (self.folder / "config.yaml").is_file():
            self._check_same_settings()
        if not (self.folder / "summary.json").is_file() and rank() == 0:
            # before the summary is read: another process may just have written it
            self.lock = lock(Path(cfg.output_dir), self.folder)
        self.summary = read_summary(self.folder / "summary.json")
        if self.summary:
            self._check_same_data(self.summary["identity"])
            print(f"already finished: {self.folder}")
            if code_of(self.summary) != code_of(self.code):
                print(f"made by other code ({code_of(self.summary)}) than that of now ({code_of(self.code)})")
            show(self.summary)
        wait_for_all()  # all processes have seen whether it is finished, before the first can finish it

    def _check_same_data(self, before: Mapping[str, str]) -> None:
        for what, value in self.identity.items():
            if before.get(what) == value or (what in IF_KNOWN and what not in before):
                continue
            changes = ""
            if what == "images":
                changes = listed_changes(Path(self.cfg.output_dir), before.get(what), value)
                changes = changes or ", or was made by an older version"
            if self.score:
                raise UserError(
                    f"score: {self.folder} holds scores of other {what}{changes}. Delete it to score these."
                )
            where = f"used {'another mask' if what == 'mask' else f'other {what}'}{changes}"
            if what in ("labels", "mask") and "mask" in self.identity:
                where += ", or was made before other decisions"
            weights = "pretrained" if getattr(self.cfg, "pretrained", "") not in ("", "none") else "backbone"
            key = {"mask": "mask", "weights": weights, "descriptions": "descriptions"}.get(what, "data_path")
            other_data = f", or {'--name NAME' if self.cfg.dataset == 'own' else '--output_dir DIR'} for other data"
            raise UserError(
                f"{key}: the run {self.folder} {where}. To keep it, use --tag NAME for another run, with {'the data' if key == 'data_path' else key} as now"
                f"{other_data if key == 'data_path' else ''}. To replace it, delete the folder{self._decisions()}."
            )

    def _decisions(self) -> str:
        """For an error message: a warning if deleting the folder would lose decisions (see methods/decisions.py)."""
        path = self.folder / "decisions.jsonl"
        return (
            f", which also deletes your decisions; save {path} elsewhere and pass it to a new report with --decisions"
            * path.is_file()
        )

    def _settle_precision(self) -> None:
        """Resolve `prec: auto` once: to what an unfinished run began with, else to what suits the device."""
        if self.cfg.prec != "auto":
            return
        path, suits = self.folder / "config.yaml", precision(self.device, "auto")
        self.cfg.prec = recorded_settings(path)["prec"] if path.is_file() else suits
        unfinished = not (self.folder / "summary.json").is_file()
        if unfinished and self.cfg.prec not in ("auto", suits):  # auto: recorded by an older version
            print(f"prec: {self.cfg.prec}, as this run began; a new run on this device would use {suits}")

    def _check_same_settings(self) -> None:
        path = self.folder / "config.yaml"
        before, now = recorded_settings(path), vars(self.cfg)
        changed = [k for k in sorted(now) if k not in FREE_KEYS and before.get(k) != now[k]]
        if changed:
            key = changed[0]
            raise UserError(
                f"{key}: the run {self.folder} used {before.get(key)!r}, not {now[key]!r}"
                f"{' (also different: ' + ', '.join(changed[1:]) + ')' if changed[1:] else ''}. To keep it, use --tag NAME "
                f"for another run. To replace it, delete the folder{self._decisions()}."
            )

    def resume(
        self, model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Load the last checkpoint, if any. Returns the next epoch, counted from 1, and the content of the checkpoint."""
        path, self.began = self.folder / "checkpoint.pt", time.monotonic()
        if not path.is_file():
            return 1, {}
        saved = load_checkpoint(path, model, optimizer, scaler)
        self._check_same_data(saved["identity"])
        self._go_on_with(saved.get("code", code_of(self.code)))
        self.history = saved["history"]
        if rank() == 0:
            self._write_log()  # a kill between checkpoint and log leaves the log one line short
        print(f"resuming after epoch {len(self.history)}: {self.folder}")
        return len(self.history) + 1, saved

    def _go_on_with(self, before: str) -> None:
        """Record that the epochs so far were trained with the code `before`, if it is not that of now, and say so."""
        now = code_of(self.code)
        parts = dict.fromkeys([*before.split(", "), now])
        if len(parts) > 1:
            print(f"begun with other code ({before}) than that of now ({now}), with which it goes on")
            self.code["code"] = ", ".join(parts)

    def _write_settings(self) -> None:
        if not (self.folder / "config.yaml").is_file():
            settings = {key: value for key, value in vars(self.cfg).items() if key != "script"}
            write_text(self.folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    def _write_log(self) -> None:
        write_text(self.folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in self.history))

    def end_epoch(
        self,
        line: dict[str, Any],
        model: nn.Module,
        optimizer: Optimizer,
        scaler: torch.amp.GradScaler | None = None,
        **extra: Any,
    ) -> None:
        """Record an epoch. The checkpoint, which contains the log, is written first."""
        self.history.append(line)
        if rank() > 0:
            return
        self._write_settings()
        save_checkpoint(
            self.folder / "checkpoint.pt",
            model,
            optimizer,
            scaler,
            identity=self.identity,
            code=code_of(self.code),
            history=json.dumps(self.history),
            **extra,
        )
        self._write_log()
        if self.cfg.tensorboard:
            if self.events is None:  # purge_step hides what an interrupted epoch wrote
                self.events = summary_writer()(str(self.folder / "tensorboard"), purge_step=line["epoch"])
            write_epoch(self.events, line)
        now, left = time.monotonic(), self.cfg.epochs - line["epoch"]
        to_go = f"; about {in_time(left * (now - self.began))} to go" if left else ""
        self.began = now
        print(f"epoch {line['epoch']}/{self.cfg.epochs}: {in_words(line)}{to_go}", flush=True)

    def accuracies(self) -> dict[str, float]:
        """acc_last and acc_best: test accuracy in per cent; acc_<name>_last and acc_<name>_best for further test sets."""
        out: dict[str, float] = {}
        for key in [key for key in (self.history[:1] or [{}])[0] if key.startswith("acc_")]:
            accs, short = [line[key] for line in self.history], "acc" if key == "acc_test" else key
            out |= {f"{short}_last": accs[-1], f"{short}_best": max(accs)}
        return out

    def finish(self, facts: dict[str, Any], numbers: dict[str, Any], tables: dict[str, list]) -> dict[str, Any]:
        """Write and return the summary: `facts` about the data, `numbers`, run time and environment.

        tables: {file name: rows}, written as CSV files beside summary.json.
        """
        cfg, history = self.cfg, self.history
        summary = {
            "name": str(self.folder.relative_to(self.seed_folder)),
            "script": cfg.script,
            "seed": cfg.seed,
            "backbone": cfg.backbone,
            "identity": self.identity,
            **facts,
            **numbers,
        }
        if history:
            seconds = sum(line["seconds"] for line in history)
            summary |= {
                "epochs": len(history),
                "seconds": round(seconds, 2),
                "images_per_second": round(sum(line["images"] for line in history) / max(seconds, 1e-9), 1),
            }
            summary |= self.accuracies()
        self.summary = with_checksum(
            summary | {"prec": precision(self.device, cfg.prec), **environment(self.device), **self.code}
        )
        if rank() == 0:
            self._write_settings()
            for name, rows in tables.items():
                write_csv(self.folder / name, rows)
            write_summary(self.folder / "summary.json", self.summary)
        self.lock = None
        wait_for_all()  # other processes may read the files next
        show(self.summary)
        print(f"results: {self.folder}")
        return self.summary


def show(summary: dict[str, Any]) -> None:
    """Print the verdict of a summary, if it has one, and its main numbers."""
    if "verdict" in summary:
        print(verdict_line(summary))
    shown = {k: v for k, v in summary.items() if not k.startswith("acc_") or k in ("acc_last", "acc_best")}
    if "epochs" not in summary and "acc_last" in shown and shown["acc_last"] == shown.get("acc_best"):  # no training
        kind = "acc_zero_shot" if summary.get("script") == "main_detect" else "acc_test"
        shown[kind] = shown.pop("acc_last")
        del shown["acc_best"]
    print(in_words(shown))
    if "acc_last" in summary and "noise_rate" not in summary and {"held_out", "all_judged"} & summary.keys():
        print("test accuracy: by the given labels of the images held out, some of which may be wrong, too")


def in_words(numbers: Mapping[str, Any]) -> str:
    """The main numbers of an epoch or a summary as one line for the screen."""
    known = [(text, numbers.get(k), 100 if k in FRACTIONS else 1) for k, text in WORDS.items()]
    others = [k for k in numbers if k.startswith("acc_") and k not in WORDS]
    known += [(f"accuracy on {k.removeprefix('acc_')} {{:.2f}} %", numbers[k], 1) for k in others]
    return ", ".join(text.format(factor * value) for text, value, factor in known if isinstance(value, float))
