"""A run's folder, <output_dir>/<dataset>/<noise>/seed<k>/<name>/: config.yaml, log.jsonl, summary.json, checkpoint.pt."""
import json
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch
import yaml

from utils.checkpoint import (
    label_hash,
    load_checkpoint,
    save_checkpoint,
    save_mask,
    write_csv,
    write_text,
)
from utils.config import UserError, default_values
from utils.distributed import rank, wait_for_all, world_size
from utils.engine import precision
from utils.memory import peak_gb
from utils.selection import detection_quality
from utils.suspects import write_scores

# where and on what a run is made, not what it is: may change between start and resume
FREE_KEYS = {"device", "gpuid", "num_workers", "cache_gb", "output_dir", "data_path", "model", "score", "micro_batch",
             "checkpoint_text", "compile", "download", "check_data"}
FRACTIONS = ("noise_rate", "precision", "recall", "f1", "auroc", "auprc_mislabelled", "selected")


def slug(text):
    """A name that is safe as a folder: ViT-B/16 -> ViT-B-16."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in str(text)).strip("-.")


def backbone_name(cfg):
    """The backbone as part of a folder name; of a folder or file, its last part."""
    return slug(Path(cfg.backbone).name if Path(cfg.backbone).exists() else cfg.backbone)


def pick_device(cfg):
    """torch.device from `device` and `gpuid`; a gpuid in a YAML falls back to the CPU where there is no CUDA."""
    wanted = cfg.device
    if world_size() > 1 and wanted in ("auto", "cuda"):
        wanted = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    if wanted == "auto":
        if cfg.gpuid >= 0 and not torch.cuda.is_available():
            print(f"gpuid {cfg.gpuid}: no CUDA here, running on the CPU")
        mps = torch.backends.mps.is_available()
        wanted = f"cuda:{max(cfg.gpuid, 0)}" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(wanted)
        device = torch.empty(1, device=device).device  # cuda is cuda:0 from here on
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("not one of auto, cpu, cuda, cuda:1, mps")
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {wanted} cannot be used here ({str(error).splitlines()[0]}); "
                        "auto takes what there is.") from None
    return device


def torch_generator(seed, purpose):
    """A CPU generator of its own for one purpose (initial values, …)."""
    return torch.Generator().manual_seed(int(np.random.default_rng([seed, 7, purpose]).integers(2**62)))


def git_commit():
    """The commit of this checkout, with + behind it where files differ, or None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        rev = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return rev.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def environment(device):
    """Versions, device and peak memory, for the summary."""
    import open_clip
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    out = {"device": f"{device} ({name}, {os.cpu_count()} cores)", "peak_memory_gb": round(peak_gb(), 2)}
    if device.type == "cuda":
        out["peak_cuda_memory_gb"] = round(peak_gb(device), 2)
    out["versions"] = {"python": platform.python_version(), "torch": torch.__version__,
                       "open_clip": open_clip.__version__, "numpy": np.__version__}
    out["git_commit"] = git_commit()
    return out


def seed_folder(cfg, data):
    """Where all runs of one data set, noise and seed lie."""
    return Path(cfg.output_dir) / slug(cfg.dataset) / slug(data.noise_name) / f"seed{cfg.seed}"


class Run:
    """One run; `mask` (N,) bool is the selection it trains on, if any.

    Nothing is written before its first epoch is done; what is written is whole.

    `history` holds the lines of log.jsonl, one dict an epoch. Opening the folder of a finished run with the same
    settings, images, labels and mask gives its `summary`; with other ones it is refused, naming what differs.
    """

    def __init__(self, cfg, data, name, mask=None):
        self.cfg, self.device = cfg, pick_device(cfg)
        self.folder = seed_folder(cfg, data) / (f"{name}-{slug(cfg.tag)}" if cfg.tag else name)
        if cfg.score:  # a detector on other labels than those it was made from
            self.folder /= f"score-{slug(Path(cfg.score).name)}"
        there = next(p for p in self.folder.absolute().parents if p.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise UserError(f"output_dir: {there} cannot be written to.")
        self.history, self.summary = [], None
        self.identity = {"images": data.fingerprint, "labels": label_hash(data.train.labels)}
        self.identity |= {} if mask is None else {"mask": label_hash(mask)}
        if (self.folder / "config.yaml").is_file():
            self._check_same_settings()
        if (self.folder / "summary.json").is_file():
            self.summary = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
            self._check_same_data(self.summary["identity"])
            print(f"finished before: {self.folder}")

    def _check_same_data(self, before):
        for what, value in self.identity.items():
            if before.get(what) != value and self.cfg.score:
                raise UserError(f"score: {self.folder} holds the scores of other {what}; delete it to score these.")
            if before.get(what) != value:
                raise UserError(f"{'mask' if what == 'mask' else 'data_path'}: the run {self.folder} was made with other "
                                f"{what}. --output_dir DIR keeps the runs of other data apart, --tag NAME another run of "
                                "these; deleting the folder makes it anew.")

    def _check_same_settings(self):
        path = self.folder / "config.yaml"
        before, now = {**default_values(), **yaml.safe_load(path.read_text(encoding="utf-8"))}, vars(self.cfg)
        changed = [k for k in sorted(before.keys() | now.keys())
                   if k not in FREE_KEYS and before.get(k) != now.get(k)]
        if changed:
            key = changed[0]
            raise UserError(f"{key}: the run {self.folder} was made with {before.get(key)!r}, not {now.get(key)!r}"
                            f"{' (also ' + ', '.join(changed[1:]) + ')' if changed[1:] else ''}. --tag NAME makes "
                            "another run beside it; deleting the folder makes it anew.")

    def resume(self, model, optimizer, scaler=None):
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

    def _write_settings(self):
        if not (self.folder / "config.yaml").is_file():
            write_text(self.folder / "config.yaml", yaml.safe_dump(vars(self.cfg), sort_keys=False, allow_unicode=True))

    def _write_log(self):
        write_text(self.folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in self.history))

    def end_epoch(self, line, model, optimizer, scaler=None, **extra):
        """Record an epoch: the checkpoint first, since it holds the log as well."""
        self.history.append(line)
        if rank() > 0:
            return
        self._write_settings()
        save_checkpoint(self.folder / "checkpoint.pt", model, optimizer, scaler, identity=self.identity,
                        history=json.dumps(self.history), **extra)
        self._write_log()
        print(f"epoch {line['epoch']}/{self.cfg.epochs}: {in_words(line)}", flush=True)

    def save_selection(self, data, mask, p_clean, predicted, confidence):
        """Write clean_mask.npz, (N,) numpy arrays each, and the same as CSV; returns what the summary says of it."""
        labels = data.train.labels
        if rank() == 0:
            write_scores(self.folder, data, {"mask": mask, "p_clean": p_clean, "predicted": predicted,
                                             "confidence": confidence, "labels": labels})
            save_mask(self.folder / "clean_mask.npz", mask, p_clean, predicted, confidence, labels,
                      dataset=self.cfg.dataset, noise=data.noise_name, seed=self.cfg.seed)
        quality = {}
        if data.true_labels is not None:
            quality = detection_quality(mask, p_clean, data.true_labels == labels)
        return {**quality, "selected": float(mask.mean())}

    def say_where(self):
        """Print where the suspects of a detector's run lie, and what to do next."""
        print(f"suspects, worst first: {self.folder / 'suspects.csv'}\n"
              f"to look at them: python -m utils.report {self.folder}")

    def finish(self, data, numbers):
        """Write summary.json: `numbers`, what the data were, and where and how long the run was made."""
        cfg, history = self.cfg, self.history
        summary = {"name": str(self.folder.relative_to(seed_folder(cfg, data))), "dataset": cfg.dataset,
                   "noise": data.noise_name, "seed": cfg.seed, "backbone": cfg.backbone, "identity": self.identity,
                   **noise_facts(data), **numbers}
        if history:
            seconds = sum(line["seconds"] for line in history)
            summary |= {"epochs": len(history), "seconds": round(seconds, 2),
                        "images_per_second": round(sum(line["images"] for line in history) / max(seconds, 1e-9), 1)}
            for name in [*(["test"] if data.test else []), *data.more_tests]:
                accs, short = [line[f"acc_{name}"] for line in history], "acc" if name == "test" else f"acc_{name}"
                summary |= {f"{short}_last": accs[-1], f"{short}_best": max(accs)}
        if data.skipped:
            summary["skipped"] = len(data.skipped)
        summary |= {"prec": precision(self.device, cfg.prec), **environment(self.device)}
        self.summary = summary
        if rank() == 0:
            self._write_summary(data)
        wait_for_all()  # another run of these processes may read it
        return summary

    def _write_summary(self, data):
        self._write_settings()
        if data.skipped:
            write_csv(self.folder / "skipped.csv", [("path", "reason"), *data.skipped.items()])
        if data.duplicates:
            write_csv(self.folder / "duplicates.csv", [("group", "path", "label", "labels_differ"), *data.duplicates])
        lines = ",\n ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in self.summary.items())  # one line a key
        write_text(self.folder / "summary.json", f"{{\n {lines}\n}}\n")


def noise_facts(data):
    """Sizes, and the realised noise rate where the truth is known."""
    facts = {"num_train": len(data.train.labels), "num_test": len(data.test.labels) if data.test else 0,
             "num_classes": data.num_classes}
    if data.true_labels is not None:
        facts["noise_rate"] = float(np.mean(data.true_labels != data.train.labels))
        counts = np.zeros((data.num_classes, data.num_classes), dtype=np.int64)
        np.add.at(counts, (data.true_labels, data.train.labels), 1)
        facts["noise_counts"] = counts.tolist()  # [true][given]
    return facts


def show(summary):
    """Print the numbers of a summary that people look for."""
    keys = (*FRACTIONS, "acc_last", "acc_best", "seconds")
    print(in_words({k: summary.get(k) for k in keys}))


def in_words(numbers):
    """Numbers for the screen, where all parts are per cent, as in the tables; files hold some as fractions."""
    return ", ".join(f"{k} {100 * v if k in FRACTIONS else v:.4g}" for k, v in numbers.items() if isinstance(v, float))
