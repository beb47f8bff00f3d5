"""`gpg-vl report RUN [OTHER_RUN]`: the page of a run as a file, or served during the run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gpg_vl.console import say
from gpg_vl.errors import UserError

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

PORT = 8765


def add_command(commands: "_Commands") -> None:
    """Add `report` to the command line."""
    report = commands.add_parser(
        "report",
        help="write report.html: the curves, answers and evaluations of a run on one page",
        description="Write RUN/report.html: one file that needs no network. With OTHER_RUN the page shows both.",
    )
    report.add_argument(
        "run_folder", type=Path, metavar="RUN", help="a run folder, output.folder of its config"
    )
    report.add_argument(
        "other", type=Path, nargs="?", metavar="OTHER_RUN", help="a run to compare it with"
    )
    report.add_argument(
        "--output", type=Path, metavar="FILE", help="write the page to this file instead"
    )
    report.add_argument(
        "--live",
        action="store_true",
        help="serve the page on this machine during the run; Ctrl-C ends it",
    )
    report.add_argument(
        "--port", type=_port, default=PORT, help="of --live, 0 for a free one (default %(default)s)"
    )
    report.set_defaults(run=_report)


def _port(word: str) -> int:
    number = int(word)
    if not 0 <= number < 2**16:
        raise argparse.ArgumentTypeError(f"{word} is not a port; give a number from 0 to 65535")
    return number


def _report(arguments: argparse.Namespace) -> int:
    if arguments.live:
        if arguments.output is not None:
            raise UserError(
                "--live serves the page and writes no file. Leave --output out, or --live."
            )
        return _serve(arguments.run_folder, arguments.other, arguments.port)

    from gpg_vl.report.page import write_report

    try:
        file = write_report(arguments.run_folder, arguments.other, arguments.output)
    except OSError as error:
        raise UserError(
            f"The page cannot be written: {error}. Name another file with --output."
        ) from None
    say(f"wrote {file}")
    return 0


def _serve(folder: Path, other: Path | None, port: int) -> int:
    from gpg_vl.report.folder import read_run
    from gpg_vl.report.live import HOST, Pages, make_server, stamp
    from gpg_vl.report.page import render

    folders = [folder] if other is None else [folder, other]

    def make() -> str:
        return render(*(read_run(one) for one in folders), live=True)

    pages = Pages(make, lambda: " ".join(map(stamp, folders)))

    # report a folder without a run here, and not in the browser
    pages.page()
    with make_server(pages, port) as server:
        say(f"http://{HOST}:{server.server_address[1]}/  (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say()
    return 0
