"""`gpg-vl init DATA`: write a config with comments, guessed from the first rows of a data set."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gpg_vl.console import say
from gpg_vl.errors import UserError

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

HELP = """\
Write a config for a data set by looking at its first rows: which column holds the question, the images and
the gold answer, and which built-in rewards give the gold answers full marks. Comments in the config say what was guessed.

  gpg-vl init data/train.jsonl
  gpg-vl init data/train.parquet --model Qwen/Qwen2.5-VL-3B-Instruct --out my.yaml --columns answer=label"""


def add_command(commands: "_Commands") -> None:
    """Add `init` to the command line."""
    parser = commands.add_parser(
        "init",
        help="write a config for a data set by looking at its first rows",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    # input and output
    parser.add_argument(
        "data", metavar="DATA", help="the data, as for data.train: a file, a folder, datasets:NAME"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("my.yaml"), help="the config (default %(default)s)"
    )

    # what cannot be guessed from the rows
    parser.add_argument(
        "--model",
        default="Qwen/Qwen2-VL-2B-Instruct",
        help="a checkpoint folder or a hub name (default %(default)s)",
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="FIELD=COLUMN",
        help="columns that you want to set yourself, such as answer=label",
    )

    parser.set_defaults(run=_init)


def _init(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    if out.exists():
        raise UserError(
            f"{out} exists already and is not overwritten. Give another file with --out."
        )
    from gpg_vl.scaffold.config_text import guess_from_rows, write_config

    findings = guess_from_rows(arguments.data, _read_columns(arguments.columns))
    text = write_config(findings, model=arguments.model, folder=f"runs/{out.stem}")
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The config cannot be written to {out}: {error}. Give another file with --out."
        ) from None

    say(text, end="")
    say(f"\nwrote {out}; next: gpg-vl data check {out}")
    return 0


def _read_columns(words: list[str]) -> dict[str, str]:
    from gpg_vl.data.read import COMMON_NAMES

    columns = {}
    for word in words:
        field, equals, column = word.partition("=")
        if not equals or not column or field not in COMMON_NAMES:
            raise UserError(
                f"--columns has {word!r}. Write FIELD=COLUMN, where FIELD is one of {', '.join(COMMON_NAMES)}, such as "
                f"answer=label."
            )
        columns[field] = column
    return columns
