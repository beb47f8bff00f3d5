"""Selects the groups from samples/ that the page shows: of the first and last step, of steps between, and extreme ones."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest, nsmallest
from pathlib import Path
from typing import Any

from gpg_vl.report.json_lines import Row, get, number, read_rows, whole

MOST_STEPS = 12
"""Steps whose groups are shown."""
MOST_SCANNED = 400
"""Steps whose samples are read to find the extremes."""
MOST_READ = 1000
"""Groups of a step that are read."""
MOST_PER_STEP = 6
"""Groups of a step that are shown."""
EXTREMES = 3
"""Groups of each kind of extreme."""
MOST_ANSWERS = 16
"""Answers of a group that are shown."""

_STEP = re.compile(r"step-([0-9]{1,15})")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVerdict:
    """A user's reward's verdict on an answer, recorded during the run.

    Example: `StoredVerdict(parsed="4", note="off by one", score=0.5)`
    """

    parsed: str | None
    note: str
    score: int | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One of the G answers.

    Example: `Answer(text="(B)", prefill="", finish_reason="stop", tokens=3, reward=1.0, parts={"choice": 1.0}, verdicts={})`
    """

    text: str
    prefill: str
    finish_reason: str | None
    tokens: int | None
    reward: int | float | None
    """The weighted total."""
    parts: Mapping[str, int | float]
    """By reward function."""
    verdicts: Mapping[str, StoredVerdict]
    """Verdicts by reward function, for rewards that cannot be run again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One question with its answers, from samples.jsonl."""

    step: int
    place: int
    """Its index among the groups of its step, from 0."""
    id: str
    task: str
    source: str
    """The data set, where the run was trained on several."""
    question: str
    gold: str
    choices: tuple[str, ...] | None
    meta: Mapping[str, Any]
    images: tuple[str, ...]
    """File names in the folder of the step, or paths of the data that are elsewhere."""
    folder: Path
    answers: tuple[Answer, ...]
    more_answers: int
    """Number of further answers of the group that are left out."""
    greedy: Answer | None = None
    """The greedy answer, if the algorithm uses it as a baseline."""

    @property
    def rewards(self) -> list[int | float]:
        return [answer.reward for answer in self.answers if answer.reward is not None]

    @property
    def mean(self) -> float | None:
        """Of the rewards; None without any."""
        return sum(self.rewards) / len(self.rewards) if self.rewards else None

    @property
    def baseline(self) -> float | None:
        """The baseline of an answer's reward: the greedy answer's reward, or the mean; None without any."""
        if self.greedy is not None and self.greedy.reward is not None:
            return self.greedy.reward
        return self.mean

    @property
    def shown(self) -> tuple[Answer, ...]:
        """The answers, the greedy one first if there is one."""
        return self.answers if self.greedy is None else (self.greedy, *self.answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The groups to show, in the order of their steps, and what they were chosen from."""

    groups: tuple[Group, ...] = ()
    steps: int = 0
    """Steps that have a folder of samples."""
    read: int = 0
    """Of these, those that were read."""
    seen: int = 0
    """Groups in them that were read."""
    cut: int = 0
    """How many groups of a step were read at most, if one of them has more; else 0."""
    unread: int = 0
    """Lines that hold no group."""


def read_samples(folder: Path) -> Samples:
    """Choose groups of `folder`, the `samples` of a run. Raises OSError."""
    steps = _steps(folder)
    scanned = spread(steps, MOST_SCANNED)
    shown = {number for number, _ in spread(scanned, MOST_STEPS)}
    chosen: dict[tuple[int, int], Group] = {}
    lowest: list[Group] = []
    highest: list[Group] = []
    seen = unread = cut = 0
    for number_of_step, step in scanned:
        groups = []
        for place, row in enumerate(read_rows(step / "samples.jsonl")):
            if place == MOST_READ:
                cut = MOST_READ
                break
            group = None if row is None else _group(row, number_of_step, place, step)
            if group is None:
                unread += 1
                continue
            seen += 1
            groups.append(group)
            if number_of_step in shown and len(groups) <= MOST_PER_STEP:
                chosen[number_of_step, place] = group

        # few at a time, so that memory does not grow with the run
        scored = [group for group in groups if group.mean is not None]
        lowest = nsmallest(EXTREMES, [*lowest, *scored], key=lambda one: (one.mean, one.step))
        highest = nlargest(EXTREMES, [*highest, *scored], key=lambda one: (one.mean, -one.step))

    chosen |= {(group.step, group.place): group for group in (*lowest, *highest)}
    return Samples(
        groups=tuple(chosen[key] for key in sorted(chosen)),
        steps=len(steps),
        read=len(scanned),
        seen=seen,
        cut=cut,
        unread=unread,
    )


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly spread, the first and the last among them.

    Example: `spread(range(10), 4) == [0, 3, 6, 9]`
    """
    if len(items) <= most:
        return list(items)
    last = len(items) - 1
    return [items[round(place * last / (most - 1))] for place in range(most)]


def _steps(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    # scandir already knows which entries are folders, so no file needs a separate check
    with os.scandir(folder) as entries:
        return sorted(
            (int(match[1]), folder / entry.name)
            for entry in entries
            if (match := _STEP.fullmatch(entry.name)) and entry.is_dir(follow_symlinks=False)
        )


def _group(row: Row, step: int, place: int, folder: Path) -> Group | None:
    """The group of a row, None if it has no list of completions."""
    completions = get(row, "completions", list)
    if completions is None:
        return None
    answers = [answer for one in completions if (answer := _answer(one)) is not None]
    prompt = get(row, "question", str)
    return Group(
        step=step,
        place=place,
        id=get(row, "id", str) or "",
        task=get(row, "task", str) or "",
        source=get(row, "source", str) or "",
        question=prompt if prompt is not None else get(row, "prompt", str) or "",
        gold=get(row, "answer", str) or "",
        choices=_texts(row.get("choices")),
        meta=get(row, "meta", dict) or {},
        images=_texts(row.get("images")) or (),
        folder=folder,
        answers=tuple(answers[:MOST_ANSWERS]),
        more_answers=max(len(answers) - MOST_ANSWERS, 0),
        greedy=_answer(row.get("greedy")),
    )


def _answer(row: object) -> Answer | None:
    if not isinstance(row, dict):
        return None
    return Answer(
        text=get(row, "text", str) or "",
        prefill=get(row, "prefill", str) or "",
        finish_reason=get(row, "finish_reason", str),
        tokens=whole(row.get("tokens")),
        reward=number(row.get("reward")),
        parts=dict(_parts(row)),
        verdicts=dict(_read_reasons(row)),
    )


def _parts(row: Row) -> Iterator[tuple[str, int | float]]:
    for name, value in row.items():
        if name.startswith("reward/") and (plain := number(value)) is not None:
            yield name.removeprefix("reward/"), plain


def _read_reasons(row: Row) -> Iterator[tuple[str, StoredVerdict]]:
    for name, value in row.items():
        if name.startswith("verdict/") and isinstance(value, dict):
            yield (
                name.removeprefix("verdict/"),
                StoredVerdict(
                    parsed=get(value, "parsed", str),
                    note=get(value, "note", str) or "",
                    score=number(value.get("score")),
                ),
            )


def _texts(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, list):
        return None
    return tuple(one for one in value if isinstance(one, str))
