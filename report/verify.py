"""Repeating a finished run from its record."""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from utils.errors import UserError, brief
from utils.summaries import read_log, read_summary

MADE_WITH = "code versions device threads processes".split()  # on which the last digits of a run depend
NOT_COMPARED = {  # of two runs: time, place and machine; class names, which older records lack, are in the identity
    *MADE_WITH,
    *"seconds images_per_second peak_memory_gb peak_cuda_memory_gb git_commit checksum mask class_names".split(),
}


def verify(folder: str | Path) -> list[str]:
    """Repeat a finished run from its record, in a temporary folder, with its number of threads. Returns what differs, one
    line each."""
    folder = Path(folder)
    before = read_summary(folder / "summary.json")
    if not before:
        raise UserError(f"--verify: there is no finished run (summary.json) in {folder}.")
    script, mask = before.get("script"), before.get("mask")
    if not script or not Path(f"{script}.py").is_file():
        raise UserError(f"--verify: {folder} was made by {script or 'an older version'}, which no command repeats.")
    with tempfile.TemporaryDirectory() as out:
        words = [f"{script}.py", "--cfg", str((folder / "config.yaml").resolve()), "--output_dir", out]
        if mask and script != "main_clipcleaner":  # which makes its own
            words += ["--mask", str(Path(mask).resolve()) if Path(mask).is_file() else mask]
        print(f"python {shlex.join(words)}", file=sys.stderr)
        threads = {"OMP_NUM_THREADS": str(before["threads"])} if "threads" in before else {}
        if subprocess.run([sys.executable, *words], env=os.environ | threads, stdout=sys.stderr).returncode:
            raise UserError(f"--verify: {script}.py fails with the settings of {folder}.")
        again = [p.parent for p in Path(out).rglob("summary.json") if read_summary(p)["name"] == before["name"]]
        if not again:
            raise UserError(f"--verify: {script}.py no longer makes a run of the name {before['name']}.")
        return differences(folder, again[0])


def differences(folder: Path, again: Path) -> list[str]:
    """What differs between two runs, one line each: summary except for NOT_COMPARED, epochs, and the arrays of the mask;
    and then what they were made with, as far as it differs.

    Of a verdict, only its level counts: the evidence and the sentence that explain it may be others.
    """
    import numpy as np

    def of_run(folder: Path) -> dict[str, Any]:
        summary = read_summary(folder / "summary.json")
        judged = {"verdict": summary["verdict"]["level"]} if "verdict" in summary else {}
        return {key: value for key, value in summary.items() if key != "evidence"} | judged

    def arrays_of(mask: Path) -> dict[str, Any]:
        try:
            return dict(np.load(mask, allow_pickle=False))
        except Exception as error:  # a damaged zip, objects …
            raise UserError(f"{mask}: not a mask file ({brief(error)}).") from None

    def changed(old: dict[str, Any], new: dict[str, Any], place: str = "") -> list[str]:
        keys = [k for k in dict.fromkeys([*old, *new]) if k not in NOT_COMPARED and old.get(k) != new.get(k)]
        return [f"{place}{key}: {old.get(key)} before, {new.get(key)} now" for key in keys]

    out = changed(of_run(folder), of_run(again))
    logs = read_log(folder), read_log(again)
    if len(logs[0]) != len(logs[1]):
        out.append(f"log.jsonl: {len(logs[0])} epochs before, {len(logs[1])} now")
    for old, new in zip(*logs):
        out += changed(old, new, f"epoch {old['epoch']}, ")
    masks = [f / "clean_mask.npz" for f in (folder, again)]
    if masks[0].is_file() != masks[1].is_file():
        out.append(f"clean_mask.npz: {'missing now' if masks[0].is_file() else 'there now'}")
    elif masks[0].is_file():
        old, new = map(arrays_of, masks)
        for key, array in old.items():
            if key not in new:
                out.append(f"clean_mask.npz, {key}: missing now")
            elif array.shape != new[key].shape:
                out.append(f"clean_mask.npz, {key}: of shape {array.shape} before, {new[key].shape} now")
            elif differ := np.sum(array != new[key]):
                out.append(f"clean_mask.npz, {key}: {differ} of {array.size} differ")
    if out:
        old, new = (read_summary(f / "summary.json") for f in (folder, again))
        made = [key for key in MADE_WITH if old.get(key) != new.get(key)]
        out += [f"made with other {key}: {old.get(key, 'not recorded')} before, {new.get(key)} now" for key in made]
    return out
