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
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # rich takes a tenth of a second: `--help` and reward workers do without
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
    from rich.progress import TextColumn
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


def text_column(template: str) -> "TextColumn":
    """A column of a live display, which prints past the hooks of its console."""
    from rich.progress import TextColumn

    return TextColumn(template, markup=False, highlighter=_EscapingHighlighter())  # type: ignore[arg-type]  # as above


def show_cursor() -> None:
    """Bring back the cursor that a live display has hidden, where it has no time to do so itself."""
    if sys.stdout.isatty():
        sys.stdout.write("\x1b[?25h")
    sys.stdout.flush()


@contextmanager
def escaped_output() -> Iterator[None]:
    """What the block prints is escaped: argparse quotes the words it was given, an imported reward says what it likes."""
    out, errors = StringIO(), StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            yield
    finally:
        say(out.getvalue(), end="")
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
