"""The gold check: the gold answers of a data set must get full marks from the rewards of the run.

A gold answer is written as a response in the form that the reward declares (`@gold_form`), or else in that of the config
(`rewards.gold`). If one does not get full marks, the cause is a
wrong row, a wrong mapping of columns, the wrong reward, or a reward that expects another form; `explain` lists the remedies.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from gpg_vl.answers.box_text import answer_as_stated
from gpg_vl.answers.extract import gold_text
from gpg_vl.rewards import GOLD_FORM, QUICK, GoldForm
from gpg_vl.rewards.scoring import (
    RANGE_SLACK,
    Reward,
    RewardFailure,
    RewardValueError,
    call,
    checked_weights,
    load,
)
from gpg_vl.types import Completion, Example

SAME_FAILURES = 3
"""After this many failures with the same cause the check of a reward ends, instead of reporting every row."""
_BATCH, _BATCH_BYTES = 512, 64 << 20
"""The maximum number of examples checked together, and of bytes of their images."""
_SHOWN = 5
"""Number of rows listed per reward."""


class GoldScore(NamedTuple):
    """The score of a gold answer, and the response that was scored."""

    value: float
    response: str


GoldOutcome = GoldScore | RewardFailure | None
"""None: not checked, because the check had already ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldProblem:
    """A gold answer that does not get full marks from a reward.

    Example: `GoldProblem(reward="choice", example_id="7", score=0.0, best=1.0, saw="<think>...<answer>2</answer>")`
    """

    reward: str
    example_id: str
    score: float | None
    """The reward's score; None if it returned no valid number."""
    best: float
    """The expected score: the reward's declared maximum, or its minimum if its weight is negative."""
    scored_text: str
    """The response that was scored, followed by the failure if there was one."""
    ends: bool = False
    """True if the check of the reward ended here after `SAME_FAILURES` failures with this cause; later rows were not
    checked."""

    def __str__(self) -> str:
        gave = (
            "fails on"
            if self.score is None
            else f"gives {self.score:g} instead of {self.best:g} to"
        )
        return f"The reward {self.reward!r} {gave} the gold answer of example {self.example_id!r}. It scored: {self.scored_text}"


class Isolated(Protocol):
    """The part of `RewardPool` that `check_gold` uses."""

    def ranges(self) -> Mapping[str, tuple[float, float]]: ...

    def unproved(self) -> frozenset[str]: ...

    def prove(self, examples: Sequence[Example], name: str) -> Sequence[GoldOutcome]: ...


def gold_completion(example: Example, form: GoldForm = GOLD_FORM) -> Completion:
    """The gold answer of an example, written as a response; its boxes in the frame that answers are read in.

    Raises RewardValueError if the form returns no text, UserError for boxes whose frame is not known.
    """
    assert form is not None, "a reward without a gold form is not proved"
    if isinstance(form, str):
        text: object = form.replace("{answer}", gold_text(answer_as_stated(example)))
    else:
        text = form(example)
    if not isinstance(text, str):
        raise RewardValueError(
            f"The gold form of a reward returned {text!r:.200} for example {example.id!r}. It must return the text of a "
            f"whole response."
        )
    return Completion(text=text)


def needs_answer(form: GoldForm) -> bool:
    """Whether a reward with this form needs a gold answer in every row."""
    return form is not None and (not isinstance(form, str) or "{answer}" in form)


def score_gold(reward: Reward, example: Example) -> GoldScore:
    """Write the gold answer of an example and score it. Raises what the reward raises."""
    completion = gold_completion(example, reward.gold)
    given = [completion] if reward.batched else completion
    return GoldScore(call(reward, given, example)[0], completion.response)


def check_gold(
    weights: Mapping[str, float],
    examples: Iterable[Example],
    *,
    pool: Isolated | None = None,
    gold: str = GOLD_FORM,
) -> list[GoldProblem]:
    """Find all gold answers that do not get the best value of a reward. Returns the problems reward by reward.

    Rewards that are fast on any text (`QUICK`) run in this process, which takes seconds for 100,000 examples. All others run in
    `pool`; without a pool they raise ValueError. Rewards without a gold form are skipped.

    gold: the form of gold answers for rewards that do not declare one. A pool has its own.
    """
    proofs = [_Proof(name, weight, gold) for name, weight in checked_weights(weights).items()]
    if pool is not None and not all(name in QUICK for name in weights):
        pool.ranges()  # loads the rewards even if there is no row to check
    for rows in _batches(examples):
        for proof in proofs:
            proof.add(rows, pool)
    return [problem for proof in proofs for problem in proof.problems]


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Split the examples into small batches, because they may contain their images."""
    batch: list[Example] = []
    held = 0
    for example in examples:
        batch.append(example)
        held += sum(len(image) for image in example.images if isinstance(image, bytes))
        if len(batch) == _BATCH or held > _BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


class _Proof:
    """The check of one reward over all rows."""

    def __init__(self, name: str, weight: float, gold: str) -> None:
        self._name, self._weight = name, weight
        self._quick = load(name, gold) if name in QUICK else None
        self._times: dict[str, int] = {}
        """Number of failures by cause."""
        self.problems: list[GoldProblem] = []

    def add(self, rows: Sequence[Example], pool: Isolated | None) -> None:
        """Check more rows, in their order, unless the check has ended."""
        if any(problem.ends for problem in self.problems):
            return
        if self._quick is not None:
            reward = self._quick
            self._judge(rows, [_score_gold(reward, row) for row in rows], reward.low, reward.high)
            return

        if pool is None:
            raise ValueError(
                f"The reward {self._name!r} is not known to be fast on any text, so it must not run in this process. Pass "
                f"`pool=RewardPool(weights)`; only these run in this process: {', '.join(sorted(QUICK))}."
            )
        if self._name not in pool.unproved():
            self._judge(rows, pool.prove(rows, self._name), *pool.ranges()[self._name])

    def _judge(
        self, rows: Sequence[Example], outcomes: Sequence[GoldOutcome], low: float, high: float
    ) -> None:
        """Failures with one cause are listed until the check ends."""
        best = low if self._weight < 0 else high
        for example, outcome in zip(rows, outcomes, strict=True):
            score, scored_text, ends = None, "", False
            if outcome is None:
                continue
            if isinstance(outcome, RewardFailure):
                scored_text = outcome.message
                if outcome.cause:
                    times = self._times[outcome.cause] = self._times.get(outcome.cause, 0) + 1
                    if times > SAME_FAILURES:
                        continue
                    ends = times == SAME_FAILURES
            elif abs(outcome.value - best) <= RANGE_SLACK:
                continue
            else:
                score, scored_text = outcome.value, outcome.response
            self.problems.append(
                GoldProblem(
                    reward=self._name,
                    example_id=example.id,
                    score=score,
                    best=best,
                    scored_text=scored_text,
                    ends=ends,
                )
            )


def _score_gold(reward: Reward, example: Example) -> GoldOutcome:
    """Score a gold answer in this process. A built-in reward raises ValueError on invalid rows."""
    try:
        return score_gold(reward, example)
    except ValueError as error:
        return RewardFailure(
            kind="exception",
            reward=reward.name,
            example_id=example.id,
            member=0,
            message=f"{gold_completion(example, reward.gold).response}\n{error}",
        )


def explain(problems: Sequence[GoldProblem], gold: str = GOLD_FORM) -> str:
    """The message about all problems, reward by reward, with the possible remedies. gold: the form of the config."""
    by_reward: dict[str, list[GoldProblem]] = {}
    for problem in problems:
        by_reward.setdefault(problem.reward, []).append(problem)
    listed = "\n".join(_explain_reward(found) for found in by_reward.values())
    return (
        f"{len(problems)} gold answer(s) do not get full marks from their own reward:\n{listed}\n{ways_on(gold)}\n"
        f"`gpg-vl rewards test REWARD --data FILE` shows what each gold answer gets."
    )


def ways_on(gold: str) -> str:
    """The remedies for gold answers without full marks. gold: the form of the config."""
    return (
        f"A policy would not be rewarded for the right answer. Correct the rows, the mapping of columns, or the reward. "
        f"If all three are correct:\n  - A reward that reads answers in another form than {gold!r} needs gold answers in "
        f"that form. Set rewards.gold to it, such as rewards.gold='{{answer}}' for bare answers; or declare it on the "
        f"reward: @gold_form('{{answer}}') (from gpg_vl.rewards import gold_form), or a function of the example.\n  - A "
        f"reward for which no gold answer gets full marks, such as one on length or layout, declares @gold_form(None). It "
        f"is then not checked, and rows without a gold answer are allowed where no other reward needs them."
    )


def _explain_reward(problems: Sequence[GoldProblem]) -> str:
    """The first problems of one reward; a single message if its check ended after repeated failures with one cause."""
    end = next((problem for problem in problems if problem.ends), None)
    if end is None:
        shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN])
        more = len(problems) - _SHOWN
        return f"{shown}\n  and {more} more of {problems[0].reward!r}" if more > 0 else shown
    others = [repr(problem.example_id) for problem in problems if problem is not end]
    return (
        f"  The reward {end.reward!r} failed {SAME_FAILURES} times for the same cause, and its check ended there. Correct "
        f"the reward. It failed on the gold answers of examples {', '.join(others[:_SHOWN])} and {end.example_id!r}; the "
        f"last time: {end.scored_text}"
    )
