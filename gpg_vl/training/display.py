"""The live display of a run: on a terminal a bar, the last step and the current phase; elsewhere plain lines."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from gpg_vl.console import plain, text_column
from gpg_vl.training.dropped_groups import Dropped, read_step, warn
from gpg_vl.training.signals import (
    LEAST_ROUNDS,
    Seen,
    advise,
    describe_few_signals,
    read_seen,
)

WARN_EVERY = 50
"""Minimum number of steps between two warnings of the same kind."""


def no_signal(
    *, steps: int, skipped: int, folder: Path, dropped: Dropped, seen: Seen
) -> str | None:
    """The message for a finished run in which no group had a signal; None for any other run. seen: the groups
    of the whole run.
    """
    if skipped < steps or not steps:
        return None

    broken = ""
    if dropped.number:
        broken = (
            f" {dropped} groups were dropped because a reward failed (rewards.on_error: drop_group): correct that first; "
            f"reward_failure in {folder / 'metrics.jsonl'} has the messages."
        )
    return (
        f"Nothing was learnt: in all {steps} steps all answers to a prompt got the same reward, so the weights have not "
        f"changed.{broken} Of {seen.groups} groups {seen.all_wrong} were all wrong and {seen.all_right} all right "
        f"(all_wrong_share, all_right_share in {folder / 'metrics.jsonl'}). Read the model's answers "
        f"({folder / 'samples'}) and check how the reward scores them (gpg-vl rewards test). {advise(seen)}"
    )


class Display:
    """Shows steps as they happen. Use as a context manager.

    Without a terminal one line is printed per `plain_every` steps, and one per `plain_seconds` in a
    step that takes longer. `rounds`: maximum rounds of sampling per step; 0 for an algorithm that does not sample.
    """

    def __init__(
        self,
        console: Console,
        *,
        steps: int,
        done: int,
        enabled: bool,
        plain_every: int = 10,
        plain_seconds: float = 30.0,
        rounds: int = 0,
    ) -> None:
        self._console = console
        self._enabled = enabled
        self._plain_every = plain_every
        self._plain_seconds = plain_seconds
        self._steps = steps

        # measure the pace of this process only: steps before a resume took none of its time
        self._started, self._first = time.perf_counter(), done
        self._printed = self._started
        self._done, self._rounds = done, rounds
        self._warned: dict[str, int] = {}

        # a separate line for what must be visible at any width
        self._bar = Progress(
            SpinnerColumn(),
            text_column("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TimeRemainingColumn(compact=True),
            text_column("left"),
            console=console,
            speed_estimate_period=120,
        )
        self._task = self._bar.add_task("", total=steps, completed=done)
        self._numbers: tuple[Part, ...] = ()
        self._round = ""
        self._phase = "starting"
        self._live = Live(console=console, get_renderable=self._render)

    def __enter__(self) -> "Display":
        if self._enabled and self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._round = self._phase = ""
        self._live.stop()

    def step(self, step: int, metrics: dict[str, Any], seconds: dict[str, float]) -> None:
        """Show a finished step, or the scores of an evaluation."""
        if not self._enabled:
            return
        if "reward" not in metrics:
            shares = [f"{k} {100 * v:.1f}" for k, v in metrics.items() if isinstance(v, float)]
            self._print_lines([f"step {step:>5}", "evaluation", *shares])
            return

        self._round = self._phase = ""
        self._done = step
        self._numbers = _describe_step(metrics, seconds)
        self._bar.update(self._task, completed=step)
        self._warn_of_step(step, metrics)

        is_due = step % self._plain_every == 0 or step in (1, self._steps)
        if is_due and not self._console.is_terminal:
            pace = (time.perf_counter() - self._started) / max(step - self._first, 1)
            left = round(pace * (self._steps - step))
            line = "  ".join(part.text for part in self._numbers)
            self._print(f"step {step:>5}/{self._steps}  {line}  {left // 60}:{left % 60:02d} left")

    def phase(self, phase: str, done: int, of: int) -> None:
        """Show the progress within a step; only on a terminal."""
        self._phase = f"{phase} {done} of {of}"

    def round(self, number: int, of: int, *, valid: int, needed: int, seen: Seen) -> None:
        """Show that a step samples again. valid: groups with signal so far, of `needed`. seen: the groups of earlier
        rounds."""
        self._round = f"round {number}/{of}, {valid} of {needed} groups with signal"
        silent = time.perf_counter() - self._printed
        if self._enabled and not self._console.is_terminal and silent >= self._plain_seconds:
            self._print(self._round)
        if number > LEAST_ROUNDS:
            self._warn_of_signals(self._done + 1, seen)

    def _warn_of_step(self, step: int, metrics: dict[str, Any]) -> None:
        if message := warn(step, metrics):
            self._warn("dropped", step, message)
        if self._rounds:
            self._warn_of_signals(step, read_seen([metrics]))
        if again := metrics.get("solved_rows_again"):
            self._warn("solved", step, _describe_again(step, again))

    def _warn_of_signals(self, step: int, seen: Seen) -> None:
        if self._rounds and seen.are_few:
            self._warn("signals", step, describe_few_signals(step, seen, rounds=self._rounds))

    def _warn(self, kind: str, step: int, message: str) -> None:
        """Print a warning, but not more than one of a kind in `WARN_EVERY` steps."""
        is_early = kind in self._warned and step < self._warned[kind] + WARN_EVERY
        if self._enabled and not is_early:
            self._console.print(plain(message, style="yellow"), soft_wrap=True)
            self._warned[kind] = step

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)
        self._printed = time.perf_counter()

    def _print_lines(self, words: Sequence[str]) -> None:
        """Print the words, on a terminal on as many lines as needed without breaking a word; elsewhere on one line."""
        width = self._console.width if self._console.is_terminal else sys.maxsize
        line = ""
        for word in words:
            if line and len(line) + 2 + len(word) > width:
                self._print(line)
                line = " " * 12
            line += ("  " if line.strip() else "") + word
        self._print(line)

    def _render(self) -> Group:
        """The lines on a terminal, fitted to its current width."""
        width = self._console.width
        now = "  ".join(text for text in (self._round, self._phase) if text)
        lines = [fit(self._numbers, width), now]
        return Group(self._bar, *(_one_line(line) for line in lines if line))


def _describe_again(step: int, rows: int) -> str:
    return (
        f"warning: step {step}: {rows} rows were solved (data.skip_solved), and fewer than train.prompts_per_step were left, so "
        f"all rows are drawn again. If the evaluation agrees, the task is learnt: stop here, or continue on harder rows."
    )


class Part(NamedTuple):
    """One number of a line. If the line is too long, parts with the greatest `rank` are dropped first."""

    rank: int
    text: str


def fit(parts: Sequence[Part], width: int) -> str:
    """Join the parts in their order, dropping those that do not fit into `width` columns."""
    kept = list(parts)
    while kept and len("  ".join(part.text for part in kept)) > width:
        kept.remove(max(kept))
    return "  ".join(part.text for part in kept)


def _one_line(text: str) -> Text:
    line = plain(text)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _describe_step(metrics: dict[str, Any], seconds: dict[str, float]) -> tuple[Part, ...]:
    alpha, dropped = metrics.get("alpha"), read_step(metrics)
    return (
        *([Part(0, f"dropped {dropped}")] if dropped.number else []),
        Part(1, f"reward {metrics['reward']:.3f}"),
        Part(4, f"accuracy {metrics['accuracy']:.3f}"),
        Part(2, f"valid {metrics['valid_share']:.2f}"),
        *([] if alpha is None else [Part(5, f"alpha {alpha:.2f}")]),
        Part(6, f"length {metrics['length_all']:.1f}"),
        Part(3, f"{seconds['step']:.2f} s/step"),
    )
