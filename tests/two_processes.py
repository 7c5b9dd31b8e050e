"""What test_distributed runs under torchrun: phase 1, phase 2 and baselines on the digits, all in the same processes."""

import os
import sys

import main_baseline
import main_phase1
import main_phase2
import main_small_loss
from dataloader.load import load_data
from tests.helpers import phase1, phase2
from utils.config import load_config
from utils.distributed import wait_for_all, world_size
from utils.runs import Run
from utils.start import run_main


def train(out):
    """One cell; whole batches of 64 of 359 images, so that the last batch is ragged."""
    quick = ["--vpt_len", "4", "--batch_size", "64", "--epochs", "2"]
    return {
        "deft": main_phase1.main(phase1(out, *quick)),
        "phase2": main_phase2.main(phase2(out, *quick, "--mask", "deft")),
        "elr": main_baseline.main(phase2(out, *quick, "--lnl_methods", "ELR")),
        "gmm": main_baseline.main(phase2(out, *quick, "--lnl_methods", "GMM")),
        "turn": main_baseline.main(phase2(out, *quick, "--lnl_methods", "TURN")),
        "small-loss": main_small_loss.main(phase2(out, *quick)),
    }


def train_semi_supervised(out):
    """All images but one in a batch, and one of a single image, of which the second process has none."""
    quick = ["--dataset", "own", "--data_path", str(out), "--test_fraction", "0.2", "--epochs", "1", "--warmup", "0"]
    batch_size = len(load_data(load_config(phase2(out, *quick))).train.labels) - 1
    for method in ("RoLT", "Co-teaching", "UNICON", "ProMix"):
        flags = [*quick, "--batch_size", str(batch_size), "--lnl_methods", method]
        main_baseline.main(phase2(f"{out}-{world_size()}", *flags))


def die_after_the_first_epoch(self, line, *args, **rest):
    end_epoch(self, line, *args, **rest)
    wait_for_all()  # the first has written its checkpoint
    if os.environ["RANK"] == "1":
        os._exit(9)


if __name__ == "__main__":
    if sys.argv[2:] == ["--die"]:
        end_epoch, Run.end_epoch = Run.end_epoch, die_after_the_first_epoch
    run = train_semi_supervised if sys.argv[2:] == ["--semi-supervised"] else train
    run_main(lambda: run(sys.argv[1]))
