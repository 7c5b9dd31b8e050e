"""Review the suspects of a run in a browser: every decision is saved at once in the run's folder, decisions.jsonl.

python -m report.review runs/own-photos/none/seed0/deft

The page is served on this machine only, at an address that nobody can guess. Ctrl-C ends it.
"""

from report.flags import add_run_flags, command_parser, count
from utils.config import parse_flags
from utils.start import run_main


def main(argv: list[str] | None = None) -> None:
    """Serve the page of one run until Ctrl-C."""
    parser = command_parser("review", __doc__)
    add_run_flags(parser)
    parser.add_argument("--port", type=count, default=0, metavar="N", help="port of this machine (default: a free one)")
    args = parse_flags(parser, argv)
    from methods.decisions import Log
    from report.server import Review, serve

    server, address = serve(Review(args.run, args.data_path, args.decisions, args.relabel_above), args.port)
    print(f"open {address} in a browser; Ctrl-C ends the review", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    server.server_close()
    print(f"decisions: {Log(args.run).path}\nto follow them: python -m report.page {args.run}")


if __name__ == "__main__":
    run_main(main)
