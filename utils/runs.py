"""A run's folder, <output_dir>/<dataset>/<noise>/seed<k>/<name>/: config.yaml, log.jsonl, summary.json, checkpoint.pt."""

import json
import os
import platform
import subprocess
import tomllib
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
from utils.config import UserError, default_values
from utils.device import pick_device, precision
from utils.distributed import rank, wait_for_all
from utils.files import listed_changes, slug, write_csv, write_text
from utils.lock import lock
from utils.memory import peak_gb
from utils.summaries import read_summary, verdict_line, with_checksum, write_summary
from utils.tensorboard import summary_writer, write_epoch

# where and on what a run is made, not what it is: may change between start and resume
FREE_KEYS = {
    "device",
    "gpuid",
    "num_workers",
    "cache_gb",
    "output_dir",
    "data_path",
    "name",
    "model",
    "score",
    "mask",
    "micro_batch",
    "checkpoint_text",
    "compile",
    "download",
    "check_data",
    "tensorboard",
    "script",
}
# what the screen says of a number; of those that are fractions, per cent, as in the tables
FRACTIONS = ("noise_rate", "precision", "recall", "f1", "auroc", "auprc_mislabelled", "selected")
WORDS = {
    "loss": "loss {:.4g}",
    "noise_rate": "{:.1f} % of the labels are wrong",
    "selected": "{:.1f} % of the labels kept",
    "precision": "{:.1f} % of those kept are right",
    "recall": "{:.1f} % of the right ones are kept",
    "f1": "F1 {:.1f} %",
    "auroc": "AUROC {:.1f} %",
    "auprc_mislabelled": "AUPRC of the wrong labels {:.1f} %",
    "acc_test": "test accuracy {:.2f} %",
    "acc_last": "test accuracy {:.2f} % at the end",
    "acc_best": "{:.2f} % at its best",
    "seconds": "{:.1f} s",
}


def backbone_name(cfg: SimpleNamespace) -> str:
    """The backbone as part of a folder name; of a folder or file, its last part."""
    return slug(Path(cfg.backbone).name if Path(cfg.backbone).exists() else cfg.backbone)


def git_commit() -> str | None:
    """The commit of this checkout, with + behind it where files differ, or None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        rev = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return rev.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def project_version() -> str:
    """The version that pyproject.toml gives this project."""
    return tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and peak memory, for the summary."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    out = {"device": f"{device} ({name}, {os.cpu_count()} cores)", "peak_memory_gb": round(peak_gb(), 2)}
    if device.type == "cuda":
        out["peak_cuda_memory_gb"] = round(peak_gb(device), 2)
    packages = {"torch": "torch", "open_clip": "open_clip_torch", "numpy": "numpy"}
    out["versions"] = {"python": platform.python_version()} | {k: version(v) for k, v in packages.items()}
    out |= {"version": project_version(), "git_commit": git_commit()}
    return out


def seed_folder(cfg: SimpleNamespace, place: str) -> Path:
    """Where all runs of one data set, noise and seed lie; place is `<dataset>/<noise>`."""
    return Path(cfg.output_dir) / place / f"seed{cfg.seed}"


class Run:
    """One run: its folder, settings, record of epochs and summary.

    It is locked until it is finished or the Run is gone: another process with the same folder is refused.
    place: `<dataset>/<noise>`, see Dataset.place; identity: {what: hash} of the data that the run is made with. Nothing but
    the lock is written before its first epoch is done; what is written is whole.

    `history` holds the lines of log.jsonl, one dict an epoch. Opening the folder of a finished run with the same settings
    and identity gives its `summary`; with other ones it is refused, naming what differs.
    """

    def __init__(self, cfg: SimpleNamespace, place: str, name: str, identity: dict[str, str]) -> None:
        self.cfg, self.device = cfg, pick_device(cfg)
        self.seed_folder = seed_folder(cfg, place)
        self.folder = self.seed_folder / (f"{name}-{slug(cfg.tag)}" if cfg.tag else name)
        self.score = getattr(cfg, "score", "")  # only detectors have it
        if self.score:  # a detector on other labels than those it was made from
            self.folder /= f"score-{slug(Path(self.score).name)}"
        there = next(p for p in self.folder.absolute().parents if p.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise UserError(f"output_dir: {there} cannot be written to.")
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] | None = None
        self.identity, self.events, self.lock = identity, None, None
        if cfg.tensorboard:
            summary_writer()  # fails before training rather than after its first epoch
        if (self.folder / "config.yaml").is_file():
            self._check_same_settings()
        if not (self.folder / "summary.json").is_file() and rank() == 0:
            self.lock = lock(Path(cfg.output_dir), self.folder)  # before looking again: it may just have been finished
        self.summary = read_summary(self.folder / "summary.json")
        if self.summary:
            self._check_same_data(self.summary["identity"])
            print(f"finished before: {self.folder}")
            show(self.summary)

    def _check_same_data(self, before: Mapping[str, str]) -> None:
        for what, value in self.identity.items():
            if before.get(what) == value:
                continue
            changes = listed_changes(Path(self.cfg.output_dir), before.get(what), value) if what == "images" else ""
            if self.score:
                raise UserError(
                    f"score: {self.folder} holds the scores of other {what}{changes}; delete it to score these."
                )
            decided = ", or before other decisions" if what != "images" and "mask" in self.identity else ""
            made = f"the run {self.folder} was made with {'another' if what == 'mask' else 'other'} {what}{changes}{decided}."
            anew = f"deleting the folder makes it anew{self._decisions()}"
            if what == "mask":
                raise UserError(f"mask: {made} --tag NAME makes another run beside it; {anew}.")
            raise UserError(
                f"data_path: {made} {'--name NAME' if self.cfg.dataset == 'own' else '--output_dir DIR'} keeps the runs of "
                f"other data apart, --tag NAME another run of these; {anew}."
            )

    def _decisions(self) -> str:
        """What deleting the folder would lose, for an error: what a person decided (see methods/decisions.py)."""
        path = self.folder / "decisions.jsonl"
        return f", but loses what you decided; --decisions {path} gives it to a new run's report" * path.is_file()

    def _check_same_settings(self) -> None:
        path = self.folder / "config.yaml"
        before, now = {**default_values(), **yaml.safe_load(path.read_text(encoding="utf-8"))}, vars(self.cfg)
        changed = [k for k in sorted(now) if k not in FREE_KEYS and before.get(k) != now[k]]
        if changed:
            key = changed[0]
            raise UserError(
                f"{key}: the run {self.folder} was made with {before.get(key)!r}, not {now[key]!r}"
                f"{' (also ' + ', '.join(changed[1:]) + ')' if changed[1:] else ''}. --tag NAME makes "
                f"another run beside it; deleting the folder makes it anew{self._decisions()}."
            )

    def resume(
        self, model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Load the last checkpoint, if any. Returns the epoch to go on with, from 1, and what was saved with it."""
        path = self.folder / "checkpoint.pt"
        if not path.is_file():
            return 1, {}
        saved = load_checkpoint(path, model, optimizer, scaler)
        self._check_same_data(saved["identity"])
        self.history = json.loads(saved["history"])
        if rank() == 0:
            self._write_log()  # a kill between checkpoint and log leaves the log a line short
        print(f"going on after epoch {len(self.history)}: {self.folder}")
        return len(self.history) + 1, saved

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
        """Record an epoch: the checkpoint first, since it holds the log as well."""
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
            history=json.dumps(self.history),
            **extra,
        )
        self._write_log()
        if self.cfg.tensorboard:
            if self.events is None:  # what an interrupted epoch wrote is hidden
                self.events = summary_writer()(str(self.folder / "tensorboard"), purge_step=line["epoch"])
            write_epoch(self.events, line)
        print(f"epoch {line['epoch']}/{self.cfg.epochs}: {in_words(line)}", flush=True)

    def accuracies(self) -> dict[str, float]:
        """acc_last and acc_best, in per cent, of the epochs' test accuracies; acc_<name>_last … of further test sets."""
        out: dict[str, float] = {}
        for key in [key for key in (self.history[:1] or [{}])[0] if key.startswith("acc_")]:
            accs, short = [line[key] for line in self.history], "acc" if key == "acc_test" else key
            out |= {f"{short}_last": accs[-1], f"{short}_best": max(accs)}
        return out

    def finish(self, facts: dict[str, Any], numbers: dict[str, Any], tables: dict[str, list]) -> dict[str, Any]:
        """Write summary.json: `facts` of the data, `numbers`, and where and how long the run was made; returns it.

        tables: {file name: rows}, written beside it as CSV.
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
        self.summary = with_checksum(summary | {"prec": precision(self.device, cfg.prec), **environment(self.device)})
        if rank() == 0:
            self._write_settings()
            for name, rows in tables.items():
                write_csv(self.folder / name, rows)
            write_summary(self.folder / "summary.json", self.summary)
        self.lock = None
        wait_for_all()  # another run of these processes may read it
        show(self.summary)
        print(f"results: {self.folder}")
        return self.summary


def show(summary: dict[str, Any]) -> None:
    """Print the verdict of a summary, if it is of a detector, and the numbers that people look for."""
    if "verdict" in summary:
        print(verdict_line(summary))
    print(in_words({k: v for k, v in summary.items() if not k.startswith("acc_") or k in ("acc_last", "acc_best")}))


def in_words(numbers: Mapping[str, Any]) -> str:
    """A line for the screen of an epoch's numbers or of a summary; further ones are in their files."""
    known = [(text, numbers.get(k), 100 if k in FRACTIONS else 1) for k, text in WORDS.items()]
    others = [k for k in numbers if k.startswith("acc_") and k not in WORDS]
    known += [(f"accuracy on {k.removeprefix('acc_')} {{:.2f}} %", numbers[k], 1) for k in others]
    return ", ".join(text.format(factor * value) for text, value, factor in known if isinstance(value, float))
