"""The penalty for answers that are too long: linear below the limit, as in DAPO.

`(limit - cache - tokens) / cache` between `limit - cache` and `limit` tokens, 0 before and -1 after (DAPO,
arXiv:2503.14476, eq. 13). So an answer is penalised before it reaches the limit and is cut off.
"""

from collections.abc import Callable

from gpg_vl.answers.verdict import Verdict
from gpg_vl.errors import UserError
from gpg_vl.rewards import gold_form, in_range
from gpg_vl.rewards.samples import Sample, explained
from gpg_vl.types import Completion, Example

_META = {"length_limit": 100, "length_cache": 20}
EXAMPLES = (
    Sample(response="short", answer="", meta=_META, tokens=80),
    Sample(response="longer", answer="", meta=_META, tokens=90),
    Sample(response="longest", answer="", meta=_META, tokens=100),
)


def verdict(completion: Completion, example: Example) -> Verdict:
    """How `length` reads a completion."""
    limit, cache = limits_of(example)
    tokens = len(completion.token_ids)
    return Verdict(
        score=overlong_penalty(tokens, limit=limit, cache=cache),
        parsed=f"{tokens} tokens",
        gold=f"up to {limit - cache} tokens",
        note="cut off" if completion.finish_reason == "length" else "",
    )


@explained(verdict, EXAMPLES)
@gold_form("")
@in_range(-1, 0)
def length(completion: Completion, example: Example) -> float:
    """0.0 up to `length_limit - length_cache` tokens, falling to -1.0 at `length_limit`; the end token counts.

    Both numbers are columns of the data. To use the same numbers for all rows, write a reward of two lines and name it in the
    config: `from gpg_vl.rewards.length import soft_overlong` and `brief = soft_overlong(limit=1024, cache=256)`, as
    `my_rewards.py:brief`.
    """
    return verdict(completion, example).score


def soft_overlong(*, limit: int, cache: int) -> Callable[[Completion, Example], float]:
    """The reward `length` for one limit. Raises UserError unless 0 < cache <= limit."""
    _check(limit, cache, "soft_overlong")

    @gold_form("")
    @in_range(-1, 0)
    def brief(completion: Completion, example: Example) -> float:
        """0.0 up to `limit - cache` tokens, falling to -1.0 at `limit`."""
        return overlong_penalty(len(completion.token_ids), limit=limit, cache=cache)

    return brief


def overlong_penalty(tokens: int, *, limit: int, cache: int) -> float:
    """DAPO's length penalty, from -1 to 0, for an answer of `tokens` tokens."""
    return min(0.0, max(-1.0, (limit - cache - tokens) / cache))


def limits_of(example: Example) -> tuple[int, int]:
    """`length_limit` and `length_cache` of an example. Raises UserError that names it if one is missing or no number."""
    limit, cache = (example.meta.get(name) for name in ("length_limit", "length_cache"))
    _check(limit, cache, f"example {example.id!r}")
    assert isinstance(limit, int)
    assert isinstance(cache, int)
    return limit, cache


def _check(limit: object, cache: object, where: str) -> None:
    are_truths = isinstance(limit, bool) or isinstance(cache, bool)
    if are_truths or not (isinstance(limit, int) and isinstance(cache, int) and 0 < cache <= limit):
        raise UserError(
            f"The reward 'length' was given the limit {limit!r} and the cache {cache!r} in {where}. Two whole numbers of "
            f"tokens are needed, 0 < cache <= limit. Give the data the columns `length_limit` and `length_cache`, or "
            f"write `brief = soft_overlong(limit=1024, cache=256)` in a file and name it as my_rewards.py:brief."
        )
