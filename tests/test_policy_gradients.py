"""Every algorithm beside GPG, GRPO and SFT: gradients on ragged groups against formulas written answer by answer, in float64."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import LIMIT, VARIED, Lengths, Rows, counts_of, logp_of, made_steps, make_batch, taken
from torch import Tensor

from gpg_vl.algorithms.algorithm import Algorithm, select, to_dtype
from gpg_vl.algorithms.cispo import cispo
from gpg_vl.algorithms.clipped import Clip
from gpg_vl.algorithms.dapo import dapo, overlong_penalty
from gpg_vl.algorithms.dr_grpo import dr_grpo
from gpg_vl.algorithms.gpg import gpg
from gpg_vl.algorithms.grpo import grpo
from gpg_vl.algorithms.gspo import gspo
from gpg_vl.algorithms.opo import opo
from gpg_vl.algorithms.reinforce import reinforce
from gpg_vl.algorithms.reinforce_pp import reinforce_pp, sums_to_the_end
from gpg_vl.algorithms.remax import remax
from gpg_vl.algorithms.rloo import rloo
from gpg_vl.training.micro_batch import make_step_batch

GAPS = (-0.5, -0.1, 0.1, 0.5, 0.0)
"""log pi - log pi_old of one token after the other: beyond both clips, within them, and where nothing has changed."""
REFERENCE_GAPS = (0.3, -0.3, 0.1)
LOW, HIGH = 0.2, 0.28
seeded = settings(max_examples=25, deadline=None, derandomize=True)
binary = st.sampled_from([0.0, 0.2, 1.0, 1.2])


def cycle(values: Sequence[float], number: int) -> list[float]:
    return [values[k % len(values)] for k in range(number)]


def old_of(lengths: Lengths) -> list[float]:
    tokens = sum(map(sum, lengths))
    gaps = torch.tensor(cycle(GAPS, tokens), dtype=torch.float64)
    return (logp_of(lengths).detach() - gaps).tolist()


def reference_of(lengths: Lengths) -> list[float]:
    tokens = sum(map(sum, lengths))
    gaps = torch.tensor(cycle(REFERENCE_GAPS, tokens), dtype=torch.float64)
    return (logp_of(lengths).detach() + gaps).tolist()


def gradient_of(algorithm: Algorithm, step: tuple[Rows, Lengths], **known: object) -> Tensor:
    """d loss / d log pi of every token, and nothing for the answers that the credit leaves out."""
    logp_K = logp_of(step[1])
    credit = algorithm.credit(make_batch(*step, **known))  # type: ignore[arg-type]  # as make_batch has them
    loss_K = algorithm.token_loss(logp_K, to_dtype(credit.inputs, logp_K))
    (slope_K,) = torch.autograd.grad(loss_K.sum(), logp_K)

    lengths = torch.tensor([n for row in step[1] for n in row])
    trained_K = credit.trained_P_G.flatten().repeat_interleave(lengths)
    assert not slope_K[~trained_K].any(), "an answer that is left out has a gradient"
    return slope_K


Answer = tuple[int, float, Tensor, Tensor, Tensor]
"""Number of the group, reward, and of its tokens log pi, log pi_old and log pi_ref."""


def answers_of(step: tuple[Rows, Lengths]) -> tuple[Tensor, list[Answer]]:
    """(log pi of all tokens, the answers one by one)."""
    logp_K = logp_of(step[1])
    sizes = [n for row in step[1] for n in row]
    old = torch.tensor(old_of(step[1]), dtype=torch.float64).split(sizes)
    reference = torch.tensor(reference_of(step[1]), dtype=torch.float64).split(sizes)
    owners = [(g, reward) for g, row in enumerate(step[0]) for reward in row]
    parts = zip(owners, logp_K.split(sizes), old, reference, strict=True)
    return logp_K, [(g, reward, now, before, first) for (g, reward), now, before, first in parts]


def written_out(
    step: tuple[Rows, Lengths], losses: Callable[[list[Answer]], Iterable[Tensor]]
) -> Tensor:
    """The gradient of a sum of losses that a test has written out."""
    logp_K, answers = answers_of(step)
    total = torch.stack([loss.reshape(()) for loss in losses(answers)]).sum()
    (slope_K,) = torch.autograd.grad(total + 0 * logp_K.sum(), logp_K)
    return slope_K


def standard(row: Sequence[float], reward: float) -> float:
    if len(set(row)) == 1:
        return 0.0
    return (reward - statistics.fmean(row)) / (statistics.stdev(row) + 1e-4)


def surrogate(
    now: Tensor, before: Tensor, advantage: float, low: float = LOW, high: float = HIGH
) -> Tensor:
    """-min(ratio A, clip(ratio) A) of each token."""
    ratio = (now - before).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


# ---- the clipped relatives of GRPO


@seeded
@given(made_steps(binary))
def test_dr_grpo_divides_by_the_longest_answer_that_may_be(step: tuple[Rows, Lengths]) -> None:
    def losses(answers: list[Answer]) -> Iterable[Tensor]:
        for g, reward, now, before, _ in answers:
            advantage = reward - statistics.fmean(step[0][g]) if len(set(step[0][g])) > 1 else 0.0
            yield surrogate(now, before, advantage).sum() / (len(answers) * LIMIT)

    ours = gradient_of(dr_grpo(clip_low=LOW, clip_high=HIGH), step, old=old_of(step[1]))
    assert torch.allclose(ours, written_out(step, losses), rtol=1e-6, atol=1e-9)


@seeded
@given(made_steps(binary))
def test_dapo_is_a_mean_over_tokens(step: tuple[Rows, Lengths]) -> None:
    tokens = sum(map(sum, step[1]))

    def losses(answers: list[Answer]) -> Iterable[Tensor]:
        for g, reward, now, before, _ in answers:
            yield surrogate(now, before, standard(step[0][g], reward)).sum() / tokens

    ours = gradient_of(dapo(), step, old=old_of(step[1]))
    assert torch.allclose(ours, written_out(step, losses), rtol=1e-6, atol=1e-9)


def test_the_overlong_penalty_is_a_straight_line_to_minus_one() -> None:
    """Limit 8, the last 4 tokens: 4 is fine, 6 is half way, 8 is at the end, and nothing goes below."""
    lengths = torch.tensor([[1, 4, 5, 6, 8, 9]])
    penalty = overlong_penalty(lengths, limit=8, tokens=4)
    assert penalty.tolist() == [[0.0, 0.0, -0.25, -0.5, -1.0, -1.0]]


def test_dapo_takes_the_penalty_into_the_advantage() -> None:
    """Rewards 1, 1, 0 for 2, 8 and 2 tokens become 1, 0, 0 with the last 4 tokens of 8 penalized."""
    step: tuple[Rows, Lengths] = ([[1, 1, 0]], [[2, 8, 2]])
    shaped: tuple[Rows, Lengths] = ([[1, 0, 0]], step[1])
    old = [math.nan] * 12
    ours = gradient_of(dapo(overlong_tokens=4), step, old=old)
    assert torch.allclose(ours, gradient_of(dapo(), shaped, old=old), rtol=1e-6)
    assert not torch.allclose(ours, gradient_of(dapo(), step, old=old), rtol=1e-2)


def test_the_gradient_beyond_the_clip_is_that_of_the_clip() -> None:
    """By hand, advantage 2: at ratio 1.5 the value is 2 * 1.28, cut to slope 0, or kept at 1.28 * 2; down likewise."""
    ratio = torch.tensor([1.5, 0.5, 0.5, 1.1], dtype=torch.float64)
    advantage = torch.tensor([2.0, -2.0, 2.0, 2.0], dtype=torch.float64)
    slopes = {}
    for mode in ("cut", "gradient_preserving"):
        logp = ratio.log().requires_grad_()
        value = Clip(LOW, HIGH, mode).surrogate(logp.exp(), advantage)
        assert value.tolist() == pytest.approx([2.56, -1.6, 1.0, 2.2], rel=1e-12)
        (slope,) = torch.autograd.grad(value.sum(), logp)
        slopes[mode] = slope.tolist()
    assert slopes["cut"] == pytest.approx([0.0, 0.0, 1.0, 2.2], rel=1e-12)
    assert slopes["gradient_preserving"] == pytest.approx([2.56, -1.6, 1.0, 2.2], rel=1e-12)


@seeded
@given(made_steps(binary))
def test_gspo_has_one_ratio_per_answer(step: tuple[Rows, Lengths]) -> None:
    """The clip of a tenth cuts some answers and leaves others."""

    def losses(answers: list[Answer]) -> Iterable[Tensor]:
        for g, reward, now, before, _ in answers:
            ratio = (now - before).mean().exp().log()  # a ratio as if of one token
            advantage = standard(step[0][g], reward)
            yield surrogate(ratio, torch.zeros(()), advantage, 0.1, 0.1) / len(answers)

    algorithm = gspo(clip_low=0.1, clip_high=0.1)
    assert algorithm.whole_completions
    ours = gradient_of(algorithm, step, old=old_of(step[1]))
    assert torch.allclose(ours, written_out(step, losses), rtol=1e-6, atol=1e-9)


def test_gspo_takes_some_of_the_answers_in_any_order() -> None:
    """A micro-batch holds some of the step's answers: their numbers need not begin at 0."""
    algorithm = gspo(clip_low=0.1, clip_high=0.1)
    logp_K = logp_of(VARIED[1]).detach()
    inputs = algorithm.credit(make_batch(*VARIED, old=old_of(VARIED[1]))).inputs
    whole = algorithm.token_loss(logp_K, to_dtype(inputs, logp_K))
    picked = torch.cat([torch.nonzero(inputs.answer_K == a).flatten() for a in (7, 0, 11)])
    part = algorithm.token_loss(logp_K[picked], to_dtype(select(inputs, picked), logp_K))
    assert torch.allclose(part, whole[picked], rtol=1e-12)
    nothing = torch.zeros(0, dtype=torch.long)
    assert len(algorithm.token_loss(logp_K[nothing], select(inputs, nothing))) == 0


@seeded
@given(made_steps(binary))
def test_cispo_weighs_and_cuts_nothing(step: tuple[Rows, Lengths]) -> None:
    tokens = sum(map(sum, step[1]))

    def losses(answers: list[Answer]) -> Iterable[Tensor]:
        for g, reward, now, before, _ in answers:
            weight = torch.minimum((now - before).exp().detach(), torch.tensor(1.2))
            yield -(weight * standard(step[0][g], reward) * now).sum() / tokens

    ours = gradient_of(cispo(ratio_max=1.2), step, old=old_of(step[1]))
    assert torch.allclose(ours, written_out(step, losses), rtol=1e-6, atol=1e-9)


# ---- policy gradients with a baseline


@seeded
@given(made_steps(binary))
def test_rloo_compares_with_the_others_of_the_group(step: tuple[Rows, Lengths]) -> None:
    def losses(answers: list[Answer]) -> Iterable[Tensor]:
        for g, reward, now, _, _ in answers:
            row = step[0][g]
            others = (sum(row) - reward) / (len(row) - 1)
            yield -(reward - others) * now.sum() / len(answers)

    ours = gradient_of(rloo(), step)
    assert torch.allclose(ours, written_out(step, losses), rtol=1e-5, atol=1e-7)


@seeded
@given(made_steps(binary))
def test_reinforce_compares_with_the_step(step: tuple[Rows, Lengths]) -> None:
    rewards = [reward for row in step[0] for reward in row]

    def losses(answers: list[Answer]) -> Iterable[Tensor]:
        for _, reward, now, _, _ in answers:
            yield -(reward - statistics.fmean(rewards)) * now.sum() / len(answers)

    ours = gradient_of(reinforce(), step)
    assert torch.allclose(ours, written_out(step, losses), rtol=1e-6, atol=1e-7)


def test_reinforce_trains_on_groups_of_equal_rewards() -> None:
    """All right and all wrong: the baseline is 1/2, four tokens, four answers: -+ 1/2 / 4."""
    step: tuple[Rows, Lengths] = ([[1, 1], [0, 0]], [[1, 1], [1, 1]])
    assert gradient_of(reinforce(), step).tolist() == [-0.125, -0.125, 0.125, 0.125]
    assert not gradient_of(rloo(), step).any()


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant", "group"])
def test_opo_weighs_rewards_with_lengths(aggregation: str) -> None:
    """By hand for rewards 1, 0 of 1 and 3 tokens: baseline 1/4, so 3/4 and -1/4."""
    step: tuple[Rows, Lengths] = ([[1, 0]], [[1, 3]])
    each = {"token": [4, 4], "sequence": [2, 6], "constant": [16, 16], "group": [4, 4]}[aggregation]
    expected = [-0.75 / each[0]] + [0.25 / each[1]] * 3
    ours = gradient_of(opo(aggregation=aggregation), step)  # type: ignore[arg-type]  # one of the four
    assert ours.tolist() == pytest.approx(expected, rel=1e-6)
    assert not gradient_of(opo(), ([[2.9] * 8], [[2, 1, 1, 1, 3, 1, 4, 1]])).any()


@pytest.mark.parametrize(
    "algorithm,twin",
    [
        (dr_grpo(), gpg(age="off", aggregation="constant")),
        (dapo(), gpg(f_norm="group_std", age="off", aggregation="token")),
        (cispo(), gpg(f_norm="group_std", age="off", aggregation="token")),
        (gspo(), gpg(f_norm="group_std", age="off", aggregation="sequence")),
        (grpo(kl_beta=0.0, clip_mode="gradient_preserving"), grpo(kl_beta=0.0)),
    ],
    ids=["dr_grpo", "dapo", "cispo", "gspo", "gradient preserving"],
)
def test_on_policy_they_have_the_gradient_of_a_gpg(algorithm: Algorithm, twin: Algorithm) -> None:
    """Ratio 1 and no divergence: what is left is the advantage and the mean."""
    nothing = [math.nan] * sum(map(sum, VARIED[1]))
    ours = gradient_of(algorithm, VARIED, old=nothing)
    assert torch.allclose(ours, gradient_of(twin, VARIED, old=nothing), rtol=1e-6, atol=1e-12)


def test_rloo_is_dr_grpo_times_a_factor() -> None:
    """G/(G-1), and a sum over tokens instead of a mean over the limit."""
    nothing = [math.nan] * sum(map(sum, VARIED[1]))
    ours, theirs = gradient_of(rloo(), VARIED), gradient_of(dr_grpo(), VARIED, old=nothing)
    assert torch.allclose(ours, theirs * 3 / 2 * LIMIT, rtol=1e-5, atol=1e-12)


# ---- ReMax


@seeded
@given(made_steps(binary), st.lists(binary, min_size=4, max_size=4))
def test_remax_compares_with_the_greedy_answer(
    step: tuple[Rows, Lengths], greedy: list[float]
) -> None:
    def losses(answers: list[Answer]) -> Iterable[Tensor]:
        for g, reward, now, _, _ in answers:
            yield -(reward - greedy[g]) * now.sum() / len(answers)

    ours = gradient_of(remax(), step, greedy=greedy[: len(step[0])])
    assert torch.allclose(ours, written_out(step, losses), rtol=1e-6, atol=1e-9)


def test_remax_by_hand() -> None:
    """Rewards 1 and 0 for 2 and 1 tokens, 1/4 for the greedy answer: -3/4 and 1/4, over two answers."""
    step: tuple[Rows, Lengths] = ([[1, 0]], [[2, 1]])
    assert gradient_of(remax(), step, greedy=[0.25]).tolist() == [-0.375, -0.375, 0.125]


def test_remax_trains_on_equal_rewards_that_the_greedy_answer_did_not_get() -> None:
    """By hand: all right against a wrong greedy answer; all wrong as the greedy answer is."""
    step: tuple[Rows, Lengths] = ([[1, 1], [0, 0]], [[1, 1], [1, 1]])
    assert gradient_of(remax(), step, greedy=[0, 0]).tolist() == [-0.25, -0.25, 0.0, 0.0]
    credit = remax().credit(make_batch(*step, greedy=[0, 0]))
    assert credit.trained_P_G.tolist() == [[True, True], [False, False]]


def test_a_process_without_groups_has_nothing_to_compare() -> None:
    """Its share of the step is empty; the step is not."""
    batch = make_step_batch([], counts=counts_of(*VARIED), reward_std=1.0, max_new_tokens=LIMIT)
    assert remax().credit(batch).trained_P_G.numel() == 0


# ---- REINFORCE++


def whitened(values: Sequence[float]) -> list[float]:
    mean, variance = statistics.fmean(values), statistics.variance(values)
    return [(value - mean) / math.sqrt(variance + 1e-8) for value in values]


@pytest.mark.parametrize("beta", [0.0, 0.1])
@seeded
@given(made_steps(binary).filter(lambda step: sum(map(sum, step[1])) > 1))
def test_reinforce_pp_whitens_returns_over_all_tokens(
    beta: float, step: tuple[Rows, Lengths]
) -> None:
    """With a divergence the return of a token is the reward minus what is still to come of beta (log mu - log pi_ref)."""
    sampled, reference = old_of(step[1]), reference_of(step[1])
    sizes = [n for row in step[1] for n in row]
    returns: list[float] = []
    start = 0
    for reward, size in zip([r for row in step[0] for r in row], sizes, strict=True):
        gaps = [sampled[k] - reference[k] for k in range(start, start + size)]
        returns += [reward - beta * sum(gaps[t:]) for t in range(size)]
        start += size
    advantages = torch.tensor(whitened(returns)).double().split(sizes)

    def losses(answers: list[Answer]) -> Iterable[Tensor]:
        for (_, _, now, before, _), advantage in zip(answers, advantages, strict=True):
            ratio = (now - before).exp()
            clipped = ratio.clamp(0.8, 1.2)
            yield -torch.minimum(ratio * advantage, clipped * advantage).sum() / sum(sizes)

    known = {"old": sampled, "sampled": sampled, "reference": reference if beta else None}
    ours = gradient_of(reinforce_pp(kl_beta=beta), step, **known)
    assert torch.allclose(ours, written_out(step, losses), rtol=1e-5, atol=1e-7)


def test_reinforce_pp_with_a_baseline_compares_with_the_group_first() -> None:
    """By hand: rewards 1, 0 | 1, 1 of one token each: centred 1/2, -1/2, 0, 0, deviation sqrt(1/6)."""
    step: tuple[Rows, Lengths] = ([[1, 0], [1, 1]], [[1, 1], [1, 1]])
    old = [math.nan] * 4
    ours = gradient_of(reinforce_pp(baseline="group"), step, old=old)
    size = 0.5 / math.sqrt(1 / 6 + 1e-8) / 4
    assert ours.tolist() == pytest.approx([-size, size, 0.0, 0.0], rel=1e-6)


def test_the_divergence_of_reinforce_pp_with_a_baseline_is_in_the_loss() -> None:
    """Equal rewards: nothing but beta * k3, whose slope is beta (1 - pi_ref / pi), over four tokens."""
    step: tuple[Rows, Lengths] = ([[1, 1]], [[2, 2]])
    reference = (logp_of(step[1]).detach() + math.log(2)).tolist()
    known = {"old": [math.nan] * 4, "reference": reference}
    ours = gradient_of(reinforce_pp(baseline="group", kl_beta=0.1), step, **known)
    assert ours.tolist() == pytest.approx([0.1 * (1 - 2) / 4] * 4, rel=1e-6)


def test_sums_to_the_end_stay_within_a_completion() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0])
    summed = sums_to_the_end(values, torch.tensor([[3, 0, 2]]))
    assert summed.tolist() == [6.0, 5.0, 3.0, 30.0, 20.0]


@pytest.mark.parametrize("algorithm", [reinforce(), reinforce_pp()], ids=["mean", "whitened"])
def test_two_processes_have_the_gradient_of_one(algorithm: Algorithm) -> None:
    """What counts the whole step is added up over processes: here by a stand-in that knows both halves."""
    nothing = [math.nan] * sum(map(sum, VARIED[1]))
    halves = [taken(VARIED, [0, 1]), taken(VARIED, [2, 3])]
    known = [{"old": [math.nan] * sum(map(sum, half[1]))} for half in halves]

    # the two take turns: what one asks for is added to what the other asks for at the same place
    asked: list[list[list[float]]] = [[], []]
    for _ in range(3):
        parts = []
        for me, half in enumerate(halves):
            place = iter(range(9))
            before = [list(values) for values in asked[1 - me]]
            asked[me] = []

            def total(values: Sequence[float], me: int = me) -> list[float]:
                asked[me].append(list(values))
                at = next(place)  # noqa: B023  # called within this turn
                theirs = before[at] if at < len(before) else [0.0] * len(values)  # noqa: B023
                return [a + b for a, b in zip(values, theirs, strict=True)]

            batch = make_batch(*half, step=VARIED, total=total, **known[me])  # type: ignore[arg-type]
            parts.append(algorithm.credit(batch).inputs)
    whole = algorithm.credit(make_batch(*VARIED, old=nothing)).inputs
    for name in whole._fields:
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.allclose(joined, getattr(whole, name), rtol=1e-6, equal_nan=True)


# ---- what they declare


def test_what_each_needs() -> None:
    for free in (rloo(), reinforce(), opo()):
        assert (free.needs, free.updates, free.whole_completions) == (frozenset(), 1, False)
    assert (remax().needs, remax().updates) == ({"greedy_reward"}, 1)
    for ratio in (dr_grpo(updates=2), dapo(updates=2), gspo(updates=2), cispo(updates=2)):
        assert (ratio.needs, ratio.updates) == ({"old_logp"}, 2)
    assert reinforce_pp().needs == {"old_logp"}
    assert reinforce_pp(kl_beta=0.1).needs == {"old_logp", "reference_logp"}
    assert dr_grpo(kl_beta=0.1).needs == {"old_logp", "reference_logp"}
