"""Flags of the commands in report/. Nothing heavy is imported here: flags are read before PyTorch is."""

import argparse

RELABEL_ABOVE = float("inf")  # a person alone gives new labels: the detector's probability is not calibrated


def command_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m report.<module>`; --help keeps the line breaks of the description."""
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=f"python -m report.{module}", description=description, formatter_class=layout)


def count(text: str) -> int:
    """A type for argparse: a whole number."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, not '{text}'")
    return int(text)


def probability(text: str) -> float:
    """A type for argparse: a number from 0 to 1."""
    try:
        if 0 <= float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, not '{text}'")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """What the commands that use a detector's run have in common."""
    parser.add_argument("run", metavar="RUN", help="folder of a finished detector run")
    parser.add_argument(
        "--relabel_above",
        type=probability,
        default=RELABEL_ABOVE,
        metavar="P",
        help="relabel suspects without a decision if the suggested class has at least this probability, 0 to 1 (default: none)",
    )
    parser.add_argument(
        "--decisions",
        metavar="FILE",
        help="CSV file of decisions saved in the report; the run keeps them (decisions.jsonl) and follows them from then on",
    )
    parser.add_argument("--data_path", metavar="DIR", help="folder of the images, if they have moved since the run")
