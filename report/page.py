"""The report of a detector's run: `python -m report.page RUN` writes into the run's folder

report.html      one page to read and to review the suspects with, without a network
suspects.png     the first suspects as a picture
suspects.csv, labels_clean.csv, labels_fixed.csv      see docs/own-images.md

    python -m report.page runs/digits/sym-0.4/seed0/deft --relabel_above 0.9
"""

from pathlib import Path

from report.flags import add_run_flags, command_parser
from utils.config import parse_flags
from utils.start import run_main


def main(argv: list[str] | None = None) -> None:
    """Write the report of one run into its folder."""
    parser = command_parser("page", __doc__)
    add_run_flags(parser)
    args = parse_flags(parser, argv)
    from methods.decisions import UNDECIDED
    from report.pictures import draw_suspects
    from report.render import heading, label_sections, other_sections, page_html
    from report.similar import find_features
    from report.suspects import fixed_labels, read_run, say_differing_copies, write_labels, write_suspects
    from utils.files import write_text

    cfg, arrays, data, summary = read_run(args.run, args.data_path, args.decisions)
    folder = Path(args.run)
    features = find_features(folder, data)
    sections = label_sections(data, arrays, args.relabel_above)
    sections += other_sections(folder, cfg, data, arrays, summary, features)
    write_suspects(folder, data, arrays)
    write_labels(folder, data, arrays, args.relabel_above)
    draw_suspects(data, arrays, folder / "suspects.png", heading(summary, arrays))
    write_text(folder / "report.html", page_html(folder, data, arrays, summary, sections, features))
    new = int((fixed_labels(arrays, args.relabel_above)[1] & arrays["there"] & (arrays["decision"] == UNDECIDED)).sum())
    say_differing_copies(data, arrays)
    print(
        f"all suspects, worst first: {folder / 'suspects.csv'}\n"
        f"labels to train on: {folder / 'labels_clean.csv'}, {folder / 'labels_fixed.csv'}"
        f"{f' (in which the detector alone has changed {new}; look at some first)' if new else ''}\n"
        f"to review: {folder / 'report.html'}, or python -m report.review {folder}"
    )


if __name__ == "__main__":
    run_main(main)
