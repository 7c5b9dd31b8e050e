"""What test_distributed runs under torchrun: phase 1, phase 2 and baselines on the digits, all in the same processes."""

import os
import sys
import time
from pathlib import Path

import main_baseline
import main_phase1
import main_phase2
import main_small_loss
from dataloader import load
from dataloader.load import load_data
from tests.helpers import phase1, phase2
from utils.config import load_config
from utils.distributed import rank, wait_for_all
from utils.runs import Run
from utils.start import run_main


def train_all(out, data):
    """One cell in whole batches of 64, the last one ragged; then semi-supervised methods with all images but one in a batch,
    and one of a single image, of which the second process has none, as of the only image of their test split.
    """
    few = ["--dataset", "own", "--data_path", str(data), "--test_fraction", "0.2"]
    quick = [*few, "--batch_size", "64", "--epochs", "2"]
    main_phase1.main(phase1(out, *quick, "--vpt_len", "4"))
    main_phase2.main(phase2(out, *quick, "--mask", "deft"))
    load.load_data = lambda cfg: (load_data(cfg), time.sleep(2 * rank()))[0]  # the first could be done by then
    main_phase2.main(phase2(out, *quick, "--mask", "deft", "--adaptation", "none"))
    load.load_data = load_data
    for method in ("ELR", "GMM", "TURN"):
        main_baseline.main(phase2(out, *quick, "--lnl_methods", method))
    main_small_loss.main(phase2(out, *quick))
    quick = [*few[:3], str(data.with_name("one_to_test")), "--epochs", "1", "--warmup", "0"]
    batch_size = len(load_data(load_config(phase2(out, *quick))).train.labels) - 1
    for method in ("RoLT", "Co-teaching", "UNICON", "ProMix"):
        main_baseline.main(phase2(out, *quick, "--batch_size", str(batch_size), "--lnl_methods", method))


def die_after_the_first_epoch(self, line, *args, **rest):
    end_epoch(self, line, *args, **rest)
    wait_for_all()  # the first has written its checkpoint
    if os.environ["RANK"] == "1":
        os._exit(9)


if __name__ == "__main__":
    if sys.argv[3:] == ["--die"]:
        end_epoch, Run.end_epoch = Run.end_epoch, die_after_the_first_epoch
    run_main(lambda: train_all(*map(Path, sys.argv[1:3])))
