"""What trackers are given besides numbers: names of the run, and samples as pictures with their answers."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from accelerate.tracking import GeneralTracker

from gpg_vl.training.samples import PictureSource
from gpg_vl.training.trackers.rows import Shown, shown_groups
from gpg_vl.types import Group

SHOWS = ("tensorboard", "wandb", "trackio")
"""Trackers that can show a picture, each in the module of its name: what it needs is imported when it is used."""


def tracker_options(
    *, run_name: str | None, group: str | None, resume_id: str | None
) -> dict[str, dict[str, Any]]:
    """What each tracker is made with besides the project: its words for name, group and the run to go on with.

    tensorboard has no such words; its project is a folder.
    """
    wandb: dict[str, Any] = {"name": run_name, "group": group, "id": resume_id}
    # trackio knows a run by its name alone
    trackio: dict[str, Any] = {"name": resume_id or run_name, "group": group}
    if resume_id is not None:
        wandb["resume"] = trackio["resume"] = "allow"
    return {"wandb": _drop_missing(wandb), "trackio": _drop_missing(trackio)}


def _drop_missing(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def show_samples(
    trackers: Sequence[GeneralTracker], step: int, groups: Sequence[Group], pictures: PictureSource
) -> None:
    """Send groups to every tracker that can show a picture. Main process only."""
    known = [one for one in trackers if one.name in SHOWS]
    if not known:
        return
    shown = shown_groups(groups, pictures)
    for tracker in known:
        module = import_module(f"gpg_vl.training.trackers.{tracker.name}")
        show: Callable[[Any, int, Sequence[Shown]], None] = module.show
        show(tracker, step, shown)
