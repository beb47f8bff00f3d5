"""Checks that are possible if the checkpoint or the data cannot be reached: of the folder, the data and the rewards."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from gpg_vl.config import Config
from gpg_vl.data.check import Checks, PromptCounts, check, show_progress
from gpg_vl.data.images import examine_image
from gpg_vl.data.read import read_rows
from gpg_vl.errors import UserError
from gpg_vl.eval.tasks import tasks
from gpg_vl.types import Example


def find_local_problems(
    config: Config,
    console: Console | None,
    *,
    root: Path | None,
    has_rows: bool,
    needs_answers: Callable[[], bool],
    refuse_rewards: Callable[[], None],
) -> list[str]:
    """All problems that can be found without files that are only on the hub, as sentences.

    root: the folder of images. has_rows: whether the data is on this machine. needs_answers: loads the rewards and returns
    whether every row needs a gold answer. refuse_rewards: runs the gold check; called only if the rows have no problems.
    Both raise UserError.
    """

    def refuse_rows() -> None:
        if has_rows:
            _refuse_rows(config, console, root=root, answers=needs_answers())

    steps = [lambda: _refuse_folder(Path(config.output.folder)), lambda: _load_evaluation(config)]
    problems = [_find_refusal(step) for step in steps]
    problems.append(_find_refusal(refuse_rows) or _find_refusal(refuse_rewards))
    return [problem for problem in problems if problem]


def _find_refusal(step: Callable[[], None]) -> str:
    """The message of the UserError that a step raises; "" if it raises none."""
    try:
        step()
    except UserError as error:
        return str(error)
    return ""


def _refuse_folder(folder: Path) -> None:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(
            f"output.folder is {folder}, but {there} is not a writable folder. Choose another one."
        )


def _load_evaluation(config: Config) -> None:
    if config.eval.task is not None and config.eval.data is not None:
        tasks.get(config.eval.task)().load(Path(config.eval.data))


def _refuse_rows(
    config: Config, console: Console | None, *, root: Path | None, answers: bool
) -> None:
    """Check rows and images. Prompt lengths are not known without the tokenizer."""

    def open_pictures(example: Example) -> PromptCounts:
        for image in example.images:
            examine_image(image, root=root, max_pixels=config.data.max_image_pixels)
        return PromptCounts(tokens=0, image_tokens=0, image_sizes=())

    data = config.data
    rows = read_rows(data.only, data.columns, limit=data.limit, answers=answers)
    report = check(
        show_progress(rows, console, source=data.only),
        checks=Checks(count=open_pictures, max_prompt_tokens=None, answers=answers),
        source=data.only,
    )
    if report.ok:
        return
    if console:
        replace(report, tokens=(), image_tokens=()).render(console)
    raise UserError(
        f"The data {data.only} has {len(report.problems)} problem(s), listed above. Correct the rows or choose others; nothing "
        f"is dropped silently."
    )
