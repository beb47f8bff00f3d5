"""A reward tried on a data set: its gold answers first, then given completions, with a reason for every value.

The rewards run in worker processes with a time limit, as in training, and so does the function that is next to a reward
(`gpg_vl.rewards.samples`) and tells what a completion was read as; a reward of a user's own may do without.
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
"""Characters of one line of a file of completions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a reward made of a data set and of completions for it."""

    name: str
    low: float
    high: float
    explained: bool
    """The reward tells its verdicts (`@explained`); else they hold its value and what was extracted."""
    gold: list[tuple[Item, Verdict | RewardFailure]]
    """The gold answer of every example that was proved, in the order of the data: all of them, unless the reward failed too
    often for one cause, or declares that it has no gold form.
    """
    rows: int
    """Examples of the data."""
    proved: bool
    """False if the reward declares that it has no gold form."""
    tried: list[tuple[Item, Verdict | RewardFailure]]
    """The completions, in the order of their file."""
    seconds: float
    """What scoring the completions took, starting the workers not included."""

    @staticmethod
    def score(outcome: Verdict | RewardFailure, *, failed: float) -> float:
        """The value of an outcome, or what stands for a failure."""
        return failed if isinstance(outcome, RewardFailure) else outcome.score

    @property
    def scores(self) -> list[float]:
        """The values of the completions, failures left out."""
        return [one.score for _, one in self.tried if isinstance(one, Verdict)]

    @property
    def gold_problems(self) -> list[tuple[Item, Verdict | RewardFailure]]:
        """The gold answers that did not get the greatest value."""
        least = self.high - RANGE_SLACK
        return [one for one in self.gold if self.score(one[1], failed=float("-inf")) < least]

    @property
    def unparsed(self) -> int:
        """Completions in which no answer could be read."""
        return sum(isinstance(one, Verdict) and one.parsed is None for _, one in self.tried)

    @property
    def ok(self) -> bool:
        """True if every gold answer got full marks, where there is to be a proof, and no call failed."""
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
    """Score the gold answers of `examples`, then `responses` by example id. Raises UserError if that cannot begin.

    gold: how gold answers are written, if the reward does not declare it. root: where paths of images start.
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
    """What a reward makes of answers to one example, in their order, in a worker process. Raises UserError if it cannot be
    loaded. Nothing is proved, so the example needs no gold answer where the reward needs none.
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
    """The gold answers that were scored, each with its response; of a call that failed, that in the form of the config."""
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
    """The scored items with the reward's own verdicts, asked of `pool`; None: it tells none, so they are made up here."""
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
    """A response that was written elsewhere. It has no tokens, so a reward of the length sees none."""
    return Completion(text=text)


def read_responses(file: Path, ids: Sequence[str]) -> dict[str, str]:
    """The responses of a JSONL file `{"id": example id, "response": text}`, in its order.

    Raises UserError that names the line if it is not such an object, or if its id is unknown or was there before.
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
                f"{where} answers the example {key!r}, which the data does not have. "
                f"{did_you_mean(key, list(ids)[:20])} Correct the id; rows without an id column are called by their "
                f"number from 0."
            )
        if key in responses:
            raise UserError(
                f"{where} answers the example {key!r} a second time. One line per example is allowed. Remove one."
            )
        responses[key] = row["response"]
    if not responses:
        raise UserError(
            f"{file} holds no line. At least one completion is needed. Check that it was written completely."
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
