"""Live signs of a run: one line of numbers that moves on a terminal, plain lines where there is
none.
"""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TimeRemainingColumn,
)

from gpg_vl.console import text_column


def no_signal(*, steps: int, skipped: int, folder: Path) -> str | None:
    """What to say of a run that is over and in which nothing could be learnt; None of any other
    run.
    """
    if skipped < steps or not steps:
        return None

    return (
        f"Nothing was learnt: in all {steps} steps every answer to a prompt got the same reward as the others, so the weights "
        f"are those the run began with. Read what the model answers ({folder / 'samples'}) and what the reward makes of it "
        f"(gpg-vl rewards test); if both are as meant, all_wrong_share and all_right_share in "
        f"{folder / 'metrics.jsonl'} tell whether the data are too hard or too easy, and a higher rollout.temperature or a "
        f"larger rollout.group_size makes answers differ."
    )


class Display:
    """Shows steps as they happen. Use as a context manager.

    `plain_every`: without a terminal, one line is printed per so many steps.
    """

    def __init__(
        self, console: Console, *, steps: int, done: int, enabled: bool, plain_every: int = 10
    ) -> None:
        self._console = console
        self._enabled = enabled
        self._plain_every = plain_every
        self._steps = steps

        # the pace is that of this process: what was done before a resumption took none of its time
        self._started, self._first = time.perf_counter(), done
        self._progress = Progress(
            SpinnerColumn(),
            text_column("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            text_column("{task.description}"),
            TimeRemainingColumn(compact=True),
            text_column("left"),
            console=console,
            disable=not (enabled and console.is_terminal),
            speed_estimate_period=120,
        )
        self._task = self._progress.add_task("starting", total=steps, completed=done)

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, step: int, metrics: dict[str, Any], seconds: dict[str, float]) -> None:
        """Show a finished step, or the scores of an evaluation."""
        if not self._enabled:
            return
        if "reward" not in metrics:
            shares = [f"{k} {100 * v:.1f}" for k, v in metrics.items() if isinstance(v, float)]
            line = f"step {step:>5}  evaluation  {'  '.join(shares)}"
            self._console.print(line)
            return

        line = _describe_step(metrics, seconds)
        self._progress.update(self._task, completed=step, description=line)
        is_due = step % self._plain_every == 0 or step in (1, self._steps)
        if is_due and not self._console.is_terminal:
            pace = (time.perf_counter() - self._started) / max(step - self._first, 1)
            left = round(pace * (self._steps - step))
            self._console.print(
                f"step {step:>5}/{self._steps}  {line}  {left // 60}:{left % 60:02d} left",
            )

    def phase(self, phase: str, done: int, of: int) -> None:
        """Life signs within a step; only a terminal shows them."""
        if not self._enabled or not self._console.is_terminal:
            return

        # from the second step on the line of the last one says more
        if not self._progress.tasks[self._task].completed:
            self._progress.update(self._task, description=f"{phase} of the first step")


def _describe_step(metrics: dict[str, Any], seconds: dict[str, float]) -> str:
    alpha = metrics.get("alpha")
    return (
        f"reward {metrics['reward']:.3f}  accuracy {metrics['accuracy']:.3f}  "
        f"valid {metrics['valid_share']:.2f}  "
        f"{'' if alpha is None else f'alpha {alpha:.2f}  '}"
        f"length {metrics['length_all']:.1f}  {seconds['step']:.2f} s/step"
    )
