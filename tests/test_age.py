"""Alpha and the collection of groups: the specification's cases, and W ranks in step with random outcomes."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpg_vl.algorithms.advantages import valid_groups
from gpg_vl.algorithms.age import Collected, StepCounts, age_factor, collect, groups_needed
from gpg_vl.algorithms.option_types import Age

Outcomes = list[list[list[list[bool]]]]
MODES: tuple[Age, ...] = ("inverse_valid_fraction", "off", "token", "valid_fraction")
BATCH = [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]


def counts(
    rewards_P_G: Sequence[Sequence[float]], lengths_P_G: Sequence[Sequence[int]] | None = None
) -> StepCounts:
    lengths = lengths_P_G or [[1] * len(row) for row in rewards_P_G]
    valid = [len(set(row)) > 1 for row in rewards_P_G]
    return StepCounts(
        groups=len(valid),
        valid_groups=sum(valid),
        completions=sum(map(len, rewards_P_G)),
        tokens=sum(map(sum, lengths)),
        valid_tokens=sum(sum(row) for row, ok in zip(lengths, valid, strict=True) if ok),
    )


# ---- the factor


def test_alpha_is_groups_over_groups_with_signal() -> None:
    """Four groups, two of them valid: B/(B-M) = 4/2."""
    assert age_factor(counts(BATCH), "inverse_valid_fraction") == 2.0
    assert age_factor(counts(BATCH), "valid_fraction") == 0.5
    assert age_factor(counts(BATCH), "off") == 1.0


def test_token_factor_counts_tokens() -> None:
    """Rewards [1,0] [1,1], lengths 2, 4 | 3, 1: ten tokens, six of them in the valid group."""
    assert age_factor(counts([[1, 0], [1, 1]], [[2, 4], [3, 1]]), "token") == pytest.approx(
        10 / 6, rel=1e-15
    )


@pytest.mark.parametrize("other", [[0.0] * 4, [1.0] * 4], ids=["all wrong", "all right"])
def test_alpha_does_not_count_rewards_that_are_not_zero(other: list[float]) -> None:
    """A known wrong alpha divides completions by non-zero rewards: 8 and 8/5 here, 16/7 on the running example."""
    rewards = [[1.0, 0.0, 0.0, 0.0], other]
    assert age_factor(counts(rewards), "inverse_valid_fraction") == 2.0
    wrong = 16 / sum(r != 0 for row in BATCH for r in row)
    assert wrong == pytest.approx(2.2857, abs=1e-4)
    assert age_factor(counts(BATCH), "inverse_valid_fraction") != pytest.approx(wrong, rel=0.05)


@pytest.mark.parametrize(
    "scale,bonus", [(1.0, 0.0), (2.0, -1.0), (1.0, 0.2)], ids=["0/1", "-1/+1", "with a bonus"]
)
def test_alpha_does_not_depend_on_how_right_and_wrong_are_written(
    scale: float, bonus: float
) -> None:
    valid_P = valid_groups(scale * torch.tensor(BATCH) + bonus)
    assert valid_P.tolist() == [True, False, False, True]
    step = StepCounts(
        groups=4, valid_groups=int(valid_P.sum()), completions=16, tokens=16, valid_tokens=8
    )
    assert age_factor(step, "inverse_valid_fraction") == 2.0


@pytest.mark.parametrize("mode", MODES)
def test_without_any_valid_group_there_is_nothing_to_scale(mode: Age) -> None:
    assert age_factor(counts([[1.0, 1.0], [0.0, 0.0]]), mode) == 0.0


@given(st.integers(1, 512).flatmap(lambda p: st.tuples(st.just(p), st.integers(1, p))))
def test_the_two_fractions_are_inverses_and_alpha_lies_between_1_and_p(
    groups: tuple[int, int],
) -> None:
    step = StepCounts(
        groups=groups[0], valid_groups=groups[1], completions=1, tokens=1, valid_tokens=1
    )
    alpha = age_factor(step, "inverse_valid_fraction")
    assert alpha * age_factor(step, "valid_fraction") == pytest.approx(1.0, rel=1e-12)
    assert 1.0 <= alpha <= groups[0]


# ---- the threshold


@pytest.mark.parametrize(
    "beta_th,groups,needed",
    [
        (0.6, 5, 3),
        (0.55, 100, 55),
        (0.6, 4, 3),
        (0.5, 4, 2),
        (0.0, 8, 0),
        (1.0, 8, 8),
        (0.01, 8, 1),
    ],
)
def test_the_threshold_rounds_up(beta_th: float, groups: int, needed: int) -> None:
    assert groups_needed(beta_th, groups) == needed


@given(st.integers(0, 1000), st.integers(1, 2000))
def test_the_threshold_is_the_exact_ceiling(thousandths: int, groups: int) -> None:
    assert groups_needed(thousandths / 1000, groups) == ceil(Fraction(thousandths, 1000) * groups)


# ---- collecting


@dataclass(frozen=True)
class Item:
    """A group that knows nothing but its name and whether it is valid."""

    name: str
    valid: bool


@dataclass
class Rank:
    """What one rank is given and what happened to it: the outcomes of its rounds, and the calls of `draw`."""

    outcomes: list[list[bool]]
    """Valid or not, for each prompt of each round; the last round repeats."""
    carry: tuple[Item, ...] = ()
    asked: list[bool] = field(default_factory=list)
    drawn: list[list[Item]] = field(default_factory=list)


def run_ranks(
    ranks: list[Rank], *, slots: int, needed: int, max_rounds: int, step: int = 0
) -> list[Collected[Item]]:
    """`collect` on every rank at once. `total` waits for all ranks, so a rank that leaves the others fails the test."""
    barrier = threading.Barrier(len(ranks), timeout=10)
    board = [0] * len(ranks)

    def one(index: int) -> Collected[Item]:
        rank = ranks[index]

        def draw(free: bool) -> list[Item]:
            rank.asked.append(free)
            outcome = rank.outcomes[min(len(rank.drawn), len(rank.outcomes) - 1)] if free else []
            items = [
                Item(f"step{step}-rank{index}-round{len(rank.drawn)}-{i}", ok)
                for i, ok in enumerate(outcome)
            ]
            rank.drawn.append(items)
            return items

        def total(number: int) -> int:
            board[index] = number
            barrier.wait()
            result = sum(board)
            barrier.wait()
            return result

        return collect(
            rank.carry,
            slots=slots,
            needed=needed,
            max_rounds=max_rounds,
            is_valid=lambda item: item.valid,
            draw=draw,
            total=total,
        )

    with ThreadPoolExecutor(len(ranks)) as pool:
        futures = [pool.submit(one, i) for i in range(len(ranks))]
        return [future.result(timeout=20) for future in futures]


def pattern(valid: int, slots: int) -> list[bool]:
    return [True] * valid + [False] * (slots - valid)


def step_alpha(results: Sequence[Collected[Item]]) -> float:
    used = [item for result in results for item in result.used]
    valid = sum(item.valid for item in used)
    step = StepCounts(groups=len(used), valid_groups=valid, completions=1, tokens=1, valid_tokens=1)
    return age_factor(step, "inverse_valid_fraction")


def test_alpha_counts_groups_that_are_used_not_seen() -> None:
    """Two ranks of two slots, beta_th 0.5: rank 0 finds one, then two valid groups, rank 1 none at all."""
    ranks = [Rank([pattern(1, 2), pattern(2, 2)]), Rank([pattern(0, 2)])]
    # the first round already holds one of the two that are needed, so there is a second
    results = run_ranks(ranks, slots=2, needed=groups_needed(0.5, 4), max_rounds=20)
    assert sum(item.valid for r in results for item in r.used) == 2
    assert [len(r.carry) for r in results] == [1, 0]
    assert [r.rounds for r in results] == [2, 2]
    assert step_alpha(results) == 2.0, (
        "four slots over two valid groups; 4/3 would count the surplus"
    )


def test_a_surplus_does_not_make_up_for_an_empty_slot_elsewhere() -> None:
    """Three valid groups on a rank of two slots are two: three of the four slots are needed, so the search goes on."""
    ranks = [
        Rank([pattern(1, 2), pattern(2, 2)]),
        Rank([pattern(0, 2), pattern(0, 2), pattern(1, 2)]),
    ]
    results = run_ranks(ranks, slots=2, needed=3, max_rounds=20)
    assert [r.rounds for r in results] == [3, 3]
    assert sum(item.valid for r in results for item in r.used) == 3


def test_a_surplus_is_carried() -> None:
    """One rank of four slots, beta_th 0.6: two valid groups, then three."""
    (result,) = run_ranks(
        [Rank([pattern(2, 4), pattern(3, 4)])], slots=4, needed=groups_needed(0.6, 4), max_rounds=20
    )
    assert [item.name[-8:] for item in result.used] == [
        "round0-0",
        "round0-1",
        "round1-0",
        "round1-1",
    ]
    assert [item.name[-8:] for item in result.carry] == ["round1-2"]
    assert step_alpha([result]) == 1.0
    assert len(result.seen) == 8
    assert not result.cap_hit


def test_the_cap_ends_the_search_without_an_exception() -> None:
    """Four slots, one valid group in twenty rounds: alpha is 4, beyond 1/beta_th."""
    (result,) = run_ranks(
        [Rank([pattern(1, 4), pattern(0, 4)])], slots=4, needed=groups_needed(0.6, 4), max_rounds=20
    )
    assert result.cap_hit
    assert result.rounds == 20
    assert [item.valid for item in result.used] == [True, False, False, False]
    fillers = [f"step0-rank0-round19-{i}" for i in range(3)]
    assert [item.name for item in result.used[1:]] == fillers, "fillers are of the latest round"
    assert step_alpha([result]) == 4.0


def test_no_valid_group_at_all_leaves_a_step_to_skip() -> None:
    (result,) = run_ranks([Rank([pattern(0, 4)])], slots=4, needed=2, max_rounds=20)
    assert result.cap_hit
    assert result.carry == ()
    assert step_alpha([result]) == 0.0


def test_the_last_round_may_be_the_one_that_suffices() -> None:
    outcomes = [*[pattern(0, 4)] * 19, pattern(3, 4)]
    (result,) = run_ranks([Rank(outcomes)], slots=4, needed=3, max_rounds=20)
    assert result.rounds == 20
    assert not result.cap_hit


def test_without_a_threshold_nothing_is_sampled_again() -> None:
    (result,) = run_ranks([Rank([pattern(0, 4)])], slots=4, needed=0, max_rounds=20)
    assert result.rounds == 1
    assert not result.cap_hit


def test_a_full_rank_draws_nothing_and_waits_for_the_others() -> None:
    ranks = [Rank([pattern(2, 2)]), Rank([pattern(0, 2), pattern(0, 2), pattern(2, 2)])]
    results = run_ranks(ranks, slots=2, needed=4, max_rounds=20)
    assert ranks[0].asked == [True, False, False]
    assert ranks[1].asked == [True, True, True]
    assert [len(r.seen) for r in results] == [2, 6]


def test_a_rank_that_has_less_to_fill_with_uses_what_there_is() -> None:
    """A reward that broke takes its group away: fewer groups come back than were drawn."""
    (result,) = run_ranks([Rank([[True, False]])], slots=4, needed=1, max_rounds=3)
    assert [item.valid for item in result.used] == [True, False]


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int, int, Outcomes]:
    """(slots, needed, rounds, outcomes[step][rank][round][prompt])."""
    world, slots, rounds = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    random = Random(draw(st.integers(0, 2**32)))
    chances = [random.choice([0.0, 0.1, 0.5, 0.9]) for _ in range(world)]
    outcomes = [
        [
            [[random.random() < chance for _ in range(slots)] for _ in range(rounds)]
            for chance in chances
        ]
        for _ in range(3)
    ]
    return slots, draw(st.integers(0, world * slots)), rounds, outcomes


@settings(max_examples=100, deadline=None, derandomize=True)
@given(runs())
def test_every_valid_group_is_used_once_or_carried_once(
    case: tuple[int, int, int, Outcomes],
) -> None:
    """Three steps on one to three ranks with random outcomes: nothing is lost, used twice or carried twice."""
    slots, needed, max_rounds, outcomes = case
    carries: list[tuple[Item, ...]] = [()] * len(outcomes[0])
    for step, by_rank in enumerate(outcomes):
        ranks = [Rank(rounds, carry) for rounds, carry in zip(by_rank, carries, strict=True)]
        results = run_ranks(ranks, slots=slots, needed=needed, max_rounds=max_rounds, step=step)
        for rank, result in zip(ranks, results, strict=True):
            found = [item for items in rank.drawn for item in items]
            used_valid = [item for item in result.used if item.valid]
            in_line = [*rank.carry, *(item for item in found if item.valid)]
            assert in_line == [*used_valid, *result.carry], "first in, first out, none dropped"
            assert not set(rank.carry) & set(result.carry), "no group is carried twice"
            assert len(result.used) == slots
            assert len(set(result.used)) == slots
            assert len(result.carry) < slots, "the surplus fits into the next step"
            assert list(result.seen) == found
            latest = [items for items in rank.drawn if items][-1] if found else []
            assert set(result.used[len(used_valid) :]) <= {
                item for item in latest if not item.valid
            }
            for number, free in enumerate(rank.asked):
                held = len(rank.carry) + sum(
                    item.valid for items in rank.drawn[:number] for item in items
                )
                assert free == (held < slots), "a rank draws if and only if it has a free slot"
        assert len({(r.rounds, r.cap_hit) for r in results}) == 1, "ranks agree"
        reached = [
            sum(
                min(len(r.carry) + sum(i.valid for items in r.drawn[:n] for i in items), slots)
                for r in ranks
            )
            for n in range(1, results[0].rounds + 1)
        ]
        assert all(n < needed for n in reached[:-1]), "nothing is sampled once there is enough"
        assert results[0].cap_hit == (reached[-1] < needed)
        assert results[0].rounds == max_rounds or reached[-1] >= needed
        carries = [result.carry for result in results]
