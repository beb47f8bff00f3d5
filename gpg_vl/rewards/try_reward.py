"""Test a reward on a data set: score its gold answers, then given completions, with a reason for every score.

The reward runs in worker processes with a time limit, as in training. So does its explain function (`gpg_vl.rewards.samples`),
which a user's own reward need not have.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gpg_vl.answers.extract import extract_answer
from gpg_vl.answers.verdict import Verdict
from gpg_vl.errors import UserError
from gpg_vl.prompting import GOLD_FORM
from gpg_vl.registry import did_you_mean
from gpg_vl.rewards.gold_proof import GoldOutcome, gold_completion
from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.scoring import RANGE_SLACK, Item, RewardFailure
from gpg_vl.types import Completion, Example

_Scored = float | RewardFailure

MAX_LINE = 16_000_000
"""Maximum number of characters in one line of a completions file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The results of testing a reward on a data set and on completions."""

    name: str
    low: float
    high: float
    explained: bool
    """True if the reward returns verdicts (`@explained`); else the verdicts hold only its score and the extracted
    answer."""
    gold: list[tuple[Item, Verdict | RewardFailure]]
    """The gold answer of every example that was scored, in the order of the data: all of them, unless the reward failed too often
    with one cause, or declares that it has no gold form.
    """
    rows: int
    """Number of examples in the data."""
    proved: bool
    """False if the reward declares that it has no gold form."""
    tried: list[tuple[Item, Verdict | RewardFailure]]
    """The completions, in the order of their file."""
    seconds: float
    """Time for scoring the completions, without starting the workers."""

    @staticmethod
    def score(outcome: Verdict | RewardFailure, *, failed: float) -> float:
        """The score of an outcome; `failed` for a failure."""
        return failed if isinstance(outcome, RewardFailure) else outcome.score

    @property
    def scores(self) -> list[float]:
        """The scores of the completions, without failures."""
        return [one.score for _, one in self.tried if isinstance(one, Verdict)]

    @property
    def gold_problems(self) -> list[tuple[Item, Verdict | RewardFailure]]:
        """The gold answers that did not get the maximum score."""
        least = self.high - RANGE_SLACK
        return [one for one in self.gold if self.score(one[1], failed=float("-inf")) < least]

    @property
    def unparsed(self) -> int:
        """Completions in which no answer could be read."""
        return sum(isinstance(one, Verdict) and one.parsed is None for _, one in self.tried)

    @property
    def ok(self) -> bool:
        """True if no call failed and every gold answer got full marks (if the reward has a gold form)."""
        return not self.gold_problems and len(self.scores) == len(self.tried)


def try_reward(
    name: str,
    examples: Sequence[Example],
    responses: Mapping[str, str],
    *,
    time_limit: float = 10.0,
    workers: int = 2,
    gold: str = GOLD_FORM,
    root: Path | None = None,
) -> Trial:
    """Score the gold answers of `examples`, then `responses` by example id. Raises UserError if the reward cannot be
    loaded.

    gold: the form of gold answers if the reward does not declare one. root: the folder that image paths are relative to.
    """
    by_id = {example.id: example for example in examples}
    asked = [Item(by_id[key], (_completion(text),)) for key, text in responses.items()]
    with RewardPool(
        {name: 1.0}, time_limit=time_limit, workers=workers, gold=gold, root=root
    ) as pool:
        low, high = pool.ranges()[name]
        is_proved = name not in pool.unproved()
        proofs = _of_gold(examples, pool.prove(examples, name), gold) if is_proved else []
        began = time.perf_counter()
        scored = pool.evaluate(asked)
        seconds = time.perf_counter() - began

        is_explained = name in pool.explained()
        tell = partial(_verdicts, name=name, pool=pool if is_explained else None)
        of_gold = tell(proofs)
        tried = tell([(item, _value(one, name)) for item, one in zip(asked, scored, strict=True)])

    return Trial(
        name=name,
        low=low,
        high=high,
        explained=is_explained,
        gold=of_gold,
        rows=len(examples),
        proved=is_proved,
        tried=tried,
        seconds=seconds,
    )


def score_answers(
    name: str, example: Example, answers: Sequence[Completion], *, time_limit: float = 10.0
) -> list[Verdict | RewardFailure]:
    """Score answers to one example with a reward, in a worker process; results in order. Raises UserError if the reward cannot be
    loaded. There is no gold check, so the example needs a gold answer only if the reward itself does.
    """
    items = [Item(example, (answer,)) for answer in answers]
    with RewardPool({name: 1.0}, time_limit=time_limit, workers=1) as pool:
        scored = pool.evaluate(items)
        is_explained = name in pool.explained()
        valued = [(item, _value(one, name)) for item, one in zip(items, scored, strict=True)]
        verdicts = _verdicts(valued, name=name, pool=pool if is_explained else None)
    return [verdict for _, verdict in verdicts]


def _value(scored: Mapping[str, tuple[float, ...]] | RewardFailure, name: str) -> _Scored:
    return scored if isinstance(scored, RewardFailure) else scored[name][0]


def _of_gold(
    examples: Sequence[Example], outcomes: Sequence[GoldOutcome], gold: str
) -> list[tuple[Item, _Scored]]:
    """The gold answers that were scored, each with its response; for a failed call the response in the form of the
    config."""
    found: list[tuple[Item, _Scored]] = []
    for example, outcome in zip(examples, outcomes, strict=True):
        if isinstance(outcome, RewardFailure):
            found.append((Item(example, (gold_completion(example, gold),)), outcome))
        elif outcome is not None:
            found.append((Item(example, (_completion(outcome.response),)), outcome.value))
    return found


def _verdicts(
    scored: Sequence[tuple[Item, _Scored]], *, name: str, pool: RewardPool | None
) -> list[tuple[Item, Verdict | RewardFailure]]:
    """The scored items with the reward's own verdicts from `pool`; without a pool a verdict is built from the score and the
    extracted answer."""
    explained: Iterator[Verdict | RewardFailure] = iter(())
    if pool is not None:
        calls = [item for item, value in scored if not isinstance(value, RewardFailure)]
        explained = iter(pool.explain(calls, name))

    found: list[tuple[Item, Verdict | RewardFailure]] = []
    for item, value in scored:
        verdict: Verdict | RewardFailure
        if isinstance(value, RewardFailure):
            verdict = value
        elif pool is None:
            parsed = extract_answer(item.completions[0].response).candidate
            verdict = Verdict(score=value, parsed=parsed, gold=item.example.answer)
        else:
            verdict = next(explained)
            if isinstance(verdict, Verdict):
                verdict = replace(verdict, score=value)
        found.append((item, verdict))
    return found


def _completion(text: str) -> Completion:
    """A completion made from a text. It has no tokens, so a length reward counts 0."""
    return Completion(text=text)


def read_responses(file: Path, ids: Sequence[str]) -> dict[str, str]:
    """The responses of a JSONL file `{"id": example id, "response": text}`, in its order.

    Raises UserError that names the line if it is not such an object, or if its id is unknown or repeated.
    """
    known = set(ids)
    responses: dict[str, str] = {}
    for number, line in _lines(file):
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f'{where} is not JSON: {error}. Each line is one object {{"id": ..., "response": ...}}. Correct the line.'
            ) from None
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("response"), str)
            or not _is_id(row.get("id"))
        ):
            raise UserError(
                f"{where} holds {line.strip():.80}. Each line is one object with an `id`, the id of an example, and a "
                f"`response`, the text of the completion. Correct the line."
            )
        key = row["id"] if isinstance(row["id"], str) else str(row["id"])
        if key not in known:
            raise UserError(
                f"{where} answers the example {key!r}, which the data does not have. {did_you_mean(key, list(ids)[:20])} "
                f"Correct the id; the id of a row without an id column is its number from 0."
            )
        if key in responses:
            raise UserError(
                f"{where} answers the example {key!r} a second time. One line per example is allowed. Remove one."
            )
        responses[key] = row["response"]
    if not responses:
        raise UserError(
            f"{file} has no lines. At least one completion is needed. Check that it was written completely."
        )
    return responses


def _is_id(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of every line that is not empty. Raises UserError if the file cannot be read as UTF-8."""
    try:
        with file.open(encoding="utf-8") as stream:
            number = 0
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise UserError(
                        f"{file}, line {number} has more than {MAX_LINE} characters. Shorter lines are allowed. Cut the response."
                    )
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The completions {file} cannot be read: {error}. A JSONL file in UTF-8 is needed. Check the path."
        ) from None
