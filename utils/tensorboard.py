"""Write the epochs of a run for TensorBoard, an optional package."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError


def summary_writer() -> Any:
    """torch.utils.tensorboard.SummaryWriter. Raises UserError if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "tensorboard: the package is not installed; pip install -r requirements-optional.txt."
        ) from None
    return SummaryWriter


def write_epoch(writer: Any, line: dict[str, Any]) -> None:
    """Write one line of log.jsonl: its numbers and the histograms of p_clean (bins of equal width in [0, 1])."""
    for key, value in line.items():
        if isinstance(value, float):
            writer.add_scalar(key, value, line["epoch"])
    for name, counts in line.get("p_clean", {}).items():
        edges = np.linspace(0, 1, len(counts) + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        sums = {"sum": float(np.dot(counts, middles)), "sum_squares": float(np.dot(counts, middles**2))}
        spread = {"min": 0.0, "max": 1.0, "num": sum(counts), **sums}
        limits = {"bucket_limits": edges[1:].tolist(), "bucket_counts": counts}
        writer.add_histogram_raw(f"p_clean/{name}", **spread, **limits, global_step=line["epoch"])
    writer.flush()


def write_epochs(folder: str | Path, log: Iterable[dict[str, Any]]) -> None:
    """Write all epochs of a log."""
    writer = summary_writer()(str(folder), purge_step=1)  # hides earlier events
    for line in log:
        write_epoch(writer, line)
    writer.close()
