"""`gpg-vl eval`: the same as `python -m gpg_vl.eval`."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(commands: "_Commands") -> None:
    evaluate = commands.add_parser(
        "eval",
        help="evaluate a model or a file of predictions",
        add_help=False,
        description="The same as python -m gpg_vl.eval.",
    )
    evaluate.add_argument("rest", nargs=argparse.REMAINDER)


def run(words: Sequence[str]) -> int:
    from gpg_vl.eval.__main__ import main as eval_main

    return eval_main(words, prog="gpg-vl eval")
