"""The engine of every recipe: it streams a source into a folder that `gpg-vl train` reads, and checks the folder.

It keeps one shard of text and the images of one row in memory, resumes where a run stopped, lists broken rows in
`broken.jsonl`, and ends with the check that `gpg-vl data check` makes, on the rows as they will be read.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from gpg_vl.console import text_column
from gpg_vl.data.cells import CellError
from gpg_vl.data.check import Checks, DataReport, PromptCounts, check, show_progress
from gpg_vl.data.gold_answers import answer_problems
from gpg_vl.data.images import ImageError, Picture, load_image
from gpg_vl.data.json_rows import Cells
from gpg_vl.data.read import COMMON_NAMES, read_rows
from gpg_vl.data.recipe.card import card_files
from gpg_vl.data.recipe.origin import open_source
from gpg_vl.data.recipe.recipe import LeftOut, Recipe, Request
from gpg_vl.data.recipe.row import BrokenRowError, RawRow, Source
from gpg_vl.data.recipe.shards import Output, Shard, json_line, open_output, picture_name
from gpg_vl.data.rows import RowProblem, parse_row
from gpg_vl.errors import UserError
from gpg_vl.types import Example, Message

FIELDS = ("id", "images", "prompt", "answer", "choices", "task")
RESERVED = frozenset(name for names in COMMON_NAMES.values() for name in names)
"""Column names that a reader recognises as fields of an example, so `meta` must not use them."""
_MAPPING = dict(zip(FIELDS, FIELDS, strict=True))
_Raw = tuple[str, Cells | CellError]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A finished data set."""

    folder: Path
    shards: tuple[Shard, ...]
    reports: Mapping[str, DataReport]
    """The final check of each split."""

    @property
    def source_rows(self) -> int:
        return sum(shard.source_rows for shard in self.shards)

    @property
    def broken(self) -> int:
        return sum(shard.broken for shard in self.shards)


def make(recipe: Recipe, request: Request, console: Console | None = None) -> Made:
    """Write the data set, or resume writing it, and check it. Finished parts are only checked again.

    Raises:
        UserError: if the source cannot be read or the folder holds something else.
        RunError: if the folder cannot be written.
    """
    sources = _sources(recipe, request)
    plan = {
        "recipe": recipe.name,
        "options": dict(request.options),
        "seed": request.seed,
        "limit": request.limit,
        "shard_rows": request.shard_rows,
        "max_image_pixels": request.max_image_pixels,
        "sources": {source.split: dict(source.facts) for source in sources},
    }
    with open_output(request.out, plan) as output:
        with _progress(console) as progress:
            for source in sources:
                _convert(source, output, recipe, request, progress)
        output.write("broken.jsonl", map(json_line, output.problems()))
        shards = tuple(output.shards)
        reports = {
            source.split: _check(request, source.split, shards, console) for source in sources
        }
        for name, text in card_files(recipe, plan, shards, reports).items():
            output.write(name, [text.encode()])
    return Made(folder=request.out, shards=shards, reports=reports)


def _sources(recipe: Recipe, request: Request) -> list[Source]:
    if recipe.open is not None:
        return recipe.open(request)
    assert request.source is not None, "the command line requires a source"
    return open_source(
        request.source,
        request.splits or recipe.splits,
        columns=recipe.columns,
        optional=recipe.optional,
        patterns=recipe.patterns,
        revision=request.revision,
        images=request.images,
    )


def _progress(console: Console | None) -> Progress:
    columns = (
        text_column("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=console is None)


def _convert(
    source: Source, output: Output, recipe: Recipe, request: Request, progress: Progress
) -> None:
    """Convert what is not converted yet of one split."""
    done = [shard for shard in output.shards if shard.split == source.split]
    start, broken = sum(shard.source_rows for shard in done), sum(shard.broken for shard in done)
    totals = [n for n in (source.total, request.limit) if n is not None]
    bar = progress.add_task(source.split, total=min(totals, default=None), completed=start)
    if done and done[-1].last:
        return
    rows = islice(source.read(start), None if request.limit is None else request.limit - start)
    number, last = len(done), False

    while not last:
        shard = _shard(
            islice(rows, request.shard_rows), source, number, start, output, recipe, request
        )
        number, last = number + 1, shard.last
        start, broken = start + shard.source_rows, broken + shard.broken

        text = f"{source.split} ({broken} broken)" if broken else source.split
        progress.update(bar, completed=start, description=text)


def _shard(
    rows: Iterator[_Raw],
    source: Source,
    number: int,
    start: int,
    output: Output,
    recipe: Recipe,
    request: Request,
) -> Shard:
    """Convert and commit one shard. One that is shorter than the others is the last."""
    lines: list[bytes] = []
    left_out: Counter[str] = Counter()
    problems: list[dict[str, Any]] = []
    taken = 0

    for taken, (place, cells) in enumerate(rows, 1):
        row = RawRow(
            split=source.split,
            number=start + taken - 1,
            place=place,
            cells={} if isinstance(cells, CellError) else cells,
            seed=request.seed,
            root=source.root,
            max_pixels=request.max_image_pixels,
        )

        # a broken row is listed; a bug in the recipe ends the conversion
        try:
            if isinstance(cells, CellError):
                raise cells
            made = _converted(row, recipe, request, partial(output.store, source.split))
        except (BrokenRowError, CellError, ImageError) as error:
            problems.append(
                {"split": row.split, "row": row.number, "place": row.place, "reason": str(error)}
            )
            continue

        if isinstance(made, LeftOut):
            left_out[made.reason] += 1
        else:
            lines += made

    shard = Shard(
        split=source.split,
        number=number,
        source_rows=taken,
        rows=len(lines),
        left_out=dict(sorted(left_out.items())),
        broken=len(problems),
        last=taken < request.shard_rows,
    )
    return output.commit(shard, lines, problems)


def _converted(
    row: RawRow, recipe: Recipe, request: Request, store: Callable[[Picture], str]
) -> list[bytes] | LeftOut:
    """Store the images of a source row and return its lines: all of its examples or none."""
    try:
        made = recipe.convert(row, **request.options)
    except UserError:
        raise
    except Exception as error:
        error.add_note(
            f"The recipe {recipe.name} failed on {row.place} (row {row.number} of {row.split})."
        )
        raise

    if isinstance(made, LeftOut):
        return made
    examples = [made] if isinstance(made, Example) else list(made)
    assert examples, (
        f"the recipe {recipe.name} made nothing of {row.place}; it must return LeftOut with its reason"
    )
    lines = [_line(example, row, recipe) for example in examples]
    for image in dict.fromkeys(image for example in examples for image in example.images):
        store(row.read(image))
    return lines


def _line(example: Example, row: RawRow, recipe: Recipe) -> bytes:
    """The example as a line that reads back equal. Raises BrokenRowError or ImageError if it could not be used."""
    if clash := RESERVED & example.meta.keys():
        raise UserError(
            f"The recipe {recipe.name} puts {min(clash)!r} into meta, which readers take for a field of the example. Any "
            f"name but {', '.join(sorted(RESERVED))} is allowed. Rename it."
        )
    stored = replace(
        example, images=tuple(picture_name(row.read(image)) for image in example.images)
    )
    line = json_line({**{name: _plain(getattr(stored, name)) for name in FIELDS}, **stored.meta})
    again = parse_row(json.loads(line), _MAPPING, row=row.number, source=row.place)
    if isinstance(again, RowProblem):
        raise BrokenRowError(again.message)
    assert again == replace(stored, meta=again.meta), f"{row.place} would be read as {again}"
    for _, problem in answer_problems(again):
        raise BrokenRowError(problem)
    return line


def _plain(value: object) -> object:
    """A field's value for JSON."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return {"role": value.role, "content": value.content} if isinstance(value, Message) else value


def _check(
    request: Request, split: str, shards: Sequence[Shard], console: Console | None
) -> DataReport:
    """The data check of the written files. There is no model here, so images are counted but tokens are not."""
    folder = request.out / split

    def count(example: Example) -> PromptCounts:
        sizes = (
            load_image(image, root=folder, max_pixels=request.max_image_pixels).size
            for image in example.images
        )
        return PromptCounts(tokens=0, image_tokens=0, image_sizes=tuple(sizes))

    total = sum(shard.rows for shard in shards if shard.split == split)
    return check(
        show_progress(read_rows(folder, _MAPPING), console, total=total),
        checks=Checks(count=count, max_prompt_tokens=None),
        source=split,
    )
