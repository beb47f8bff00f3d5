"""PPO: advantages and clips by hand, whole updates beside a stock model with a value layer, and runs that are killed."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import gpg_vl, kill_after, metrics, write_config
from safetensors import safe_open
from spread import WITH_CRITIC, compute, groups_of, make_sharding
from steps import VARIED, Lengths, Rows, logp_of, made_steps, make_batch
from test_algorithm_config import refused
from test_fsdp2 import start
from test_learner import load, make_groups, make_learner, members, plain_sharding, weights
from test_policy import relative
from test_train import equal, last_checkpoint
from test_train import weights as exported_weights
from test_train_algorithms import without_paths
from torch import Tensor, nn

from gpg_vl.algorithms.algorithm import Algorithm, Critic, StepBatch
from gpg_vl.algorithms.correction import correct
from gpg_vl.algorithms.gpg import gpg
from gpg_vl.algorithms.ppo import explained_variance, gae, ppo, token_rewards
from gpg_vl.models.load import load_model, load_processing
from gpg_vl.models.policy import Policy
from gpg_vl.models.value_head import ValueHead
from gpg_vl.training.optimizer import make_adamw
from gpg_vl.types import Group

seeded = settings(max_examples=25, deadline=None, derandomize=True)


def f64(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def made_values(lengths: Lengths) -> list[float]:
    """A value for each token, all different."""
    return [math.sin(1.7 * k) for k in range(sum(map(sum, lengths)))]


def batch_of(step: tuple[Rows, Lengths], **known: Any) -> StepBatch:
    """A step whose tokens were sampled by the current weights."""
    tokens = sum(map(sum, step[1]))
    return replace(
        make_batch(*step, old=[math.nan] * tokens, **known), value_K=f64(made_values(step[1]))
    )


# ---- advantages


def test_gae_of_three_tokens_by_hand() -> None:
    """gamma 0.9, lam 0.5, reward 1 at the end: deltas 0.9 * 0.2 - 0.5, 0.9 * 0.4 - 0.2, 1 - 0.4, and 0.45 of what follows."""
    found = gae(f64([0, 0, 1]), f64([0.5, 0.2, 0.4]), torch.tensor([[3]]), gamma=0.9, lam=0.5)
    assert found.tolist() == pytest.approx([-0.1265, 0.43, 0.6], rel=1e-12)


@seeded
@given(
    made_steps(st.sampled_from([0.0, 0.3, 1.0]), shortest=0),
    st.sampled_from([1.0, 0.9]),
    st.sampled_from([0.0, 0.7, 1.0]),
)
def test_gae_is_the_sum_of_the_paper(step: tuple[Rows, Lengths], gamma: float, lam: float) -> None:
    """Eq. 16 term by term, completion by completion; some have no tokens."""
    values = made_values(step[1])
    batch = make_batch(*step)
    found = gae(token_rewards(batch, 0.0), f64(values), batch.lengths_P_G, gamma=gamma, lam=lam)

    expected: list[float] = []
    for row, lengths in zip(*step, strict=True):
        for reward, length in zip(row, lengths, strict=True):
            own = [*values[len(expected) : len(expected) + length], 0.0]
            given = [0.0] * (length - 1) + [reward]
            deltas = [given[t] + gamma * own[t + 1] - own[t] for t in range(length)]
            for t in range(length):
                expected.append(sum((gamma * lam) ** s * d for s, d in enumerate(deltas[t:])))
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_without_a_critic_and_discounts_it_is_the_reward_to_go() -> None:
    lengths = torch.tensor([[3, 0], [1, 2]])
    found = gae(f64([1, 2, 3, 4, 5, 6]), torch.zeros(6).double(), lengths, gamma=1.0, lam=1.0)
    assert found.tolist() == [6, 5, 3, 4, 11, 6]


def test_the_divergence_is_a_part_of_every_reward() -> None:
    """By hand, beta 0.1: -0.1 (log mu - log pi_ref), and the reward at the last token; an answer without tokens has none."""
    batch = make_batch(
        [[1.0, 7.0], [0.5, 2.0]],
        [[2, 0], [1, 0]],
        sampled=[-1.0, -2.0, -3.0],
        reference=[-2.0, -1.5, -3.0],
    )
    assert token_rewards(batch, 0.1).tolist() == pytest.approx([-0.1, 1.05, 0.5], rel=1e-12)
    assert token_rewards(batch, 0.0).tolist() == [0.0, 1.0, 0.5]


def test_advantages_are_standard_over_the_step_and_returns_are_not() -> None:
    inputs = ppo(kl_beta=0.0, lam=0.7).credit(batch := batch_of(VARIED)).inputs
    plain = gae(token_rewards(batch, 0), batch.value_K, batch.lengths_P_G, gamma=1.0, lam=0.7)
    mean, deviation = statistics.fmean(plain.tolist()), statistics.stdev(plain.tolist())
    assert torch.allclose(inputs.advantage_K, (plain - mean) / deviation, rtol=1e-6)
    assert torch.allclose(inputs.return_K, plain + batch.value_K, rtol=1e-12)
    assert inputs.weight_K.tolist() == [1 / 42] * 42


def half_of(batch: StepBatch, rows: slice, tokens: slice) -> StepBatch:
    """What one of two processes has of a step."""
    return replace(
        batch,
        rewards_P_G=batch.rewards_P_G[rows],
        lengths_P_G=batch.lengths_P_G[rows],
        old_logp_K=batch.old_logp_K[tokens],
        sampled_logp_K=batch.sampled_logp_K[tokens],
        value_K=batch.value_K[tokens],
    )


class Sums:
    """Adds up over two processes that take turns: what one asks for, and what the other has asked for at this place."""

    def __init__(self, theirs: list[list[float]]) -> None:
        self.asked: list[list[float]] = []
        self.theirs = theirs

    def __call__(self, values: Sequence[float]) -> list[float]:
        place = len(self.asked)
        self.asked.append(list(values))
        others = self.theirs[place] if place < len(self.theirs) else [0.0] * len(values)
        return [a + b for a, b in zip(values, others, strict=True)]


@pytest.mark.parametrize("rows,tokens", [(2, 22), (4, 42)], ids=["halves", "all and nothing"])
def test_the_credit_of_two_processes_is_that_of_one(rows: int, tokens: int) -> None:
    """Each knows the sums of the other once both have asked in turn often enough; one may have no groups at all."""
    algorithm, whole = ppo(kl_beta=0.0), batch_of(VARIED)
    halves = [
        half_of(whole, slice(0, rows), slice(0, tokens)),
        half_of(whole, slice(rows, None), slice(tokens, None)),
    ]
    sums = [Sums([]), Sums([])]
    for _ in range(5):
        sums = [Sums(sums[1].asked), Sums(sums[0].asked)]
        credits = [
            algorithm.credit(replace(half, total=total))
            for half, total in zip(halves, sums, strict=True)
        ]

    expected = algorithm.credit(whole)
    assert len(sums[0].asked) == len(sums[1].asked)
    joined = torch.cat([credit.inputs.advantage_K for credit in credits])
    assert torch.allclose(joined, expected.inputs.advantage_K, rtol=1e-12)
    explained = [credit.metrics["explained_variance"] for credit in credits]
    assert explained == pytest.approx([expected.metrics["explained_variance"]] * 2, rel=1e-12)


# ---- what is clipped, and what is reported


def test_the_clip_of_a_value_by_hand() -> None:
    """V 0, clip 0.2, return 1. At 0.5 the value has gone far enough; at -0.5 it went the wrong way; 0.1 is within."""
    algorithm = ppo(kl_beta=0.0, value_coef=1.0)
    inputs = algorithm.credit(batch_of(VARIED)).inputs
    three = type(inputs)(*(f64([1.0] * 3) for _ in inputs))
    three = three._replace(old_value_K=f64([0.0] * 3))

    value_K = f64([0.5, -0.5, 0.1]).requires_grad_()
    loss_K = algorithm.critic.value_loss(value_K, three)
    assert loss_K.tolist() == pytest.approx([0.32, 1.125, 0.405], rel=1e-12)
    (slope_K,) = torch.autograd.grad(loss_K.sum(), value_K)
    assert slope_K.tolist() == pytest.approx([0.0, -1.5, -0.9], rel=1e-12)

    seen = algorithm.critic.observe(value_K.detach(), three)
    assert seen["value_loss"].tolist() == pytest.approx([0.32, 1.125, 0.405], rel=1e-12)
    assert seen["value_clip_share"].tolist() == [1.0, 0.0, 0.0]


def test_the_clip_of_a_ratio_by_hand() -> None:
    """Advantage 2 up and -2 down, clip 0.2: beyond it in its own direction a token has no slope, against it it has."""
    algorithm = ppo(kl_beta=0.0)
    inputs = algorithm.credit(batch_of(VARIED)).inputs
    four = type(inputs)(*(f64([1.0] * 4) for _ in inputs))
    four = four._replace(advantage_K=f64([2, -2, 2, -2]), old_logp_K=f64([0.0] * 4))

    logp_K = f64([1.5, 0.5, 0.5, 1.1]).log().requires_grad_()
    loss_K = algorithm.token_loss(logp_K, four)
    assert loss_K.tolist() == pytest.approx([-2.4, 1.6, -1.0, 2.2], rel=1e-12)
    (slope_K,) = torch.autograd.grad(loss_K.sum(), logp_K)
    assert slope_K.tolist() == pytest.approx([0.0, 0.0, -1.0, 2.2], rel=1e-12)
    seen = algorithm.observe(logp_K.detach(), four)
    assert seen["clip_share"].tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "values,expected", [([0, 1], 1.0), ([0.5, 0.5], 0.0), ([9, 9], 0.0), ([1, 0], -3.0)]
)
def test_the_explained_variance_by_hand(values: list[float], expected: float) -> None:
    """Returns 0 and 1 of variance 1/4: exact values leave nothing, a constant all of it, wrong ones 1 of it."""
    batch = make_batch([[0, 1]], [[1, 1]])
    found = explained_variance(f64(values), f64([0, 1]), batch)
    assert found == pytest.approx(expected, abs=1e-12)
    assert explained_variance(f64(values), f64([0.1, 0.1]), batch) is None


def test_a_correction_leaves_the_critic_as_it_is() -> None:
    """Tokens of weight 0 are not trained on; what they were worth is still learned."""
    sampled = (logp_of(VARIED[1]).detach() - 9.0).tolist()
    batch = batch_of(VARIED, sampled=sampled)
    plain, corrected = ppo(kl_beta=0.0), correct(ppo(kl_beta=0.0), "token_mask")
    logp_K, value_K = logp_of(VARIED[1]).detach(), 0.3 + f64(made_values(VARIED[1]))
    ours, theirs = corrected.credit(batch).inputs, plain.credit(batch).inputs
    assert not corrected.token_loss(logp_K, ours).any()
    for function in ("value_loss", "observe"):
        with_weights = getattr(corrected.critic, function)(value_K, ours)
        without = getattr(plain.critic, function)(value_K, theirs)
        if function == "observe":
            with_weights, without = with_weights["value_loss"], without["value_loss"]
        assert torch.equal(with_weights, without)
        assert without.any()


# ---- whole updates


GAMMA, LAM, CLIP, VALUE_CLIP, COEF, BETA, RATE = 0.98, 0.9, 0.02, 0.02, 0.7, 0.1, 0.05


def whole_ppo(updates: int) -> Algorithm:
    return ppo(
        gamma=GAMMA,
        lam=LAM,
        clip_low=CLIP,
        clip_high=CLIP,
        value_clip=VALUE_CLIP,
        value_coef=COEF,
        kl_beta=BETA,
        updates=updates,
    )


class Tokens(NamedTuple):
    """Of each completion, [T]."""

    logp: list[Tensor]
    value: list[Tensor]


class Stock:
    """The stock model of transformers in float64 with a value layer on its last hidden states; a row for every completion."""

    def __init__(self, checkpoint: Path, layer: nn.Linear) -> None:
        self.model: Any = load_model(str(checkpoint)).double()
        self.forbidden = list(load_processing(str(checkpoint)).tokens.never_sampled)
        self.layer = layer

    def parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.layer.parameters()]

    def read(self, groups: Sequence[Group]) -> Tokens:
        found = Tokens([], [])
        for group, member in members(groups):
            prompt = group.prompt
            answer = torch.tensor(group.completions[member].token_ids)
            ids = torch.cat([prompt.input_ids_T, answer])[None]
            images = {}
            if prompt.pixel_values_N is not None:
                mask = nn.functional.pad(prompt.image_mask_T, (0, len(answer)))[None].int()
                images = {
                    "pixel_values": prompt.pixel_values_N,
                    "image_grid_thw": prompt.grid_thw_I_3,
                    "mm_token_type_ids": mask,
                }
            self.model.model.rope_deltas = None
            states = self.model.model(input_ids=ids, use_cache=False, **images).last_hidden_state
            before = states[0, prompt.length - 1 : -1]

            logits = self.model.lm_head(before)
            logits[:, self.forbidden] = -torch.inf
            found.logp.append(logits.log_softmax(-1)[torch.arange(len(answer)), answer])
            found.value.append(self.layer(before)[:, 0])
        return found


def naive_advantages(
    groups: Sequence[Group], values: list[Tensor], reference: list[Tensor]
) -> list[Tensor]:
    """Of each completion, before they are made standard: backwards, token by token."""
    found = []
    for (group, member), value, first in zip(members(groups), values, reference, strict=True):
        advantage = torch.zeros_like(value)
        following, ahead = 0.0, 0.0
        for t in reversed(range(len(value))):
            reward = -BETA * (group.completions[member].logprobs[t] - float(first[t]))
            if t + 1 == len(value):
                reward += group.rewards[member]
            following = reward + GAMMA * ahead - float(value[t]) + GAMMA * LAM * following
            advantage[t], ahead = following, float(value[t])
        found.append(advantage)
    return found


def naive_update(stock: Stock, groups: Sequence[Group], updates: int) -> Tensor:
    """What so many steps of plain descent take off the weights of model and value layer."""
    beginning = torch.cat([p.detach().flatten() for p in stock.parameters()])
    with torch.no_grad():
        first = stock.read(groups)
    raw = naive_advantages(groups, first.value, first.logp)
    returns = [a + v for a, v in zip(raw, first.value, strict=True)]
    every = torch.cat(raw)
    standard = [(a - every.mean()) / (every.var() + 1e-8).sqrt() for a in raw]
    old = [
        f64(group.old_logps[member]) if group.old_logps else first.logp[number]
        for number, (group, member) in enumerate(members(groups))
    ]

    for _ in range(updates):
        now = stock.read(groups)
        total = torch.zeros((), dtype=torch.float64)
        for i, logp in enumerate(now.logp):
            ratio = (logp - old[i]).exp()
            bounded = ratio.clip(1 - CLIP, 1 + CLIP)
            total = total - torch.min(ratio * standard[i], bounded * standard[i]).sum()
            v, kept = now.value[i], first.value[i]
            near = kept + (v - kept).clip(-VALUE_CLIP, VALUE_CLIP)
            worse = torch.max((v - returns[i]) ** 2, (near - returns[i]) ** 2)
            total = total + COEF * 0.5 * worse.sum()
        for parameter in stock.parameters():
            parameter.grad = None
        (total / len(every)).backward()
        with torch.no_grad():
            for parameter in stock.parameters():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
    return beginning - torch.cat([p.detach().flatten() for p in stock.parameters()])


def value_layer(size: int) -> nn.Linear:
    """Weights that are not zero, as they are in the middle of a run."""
    layer = nn.Linear(size, 1).double()
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.04, 0.05, size, dtype=torch.float64)[None])
        layer.bias.fill_(0.1)
    return layer


def with_critic(checkpoint: Path) -> Policy:
    policy = load(checkpoint)
    policy.add_critic()
    policy.critic.double()
    layer = value_layer(len(policy.critic.weight_H))
    with torch.no_grad():
        policy.critic.weight_H.copy_(layer.weight[0])
        policy.critic.bias.copy_(layer.bias)
    return policy


@pytest.fixture(scope="module")
def groups(tiny_checkpoint: Path) -> list[Group]:
    """Eight groups of three; every second one was sampled by other weights, and the engine rounds in a way of its own."""
    found = []
    for number, group in enumerate(make_groups(tiny_checkpoint)):
        completions = tuple(
            replace(
                c, logprobs=tuple(logp + 0.03 * ((k % 3) - 1) for k, logp in enumerate(c.logprobs))
            )
            for c in group.completions
        )
        old: tuple[tuple[float, ...], ...] = ()
        if number % 2:
            shifts = (0.4, -0.4, 0.01)
            old = tuple(
                tuple(logp + shifts[(k + m) % 3] for k, logp in enumerate(c.logprobs))
                for m, c in enumerate(completions)
            )
        found.append(replace(group, completions=completions, old_logps=old))
    return found


@pytest.fixture(scope="module")
def naive(tiny_checkpoint: Path, groups: list[Group]) -> dict[int, Tensor]:
    size = with_critic(tiny_checkpoint).critic.weight_H.numel()
    return {
        updates: naive_update(Stock(tiny_checkpoint, value_layer(size)), groups, updates)
        for updates in (1, 2)
    }


@pytest.mark.parametrize(
    "updates,tokens_per_pass,shared",
    [(1, 10**6, True), (2, 250, True), (2, 70, True), (1, 250, False)],
)
def test_an_update_is_that_of_a_stock_model_with_a_value_layer(
    tiny_checkpoint: Path,
    groups: list[Group],
    naive: dict[int, Tensor],
    updates: int,
    tokens_per_pass: int,
    shared: bool,
) -> None:
    """Trunk, head and value layer; the second update is beyond both clips. 70 tokens: several chunks after each prompt."""
    policy = with_critic(tiny_checkpoint)
    before = weights(policy)
    learner = make_learner(
        policy, whole_ppo(updates), rate=RATE, tokens_per_pass=tokens_per_pass, shared=shared
    )
    report = learner.update(groups, step=0)
    ours, expected = before - weights(policy), naive[updates]
    assert relative(ours, expected) < 1e-6
    layer = len(policy.critic.weight_H) + 1
    assert relative(ours[-layer:], expected[-layer:]) < 1e-6
    assert ours[:-layer].norm() > 1e-4

    assert report.metrics["clip_share"] > 0
    assert report.metrics["value_loss"] > 0
    assert (report.metrics["value_clip_share"] > 0) == (updates > 1)
    assert report.metrics["explained_variance"] < 1


def test_the_critic_teaches_the_trunk_too(tiny_checkpoint: Path, groups: list[Group]) -> None:
    taken = []
    for coef in (1e-9, 0.7):
        policy = with_critic(tiny_checkpoint)
        before = weights(policy)
        algorithm = ppo(kl_beta=0.0, value_coef=coef, updates=1)
        make_learner(policy, algorithm, rate=RATE).update(groups, step=0)
        taken.append((before - weights(policy))[: -len(policy.critic.weight_H) - 1])
    assert relative(taken[1], taken[0]) > 1e-2


def test_image_and_prompt_are_computed_once_for_all_values(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    """Two passes over each group, one for values and one that trains: twice the patches, twice the tokens."""
    policy = with_critic(tiny_checkpoint)
    before = policy.work
    make_learner(policy, ppo(kl_beta=0.0, updates=1)).update(groups, step=0)
    pictures = [g.prompt.pixel_values_N for g in groups if g.prompt.pixel_values_N is not None]
    assert policy.work.vision_patches - before.vision_patches == 2 * sum(map(len, pictures))
    prompts = sum(group.prompt.length for group in groups)
    following = sum(len(c.token_ids) - 1 for group in groups for c in group.completions)
    assert policy.work.tower_tokens - before.tower_tokens == 2 * (prompts + following)


def test_a_critic_begins_at_zero(tiny_checkpoint: Path, groups: list[Group]) -> None:
    """So the first advantages are rewards to go, and the trunk is not pulled about by random weights."""
    policy = load(tiny_checkpoint)
    policy.add_critic()
    learner = make_learner(policy, ppo(kl_beta=0.0, updates=1), rate=0.0)
    report = learner.update(groups, step=0)
    assert report.metrics["explained_variance"] == pytest.approx(0.0, abs=1e-12)


def test_values_are_float32_whatever_the_rest_is_computed_in() -> None:
    head = ValueHead(4, torch.device("cpu"))
    with torch.no_grad():
        head.weight_H.fill_(1 / 3)
    hidden = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        value_K = head(hidden)
    assert value_K.dtype == torch.float32
    assert value_K.item() == pytest.approx(10 / 3, rel=1e-6)


def test_the_critic_has_a_rate_of_its_own(tiny_checkpoint: Path) -> None:
    policy = load(tiny_checkpoint, torch.float32)
    plain = make_adamw(policy, betas=(0.9, 0.999), weight_decay=0.1).param_groups
    policy.add_critic()
    groups = make_adamw(policy, betas=(0.9, 0.999), weight_decay=0.1).param_groups
    assert [g["part"] for g in groups] == [*(g["part"] for g in plain), "critic"]
    assert groups[-1]["weight_decay"] == 0.0
    assert [p.numel() for p in groups[-1]["params"]] == [len(policy.critic.weight_H), 1]


def test_a_loss_of_values_of_another_shape_is_refused(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    policy = with_critic(tiny_checkpoint)
    wrong = replace(
        ppo(kl_beta=0.0),
        critic=Critic(value_loss=lambda value_K, inputs: value_K.sum(), learning_rate=1.0),
    )
    with pytest.raises(
        ValueError, match=r"value_loss was given \d+ values and returned .* shape \(\)"
    ):
        make_learner(policy, wrong).update(groups[:1], step=0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several threads on a busy machine may share a matrix product in another way, and round otherwise, from call to call."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_critic_goes_into_a_checkpoint_and_back(
    tiny_checkpoint: Path, groups: list[Group], tmp_path: Path
) -> None:
    """With its moments: one step more from there is that of who was never stopped."""

    def start() -> tuple[Policy, Any, Any]:
        policy, sharding = load(tiny_checkpoint, torch.float32), plain_sharding()
        policy.add_critic()
        make = lambda policy: make_adamw(policy, betas=(0.9, 0.999), weight_decay=0.1)  # noqa: E731
        rates = {"": 1e-3, "critic": 1e-2}
        algorithm = ppo(kl_beta=0.0, updates=2)
        return (
            policy,
            sharding,
            make_learner(policy, algorithm, optimizer=make, rate=rates, sharding=sharding),
        )

    from gpg_vl.models.save import save_model

    policy, sharding, learner = start()
    learner.update(groups, step=0)
    save_model(policy.model, sharding.full_weights(), tmp_path / "model")
    sharding.save(tmp_path)
    assert policy.critic.weight_H.any()
    resumed, other, goes_on = start()
    other.load(tmp_path)
    for one in (learner, goes_on):
        one.update(groups, step=1)
    assert torch.equal(weights(policy), weights(resumed))

    torch.save({"weight_H": torch.zeros(3), "bias": torch.zeros(1)}, tmp_path / "critic.pt")
    with pytest.raises(ValueError, match=r"critic\.pt is of another critic"):
        other.load(tmp_path)
    (tmp_path / "critic.pt").unlink()
    with pytest.raises(ValueError, match=r"critic\.pt"):
        other.load(tmp_path)


def test_without_a_critic_nothing_is_scored_before_an_update(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    policy = load(tiny_checkpoint)
    assert policy.critic is None
    before = policy.work.vision_patches
    report = make_learner(policy, gpg()).update(groups, step=0)
    assert policy.work.vision_patches - before == report.vision_patches
    assert not [name for name, _ in policy.named_parameters() if "critic" in name]


# ---- runs


SECTION = {"name": "ppo", "updates": 2, "critic_learning_rate": 1e-2, "kl_beta": 0.1}


def runs_of(
    checkpoint: Path, folder: Path, cases: dict[str, tuple[int, int]], **sections: Any
) -> dict[str, Path]:
    """Runs of a name with (processes, rows after which it is killed and resumed; 0: never)."""
    runs = {}
    for name, (processes, rows) in cases.items():
        (folder / name).mkdir()
        config = write_config(folder / name, checkpoint, algorithm=SECTION, **sections)
        if rows:
            kill_after(config, rows, processes=processes)
        result = gpg_vl("train", config, *(["--resume"] if rows else []), processes=processes)
        assert result.returncode == 0, result.stderr
        runs[name] = folder / name / "run"
    return runs


def critic_of(run: Path) -> dict[str, Tensor]:
    return torch.load(last_checkpoint(run) / "critic.pt", weights_only=True)


def test_a_run_killed_and_resumed_is_never_stopped(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Bit for bit, critic included. What is exported has no weight that the base model has not."""
    cases = {"whole": (1, 0), "killed": (1, 2)}
    runs = runs_of(tiny_checkpoint, tmp_path, cases, train={"learning_rate": 1e-2})
    rows = {name: without_paths(metrics(run)) for name, run in runs.items()}
    assert rows["killed"] == rows["whole"]
    assert equal(*(exported_weights(last_checkpoint(run)) for run in runs.values()))
    assert equal(*(critic_of(run) for run in runs.values()))
    assert critic_of(runs["whole"])["weight_H"].any()

    with safe_open(tiny_checkpoint / "model.safetensors", framework="pt") as base:
        assert exported_weights(last_checkpoint(runs["whole"])).keys() == set(base.keys())
    for row in rows["whole"]:
        assert row["value_loss"] > 0
        assert row["learning_rate/critic"] == 1e-2
        assert {"explained_variance", "clip_share", "value_clip_share", "kl"} <= row.keys()
    assert rows["whole"][0]["logp_gap_max"] < 1e-4


def test_two_processes_have_the_gradient_of_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Each adds its part, of model and critic, and the weights move by the sum; one process may have nothing to train on."""
    found = start(2, tiny_checkpoint, tmp_path, [*WITH_CRITIC], kind="none")
    for name, case in WITH_CRITIC.items():
        groups = groups_of(case, make_groups(tiny_checkpoint))
        alone = compute(case, tiny_checkpoint, groups, make_sharding("none", 1, True, case))
        together = found[0][name]["gradient"] + found[1][name]["gradient"]
        for part in (slice(None), slice(-65, None)):  # all, and the critic's alone
            assert relative(together[part], alone["gradient"][part]) <= 2e-6
        for rank in found:
            assert torch.equal(rank[name]["weights"], found[0][name]["weights"])
            assert relative(rank[name]["weights"], alone["weights"]) <= 1e-6
            assert rank[name]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
            assert rank[name]["norms"] == pytest.approx(alone["norms"], rel=1e-6)
            assert rank[name]["full"].keys() == alone["full"].keys()
        assert not [tensor for tensor in alone["full"] if "critic" in tensor]


def test_a_run_on_two_processes_is_that_of_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    cases = {"one": (1, 0), "two": (2, 0), "killed": (2, 1)}
    runs = runs_of(tiny_checkpoint, tmp_path, cases, train={"steps": 2, "learning_rate": 1e-3})
    rows = {name: without_paths(metrics(run)) for name, run in runs.items()}
    assert rows["killed"] == rows["two"]
    assert equal(critic_of(runs["killed"]), critic_of(runs["two"]))

    one, two = critic_of(runs["one"]), critic_of(runs["two"])
    assert relative(two["weight_H"], one["weight_H"]) < 1e-3
    for alone, together in zip(rows["one"], rows["two"], strict=True):
        for name in ("reward", "loss", "grad_norm", "value_loss", "kl", "explained_variance"):
            assert together[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-5), name


def test_a_sharding_without_a_critic_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_checkpoint, algorithm=SECTION, train={"sharding": "fsdp2"})
    result = gpg_vl("train", config, "--dry-run")
    assert result.returncode == 2
    assert "The algorithm has a critic, a layer beside the model, but train.sharding fsdp2" in (
        " ".join(result.stderr.split())
    )


@pytest.mark.parametrize(
    "keys,texts",
    [
        ({"lambda": 0.9}, ["algorithm.lambda", "ppo has no such key. Did you mean 'lam'?"]),
        ({"lam": 1.2}, ["algorithm.lam: 1.2 was given", "less than or equal to 1"]),
        ({"value_coef": 0}, ["algorithm.value_coef: 0 was given", "greater than 0"]),
        ({"gamma": 0}, ["algorithm.gamma: 0 was given", "greater than 0"]),
    ],
)
def test_a_wrong_key_is_refused(keys: dict[str, float], texts: list[str]) -> None:
    refused({"name": "ppo", **keys}, *texts)


def test_what_it_declares() -> None:
    assert ppo().needs == {"old_logp", "reference_logp"}
    assert ppo(kl_beta=0.0).needs == {"old_logp"}
    assert ppo(critic_learning_rate=3e-4, updates=3).updates == 3
    assert ppo(critic_learning_rate=3e-4).critic.learning_rate == 3e-4
