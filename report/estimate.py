"""How many labels of a detector's run are wrong, and how many suspects to look at.

    python -m report.estimate runs/own-photos/none/seed0/auto --review_budget 500
    python -m report.estimate runs/own-photos/none/seed0/auto --decisions decisions.csv --target_precision 0.9

Reviewed labels, in the run or in the file, improve the estimate; a sample spread over the list improves it more than the first
suspects do. If true labels are known, calibration.png in the run's folder shows how well calibrated the probabilities are.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from report.flags import add_run_flags, command_parser, count, probability
from utils.config import parse_flags
from utils.files import write_whole
from utils.start import run_main

if TYPE_CHECKING:
    import numpy as np


def main(argv: list[str] | None = None) -> dict[str | int, Any]:
    """Print the estimates of a run; returns them as a dict."""
    parser = command_parser("estimate", __doc__)
    add_run_flags(parser)
    parser.add_argument(
        "--review_budget",
        type=count,
        metavar="N",
        default=0,
        help="also print the expected precision of the first N suspects",
    )
    parser.add_argument(
        "--target_precision",
        type=probability,
        metavar="P",
        default=0,
        help="print how many suspects to take so that at least this fraction is expected to be wrong",
    )
    flags = parse_flags(parser, argv)
    budget, target = flags.review_budget, flags.target_precision
    from methods.estimates import ADVICE, of_run, of_sample
    from report.suspects import read_run

    _, arrays, data, _ = read_run(flags.run, flags.data_path, flags.decisions)
    found, N = of_run(arrays, data), len(arrays["labels"])
    out: dict[str | int, Any] = {"wrong": found.wrong(), "source": found.source}
    expected, low, high = out["wrong"]
    print(
        f"{expected:,.0f} of {N:,} labels ({100 * expected / N:.1f} %) are expected to be wrong, 90 % interval {low:,.0f} to "
        f"{high:,.0f}, {found.source}"
    )
    if sample := of_sample(arrays):
        wrong, checked, low, high = out["sample"] = sample
        print(
            f"of the sample of all labels, {wrong} of {checked} are wrong: 90 % interval {N * low:,.0f} to {N * high:,.0f} of all "
            "labels, whatever the scores are"
        )
    else:
        print(f"this estimate is {ADVICE} (python -m report.review {flags.run}, under Show)")
    for n in dict.fromkeys(n for n in (100, 500, budget) if 0 < n <= N):
        out[n] = found.wrong_among(n)
        print(f"{found.in_words(n)}; p_clean up to {arrays['p_clean'][found.order[n - 1]]:.3g}")
    if target:
        n = out["suspects"] = found.suspects_for(target)
        print(
            f"{100 * target:g} % or more expected to be wrong: the first {n:,} of the suspects; "
            f"to select just these, run the detector with --review_budget {n} --tag NAME"
            if n
            else f"{100 * target:g} % or more expected to be wrong: no number of suspects"
        )
    known = data.known()
    if known is not None and not found.checked[known[0]].all():
        index, is_clean = (part[~found.checked[known[0]]] for part in known)  # of a decided label, it is certain
        out["calibration_error"] = _draw(Path(flags.run) / "calibration.png", found.p_wrong[index], ~is_clean)
        print(f"calibration error {100 * out['calibration_error']:.1f} %: {Path(flags.run) / 'calibration.png'}")
    return out


def _draw(path: Path, p_wrong: "np.ndarray", is_wrong: "np.ndarray") -> float:
    """Write the calibration curve; returns the expected calibration error."""
    from matplotlib.figure import Figure

    from methods.estimates import calibration

    rows, error = calibration(p_wrong, is_wrong)
    figure = Figure(figsize=(4.5, 4.2), layout="tight")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    axis.plot(*zip(*(row[:2] for row in rows)), marker="o")
    for p, part, n in rows:
        axis.annotate(f"{n:,}", (p, part), textcoords="offset points", xytext=(6, -10), fontsize=8, color="grey")
    axis.set(
        xlabel="estimated chance that a label is wrong", ylabel="part that is wrong", xlim=(0, 1.02), ylim=(0, 1.05)
    )
    axis.set_title(f"calibration error {100 * error:.1f} %; numbers: labels", fontsize=10)
    with write_whole(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return error


if __name__ == "__main__":
    run_main(main)
