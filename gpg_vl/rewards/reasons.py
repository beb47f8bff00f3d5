"""Why a reward of a user's own gave what it gave, kept with the samples of a run.

Rewards of this package can be asked again by whoever reads the samples. One of a user's own cannot: its code is not part
of a run folder, and a folder must not decide which code runs. So its `@explained` verdict is taken while the run has it.
"""

from collections.abc import Sequence

from gpg_vl.answers.verdict import Verdict
from gpg_vl.rewards import BUILTIN
from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.scoring import Item, RewardFailure
from gpg_vl.types import Group

LONGEST = 2000
"""Characters of a text that are kept."""

Reason = dict[str, str | float | None]
"""`parsed` (what the answer was read as), `note` and `score`, each None or "" where the reward does not say."""
Reasons = dict[str, list[Reason]]
"""Of one group: by reward, one for each of `Group.answers`."""


class Explainer:
    """Asks the rewards of a pool for their verdicts.

    A reward whose explanation hangs or takes its worker down is not asked again: a run must not wait for it at every dump.
    Call it between two calls of the pool.
    """

    def __init__(self, pool: RewardPool) -> None:
        self._pool = pool
        self._given_up: dict[str, str] = {}

    def __call__(self, groups: Sequence[Group]) -> list[Reasons]:
        """The reasons of each group, in the order given; none for rewards of this package or without `@explained`."""
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

    # what a user's function has put into a verdict need not be of the declared types
    score = verdict.score if isinstance(verdict.score, int | float) else None
    is_finite = score is not None and -1e308 < score < 1e308
    return {
        "parsed": None if verdict.parsed is None else str(verdict.parsed)[:LONGEST],
        "note": str(verdict.note)[:LONGEST],
        "score": float(score) if score is not None and is_finite else None,
    }


def _make_unexplained(why: str) -> Reason:
    return {"parsed": None, "note": f"not explained: {why}"[:LONGEST], "score": None}
