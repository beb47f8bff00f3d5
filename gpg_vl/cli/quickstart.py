"""`gpg-vl quickstart`: evaluate, train and evaluate again on a tiny model."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpg_vl.console import make_console, say
from gpg_vl.errors import UserError
from gpg_vl.shipped import shipped_folder

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(commands: "_Commands") -> None:
    quickstart = commands.add_parser(
        "quickstart",
        help="evaluate, train and evaluate again on a tiny model, offline",
        description="Writes a tiny Qwen2-VL base model and drawn scenes, evaluates the base, "
        "trains it with configs/quickstart.yaml, evaluates it again and prints both. Needs no "
        "network and no GPU.",
    )

    # folder and seed
    quickstart.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/quickstart"),
        help="where everything is written (default %(default)s)",
    )
    quickstart.add_argument(
        "--seed",
        type=int,
        default=0,
        help="training data, data order and sampling (default %(default)s)",
    )

    # data and config
    quickstart.add_argument(
        "--train-rows", type=int, default=4000, help="scenes to train on (default %(default)s)"
    )
    quickstart.add_argument(
        "--test-rows", type=int, default=1200, help="held-out scenes (default %(default)s)"
    )
    quickstart.add_argument(
        "--config",
        type=Path,
        default=shipped_folder("configs") / "quickstart.yaml",
        help="default %(default)s",
    )

    # the time at which `make quickstart` began to install
    quickstart.add_argument("--since", type=float, help=argparse.SUPPRESS)

    quickstart.add_argument(
        "--prepare-only", action="store_true", help="write base model and data sets, then stop"
    )
    quickstart.set_defaults(run=_quickstart)


def _quickstart(arguments: argparse.Namespace) -> int:
    from gpg_vl.quickstart.run import prepare, quickstart

    rows = {"train_rows": arguments.train_rows, "test_rows": arguments.test_rows}
    if arguments.prepare_only:
        folder = prepare(arguments.folder, arguments.seed, **rows, console=make_console())
        say(f"wrote {folder}")
        return 0
    if not arguments.config.is_file():
        raise UserError(
            f"There is no config file {arguments.config}. Name one with --config, or leave it out to "
            f"take the one that comes with gpg_vl."
        )

    return quickstart(
        arguments.folder,
        arguments.seed,
        arguments.config,
        make_console(),
        started=arguments.since or time.time(),
        **rows,
    )
