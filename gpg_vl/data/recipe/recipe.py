"""The definition of a recipe: facts about a data set, and a function that converts one of its rows to examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpg_vl.data.cells import quote
from gpg_vl.data.recipe.row import BrokenRowError, Source
from gpg_vl.prompting import DEFAULT_LIMITS
from gpg_vl.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A source row that a rule of the recipe does not convert, such as one with two images. Counted by its reason.

    Example: `LeftOut(reason="more than one image")`
    """

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A choice that a recipe offers on the command line; it reaches `convert` as a keyword argument.

    Example: `Option(default="base", help="the prompt's text", choices=("base", "instruct"))` named `prompt` is `--prompt`.
    """

    default: str | int
    """A text, or a whole number from 0 on; the option takes the same."""
    help: str
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of the command line: what to convert.

    Example: `Request(source="array/SAT", out=Path("data/sat"), options={"prompt": "base", "images": "single"})`
    """

    source: str | None
    """A path or the id of a data set on the hub; None for recipes that make their rows themselves."""
    out: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    """A value for every option of the recipe."""
    revision: str | None = None
    splits: tuple[str, ...] = ()
    """Empty: those of the recipe."""
    images: Path | None = None
    """The folder that image paths start from; None is the source's own."""
    seed: int = 0
    limit: int | None = None
    """Only the first source rows of each split."""
    shard_rows: int = 500
    """Source rows per part; at most this many are converted again after a stop."""
    max_image_pixels: int = DEFAULT_LIMITS.max_image_pixels


Convert = Callable[..., Example | Sequence[Example] | LeftOut]
"""`(row: RawRow, **options)`. Raises BrokenRowError for a row that cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A data set and how one row of it becomes examples.

    Example: `Recipe(name="mine", title="My set", help=__doc__, licence="MIT", columns=("image", "solution"),
    convert=convert)`
    """

    name: str
    """Letters, digits and underscores."""
    title: str
    help: str
    """The script's docstring: the data set, its origin and an example of the command."""
    licence: str
    convert: Convert
    columns: tuple[str, ...] = ()
    """Source columns that must be there."""
    optional: tuple[str, ...] = ()
    """Source columns that are read if they exist."""
    hub: str | None = None
    """The data set's id on the hub, which is the default source."""
    splits: tuple[str, ...] = ("train",)
    patterns: Mapping[str, str] = field(default_factory=dict)
    """Files of splits that are not where `LAYOUT` of `gpg_vl.data.recipe.origin` says."""
    documented: Mapping[str, int] = field(default_factory=dict)
    """Source rows per split as published, to compare with."""
    options: Mapping[str, Option] = field(default_factory=dict)
    limit: int | None = None
    """Number of source rows per split that are converted without --limit."""
    open: Callable[[Request], list[Source]] | None = None
    """The source of the rows, if it is neither files nor the hub."""
    has_source: bool = True
    """False for a recipe that makes its rows itself and takes no --source."""
    settings: Callable[..., Mapping[str, Any]] | None = None
    """`(**options)`: the sections of a training config that belong to the data, such as `prompt`."""
    notes: tuple[str, ...] = ()
    """Notes for users of the data, one sentence each, for the card."""


def untagged(text: str) -> str:
    """The gold answer of a solution such as `<answer> 145° </answer>`: the content of its only tag, or the text itself.

    Raises BrokenRowError for an empty answer, several tags, or a tag without its partner.
    """
    opened, closed = text.count("<answer>"), text.count("</answer>")
    inner = text.partition("<answer>")[2].partition("</answer>")[0] if opened else text
    if opened > 1 or opened != closed or not inner.strip():
        raise BrokenRowError(
            f"The solution is {quote(text)}. One answer is needed, with or without <answer> </answer> around it."
        )
    return inner.strip()
