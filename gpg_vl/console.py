"""All output to the terminal goes through this module, which escapes text from outside.

Rows, checkpoints, rewards, completions, file names and other libraries' exceptions may contain
anything: terminal control sequences (colours, a new title, a cleared screen), characters that
reverse the writing direction, text that looks like rich's markup. This module prints them as
visible text: `\\x1b[2J`, `\\u202e`, `[/red]`. `tests/test_architecture.py` checks that no module
prints in another way.

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

if TYPE_CHECKING:  # importing rich takes 0.1 s, which `--help` and reward workers avoid
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
    from rich.measure import Measurement
    from rich.progress import TextColumn
    from rich.table import Table
    from rich.text import Text

WIDTH = 140
"""Width of tables, in columns, if the output is not a terminal."""

_UNSAFE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters except tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # writing direction
    "\u180e\u200b\u2028\u2029\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # invisible, new lines
    "\U000e0000-\U000e007f"  # invisible copies of ASCII
    "\ud800-\udfff"  # surrogates, which cannot be encoded
    "]"
)


_WITH_UNIT = re.compile(r"(?<=\d) (?=[A-Za-z%])|(?<= x) (?=\d)")
"""Spaces at which a line must not be broken, as in `14 MiB` and `choice x 0.5`."""


def visible(text: str) -> str:
    """The text, with control characters and invisible characters replaced by escape sequences.

    Newlines and tabs are kept, and so are joiners (U+200C, U+200D), which emoji and many scripts need.

    Example: `visible("red\\x1b[31m")` is `red\\\\x1b[31m`.
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: object = "", *, error: bool = False, end: str = "\n") -> None:
    """Print one text, escaped, and flush. error: print to standard error."""
    stream = sys.stderr if error else sys.stdout
    print(visible(str(text)), end=end, file=stream, flush=True)


def make_console(*, error: bool = False, width: int = WIDTH) -> "Console":
    """A console for tables and live displays. It interprets no markup and escapes everything it prints.

    width: in columns, used if the output is not a terminal.
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
    """A text for a cell or a title, escaped before layout so that columns stay aligned."""
    from rich.text import Text

    return Text(visible(str(text)), style=style)


def prose(text: object) -> "ConsoleRenderable":
    """A text for a cell, escaped. Lines are broken between words, but not between a number and its unit."""
    return _Prose(visible(str(text)))


def wrap(text: str, width: int) -> list[str]:
    """The lines of `prose`."""
    lines = []
    for line in text.split("\n"):
        # an escaped text contains no NUL, and textwrap does not treat NUL as a space
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
    """The tables that `make(names, brief)` draws, each at most as wide as the console, because a wider
    one would be wrapped inside its numbers. Returns one full table if it fits, else one brief table,
    else several brief ones, each with a part of the names.

    frame: columns taken by what surrounds the tables.
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
    """A column of a live display that escapes its text itself: such columns bypass the console's hooks."""
    from rich.progress import TextColumn

    return TextColumn(template, markup=False, highlighter=_EscapingHighlighter())  # type: ignore[arg-type]  # as above


@contextmanager
def progress(
    console: "Console | None", what: str, total: int | None = None
) -> Iterator[Callable[[], None]]:
    """Print a line that says what the block does. On a terminal also show a progress bar below it.

    Yields a function that advances the bar.
    total: how often that function will be called; None: it is not called.
    console: None prints nothing.
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
    """Show the cursor again, for a process that ends before its live display can do so."""
    if sys.stdout.isatty():
        sys.stdout.write("\x1b[?25h")
    sys.stdout.flush()


@contextmanager
def escaped_output(says: Callable[[str], None] | None = None) -> Iterator[None]:
    """Escape what the block prints: argparse quotes its arguments, and an imported reward may print
    anything.

    says: the function that prints what the block has written to standard error, if anything.
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
    """Also escape what reaches the terminal without this module: warnings, log records, tracebacks.

    Other libraries quote checkpoints and data in them. Each program calls this once, at its start.
    """
    sys.excepthook = _print_traceback
    warnings.formatwarning = _escaping(warnings.formatwarning)
    logging.setLogRecordFactory(_escaping_record(logging.getLogRecordFactory()))


# ---- what rich prints


@dataclass(frozen=True, slots=True)
class _Escaped:
    """A rich renderable whose segments are escaped after layout."""

    content: "ConsoleRenderable"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.segment import Segment

        # control segments are rich's own, such as a cursor movement
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
    """A render hook that escapes everything a console prints."""

    def process_renderables(
        self, renderables: Iterable["ConsoleRenderable"]
    ) -> list["ConsoleRenderable"]:
        return [self._escaped(one) for one in renderables]

    def _escaped(self, one: "ConsoleRenderable") -> "ConsoleRenderable":
        from rich.text import Text

        if not isinstance(one, Text):
            return _Escaped(one)

        # escape a text before it is broken into lines, so that none of it is cut off
        if (shown := visible(one.plain)) == one.plain:
            return one
        return Text(shown, style=one.style, justify=one.justify, overflow=one.overflow, end=one.end)


class _EscapingHighlighter:
    """A rich highlighter that escapes the text it is given."""

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
    """Wrap a log record factory so that the message and each argument are escaped.

    The arguments are kept separate because some formatters read them.
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
