"""The command line that every recipe shares.

Exit code 0: the set is complete. 2: the request or the source is wrong, or more rows are broken than allowed. 1: the
folder cannot be written. 130: Ctrl-C. After any stop the same command continues where the last one stopped.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpg_vl.console import escaped_output, guard, make_console, say
from gpg_vl.data.recipe.convert import Made, make
from gpg_vl.data.recipe.recipe import Option, Recipe, Request
from gpg_vl.errors import RunError, UserError
from gpg_vl.prompting import DEFAULT_LIMITS

_SHOWN = 5
_SPLIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def main(recipe: Recipe | Mapping[str, Recipe], argv: Sequence[str] | None = None) -> int:
    """Run a recipe, or the one of several that the first argument names. Returns the exit code."""
    guard()
    with escaped_output():
        arguments = _parser(recipe).parse_args(argv)
    chosen: Recipe = arguments.recipe
    console = make_console(error=True)
    try:
        made = make(chosen, _request(chosen, arguments), console if console.is_terminal else None)
        say(_summary(chosen, made))
        _refuse(made, arguments.allow_broken)
    except UserError as error:
        say(f"{chosen.name}: {error}", error=True)
        return 2
    except RunError as error:
        say(f"{chosen.name}: {error}", error=True)
        return 1
    except KeyboardInterrupt:
        say(f"{chosen.name}: stopped. Run the same command again to continue.", error=True)
        return 130
    return 0


def _parser(recipe: Recipe | Mapping[str, Recipe]) -> argparse.ArgumentParser:
    if isinstance(recipe, Recipe):
        parser = argparse.ArgumentParser(**_described(recipe.help, recipe))
        _fill(parser, recipe)
        return parser
    first = next(iter(recipe.values()))
    parser = argparse.ArgumentParser(**_described(first.help, None))
    commands = parser.add_subparsers(required=True, metavar="|".join(recipe))
    for name, one in recipe.items():
        _fill(commands.add_parser(name, help=one.title, **_described(one.help, one)), one)
    return parser


def _described(text: str, recipe: Recipe | None) -> dict[str, Any]:
    if recipe is not None:
        text = f"{text.strip()}\n\nlicence: {recipe.licence}"
        text += f"\nsource columns: {', '.join(recipe.columns)}" if recipe.columns else ""
        text += f"; read if there: {', '.join(recipe.optional)}" if recipe.optional else ""
    return {
        "description": text,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }


def _fill(parser: argparse.ArgumentParser, recipe: Recipe) -> None:
    parser.set_defaults(recipe=recipe)
    if recipe.has_source:
        _add_source(parser, recipe)

    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the data set's folder; one that was begun is gone on with",
    )
    for name, option in recipe.options.items():
        _add_option(parser, name, option)
    _add_amounts(parser, recipe)


def _add_source(parser: argparse.ArgumentParser, recipe: Recipe) -> None:
    """Where the rows of a published set come from."""
    text = "a file, a folder, or a hub id" + (f" (default {recipe.hub})" if recipe.hub else "")
    parser.add_argument(
        "--source",
        default=recipe.hub,
        required=recipe.hub is None,
        metavar="PATH_OR_HUB_ID",
        help=text,
    )
    parser.add_argument(
        "--revision",
        help="branch, tag or commit on the hub (default: the newest; its commit goes into the card)",
    )
    parser.add_argument(
        "--split",
        type=_splits,
        default=(),
        help=f"splits, with commas between (default {','.join(recipe.splits)})",
    )
    parser.add_argument(
        "--image-root",
        type=Path,
        metavar="DIR",
        help="where image paths start from (default: the source's folder)",
    )


def _add_amounts(parser: argparse.ArgumentParser, recipe: Recipe) -> None:
    """Limits on the number of rows, of broken rows, and on the size of images."""
    parser.add_argument(
        "--seed",
        type=_at_least(0),
        default=0,
        help="of everything that is drawn (default %(default)s)",
    )
    limit = f"the first {recipe.limit}; 0 means all" if recipe.limit else "all"
    parser.add_argument(
        "--limit",
        type=_at_least(0),
        metavar="N",
        help=f"convert the first N source rows of each split (default {limit})",
    )
    parser.add_argument(
        "--allow-broken",
        type=_allowance,
        default=0,
        metavar="N",
        help="end well with up to N broken source rows, or with a share of them, such as 0.01 or 1%% (default 0)",
    )

    parser.add_argument(
        "--shard-rows",
        type=_at_least(1),
        default=500,
        metavar="N",
        help="source rows per part (default %(default)s)",
    )
    parser.add_argument(
        "--max-image-pixels",
        type=_at_least(1),
        default=DEFAULT_LIMITS.max_image_pixels,
        metavar="N",
        help="larger images are not decoded, and their row counts as broken (default %(default)s)",
    )


def _add_option(parser: argparse.ArgumentParser, name: str, option: Option) -> None:
    parser.add_argument(
        f"--{name.replace('_', '-')}",
        type=_at_least(0) if isinstance(option.default, int) else str,
        default=option.default,
        choices=option.choices,
        help=f"{option.help} (default %(default)s)",
    )


def _request(recipe: Recipe, arguments: argparse.Namespace) -> Request:
    limit = recipe.limit if arguments.limit is None else arguments.limit or None
    return Request(
        source=getattr(arguments, "source", None),
        out=arguments.out,
        options={name: getattr(arguments, name) for name in recipe.options},
        revision=getattr(arguments, "revision", None),
        splits=getattr(arguments, "split", ()),
        images=getattr(arguments, "image_root", None),
        seed=arguments.seed,
        limit=limit,
        shard_rows=arguments.shard_rows,
        max_image_pixels=arguments.max_image_pixels,
    )


def _splits(text: str) -> tuple[str, ...]:
    """Names that are safe as folders."""
    names = tuple(text.split(","))
    if not all(_SPLIT.fullmatch(name) for name in names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of different names of letters, digits, _, . and -"
        )
    return names


def _at_least(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return whole_number


def _allowance(text: str) -> int | float:
    """A number of rows as an int, a share from 0 to 1 as a float."""
    if re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    percent = text.endswith("%")
    if re.fullmatch(r"[0-9]{0,3}\.?[0-9]{1,9}", text.removesuffix("%")):
        share = float(text.removesuffix("%")) / (100 if percent else 1)
        if share <= 1:
            return share
    raise argparse.ArgumentTypeError(
        f"{text!r} is neither a number of rows, such as 12, nor a share, such as 0.01 or 1%"
    )


def _refuse(made: Made, allowed: int | float) -> None:
    """Raise UserError for a data set that differs from the requested one."""
    problems = [problem for report in made.reports.values() for problem in report.problems]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems[:_SHOWN])
        raise UserError(
            f"The check of {made.folder} found {len(problems)} problem(s), first of all:\n{listed}"
        )
    most = allowed if isinstance(allowed, int) else int(allowed * made.source_rows)
    if made.broken > most:
        raise UserError(
            f"{made.broken} of {made.source_rows} source rows are broken and were left behind; {most} are allowed. "
            f"{made.folder / 'broken.jsonl'} lists them, each with its row number and the reason. Fix the source and "
            f"convert it into another folder, or accept the set without them: --allow-broken {made.broken}."
        )


def _summary(recipe: Recipe, made: Made) -> str:
    lines = []
    for split, report in made.reports.items():
        shards = [shard for shard in made.shards if shard.split == split]
        taken, broken = (
            sum(getattr(shard, name) for shard in shards) for name in ("source_rows", "broken")
        )
        left = sum(sum(shard.left_out.values()) for shard in shards)
        published = recipe.documented.get(split)
        lines.append(
            f"{split}: {report.rows} rows with {report.images} images, from {taken} source rows"
            f"{f' ({published} are published)' if published not in (None, taken) else ''}; {left} left out by rule, "
            f"{broken} broken"
        )
    first = next(iter(made.reports))
    return "\n".join(
        [*lines, f"checked: data.train: {made.folder / first}; more in {made.folder / 'README.md'}"]
    )
