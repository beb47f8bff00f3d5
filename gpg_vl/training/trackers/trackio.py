"""Samples in trackio: a table with a row for each answer."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas
import trackio

from gpg_vl.training.trackers.rows import COLUMNS, Shown, table_rows


def show(tracker: Any, step: int, shown: Sequence[Shown]) -> None:
    pictures = [None if one.picture is None else trackio.Image(one.picture) for one in shown]
    rows = table_rows(step, [_quote(one) for one in shown], pictures)
    frame = pandas.DataFrame(rows, columns=list(COLUMNS))
    tracker.log({"samples": trackio.Table(dataframe=frame)}, step=step)


def _quote(shown: Shown) -> Shown:
    answers = tuple((as_code(answer), reward) for answer, reward in shown.answers)
    return replace(
        shown, question=as_code(shown.question), gold=as_code(shown.gold), answers=answers
    )


def as_code(text: str) -> str:
    """The text as code of Markdown, which trackio takes every text for: an answer must not fetch a picture."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}"
