"""Samples in tensorboard: a picture and a text for each place of a dump, with a slider over the steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpg_vl.training.trackers.rows import Shown


def show(tracker: Any, step: int, shown: Sequence[Shown]) -> None:
    writer = tracker.writer
    for place, one in enumerate(shown):
        if one.picture is not None:
            pixels = np.asarray(one.picture)
            writer.add_image(f"samples/{place}", pixels, step, dataformats="HWC")
        writer.add_text(f"samples/{place}", _as_code(one), step)
    writer.flush()


def _as_code(shown: Shown) -> str:
    """Indented, which Markdown shows as it is."""
    lines = [shown.question, f"gold: {shown.gold}", ""]
    lines += [f"{reward:g}  {answer}" for answer, reward in shown.answers]
    return "\n".join(f"    {one}" for one in lines)
