"""Prepares a run for the page: texts are made visible, numbers are those of the files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

from gpg_vl.report.evaluations import Changed, Outcome, Question
from gpg_vl.report.folder import Run
from gpg_vl.report.groups import Answer, Group
from gpg_vl.report.json_lines import number
from gpg_vl.report.phases import MEMORY
from gpg_vl.report.pictures import Album, Thumbnail
from gpg_vl.report.verdicts import Question as Asked
from gpg_vl.report.verdicts import Reason, explain_all
from gpg_vl.report.visible_text import Shown, line, make_visible

QUESTION = 1500
"""Characters of a question that are shown."""
SHADES = 3
"""Shades of the colour for an advantage, on each side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerView:
    """An answer with its reward, and the reasons for it."""

    text: Shown
    tokens: int | None
    truncated: bool
    reward: int | float | None
    advantage: float | None
    """Reward minus that of the greedy answer, or minus the mean of the group without one; None without a reward."""
    shade: str
    """`up3` to `up1`, `level`, `down1` to `down3`."""
    parts: tuple[tuple[str, int | float], ...]
    reasons: tuple[str, ...]
    is_greedy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    step: int
    place: int
    id: str
    task: str
    question: Shown
    gold: Shown
    pictures: tuple[Thumbnail, ...]
    mean: float | None
    outcome: str
    """`mixed`, `equal high` or `equal low`: how the rewards of the group are distributed; `none` without any."""
    answers: tuple[AnswerView, ...]
    more_answers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairView:
    """A held-out row before and after."""

    task: str
    question: Shown
    gold: Shown
    pictures: tuple[Thumbnail, ...]
    before: Shown
    after: Shown
    before_why: str
    after_why: str
    before_right: bool
    after_right: bool
    blank_right: bool | None


# ---- groups


def group_views(groups: Sequence[Group], album: Album) -> list[GroupView]:
    """The groups with thumbnails and reasons, all verdicts asked for at once."""
    asked = [
        Asked(reward=name, group=group, answer=answer)
        for group in groups
        for answer in group.shown
        for name in answer.parts
    ]
    reasons = iter(explain_all(asked))
    views = []
    for group in groups:
        answers = tuple(
            _answer_view(answer, group, {name: next(reasons) for name in answer.parts})
            for answer in group.shown
        )
        views.append(_group_view(group, answers, album))
    return views


def _group_view(group: Group, answers: tuple[AnswerView, ...], album: Album) -> GroupView:
    return GroupView(
        step=group.step,
        place=group.place,
        id=line(group.id, 80),
        task=" · ".join(line(word, 80) for word in (group.source, group.task) if word),
        question=make_visible(group.question, QUESTION),
        gold=make_visible(group.gold, 300),
        pictures=tuple(album.show(group.folder, name) for name in group.images[:8]),
        mean=group.mean,
        outcome=_outcome(group),
        answers=answers,
        more_answers=group.more_answers,
    )


def _outcome(group: Group) -> str:
    rewards = group.rewards
    if not rewards:
        return "none"
    if max(rewards) > min(rewards):
        return "mixed"
    return "equal high" if rewards[0] > 0 else "equal low"


def _answer_view(answer: Answer, group: Group, reasons: Mapping[str, Reason]) -> AnswerView:
    advantage = None
    if answer.reward is not None and group.baseline is not None:
        advantage = answer.reward - group.baseline
    return AnswerView(
        text=make_visible(answer.prefill + answer.text),
        tokens=answer.tokens,
        truncated=answer.finish_reason == "length",
        reward=answer.reward,
        advantage=advantage,
        shade=_shade(advantage, group),
        parts=tuple((line(name, 80), value) for name, value in answer.parts.items()),
        reasons=tuple(
            f"{line(name, 60)}: {said}"
            for name, reason in reasons.items()
            if (said := _say(reason, answer.parts[name]))
        ),
        is_greedy=answer is group.greedy,
    )


def _shade(advantage: float | None, group: Group) -> str:
    rewards = group.rewards
    if advantage is None:
        return "level"
    baseline = group.baseline
    assert baseline is not None
    # equal rewards differ from their mean only by rounding
    if baseline == group.mean and max(rewards) == min(rewards):
        return "level"
    largest = max((abs(reward - baseline) for reward in rewards), default=0.0)
    if isclose(advantage, 0.0, abs_tol=1e-6 * largest):
        return "level"

    # any difference from the baseline gets a colour, even if others are much larger
    depth = max(1, round(SHADES * abs(advantage) / largest))
    return f"{'up' if advantage > 0 else 'down'}{depth}"


def _say(reason: Reason, recorded: float) -> str:
    """The verdict as text: what was read, the note, and whether the current rule agrees."""
    said = []
    if reason.score is not None or reason.parsed is not None:
        read = "no answer could be read" if reason.parsed is None else f"read as {reason.parsed!r}"
        said.append(read)
    if reason.note:
        said.append(reason.note)
    if reason.score is not None and not isclose(reason.score, recorded, abs_tol=1e-6):
        said.append(
            f"the run recorded {recorded:g}, the rule of this version gives {reason.score:g}"
        )
    return line("; ".join(said), 400)


# ---- before and after


def pair_views(changed: Changed, album: Album, folder: Any) -> dict[str, list[PairView]]:
    """The rows of each kind: learnt, lost, right twice, wrong twice. `folder`: where their pictures are."""
    return {
        kind: [_pair(question, before, after, album, folder) for question, before, after in rows]
        for kind, rows in changed.shown.items()
    }


def _pair(
    question: Question, before: Outcome, after: Outcome, album: Album, folder: Any
) -> PairView:
    return PairView(
        task=line(question.task, 80),
        question=make_visible(question.question, QUESTION),
        gold=make_visible(question.gold, 300),
        pictures=tuple(album.show(folder, name) for name in question.images[:4]),
        before=make_visible(before.response, 1500),
        after=make_visible(after.response, 1500),
        before_why=_why(before),
        after_why=_why(after),
        before_right=before.right,
        after_right=after.right,
        blank_right=after.blank_right,
    )


def _why(outcome: Outcome) -> str:
    read = "no answer could be read" if outcome.parsed is None else f"read as {outcome.parsed!r}"
    return line("; ".join(filter(None, (read, outcome.note))), 300)


# ---- the run


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A row of the table about what was trained."""

    name: str
    value: str


_KEYS = (
    ("model", "model.path"),
    ("trained on", "data.train"),
    ("trained on several", "data.sources"),
    ("rewards", "rewards.weights"),
    ("algorithm", "algorithm.name"),
    ("group size", "rollout.group_size"),
    ("prompts per step", "train.prompts_per_step"),
    ("learning rate", "train.learning_rate"),
    ("seed", "train.seed"),
    ("evaluated on", "eval.task"),
    ("its data", "eval.data"),
)


def facts(run: Run) -> list[Fact]:
    """The facts about the run in its folder: model, data, command, versions, host and times."""
    found = []
    for name, key in _KEYS:
        section, _, word = key.partition(".")
        value = run.config.get(section, {}).get(word)
        if key == "data.sources":
            value = _name_sources(value)
        if value is not None:
            found.append(Fact(name=name, value=_spell(value)))

    for place, launch in enumerate(run.launches):
        prefix = "" if len(run.launches) == 1 else f"launch {place + 1}: "
        found += [
            Fact(name=f"{prefix}{line(name, 40)}", value=_spell(value))
            for name, value in launch.items()
            if value is not None and name != MEMORY
        ]
    return found


def _name_sources(value: object) -> str | None:
    """The paths of several sets, with the weights that they were given; None of a run on one."""
    sources = [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
    named = []
    for one in sources:
        weight = one.get("weight")
        named.append(f"{one.get('path')}" if weight is None else f"{one.get('path')} x {weight}")
    return ", ".join(named) or None


def _spell(value: object) -> str:
    """A value of run.json or config.yaml in words: `torch 2.13.0, pillow 13.0.0` of an object, `a, b` of a list."""
    if isinstance(value, dict):
        return line(
            ", ".join(f"{key} {line(one, 80)}" for key, one in list(value.items())[:40]), 1000
        )
    if isinstance(value, list):
        return line(" ".join(line(one, 200) for one in value[:60]), 1000)
    return line(value, 500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One score of an evaluation with its interval, blank score and chance.

    Example: `Score(name="official", value=0.62, low=0.55, high=0.69, blank=0.44, chance=0.4375)`
    """

    name: str
    value: int | float
    low: int | float | None
    high: int | float | None
    blank: int | float | None
    chance: int | float | None


def scores(run: Run, place: int, names: Sequence[str]) -> list[Score]:
    """The scores of an evaluation, by its place among the rows that were kept."""
    columns = run.metrics.eval.columns

    def at(name: str) -> int | float | None:
        return number(columns[name][place]) if name in columns else None

    return [
        Score(
            name=line(name, 60),
            value=value,
            low=at(f"ci95/{name}/0"),
            high=at(f"ci95/{name}/1"),
            blank=at(f"blank_{name}"),
            chance=at(f"chance/{name}"),
        )
        for name in names
        if (value := at(name)) is not None
    ]


def differences(one: Run, other: Run) -> list[tuple[str, str, str]]:
    """(key, value of the one, value of the other) of each key of the configs that differs."""
    found = []
    for section in dict.fromkeys((*one.config, *other.config)):
        first_section, second_section = one.config.get(section, {}), other.config.get(section, {})
        for key in dict.fromkeys((*first_section, *second_section)):
            left, right = line(first_section.get(key)), line(second_section.get(key))
            if left != right:
                found.append((line(f"{section}.{key}", 80), left, right))
    return found
