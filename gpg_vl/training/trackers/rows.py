"""Groups as trackers show them: a picture, and text in which nothing is invisible."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from gpg_vl.report.visible_text import line
from gpg_vl.training.samples import PictureSource
from gpg_vl.types import Group

COLUMNS = ("step", "id", "task", "picture", "question", "gold", "answer", "reward")
"""Of the tables that wandb and trackio show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A group for people.

    Example: `Shown(id="7", task="Count", picture=None, question="How many?", gold="4", answers=(("four", 1.0),))`
    """

    id: str
    task: str
    picture: Image.Image | None
    """The first of its pictures, no side above 256 pixels."""
    question: str
    gold: str
    answers: tuple[tuple[str, float], ...]
    """Each response with its reward, that of a greedy answer marked as such."""


def shown_groups(groups: Sequence[Group], pictures: PictureSource) -> list[Shown]:
    return [_make_shown(group, pictures) for group in groups]


def _make_shown(group: Group, pictures: PictureSource) -> Shown:
    example = group.example
    scored = zip(group.completions, group.rewards, strict=True)
    answers = [(line(one.response, 4000), reward) for one, reward in scored]
    if group.greedy is not None:
        text = f"(greedy) {group.greedy.completion.response}"
        answers.append((line(text, 4000), group.greedy.reward))
    return Shown(
        id=line(example.id),
        task=line(example.task),
        picture=pictures.small(example.images[0]) if example.images else None,
        question=line(group.prompt.text, 2000),
        gold=line(example.answer, 500),
        answers=tuple(answers),
    )


def table_rows(step: int, shown: Sequence[Shown], pictures: Sequence[Any]) -> list[list[Any]]:
    """A row of `COLUMNS` for each answer, with the picture as the tracker wants it."""
    return [
        [step, one.id, one.task, picture, one.question, one.gold, answer, reward]
        for one, picture in zip(shown, pictures, strict=True)
        for answer, reward in one.answers
    ]
