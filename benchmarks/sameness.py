"""One seed's clean mask with other threads, precision, processes and caches, and after a kill; memory over many epochs.

python -m benchmarks.sameness
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import main_phase1
from benchmarks.common import digits_folder, report
from utils.runs import Run

FLAGS = (
    "--cfg config/PEFT/own.yaml --name digits --backbone tiny-clip-digits --n_ctx 4 --vpt_len 4 --batch_size 16".split()
)
RUN = "own-digits/none/seed0/deft"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
WAYS = {  # name: threads, flags, how Python is started
    "1 thread, fp32": (1, [], []),
    "the same again": (1, [], []),
    "2 threads": (2, [], []),
    "4 threads": (4, [], []),
    "killed in epoch 2, resumed": (1, [], []),
    "without the cache of images": (1, ["--cache_gb", "0"], []),
    "two processes": (1, [], TORCHRUN),
    "bf16": (1, ["--prec", "bf16"], []),
    "bf16, 2 threads": (2, ["--prec", "bf16"], []),
}


def train(flags, out, threads, start, kill):
    """Run phase 1, killed in its second epoch and given again if `kill`: mask, p_clean and {path: given label}."""
    command = [sys.executable, *start, "main_phase1.py", *flags, "--output_dir", str(out)]
    how = {
        "env": {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"},
        "stdout": subprocess.DEVNULL,
    }
    if kill:
        process, log = subprocess.Popen(command, **how), out / RUN / "log.jsonl"
        while not log.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / RUN / "summary.json").exists()
    subprocess.run(command, check=True, **how)
    with open(out / RUN / "scores.csv", newline="", encoding="utf-8") as file:
        given = {row["path"]: row["given_label"] for row in csv.DictReader(file)}
    with np.load(out / RUN / "clean_mask.npz") as arrays:
        return arrays["mask"], arrays["p_clean"], given


def compare_ways(folder, epochs):
    """A row for each of WAYS, compared with the first."""
    truth = digits_folder(folder / "images", 600)
    flags = [*FLAGS, "--data_path", str(folder / "images"), "--device", "cpu", "--epochs", str(epochs), "--warmup", "1"]
    rows, first = [], None
    for i, (name, (threads, more, start)) in enumerate(WAYS.items()):
        precision = [] if "--prec" in more else ["--prec", "fp32"]
        mask, p_clean, given = train([*flags, *precision, *more], folder / f"runs{i}", threads, start, "killed" in name)
        first = first or (mask, p_clean, given)
        assert [*given.items()] == [*first[2].items()] and len(given) == len(mask)  # the same images, in the same order
        wrong = np.array([truth[str(folder / "images" / path)] != label for path, label in given.items()])
        rows.append(
            {
                "way": name,
                "images": len(mask),
                "masks that differ": int((mask != first[0]).sum()),
                "largest difference of p_clean": float(np.abs(p_clean - first[1]).max()),
                "suspects": int((~mask).sum()),
                "F1 of suspects, %": round(200 * (wrong & ~mask).sum() / (wrong.sum() + (~mask).sum()), 1),
            }
        )
        print(rows[-1], flush=True)
    return rows


def watch_epochs(folder, epochs):
    """Memory and open files of this process after some of the epochs of one training."""
    rows, end_epoch = [], Run.end_epoch

    def watched(self, line, *args, **rest):
        end_epoch(self, line, *args, **rest)
        if line["epoch"] in (1, epochs // 10, epochs // 4, epochs // 2, epochs):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            rows.append(
                {
                    "after epoch": line["epoch"],
                    "memory, MB": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
                    "open files": len(os.listdir("/proc/self/fd")),
                }
            )

    digits_folder(folder / "few", 60)
    Run.end_epoch = watched
    flags = ["--data_path", str(folder / "few"), "--device", "cpu", "--epochs", str(epochs), "--warmup", "1"]
    main_phase1.main([*FLAGS, *flags, "--output_dir", str(folder / "long")])
    Run.end_epoch = end_epoch
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", default="", help="write the figures to this file")
    p.add_argument("--epochs", type=int, default=8, help="of the trainings that are compared")
    p.add_argument("--long", type=int, default=200, help="epochs of the training whose memory is watched")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        epochs = watch_epochs(Path(folder), args.long)
        ways = compare_ways(Path(folder), args.epochs)
    report(epochs, argparse.Namespace(json=""))
    report(ways, args, epochs=epochs)


if __name__ == "__main__":
    main()
