"""The terminal shows what comes from outside as text: nothing steers it, nothing hides, no markup is read."""

import logging
import subprocess
import sys
import unicodedata
import warnings
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table

from gpg_vl import console as module
from gpg_vl.cli import main
from gpg_vl.console import guard, make_console, plain, progress, say, text_column, visible

ATTACK = "red\x1b[31m \x1b]0;title\x07 \x9b2J \u202egnp.exe [bold]b[/red] \r\x08 \u200b"
SHOWN = "red\\x1b[31m \\x1b]0;title\\x07 \\x9b2J \\u202egnp.exe [bold]b[/red] \\r\\x08 \\u200b"


@pytest.mark.parametrize(
    "text, shown",
    [
        (ATTACK, SHOWN),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("ünï 答案 ½ 👩\u200d👩 \\x1b", "ünï 答案 ½ 👩\u200d👩 \\x1b"),
        ("\u2066a\u2069\u200f\u061c", "\\u2066a\\u2069\\u200f\\u061c"),
        ("\u2028\u2029\x85", "\\u2028\\u2029\\x85"),
        ("\ud83d", "\\ud83d"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_steers_or_hides_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_no_control_is_left_and_nothing_else_changes(text: str) -> None:
    shown = visible(text)
    controls = [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert set(controls) <= {"\n", "\t"}
    assert not [c for c in shown if unicodedata.bidirectional(c) in ("RLO", "LRO", "RLI", "LRI")]
    assert visible(shown) == shown


def test_lines_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    say(ATTACK)
    say(ATTACK, error=True, end="")

    assert capsys.readouterr() == (SHOWN + "\n", SHOWN)


def test_a_console_escapes_whatever_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(ATTACK, title=ATTACK)
    table.add_row(ATTACK)
    console = make_console()

    console.print(ATTACK, soft_wrap=True)
    console.print(table)
    console.print(Panel(plain(ATTACK), title=plain(ATTACK)))

    out = capsys.readouterr().out
    assert out.count("red\\x1b[31m \\x1b]0;title") == 6
    assert out.count("\\u202egnp.exe [bold]b[/red]") == 6
    assert out.count(SHOWN) == 2  # rich itself drops the bell and returns from plain strings
    assert visible(out) == out


def test_a_cell_of_plain_text_keeps_its_column_straight(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = Table("a", "b")
    table.add_row(plain("\x1b[31m"), "1")
    table.add_row(plain("x"), "2")
    make_console().print(table)

    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert len({line.index("│", 1) for line in rows}) == 1


def test_a_long_text_with_controls_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    make_console(width=20).print("\x1b" * 30)

    assert capsys.readouterr().out.replace("\n", "") == "\\x1b" * 30


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_says_what_is_done_and_counts_on_a_terminal(terminal: bool) -> None:
    console = Console(file=StringIO(), force_terminal=terminal, width=80, highlight=False)
    with progress(console, "reading \x1b[2J[/red]", 3) as advance:
        for _ in range(3):
            advance()
    printed = console.file.getvalue()
    first = printed.splitlines()[0]
    assert first == r"reading \x1b[2J[/red]"
    assert ("3/3" in printed) is terminal
    assert terminal or printed == first + "\n"


def test_without_a_console_progress_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with progress(None, "reading", 3) as advance:
        advance()
    assert capfd.readouterr() == ("", "")


def test_a_live_display_is_escaped() -> None:
    console, out = make_console(), StringIO()
    console.file, console._force_terminal = out, True
    with Progress(text_column("{task.description}"), console=console) as progress:
        progress.add_task("a\x1b]0;t [/red]", total=1)

    assert "\x1b]0;" not in out.getvalue()
    assert "a\\x1b]0;t [/red]" in out.getvalue()


GUARDED = """
import logging, warnings
from gpg_vl.console import guard
guard()
guard()  # a program inside of a program
warnings.warn("warned \\x1b[2J")
logging.getLogger("other").warning("logged %s \\x1b[2J", "\\x1b[2J")
raise ValueError("raised \\x1b[2J")
"""


def test_what_other_libraries_print_is_escaped_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GUARDED], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    for said in ("warned \\x1b[2J", "logged \\x1b[2J \\x1b[2J", "ValueError: raised \\x1b[2J"):
        assert said in done.stderr


def test_the_arguments_of_a_log_record_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Formatters such as those of web servers look at them one by one."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    before = logging.getLogRecordFactory()
    try:
        guard()
        made = logging.getLogRecordFactory()("x", 20, "f.py", 1, "%s %d", ("\x1b", 200), None)
    finally:
        logging.setLogRecordFactory(before)

    assert made.args == ("\\x1b", 200)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "no\x1b[2Jsuch[/red].yaml"],
        ["no\x1b[2Jsuch[/red]"],
        ["train", "a.yaml", "--no\x1b[2Jsuch[/red]"],
        ["eval", "no\x1b[2Jsuch[/red]", "--predictions", "x.jsonl"],
        ["rewards", "show", "no\x1b[2Jsuch[/red].py:f"],
        ["rewards", "test", "choice", "--data", "no\x1b[2Jsuch[/red].jsonl"],
    ],
)
def test_a_message_quotes_words_escaped(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(words)
    except SystemExit as end:  # argparse
        code = end.code

    assert code == 2
    said = capsys.readouterr().err
    assert "such[/red]" in said
    assert "\x1b" not in said


def test_help_does_not_wait_for_rich() -> None:
    """The module is imported by everything that prints."""
    code = "import sys, gpg_vl.console; sys.exit('rich' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert Path(module.__file__).name == "console.py"
