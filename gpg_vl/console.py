"""The one way to the terminal: what comes from outside is printed escaped.

Rows, checkpoints, rewards, completions, file names and other people's exceptions may hold anything:
sequences that a terminal obeys (colours, a new title, a wiped screen), marks that reverse the order
of letters, what looks like rich's markup. Whoever prints goes through this module, and sees them as
text: `\\x1b[2J`, `\\u202e`, `[/red]`. `tests/test_architecture.py` holds every module to it.

Output for machines (JSON, YAML, the files of a run) is not escaped here; its formats do that.
"""

import logging
import re
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # rich takes a tenth of a second: `--help` and reward workers do without
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
    from rich.measure import Measurement
    from rich.progress import TextColumn
    from rich.table import Table
    from rich.text import Text

WIDTH = 140
"""Columns of tables where the output is no terminal."""

_UNSAFE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, but not tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # order of writing
    "\u180e\u200b\u2028\u2029\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # invisible, new lines
    "\U000e0000-\U000e007f"  # invisible copies of ASCII
    "\ud800-\udfff"  # halves of pairs, which no encoding takes
    "]"
)


_WITH_UNIT = re.compile(r"(?<=\d) (?=[A-Za-z%])|(?<= x) (?=\d)")
"""Spaces at which no line is broken: `14 MiB`, `choice x 0.5`."""


def visible(text: str) -> str:
    """The text with everything that would steer a terminal, or hide, as an escape sequence.

    Newlines and tabs stay; so do joiners (U+200C, U+200D), which emoji and many scripts need.

    Example: `visible("red\\x1b[31m")` is `red\\\\x1b[31m`.
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: object = "", *, error: bool = False, end: str = "\n") -> None:
    """Print one text, escaped, at once. error: to standard error."""
    stream = sys.stderr if error else sys.stdout
    print(visible(str(text)), end=end, file=stream, flush=True)


def make_console(*, error: bool = False, width: int = WIDTH) -> "Console":
    """A console for tables and live displays. No markup is read, and what is printed is escaped.

    width: where the output is no terminal.
    """
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    console = Console(
        stderr=error,
        width=None if stream.isatty() else width,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.push_render_hook(_EscapingHook())  # type: ignore[arg-type]  # has its one method
    return console


def plain(text: object, style: str = "") -> "Text":
    """A text for a cell or a title: escaped before it is laid out, so that columns stay straight."""
    from rich.text import Text

    return Text(visible(str(text)), style=style)


def prose(text: object) -> "ConsoleRenderable":
    """A text for a cell, escaped, whose lines are broken between words and not between a number and its unit."""
    return _Prose(visible(str(text)))


def wrap(text: str, width: int) -> list[str]:
    """The lines of `prose`."""
    lines = []
    for line in text.split("\n"):
        # an escaped text has no NUL, and for textwrap it is no space
        glued = _WITH_UNIT.sub("\0", line)
        lines += textwrap.wrap(glued, max(1, width), break_on_hyphens=False) or [""]
    return [line.replace("\0", " ") for line in lines]


def fit_tables(
    console: "Console",
    names: Sequence[str],
    make: Callable[[Sequence[str], bool], "Table"],
    *,
    frame: int = 0,
) -> list["Table"]:
    """The tables that `make(names, brief)` draws, none of them wider than the console: a wider one
    would be folded inside of its numbers. One in full, else one in brief, else several, each with a
    part of the names.

    frame: columns that what stands around the tables takes.
    """
    from rich.measure import Measurement

    endless = console.options.update(width=10_000)
    for brief in (False, True):
        table = make(names, brief)
        if Measurement.get(console, endless, table).maximum <= console.width - frame:
            return [table]
    if len(names) < 2:
        return [table]
    middle = (len(names) + 1) // 2
    return [
        *fit_tables(console, names[:middle], make, frame=frame),
        *fit_tables(console, names[middle:], make, frame=frame),
    ]


def text_column(template: str) -> "TextColumn":
    """A column of a live display, which prints past the hooks of its console."""
    from rich.progress import TextColumn

    return TextColumn(template, markup=False, highlighter=_EscapingHighlighter())  # type: ignore[arg-type]  # as above


@contextmanager
def progress(
    console: "Console | None", what: str, total: int | None = None
) -> Iterator[Callable[[], None]]:
    """Say in a line what the block does, and on a terminal show below it how far it is.

    total: how often the function that is given will be called; None: it is not called.
    console: None says nothing.
    """
    if console is None:
        yield lambda: None
        return
    console.print(plain(what), soft_wrap=True)
    if not console.is_terminal:
        yield lambda: None
        return

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    counted = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), text_column("left"))
    columns = (SpinnerColumn(), TimeElapsedColumn(), *(counted if total else ()))
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("", total=total)
        yield lambda: bars.advance(bar)


def show_cursor() -> None:
    """Bring back the cursor that a live display has hidden, where it has no time to do so itself."""
    if sys.stdout.isatty():
        sys.stdout.write("\x1b[?25h")
    sys.stdout.flush()


@contextmanager
def escaped_output(says: Callable[[str], None] | None = None) -> Iterator[None]:
    """What the block prints is escaped: argparse quotes the words it was given, an imported reward
    says what it likes.

    says: prints what the block has written to standard error, if it has.
    """
    out, errors = StringIO(), StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            yield
    finally:
        say(out.getvalue(), end="")
        if says and errors.getvalue():
            says(errors.getvalue().removesuffix("\n"))
        else:
            say(errors.getvalue(), error=True, end="")


def guard() -> None:
    """Escape also what gets to the terminal without this module: warnings, log records, tracebacks.

    Other libraries quote checkpoints and data in them. Called once, at the door of a program.
    """
    sys.excepthook = _print_traceback
    warnings.formatwarning = _escaping(warnings.formatwarning)
    logging.setLogRecordFactory(_escaping_record(logging.getLogRecordFactory()))


# ---- what rich prints


@dataclass(frozen=True, slots=True)
class _Escaped:
    """Something to print, escaped piece by piece after it was laid out."""

    content: "ConsoleRenderable"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.segment import Segment

        # a piece of control is rich's own, such as a move of the cursor
        for piece in console.render(self.content, options):
            yield piece if piece.control else Segment(visible(piece.text), piece.style)


@dataclass(frozen=True, slots=True)
class _Prose:
    """See `prose`."""

    text: str

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        for line in wrap(self.text, options.max_width):
            yield Text(line)

    def __rich_measure__(self, console: "Console", options: "ConsoleOptions") -> "Measurement":
        from rich.measure import Measurement
        from rich.text import Text

        return Measurement.get(console, options, Text(self.text))


class _EscapingHook:
    """Stands between `Console.print` and the terminal."""

    def process_renderables(
        self, renderables: Iterable["ConsoleRenderable"]
    ) -> list["ConsoleRenderable"]:
        return [self._escaped(one) for one in renderables]

    def _escaped(self, one: "ConsoleRenderable") -> "ConsoleRenderable":
        from rich.text import Text

        if not isinstance(one, Text):
            return _Escaped(one)

        # a text is escaped before it is broken into lines, so that none of it is cut off
        if (shown := visible(one.plain)) == one.plain:
            return one
        return Text(shown, style=one.style, justify=one.justify, overflow=one.overflow, end=one.end)


class _EscapingHighlighter:
    """What rich lets look at a text before it is shown."""

    def highlight(self, text: "Text") -> None:
        text.plain = visible(text.plain)


# ---- what others print


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    say("".join(traceback.format_exception(kind, error, trace)), error=True, end="")


def _escaping(function: Any) -> Any:
    """The function, its text escaped."""
    if getattr(function, "is_escaping", False):
        return function

    def escaped(*given: Any, **named: Any) -> str:
        return visible(function(*given, **named))

    escaped.is_escaping = True  # type: ignore[attr-defined]  # functions carry attributes
    return escaped


def _escaping_record(make: Any) -> Any:
    """A factory of log records whose message and arguments are escaped one by one.

    The arguments stay apart, because some formatters look at them.
    """
    if getattr(make, "is_escaping", False):
        return make

    def escaped(*given: Any, **named: Any) -> logging.LogRecord:
        record: logging.LogRecord = make(*given, **named)
        record.msg = _escape_strings(record.msg)
        if isinstance(record.args, tuple):
            record.args = tuple(_escape_strings(value) for value in record.args)
        elif record.args:
            record.args = {key: _escape_strings(value) for key, value in record.args.items()}
        return record

    escaped.is_escaping = True  # type: ignore[attr-defined]  # as above
    return escaped


def _escape_strings(value: object) -> Any:
    """A string or an error as an escaped string; any other value as it is."""
    return visible(str(value)) if isinstance(value, str | BaseException) else value
