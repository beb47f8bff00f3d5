"""Finds everything that is wrong with a data set before any weights are loaded.

`check` reads every row, counts every prompt and collects all problems. Nothing is dropped,
truncated or repaired. The caller provides the function that counts tokens, so this module does
not depend on models.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gpg_vl.console import plain, progress
from gpg_vl.data.cells import Kind
from gpg_vl.data.dataset_notes import DatasetNotes, Reader
from gpg_vl.data.gold_answers import answer_problems
from gpg_vl.data.images import ImageError
from gpg_vl.data.rows import Row, RowProblem
from gpg_vl.data.summary import (
    histogram,
    render_histogram,
    render_image_sizes,
    render_lengths,
    summarise,
)
from gpg_vl.errors import UserError
from gpg_vl.types import Example

_SHOWN_PROBLEMS = 20
_SHOWN_GOLDS = 6
_NO_ROWS = (
    "There are no rows. At least one is needed. Check that the source was written completely."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCounts:
    """How long one example's prompt is.

    Example: a 112x84 picture of 12 tokens and 30 tokens of text:
    `PromptCounts(tokens=42, image_tokens=12, image_sizes=((112, 84),))`
    """

    tokens: int
    """All tokens of the prompt, image tokens included."""
    image_tokens: int
    image_sizes: tuple[tuple[int, int], ...]
    """Width and height in pixels of each image, as the model sees it."""
    notes: tuple[tuple[str, str], ...] = ()
    """(kind, text) of unusual properties of a prompt that can be used."""


Count = Callable[[Example], PromptCounts]
"""Counts one prompt, having decoded all its pictures. Raises UserError for an example that cannot
be encoded."""
Place = Callable[[Example], Example]
"""Completes an example with what its gold answer is read by. Raises UserError if it cannot."""
ReadGold = Callable[[Example], object]
"""Reads the gold answer of an example as a reward does. Raises UserError if it cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """The requirements that every row must meet.

    Example: `Checks(count=encoder.count, max_prompt_tokens=1024)`
    """

    count: Count
    max_prompt_tokens: int | None
    """A longer prompt is a problem; None is no limit."""
    answers: bool = True
    """Whether every row needs a gold answer."""
    read_gold: ReadGold | None = None
    """Finds gold answers that a reward of the run cannot read."""
    place: Place | None = None
    """Applied to the examples that `read_gold` reads and the report shows; None leaves them as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """The contents of a data set and its problems.

    Example: two good rows, one with a picture: `DataReport(source="a.jsonl", rows=2, tokens=(42,
    30), image_tokens=(12, 0), image_sizes={(112, 84): 1}, tasks={"Count": 2}, problems=(),
    max_prompt_tokens=1024)`
    """

    source: str
    rows: int
    """Number of all rows, including broken ones."""
    tokens: tuple[int, ...]
    """Prompt length of each row that could be encoded, image tokens included."""
    image_tokens: tuple[int, ...]
    """Image tokens of the same rows."""
    image_sizes: Mapping[tuple[int, int], int]
    """Number of images of each (width, height) in pixels, as the model sees them; the most frequent
    first."""
    tasks: Mapping[str, int]
    """Number of rows of each task, among those that could be read."""
    problems: tuple[RowProblem, ...]
    max_prompt_tokens: int | None
    notes: tuple[str, ...] = ()
    """Findings that do not prevent training: files and columns that are not read, texts that look
    damaged, rows that contradict each other."""
    golds: tuple[Example, ...] = ()
    """A few examples with different answers, without images, to show the answers."""

    @property
    def ok(self) -> bool:
        """True if there are no problems, so the data can be used for training."""
        return not self.problems

    @property
    def images(self) -> int:
        """The number of images in the rows that could be encoded."""
        return sum(self.image_sizes.values())

    def render(self, console: Console) -> None:
        """Print the statistics, and the first problems with their number by kind."""
        statistics = Group(*_render_statistics(self))
        console.print(Panel(statistics, title=plain(f"data: {self.source}"), expand=False))
        for note in self.notes:
            console.print(plain(f"note: {note}", style="yellow"), soft_wrap=True)
        if self.problems:
            console.print(Group(*_render_problems(self.problems)), soft_wrap=True)

    def to_json(self) -> str:
        """Everything in the report as one JSON object, lengths as summaries and a histogram."""
        bins = [
            {"from": low, "to": high, "rows": rows} for low, high, rows in histogram(self.tokens)
        ]
        sizes = [
            {"width": width, "height": height, "images": images}
            for (width, height), images in self.image_sizes.items()
        ]
        report = {
            "source": self.source,
            "ok": self.ok,
            "rows": self.rows,
            "images": self.images,
            "tokens": _summary_object(self.tokens),
            "image_tokens": _summary_object(self.image_tokens),
            "histogram": bins,
            "image_sizes": sizes,
            "tasks": dict(self.tasks),
            "max_prompt_tokens": self.max_prompt_tokens,
            "notes": list(self.notes),
            "golds": [{"id": one.id, "answer": one.answer} for one in self.golds],
            "problems": [asdict(problem) for problem in self.problems],
        }
        return json.dumps(report, indent=2)


def check(
    rows: Iterable[Row],
    *,
    checks: Checks,
    source: str = "",
    dataset_notes: DatasetNotes | None = None,
    notes: Iterable[str] = (),
) -> DataReport:
    """Read every row, count every prompt, and report everything that is wrong.

    A UserError of the source itself, such as a missing column, ends the reading and is a problem of
    the report, too.

    dataset_notes: collects notes on every example; None uses the notes that need no model.
    notes: returns notes on the source itself; called after the rows are read.
    """
    tally = _Tally()
    dataset_notes = dataset_notes or DatasetNotes(Reader())
    for number, row in enumerate(_read_to_end(rows, source)):
        if isinstance(row, RowProblem):
            tally.add_unread(row)
            continue

        first = tally.first_row.setdefault(row.id, (number, row.place))
        placed, counts, found = _check_example(row, checks, first, number)
        tally.add(number, placed, counts, found)

        place = f"row {number}" + (f", {row.place}" if row.place else "")
        dataset_notes.add(
            number,
            row,
            place,
            tokens=counts.tokens if counts else None,
            notes=counts.notes if counts else (),
        )

    if not tally.rows and not tally.problems:
        tally.problems.append(_make_source_problem(0, source, _NO_ROWS))
    return _make_report(
        tally,
        source=source,
        max_prompt_tokens=checks.max_prompt_tokens,
        notes=(*(notes if tally.rows else ()), *dataset_notes.notes()),
    )


def show_progress(
    rows: Iterable[Row], console: Console | None, *, source: str = "", total: int | None = None
) -> Iterator[Row]:
    """The same rows, with a progress bar while they are read if there is a console.

    source: the name of the source, for the text. total: the expected number of rows.
    """
    where = f" of {source}" if source else ""
    with progress(console, f"checking rows{where}: texts, pictures, lengths", total) as advance:
        for row in rows:
            yield row
            advance()


@dataclass(slots=True)
class _Tally:
    """Totals over the rows checked so far."""

    rows: int = 0
    first_row: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By id: the number of the first row that has it, and its place."""
    golds: dict[str, Example] = field(default_factory=dict)
    """By answer."""
    prompts: list[PromptCounts] = field(default_factory=list)
    tasks: Counter[str] = field(default_factory=Counter)
    problems: list[RowProblem] = field(default_factory=list)

    def add_unread(self, problem: RowProblem) -> None:
        """Count a row that could not be parsed; a problem of the source itself is not counted as a row."""
        self.problems.append(problem)
        self.rows += problem.kind != "source"

    def add(
        self,
        number: int,
        example: Example,
        counts: PromptCounts | None,
        found: Iterable[tuple[Kind, str]],
    ) -> None:
        self.rows += 1
        self.tasks[example.task] += 1
        if counts:
            self.prompts.append(counts)
        if len(self.golds) < _SHOWN_GOLDS and example.answer not in self.golds:
            self.golds[example.answer] = replace(example, images=())
        for kind, text in found:
            self.problems.append(
                RowProblem(row=number, id=example.id, source=example.place, kind=kind, message=text)
            )


def _make_report(
    tally: _Tally, *, source: str, max_prompt_tokens: int | None, notes: tuple[str, ...]
) -> DataReport:
    sizes = Counter(size for counts in tally.prompts for size in counts.image_sizes)
    return DataReport(
        source=source,
        rows=tally.rows,
        tokens=tuple(counts.tokens for counts in tally.prompts),
        image_tokens=tuple(counts.image_tokens for counts in tally.prompts),
        image_sizes=dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))),
        tasks=dict(sorted(tally.tasks.items())),
        problems=tuple(tally.problems),
        max_prompt_tokens=max_prompt_tokens,
        notes=notes,
        golds=tuple(tally.golds.values()),
    )


def _read_to_end(rows: Iterable[Row], source: str) -> Iterator[Row]:
    """The rows; if the source fails in the middle, a last problem for that."""
    number = 0
    try:
        for row in rows:
            yield row
            number += 1
    except UserError as error:
        yield _make_source_problem(number, source, str(error))


def _make_source_problem(row: int, source: str, message: str) -> RowProblem:
    return RowProblem(row=row, source=source, kind="source", message=message)


def _check_example(
    example: Example, checks: Checks, first: tuple[int, str], row: int
) -> tuple[Example, PromptCounts | None, list[tuple[Kind, str]]]:
    """One example placed, its counts, None if it cannot be encoded, and all that is wrong with it.

    first: number and place of the first row of that id.
    """
    found: list[tuple[Kind, str]] = []
    if checks.answers or example.answer.strip():
        found += answer_problems(example)
    if first[0] != row:
        found.append(("id", _describe_repeated_id(example.id, *first)))

    counts: PromptCounts | None = None
    try:
        counts = checks.count(example)
        example = checks.place(example) if checks.place is not None else example
    except UserError as error:
        found.append(("image" if isinstance(error, ImageError) else "encode", str(error)))
    limit = checks.max_prompt_tokens
    if counts is not None and limit is not None and counts.tokens > limit:
        found.append(("length", _describe_length(counts, limit)))

    # do not let a reward report an answer that is already known to be wrong
    if checks.read_gold is not None and not found:
        found += _read_gold(example, checks.read_gold)
    return example, counts, found


def _describe_repeated_id(identity: str, row: int, place: str) -> str:
    where = f" ({place})" if place else ""
    return (
        f"The id {identity!r} already belongs to row {row}{where}. Each id is allowed once, because "
        f"predictions and logs are found by it. Rename one, or remove the repetition."
    )


def _read_gold(example: Example, read: ReadGold) -> Iterator[tuple[Kind, str]]:
    try:
        read(example)
    except UserError as error:
        yield "answer", str(error)


def _describe_length(counts: PromptCounts, limit: int) -> str:
    pictures = ""
    if counts.image_sizes:
        sizes = ", ".join(f"{width}x{height}" for width, height in counts.image_sizes)
        pictures = (
            f", {counts.image_tokens} of them for {len(counts.image_sizes)} image(s) of {sizes}"
        )
    return (
        f"The prompt has {counts.tokens} tokens{pictures}. max_prompt_tokens={limit} are allowed, "
        f"and a prompt is never cut. Raise max_prompt_tokens, shrink the images (max_pixels), "
        f"shorten the text, or remove the row."
    )


def _summary_object(values: Sequence[int]) -> dict[str, int] | None:
    summary = summarise(values)
    return None if summary is None else asdict(summary)


def _render_statistics(report: DataReport) -> Iterator[Table | Text]:
    limit = "no limit"
    if report.max_prompt_tokens is not None:
        limit = f"at most {report.max_prompt_tokens} tokens allowed"
    yield plain(
        f"{report.rows} rows, {report.images} images, {len(report.problems)} problems; {limit}"
    )
    if not report.tokens:
        return

    yield render_lengths({"prompt tokens": report.tokens, "image tokens": report.image_tokens})
    yield render_histogram(report.tokens)
    if report.image_sizes:
        yield render_image_sizes(report.image_sizes)

    tasks = Table("task", "rows", box=None)
    for task, rows in report.tasks.items():
        tasks.add_row(plain(task or "(none)"), str(rows))
    yield tasks


def _render_problems(problems: Sequence[RowProblem]) -> Iterator[Text]:
    """Render as plain text, because a message may contain text that looks like markup."""
    kinds = Counter(problem.kind for problem in problems)
    by_kind = ", ".join(f"{kind} {number}" for kind, number in kinds.most_common())
    yield plain(f"{len(problems)} problems: {by_kind}", style="bold")

    for problem in problems[:_SHOWN_PROBLEMS]:
        yield plain(f"  {problem}")
    if len(problems) > _SHOWN_PROBLEMS:
        yield plain(
            f"  ... and {len(problems) - _SHOWN_PROBLEMS} more; the JSON report lists all of them."
        )
