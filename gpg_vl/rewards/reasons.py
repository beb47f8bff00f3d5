"""The explanations of users' own rewards, saved with the samples of a run.

A built-in reward can explain its score again when the samples are read. A user's own reward cannot: its code is not part of the
run folder, and a folder must not decide which code runs. So its `@explained` verdict is recorded during the run.
"""

from collections.abc import Sequence

from gpg_vl.answers.verdict import Verdict
from gpg_vl.rewards import BUILTIN
from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.scoring import Item, RewardFailure
from gpg_vl.types import Group

LONGEST = 2000
"""Maximum number of characters saved per text."""

Reason = dict[str, str | float | None]
"""`parsed` (the answer as the reward read it), `note` and `score`; None or "" if the reward gives none."""
Reasons = dict[str, list[Reason]]
"""The reasons of one group: by reward name, one for each of `Group.answers`."""


class Explainer:
    """Gets verdicts from the rewards of a pool.

    A reward whose explanation hangs or crashes its worker is not asked again, so that the run does not wait for it at every dump.
    Call this between two calls of the pool.
    """

    def __init__(self, pool: RewardPool) -> None:
        self._pool = pool
        self._given_up: dict[str, str] = {}

    def __call__(self, groups: Sequence[Group]) -> list[Reasons]:
        """The reasons of each group, in the order given; empty for built-in rewards and rewards without `@explained`."""
        own = [name for name in self._pool.weights if name not in BUILTIN]
        asked = [name for name in own if name in self._pool.explained()] if own else []
        return [
            {
                name: self._ask(name, group)
                for name in asked
                if name in self._pool.weights_of(group.example)
            }
            for group in groups
        ]

    def _ask(self, name: str, group: Group) -> list[Reason]:
        if name in self._given_up:
            return [_make_unexplained(self._given_up[name]) for _ in group.answers]

        items = [Item(group.example, (answer,)) for answer in group.answers]
        verdicts = self._pool.explain(items, name)
        for verdict in verdicts:
            if isinstance(verdict, RewardFailure) and verdict.kind in ("timeout", "crash"):
                self._given_up[name] = f"not asked any more since this: {verdict}"
        return [_reason(verdict) for verdict in verdicts]


def _reason(verdict: Verdict | RewardFailure) -> Reason:
    if isinstance(verdict, RewardFailure):
        return _make_unexplained(str(verdict))

    # a user's function may put other types into a verdict than declared
    score = verdict.score if isinstance(verdict.score, int | float) else None
    is_finite = score is not None and -1e308 < score < 1e308
    return {
        "parsed": None if verdict.parsed is None else str(verdict.parsed)[:LONGEST],
        "note": str(verdict.note)[:LONGEST],
        "score": float(score) if score is not None and is_finite else None,
    }


def _make_unexplained(why: str) -> Reason:
    return {"parsed": None, "note": f"not explained: {why}"[:LONGEST], "score": None}
