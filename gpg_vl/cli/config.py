"""`gpg-vl config`: list every key with its meaning, or print a config with its defaults filled
in."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gpg_vl.console import say

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(commands: "_Commands") -> None:
    config = commands.add_parser(
        "config", help="list every config key, or print a config with its defaults filled in"
    )
    config.add_argument("config", type=Path, nargs="?")
    config.add_argument("overrides", nargs="*", metavar="section.key=value")
    config.set_defaults(run=_config)


def _config(arguments: argparse.Namespace) -> int:
    from gpg_vl.config import describe_keys, dump_config, load_config

    if arguments.config is not None:
        say(dump_config(load_config(arguments.config, arguments.overrides)), end="")
    else:
        say(describe_keys())
    return 0
