"""Samples in wandb: a table with a row for each answer."""

from collections.abc import Sequence
from typing import Any

import wandb

from gpg_vl.training.trackers.rows import COLUMNS, Shown, table_rows


def show(tracker: Any, step: int, shown: Sequence[Shown]) -> None:
    pictures = [None if one.picture is None else wandb.Image(one.picture) for one in shown]
    table = wandb.Table(columns=list(COLUMNS), data=table_rows(step, shown, pictures))
    tracker.log({"samples": table}, step=step)
