"""The learner: the gradient does not know how a step was cut; several updates, references, rates and what goes wrong."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import scene_example
from oracle import naive_logp
from test_phases import with_adapters
from test_policy import encoder, gradients, relative, score
from torch import Tensor, nn

from gpg_vl.algorithms.algorithm import Algorithm, Credit, StepBatch
from gpg_vl.algorithms.gpg import gpg
from gpg_vl.algorithms.grpo import grpo
from gpg_vl.algorithms.ratio import log_ratio
from gpg_vl.algorithms.sft import sft
from gpg_vl.errors import RunError
from gpg_vl.model import Model
from gpg_vl.models.layout import pack
from gpg_vl.models.load import load_model, load_processing
from gpg_vl.models.policy import Policy
from gpg_vl.models.reference import make_reference
from gpg_vl.models.requests import Score
from gpg_vl.rollout.engine import RolloutRequest
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.training.failures import NonFiniteError
from gpg_vl.training.gold_responder import GoldResponder
from gpg_vl.training.learner import Learner, LearnerSettings
from gpg_vl.training.micro_batch import Layout
from gpg_vl.training.optimizer import make_adamw
from gpg_vl.training.prompt_source import PromptSource
from gpg_vl.training.rank_state import dump_rank_state, restore_carry
from gpg_vl.training.sharding import shardings
from gpg_vl.training.sharding.protocol import Sharding, ShardingSetup
from gpg_vl.training.step_totals import UpdateReport
from gpg_vl.types import Example, GreedyAnswer, Group

LIMIT = 12
REWARDS = [
    (1.0, 0.0, 0.0),
    (1.0, 1.0, 1.0),
    (0.2, 0.7, 0.0),
    (0.0, 0.0, 0.0),
    (0.0, 1.0, 1.0),
    (1.0, 0.0, 1.0),
    (0.5, 0.5, 0.5),
    (0.0, 0.0, 1.0),
]
"""Eight groups of three, three of them without signal."""


def make_groups(checkpoint: Path) -> list[Group]:
    """Eight groups with pictures of several sizes (one without any) and completions of unequal length."""
    model = Model.load(checkpoint, device="cpu")
    examples = [scene_example(i) for i in range(7)]
    examples.append(Example(id="plain", prompt="How many?", answer="1"))
    prompts = [model.encoder().encode(example) for example in examples]
    requests = [RolloutRequest(prompt=prompt, draw=n) for n, prompt in enumerate(prompts)]
    sampling = Sampling(group_size=3, temperature=1.0, max_new_tokens=LIMIT, seed=1)
    answers = model.engine().generate(requests, sampling)

    groups = []
    for i, (example, prompt, answered) in enumerate(zip(examples, prompts, answers, strict=True)):
        cut = []
        for j, completion in enumerate(answered):
            until = 2 + (i + j) % 9
            cut.append(
                replace(
                    completion,
                    token_ids=completion.token_ids[:until],
                    logprobs=completion.logprobs[:until],
                )
            )
        rewards = REWARDS[i]
        groups.append(
            Group(
                example=example,
                prompt=prompt,
                completions=tuple(cut),
                rewards=rewards,
                reward_parts={"r": rewards},
                draw=i,
            )
        )
    return groups


# ---- learners


def adamw(
    policy: Policy,
    weight_decay: float = 0.0,
    parts: Sequence[str] = (),
    bytes_of_moments: int = 4,
) -> Any:
    return make_adamw(
        policy,
        betas=(0.9, 0.999),
        weight_decay=weight_decay,
        parts=parts,
        bytes_of_moments=bytes_of_moments,
    )


def descent(policy: Policy) -> torch.optim.Optimizer:
    """Plain gradient descent: with a rate of 1 a step takes off the gradient itself."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    return torch.optim.SGD([{"params": trained, "part": ""}], lr=0.0)


def plain_sharding() -> Sharding:
    setup = ShardingSetup(device=torch.device("cpu"), processes=1, is_main=True)
    return shardings.get("none")(setup)


def make_learner(
    policy: Policy,
    algorithm: Algorithm,
    *,
    optimizer: Callable[[Policy], torch.optim.Optimizer] = descent,
    rate: float | Mapping[str, float] = 1.0,
    tokens_per_pass: int = 10**6,
    shared: bool = True,
    max_grad_norm: float = math.inf,
    parts: tuple[str, ...] = (),
    sharding: Sharding | None = None,
    spread: Callable[[Policy], nn.Module] | None = None,
    max_logp_gap: float = math.inf,
    autocast: torch.dtype | None = None,
) -> Learner:
    rates = {"": rate} if isinstance(rate, float) else rate
    needs_reference = "reference_logp" in algorithm.needs
    dtype = autocast or next(policy.parameters()).dtype
    return Learner(
        policy,
        algorithm,
        sharding or plain_sharding(),
        LearnerSettings(
            layout=Layout(tokens_per_pass=tokens_per_pass, shared_prefix=shared),
            max_grad_norm=max_grad_norm,
            max_new_tokens=LIMIT,
            learning_rate=lambda step, part: rates[part],
            parts=parts,
            autocast=autocast,
            max_logp_gap=max_logp_gap,
        ),
        Accelerator(cpu=True),
        make_optimizer=optimizer,
        reference=make_reference(policy, dtype, spread) if needs_reference else None,
    )


def load(checkpoint: Path, dtype: torch.dtype = torch.float64, **arguments: Any) -> Policy:
    return Model.load(checkpoint, device="cpu", **arguments).policy.to(dtype)


def weights(policy: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in policy.parameters()])


def gradient_of(
    checkpoint: Path,
    groups: Sequence[Group],
    algorithm: Algorithm | None = None,
    **arguments: Any,
) -> Tensor:
    """What one update of plain descent takes off the weights, in float64."""
    policy = load(checkpoint)
    before = weights(policy)
    make_learner(policy, algorithm or gpg(), **arguments).update(groups, step=0)
    return before - weights(policy)


@pytest.fixture(scope="module")
def groups(tiny_checkpoint: Path) -> list[Group]:
    return make_groups(tiny_checkpoint)


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, groups: list[Group]) -> Tensor:
    return gradient_of(tiny_checkpoint, groups)


# ---- one update


@pytest.mark.parametrize("tokens_per_pass", [1, 70, 250, 500])
@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_is_the_same_for_every_cut(
    tiny_checkpoint: Path,
    groups: list[Group],
    whole: Tensor,
    tokens_per_pass: int,
    shared: bool,
) -> None:
    """1 token: each completion a chunk; 70: chunks of some; 250 and 500: about two and four groups in a micro-batch."""
    assert whole.norm() > 1e-3
    ours = gradient_of(tiny_checkpoint, groups, tokens_per_pass=tokens_per_pass, shared=shared)
    assert relative(ours, whole) < 1e-6


@pytest.mark.parametrize("tokens_per_pass", [1, 70, 250])
def test_a_clipped_ratio_and_a_divergence_do_not_know_the_cut_either(
    tiny_checkpoint: Path, groups: list[Group], tokens_per_pass: int
) -> None:
    """Groups of which some were sampled by other weights, and each token has a reference."""
    algorithm = grpo(kl_beta=0.1)
    mixed = [aged(group, n) if n % 2 else group for n, group in enumerate(groups)]
    expected = gradient_of(tiny_checkpoint, mixed, algorithm)
    assert relative(expected, gradient_of(tiny_checkpoint, groups, algorithm)) > 0.1
    ours = gradient_of(tiny_checkpoint, mixed, algorithm, tokens_per_pass=tokens_per_pass)
    assert relative(ours, expected) < 1e-6


def aged(group: Group, number: int) -> Group:
    """The group as if weights had sampled it under which its tokens were likelier or less likely."""
    old = []
    for member, completion in enumerate(group.completions):
        shift = (0.4, -0.4, 0.1)[(number + member) % 3]
        old.append(tuple(logp + shift for logp in completion.logprobs))
    return replace(group, old_logps=tuple(old))


def test_the_gradient_is_that_of_the_formula(
    tiny_checkpoint: Path, groups: list[Group], whole: Tensor
) -> None:
    """Eq. 5 and 8 written out over the stock model: alpha / K * sum of -A log pi, with alpha = 8/5."""
    stock, logps = stock_logps(tiny_checkpoint, groups)
    tokens = sum(len(logp) for logp in logps)
    loss = torch.zeros((), dtype=torch.float64)
    for (group, member), logp in zip(members(groups), logps, strict=True):
        if len(set(group.rewards)) > 1:
            advantage = group.rewards[member] - sum(group.rewards) / 3
            loss = loss - (8 / 5) * advantage * logp.sum() / tokens
    loss.backward()
    assert relative(whole, gradients(stock)) < 1e-6


def members(groups: Sequence[Group]) -> list[tuple[Group, int]]:
    return [(group, member) for group in groups for member in range(len(group.completions))]


def stock_logps(
    checkpoint: Path, groups: Sequence[Group], model: nn.Module | None = None
) -> tuple[nn.Module, list[Tensor]]:
    """The stock model in float64, and its log-probs of each completion, with gradient."""
    processing = load_processing(str(checkpoint))
    stock = model or load_model(str(checkpoint)).double()
    return stock, [
        naive_logp(stock, processing.tokens, group.prompt, group.completions[member].token_ids)
        for group, member in members(groups)
    ]


def test_order_of_groups_and_members_does_not_matter(
    tiny_checkpoint: Path, groups: list[Group], whole: Tensor
) -> None:
    turned = [
        replace(g, completions=g.completions[::-1], rewards=g.rewards[::-1], reward_parts={})
        for g in groups[::-1]
    ]
    assert relative(gradient_of(tiny_checkpoint, turned), whole) < 1e-6


def test_groups_without_signal_change_nothing_under_sequence_mean_and_alpha(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    valid = [g for g in groups if g.is_valid]
    sequence = gpg(aggregation="sequence")
    alone, beside = (gradient_of(tiny_checkpoint, g, sequence) for g in (valid, groups))
    assert relative(alone, beside) < 1e-6
    off = gpg(aggregation="sequence", age="off")
    full, shrunk = (gradient_of(tiny_checkpoint, g, off) for g in (valid, groups))
    assert relative(shrunk * 8 / 5, full) < 1e-6


def test_groups_without_signal_cost_no_micro_batch(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    policy = load(tiny_checkpoint, torch.float32)
    report = make_learner(policy, gpg(), tokens_per_pass=1).update(groups, step=0)
    assert report.micro_batches == 5
    assert report.counts.groups == 8
    assert report.counts.valid_groups == 5


def test_a_report_says_what_was_trained(tiny_checkpoint: Path, groups: list[Group]) -> None:
    """Loss, entropy, gap and norm from the stock model's log-probs; tokens and patches by hand."""
    policy = load(tiny_checkpoint)
    before = weights(policy)
    report = make_learner(policy, gpg()).update(groups, step=0)
    trained = [
        (group, member)
        for group, member in members(groups)
        if group.is_valid and group.rewards[member] != sum(group.rewards) / 3
    ]
    _, logps = stock_logps(tiny_checkpoint, groups)
    by_member = dict(zip([(g.draw, m) for g, m in members(groups)], logps, strict=True))
    tokens = sum(len(logp) for logp in logps)
    loss, gaps = 0.0, []
    for group, member in trained:
        logp = by_member[group.draw, member].detach()
        advantage = group.rewards[member] - sum(group.rewards) / 3
        loss -= 8 / 5 * advantage * float(logp.sum()) / tokens
        gaps.append((logp - torch.tensor(group.completions[member].logprobs)).abs())
    assert report.applied
    assert report.loss == pytest.approx(loss, rel=1e-6)
    assert report.grad_norm == pytest.approx(float((before - weights(policy)).norm()), rel=1e-6)
    assert report.metrics["alpha"] == 8 / 5
    assert report.logp_gap_mean == pytest.approx(float(torch.cat(gaps).mean()), rel=0.1, abs=1e-6)
    assert report.logp_gap_max < 1e-5

    run = {group.draw: group for group, _ in trained}.values()
    prompts = sum(group.prompt.length for group in run)
    following = sum(len(g.completions[m].token_ids) - 1 for g, m in trained)
    assert report.trained_tokens == prompts + following
    patches = [g.prompt.pixel_values_N for g in run if g.prompt.pixel_values_N is not None]
    assert report.vision_patches == sum(map(len, patches))
    assert 0 < report.entropy < math.log(384)


def one_update(
    checkpoint: Path, groups: Sequence[Group], *, weight_decay: float = 0.1
) -> tuple[Policy, torch.optim.Optimizer, UpdateReport]:
    policy = load(checkpoint, torch.float32)
    made: list[torch.optim.Optimizer] = []

    def optimizer(policy: Policy) -> torch.optim.Optimizer:
        made.append(adamw(policy, weight_decay))
        return made[-1]

    learner = make_learner(policy, gpg(), optimizer=optimizer, rate=1e-2, max_grad_norm=1.0)
    report = learner.update(groups, step=0)
    return policy, made[0], report


def test_a_step_without_signal_touches_neither_weights_nor_moments(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    silent = [g for g in groups if not g.is_valid]
    policy, optimizer, report = one_update(tiny_checkpoint, silent)
    before = load_model(str(tiny_checkpoint)).state_dict()
    assert report.applied is False
    assert report.loss == 0.0
    assert all(torch.equal(v, before[k]) for k, v in policy.model.state_dict().items())
    assert not optimizer.state_dict()["state"]


def test_a_step_raises_the_probability_of_the_better_answers(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    policy, _, report = one_update(tiny_checkpoint, groups[:1], weight_decay=0.0)
    assert report.applied
    rows = pack([groups[0].prompt], [[c.token_ids for c in groups[0].completions]])
    gain = score(policy, rows).logp_K - score(load(tiny_checkpoint, torch.float32), rows).logp_K
    first = len(groups[0].completions[0].token_ids)
    assert gain[:first].sum() > 0, "the rewarded answer becomes likelier"
    assert gain[:first].mean() > gain[first:].mean()


def test_a_loss_that_is_no_number_is_not_applied(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    pixels = groups[0].prompt.pixel_values_N * float("nan")
    broken = replace(groups[0], prompt=replace(groups[0].prompt, pixel_values_N=pixels))
    policy = load(tiny_checkpoint, torch.float32)
    before = weights(policy)
    learner = make_learner(policy, gpg())
    told = (
        r"must be finite\. The update was not applied\. "
        r"The loss is not finite in the micro-batches of these examples: 0\."
    )
    with pytest.raises(NonFiniteError, match=told):
        learner.update([broken], step=0)
    assert torch.equal(weights(policy), before)


def test_a_gradient_is_clipped_to_its_norm(
    tiny_checkpoint: Path, groups: list[Group], whole: Tensor
) -> None:
    limit = float(whole.norm()) / 4
    clipped = gradient_of(tiny_checkpoint, groups, max_grad_norm=limit)
    assert relative(clipped, whole / 4) < 1e-5


# ---- several updates


@dataclass
class Seen:
    """What the pure functions of an algorithm were given."""

    batches: list[StepBatch]
    ratios: list[list[Tensor]]
    """log (pi / pi_old) of every call of the loss, one list for each update."""


def observed(algorithm: Algorithm) -> tuple[Algorithm, Seen]:
    seen = Seen([], [])

    def credit(batch: StepBatch) -> Credit:
        seen.batches.append(batch)
        seen.ratios.append([])
        return algorithm.credit(batch)

    def token_loss(logp_K: Tensor, inputs: Any) -> Tensor:
        seen.ratios[-1].append(log_ratio(logp_K, inputs.old_logp_K).detach())
        return algorithm.token_loss(logp_K, inputs)

    return replace(algorithm, credit=credit, token_loss=token_loss), seen


@dataclass(frozen=True)
class Grpo:
    """Eq. 3 and 4 of GRPO over the stock model, in plain loops."""

    low: float = 0.2
    high: float = 0.2
    beta: float = 0.0

    def loss(
        self,
        groups: Sequence[Group],
        logps: Sequence[Tensor],
        old: Sequence[Tensor],
        reference: Sequence[Tensor],
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for (group, member), logp, before, first in zip(
            members(groups), logps, old, reference, strict=True
        ):
            rewards = torch.tensor(group.rewards, dtype=torch.float64)
            advantage = (rewards[member] - rewards.mean()) / (rewards.std() + 1e-4)
            ratio = (logp - before).exp()
            clipped = ratio.clamp(1 - self.low, 1 + self.high)
            surrogate = torch.minimum(ratio * advantage, clipped * advantage)
            gap = first - logp
            divergence = gap.exp() - gap - 1
            count = sum(len(g.completions) for g in groups)
            total = total + (self.beta * divergence - surrogate).mean() / count
        return total


@pytest.mark.parametrize("tokens_per_pass", [10**6, 60])
@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("updates", [2, 3])
def test_several_updates_are_those_of_the_formula(
    tiny_checkpoint: Path, groups: list[Group], updates: int, beta: float, tokens_per_pass: int
) -> None:
    """Plain descent on the stock model, written out: ratios to the log-probs of the first update, clipped."""
    rate, some = 0.3, groups[:3]
    algorithm, seen = observed(grpo(updates=updates, kl_beta=beta))
    policy = load(tiny_checkpoint)
    before = weights(policy)
    report = make_learner(policy, algorithm, rate=rate, tokens_per_pass=tokens_per_pass).update(
        some, step=0
    )

    stock, logps = stock_logps(tiny_checkpoint, some)
    start = weights(stock)
    first = [logp.detach() for logp in logps]
    for _ in range(updates):
        _, logps = stock_logps(tiny_checkpoint, some, stock)
        Grpo(beta=beta).loss(some, logps, first, first).backward()
        with torch.no_grad():
            for parameter in stock.parameters():
                if parameter.grad is not None:
                    parameter -= rate * parameter.grad
                    parameter.grad = None
    # a slow start: three updates must not be taken for one
    assert relative(weights(policy) - before, weights(stock) - start) < 1e-5

    assert len(seen.ratios) == updates
    assert all(torch.count_nonzero(ratio) == 0 for ratio in seen.ratios[0]), "exactly 1"
    for later in seen.ratios[1:]:
        assert max(float(ratio.abs().max()) for ratio in later) > 0.2
    assert report.metrics["clip_share"] > 0
    assert report.applied


def test_old_log_probs_cost_no_pass_of_their_own(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    """Counted where the tower runs: each update its micro-batches, and nothing else."""
    for updates in (1, 3):
        policy = load(tiny_checkpoint, torch.float32)
        learner = make_learner(policy, grpo(updates=updates, kl_beta=0.0), rate=1e-3)
        report = learner.update(groups, step=0)
        trained = [g for g in groups if g.is_valid]
        once = sum(
            g.prompt.length
            + sum(
                len(c.token_ids) - 1
                for c, r in zip(g.completions, g.rewards, strict=True)
                if r != sum(g.rewards) / 3
            )
            for g in trained
        )
        assert policy.work.tower_tokens == report.trained_tokens == updates * once


def test_the_gap_that_is_reported_is_that_of_the_first_update(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    """Later weights are not those that sampled; losses are the means of all updates."""
    policy = load(tiny_checkpoint)
    report = make_learner(policy, grpo(updates=3, kl_beta=0.0), rate=1.0).update(groups, step=0)
    assert report.logp_gap_max < 1e-5
    single = make_learner(load(tiny_checkpoint), grpo(kl_beta=0.0), rate=1.0)
    assert report.loss < single.update(groups, step=0).loss
    assert report.metrics["clip_share"] > 0


# ---- groups that are carried over


def test_a_carried_group_keeps_the_log_probs_of_the_weights_that_sampled_it(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    """Scored once, by the weights of its step; the ratio of the next step is to those."""
    algorithm, seen = observed(grpo(kl_beta=0.0))
    policy = load(tiny_checkpoint)
    learner = make_learner(policy, algorithm, rate=0.3, tokens_per_pass=60)
    carried = learner.keep_old_logps(groups[4:6])
    _, logps = stock_logps(tiny_checkpoint, groups[4:6])
    kept = [values for group in carried for values in group.old_logps]
    for ours, theirs in zip(kept, logps, strict=True):
        expected = theirs.detach()
        assert torch.allclose(torch.tensor(ours, dtype=torch.float64), expected, atol=1e-9, rtol=0)
    assert [replace(group, old_logps=()) for group in carried] == groups[4:6]

    before = weights(policy)
    learner.update(groups[:3], step=0)
    assert relative(weights(policy), before) > 1e-4
    tokens = policy.work.tower_tokens
    assert learner.keep_old_logps(carried) == carried, "the weights are others now"
    assert policy.work.tower_tokens == tokens

    seen.ratios.clear()
    learner.update([*carried, groups[0]], step=1)
    old_K = seen.batches[-1].old_logp_K
    assert old_K is not None
    number = sum(map(len, kept))
    assert old_K[:number].tolist() == [value for values in kept for value in values]
    assert old_K[number:].isnan().all(), "what is fresh has none"
    ratios = torch.cat(seen.ratios[0])
    assert ratios.abs().max() > 1e-2
    assert torch.count_nonzero(ratios[number:]) == 0


def test_an_algorithm_that_needs_no_old_log_probs_computes_none(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    policy = load(tiny_checkpoint, torch.float32)
    assert make_learner(policy, gpg()).keep_old_logps(groups) == tuple(groups)
    assert make_learner(policy, grpo(kl_beta=0.0)).keep_old_logps(()) == ()
    assert policy.work.tower_tokens == 0


def test_old_log_probs_and_versions_survive_a_checkpoint(
    tiny_checkpoint: Path, groups: list[Group], tmp_path: Path
) -> None:
    """Through a file that cannot hold code, bit for bit."""
    examples = [group.example for group in groups]
    model = Model.load(tiny_checkpoint, device="cpu")
    source = PromptSource(examples=examples, encoder=model.encoder(), seed=0)
    carried = []
    for draw in (1, 5):
        drawn = source.group_at(draw)
        sampled = groups[examples.index(drawn.example)]
        aged_group = aged(sampled, draw)
        carried.append(
            replace(
                aged_group,
                draw=draw,
                prompt=drawn.prompt,
                completions=tuple(replace(c, version=draw) for c in sampled.completions),
            )
        )
    likeliest = GreedyAnswer(
        completion=replace(carried[0].completions[0], logprobs=(), version=4),
        reward=0.1,
        reward_parts={"choice": 0.0, "format": 0.5},
    )
    fresh = replace(carried[0], old_logps=(), greedy=likeliest)
    torch.save(dump_rank_state([*carried, fresh]), tmp_path / "rank-0.pt")
    saved = torch.load(tmp_path / "rank-0.pt", weights_only=True)
    back = restore_carry(saved["carry"], source, default_version=99)
    for ours, theirs in zip(back, [*carried, fresh], strict=True):
        assert ours.old_logps == theirs.old_logps
        assert ours.completions == theirs.completions
        assert ours.greedy == theirs.greedy
        assert (ours.rewards, ours.draw, ours.reward_parts) == (
            theirs.rewards,
            theirs.draw,
            theirs.reward_parts,
        )
        assert torch.equal(ours.prompt.input_ids_T, theirs.prompt.input_ids_T)

    # files of before: without versions and old log-probs
    for row in saved["carry"]:
        del row["old_logps"]
        for completion in row["completions"]:
            del completion["version"]
    for group in restore_carry(saved["carry"], source, default_version=6):
        assert group.old_logps == ()
        assert {completion.version for completion in group.completions} == {6}


# ---- the reference


@pytest.mark.parametrize("adapters", [False, True])
def test_the_reference_stays_the_policy_of_the_beginning(
    tiny_checkpoint: Path, groups: list[Group], adapters: bool
) -> None:
    """A frozen copy, or with adapters the policy itself without them: also after updates."""
    prepare = with_adapters if adapters else None
    policy = load(tiny_checkpoint, torch.float32, prepare=prepare)
    base = load(tiny_checkpoint, torch.float32)
    reference = make_reference(policy, torch.float32)
    packed = pack([groups[0].prompt], [[c.token_ids for c in groups[0].completions]])
    expected = score(base, packed).logp_K
    algorithm, seen = observed(grpo(kl_beta=0.1, updates=2))
    rate = 2.0 if adapters else 0.1
    learner = make_learner(policy, algorithm, rate=rate, tokens_per_pass=60)
    before = weights(policy)

    for step in range(2):
        learner.update(groups[:1], step=step)
        given = seen.batches[-1].reference_logp_K
        assert given is not None
        assert torch.allclose(given.float(), expected, atol=1e-5, rtol=0)
        output = reference(Score(packed=packed))
        assert torch.allclose(output.logp_K, expected, atol=1e-5, rtol=0)
        assert not output.logp_K.requires_grad
    assert not torch.equal(weights(policy), before)
    now = score(policy, packed).logp_K
    assert (now - expected).abs().max() > 1e-3, "the policy has moved, its adapters are on again"


def test_a_frozen_copy_shares_no_memory_and_has_the_dtype_of_the_forward_pass(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    policy = load(tiny_checkpoint, torch.float32)
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    seen: list[Any] = []
    reference = make_reference(policy, torch.bfloat16)
    (copy,) = (cell.cell_contents for cell in reference.__closure__ or ())
    copy.register_forward_hook(lambda module, arguments, output: seen.append(module))
    with torch.autocast("cpu", torch.bfloat16):
        reference(Score(packed=pack([groups[0].prompt], [[(5, 6)]])))
    (module,) = seen
    assert not own & {p.untyped_storage().data_ptr() for p in module.parameters()}
    assert {p.dtype for p in module.parameters() if p.dim() > 1} == {torch.bfloat16}
    assert not any(p.requires_grad for p in module.parameters())
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


def test_adapters_are_on_again_if_the_reference_breaks(tiny_checkpoint: Path) -> None:
    policy = load(tiny_checkpoint, torch.float32, prepare=with_adapters)
    packed = pack([encoder(tiny_checkpoint).encode(scene_example(1))], [[(5, 6)]])
    before = score(policy, packed).logp_K
    reference = make_reference(policy, torch.float32)

    def break_off(module: Any, arguments: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    hook = policy.model.model.language_model.register_forward_pre_hook(break_off)
    with pytest.raises(torch.OutOfMemoryError):
        reference(Score(packed=packed))
    hook.remove()
    assert torch.equal(score(policy, packed).logp_K, before)


def test_with_a_divergence_answers_without_advantage_are_run_too(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    """Equal rewards: nothing to learn from them, but a policy that has moved is pulled back."""
    silent = [g for g in groups if not g.is_valid]
    policy = load(tiny_checkpoint)
    assert not make_learner(policy, grpo(kl_beta=0.0)).update(silent, step=0).applied

    learner = make_learner(policy, grpo(kl_beta=0.5))
    report = learner.update(silent, step=0)
    assert report.applied
    assert report.grad_norm < 1e-9, "at the reference the divergence is flat"
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in policy.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter += 0.02 * noise
    moved = weights(policy)
    tokens = policy.work.tower_tokens
    report = learner.update(silent, step=1)
    everything = sum(
        g.prompt.length + sum(len(c.token_ids) - 1 for c in g.completions) for g in silent
    )
    assert policy.work.tower_tokens - tokens == report.trained_tokens == everything
    assert report.metrics["kl"] > 1e-4

    _, reference = stock_logps(tiny_checkpoint, silent)
    noisy = load_model(str(tiny_checkpoint)).double()
    nn.utils.vector_to_parameters(moved, noisy.parameters())
    _, logps = stock_logps(tiny_checkpoint, silent, noisy)
    first = [logp.detach() for logp in reference]
    Grpo(beta=0.5).loss(silent, logps, [x.detach() for x in logps], first).backward()
    assert relative(moved - weights(policy), gradients(noisy)) < 1e-5


# ---- supervised fine-tuning


def test_sft_is_the_mean_of_minus_log_pi_of_the_gold_answers(tiny_checkpoint: Path) -> None:
    """Of all tokens of the step, the end of the turn included; loss and gradient of the stock model."""
    model = Model.load(tiny_checkpoint, device="cpu")
    examples = [scene_example(i) for i in range(3)]
    algorithm = sft(response="It is {answer}.")
    responder = GoldResponder(processing=model.processing, response=algorithm.response)
    assert responder.group_size == 1
    asked = [
        Group(example=e, prompt=model.encoder().encode(e), completions=(), draw=n)
        for n, e in enumerate(examples)
    ]
    answered = [
        replace(group, rewards=(1.0,)) for group in responder.answer(asked, lambda *_: None)
    ]
    tokens = model.processing.tokens
    for example, group in zip(examples, answered, strict=True):
        (completion,) = group.completions
        assert completion.text == f"It is {example.answer}."
        assert completion.token_ids[-1] == model.processing.tokenizer.eos_token_id
        assert completion.token_ids[-1] in tokens.ends
        said = model.processing.tokenizer.decode(completion.token_ids[:-1])
        assert said == completion.text
        assert completion.logprobs == ()

    policy = load(tiny_checkpoint)
    before = weights(policy)
    report = make_learner(policy, algorithm, tokens_per_pass=70).update(answered, step=0)
    stock, logps = stock_logps(tiny_checkpoint, answered)
    loss = -torch.cat(logps).mean()
    loss.backward()
    assert report.loss == pytest.approx(loss.item(), rel=1e-6)
    assert relative(before - weights(policy), gradients(stock)) < 1e-6
    assert report.logp_gap_mean is None, "nothing was sampled"
    assert report.logp_gap_max is None


# ---- moments and rates


def test_the_moments_of_a_weight_that_nothing_touches_fade(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    """A picture in the first step, none in the second: AdamW by hand on the weights of the vision tower."""
    made: list[torch.optim.Optimizer] = []

    def optimizer(policy: Policy) -> torch.optim.Optimizer:
        made.append(adamw(policy))
        return made[-1]

    policy = load(tiny_checkpoint, torch.float32)
    learner = make_learner(policy, gpg(), optimizer=optimizer, rate=1e-3)
    name, parameter = next((n, p) for n, p in policy.named_parameters() if "patch_embed" in n)
    start = parameter.detach().clone()
    learner.update(groups[:1], step=0)
    state = made[0].state[parameter]
    first, second = (state[key].clone() for key in ("exp_avg", "exp_avg_sq"))
    one = parameter.detach().clone()
    assert not torch.equal(one, start), name
    assert first.norm() > 0

    assert groups[7].prompt.pixel_values_N is None
    learner.update(groups[7:], step=1)
    assert torch.allclose(state["exp_avg"], 0.9 * first, rtol=1e-5, atol=0)
    assert torch.allclose(state["exp_avg_sq"], 0.999 * second, rtol=1e-5, atol=0)
    mean, square = 0.9 * first / (1 - 0.9**2), 0.999 * second / (1 - 0.999**2)
    expected = one - 1e-3 * mean / (square.sqrt() + 1e-8)
    assert torch.allclose(parameter, expected, rtol=1e-5, atol=1e-8)
    assert not torch.equal(parameter, one)


def test_parts_have_their_own_learning_rates(tiny_checkpoint: Path, groups: list[Group]) -> None:
    """A rate next to 0 leaves the vision tower where it is; its merger takes the rate of all."""
    policy = load(tiny_checkpoint, torch.float32)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    learner = make_learner(
        policy,
        gpg(),
        optimizer=lambda policy: adamw(policy, parts=("vision", "language")),
        rate={"": 1e-2, "vision": 1e-30, "language": 1e-3},
        parts=("vision", "language"),
    )
    assert learner.learning_rates(0) == {
        "learning_rate": 1e-2,
        "learning_rate/vision": 1e-30,
        "learning_rate/language": 1e-3,
    }
    learner.update(groups, step=0)
    moved = {name: (p - before[name]).abs().max().item() for name, p in policy.named_parameters()}
    for name, distance in moved.items():
        part = policy.family.part_of(name.removeprefix("model."))
        # the first step of AdamW moves each weight by its rate
        expected = {"vision": 0.0, "merger": 1e-2, "language": 1e-3}[part]
        assert distance == pytest.approx(expected, rel=0.02, abs=1e-9), name


def test_rates_follow_the_step(tiny_checkpoint: Path, groups: list[Group]) -> None:
    rates: list[tuple[int, str]] = []

    def rate(step: int, part: str) -> float:
        rates.append((step, part))
        return 1e-3 * (step + 1)

    policy = load(tiny_checkpoint)
    learner = make_learner(policy, gpg())
    learner._settings = replace(learner._settings, learning_rate=rate)
    moved = []
    for step in (0, 3):
        before = weights(policy)
        learner.update(groups[:1], step=step)
        moved.append(float((weights(policy) - before).norm()))
    assert rates == [(0, ""), (3, "")]
    assert moved[1] == pytest.approx(4 * moved[0], rel=0.05)


# ---- no room


def full_device(policy: Policy, over: int) -> None:
    """Calls of the policy with more prefix and chunk tokens than this find no room."""

    def look(module: Any, arguments: Any) -> None:
        (request,) = arguments
        packed = request.packed
        chunk = packed.chunks[getattr(request, "chunk", 0)]
        tokens = len(packed.ids_S) + len(chunk.ids_U)
        if torch.is_grad_enabled() and tokens > over:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    policy.register_forward_pre_hook(look)


def test_a_device_without_room_is_told_with_a_smaller_number(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    policy = load(tiny_checkpoint, torch.float32)
    full_device(policy, over=150)
    learner = make_learner(policy, gpg(), tokens_per_pass=1000)
    some = [groups[0], groups[2], groups[4], groups[5]]
    size = sum(
        g.prompt.length
        + sum(
            len(c.token_ids) - 1
            for c, r in zip(g.completions, g.rewards, strict=True)
            if abs(r - sum(g.rewards) / 3) > 1e-12
        )
        for g in some
    )
    assert size > 300
    with pytest.raises(RunError) as told:
        learner.update(some, step=0)
    message = str(told.value)
    assert f"out of memory in a call of {size} tokens (train.tokens_per_pass is 1000)" in message
    assert f"Set train.tokens_per_pass to {size // 2} (half of it); the gradient stays" in message
    assert "--resume" in message
    assert message.endswith("(CUDA out of memory. Tried to allocate 2.00 GiB.)")

    # once a call has fitted, its size is what is known to fit
    report = learner.update([groups[5]], step=0)
    with pytest.raises(RunError) as told:
        learner.update(some, step=0)
    fitted = report.trained_tokens
    assert f"train.tokens_per_pass to {fitted} (the largest that fitted in this run)" in str(
        told.value
    )


def test_what_is_advised_is_smaller_than_what_did_not_fit(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    """A large group in chunks has fitted, though it has more tokens than the limit: that is no advice for a small one."""
    policy = load(tiny_checkpoint, torch.float32)
    large, small = groups[5], groups[7]
    limit = large.prompt.length + 10
    learner = make_learner(policy, grpo(kl_beta=0.0), tokens_per_pass=limit)
    assert learner.update([large], step=0).trained_tokens > limit

    full_device(policy, over=50)
    twice = [small, replace(small, draw=9, prompt=replace(small.prompt, example_id="again"))]
    tokens = 2 * (small.prompt.length + sum(len(c.token_ids) - 1 for c in small.completions))
    with pytest.raises(RunError, match=rf"tokens_per_pass to {tokens // 2} \(half of it\)"):
        learner.update(twice, step=1)


def test_chunks_of_several_completions_can_be_made_smaller(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    """A short prompt and long answers: it is not the prompt that fills the device."""
    policy = load(tiny_checkpoint, torch.float32)
    group = groups[7]
    (lengths,) = [[len(c.token_ids) - 1 for c in group.completions]]
    many = replace(
        group, completions=group.completions[:2] * 4, rewards=(0.0, 1.0) * 4, reward_parts={}
    )
    limit = group.prompt.length + 2 * (lengths[0] + lengths[1])
    full_device(policy, over=limit - 1)
    with pytest.raises(RunError, match=rf"tokens_per_pass to {limit // 2} \(half of it\)"):
        make_learner(policy, gpg(), tokens_per_pass=limit).update([many], step=0)


def test_prompts_that_do_not_fit_alone_are_told_what_else_helps(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    policy = load(tiny_checkpoint, torch.float32)
    full_device(policy, over=1)
    with pytest.raises(RunError, match=r"set model\.gradient_checkpointing to true, lower data"):
        make_learner(policy, gpg(), tokens_per_pass=1).update(groups[:1], step=0)


# ---- what an algorithm may watch


def test_what_is_observed_is_given_what_the_loss_is_given(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    """Inputs on the device and in the dtype of the log-probs, also where they are kept in another."""
    kinds: list[tuple[torch.dtype, torch.dtype]] = []
    algorithm = grpo(kl_beta=0.0)

    def observe(logp_K: Tensor, inputs: Any) -> Mapping[str, Tensor]:
        kinds.append((logp_K.dtype, inputs.old_logp_K.dtype))
        return {"twice": 2 * torch.ones_like(logp_K)}

    policy = load(tiny_checkpoint, torch.float32)
    learner = make_learner(policy, replace(algorithm, observe=observe))
    report = learner.update(groups, step=0)
    assert set(kinds) == {(torch.float32, torch.float32)}
    assert report.metrics["twice"] == 2
