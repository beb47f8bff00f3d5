"""The optimizer step: the gradient does not know how the step was cut into passes or dealt out to processes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import scene_example
from gpg_vl.training.batch import Objective, make_passes
from oracle import naive_logp
from runs import environment
from test_policy import encoder, gradients, relative

from gpg_vl.models.load import load_model, load_processing
from gpg_vl.models.policy import Policy
from gpg_vl.rollout.native import NativeEngine
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.training.optimizer import make_adamw
from gpg_vl.training.step import NonFiniteError, accumulate, global_counts, update
from gpg_vl.types import Example, Group

OBJECTIVE = Objective(
    f_norm="one", age="inverse_valid_fraction", aggregation="token", max_new_tokens=12
)
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
    processing = load_processing(str(checkpoint))
    policy = Policy(load_model(str(checkpoint)), processing.family, processing.tokens)
    examples = [scene_example(i) for i in range(7)] + [
        Example(id="plain", prompt="How many?", answer="1")
    ]
    prompts = [encoder(checkpoint).encode(e) for e in examples]
    sampling = Sampling(group_size=3, temperature=1.0, max_new_tokens=12, seed=1)
    answers = NativeEngine(policy, processing, prompts_per_batch=8).generate(
        prompts, sampling, list(range(8))
    )
    cut = [
        tuple(
            replace(
                c, token_ids=c.token_ids[: 2 + (i + j) % 9], logprobs=c.logprobs[: 2 + (i + j) % 9]
            )
            for j, c in enumerate(group)
        )
        for i, group in enumerate(answers)
    ]
    return [
        Group(example=e, prompt=p, completions=c, rewards=r, reward_parts={"r": r}, draw=i)
        for i, (e, p, c, r) in enumerate(zip(examples, prompts, cut, REWARDS, strict=True))
    ]


def gradient_of(
    checkpoint: Path,
    groups: list[Group],
    *,
    tokens_per_pass: int = 10**6,
    shared: bool = True,
    objective: Objective = OBJECTIVE,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """The gradient of a step before clipping, through `accumulate`."""
    processing = load_processing(str(checkpoint))
    policy = (
        Policy(load_model(str(checkpoint)), processing.family, processing.tokens).to(dtype).train()
    )
    accelerator = Accelerator(cpu=True)
    counts, deviation = global_counts(accelerator, groups)
    passes = make_passes(
        groups,
        objective=objective,
        counts=counts,
        batch_std=deviation,
        tokens_per_pass=tokens_per_pass,
        shared_prefix=shared,
    )
    accumulate(policy, accelerator, passes)
    return gradients(policy)


@pytest.fixture(scope="module")
def groups(tiny_checkpoint: Path) -> list[Group]:
    return make_groups(tiny_checkpoint)


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, groups: list[Group]) -> torch.Tensor:
    return gradient_of(tiny_checkpoint, groups)


@pytest.mark.parametrize("tokens_per_pass", [1, 70, 250, 500])
@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_is_the_same_for_every_cut(
    tiny_checkpoint: Path,
    groups: list[Group],
    whole: torch.Tensor,
    tokens_per_pass: int,
    shared: bool,
) -> None:
    """1 token: each completion a piece; 70: pieces of some; 250 and 500: about two and four groups in a pass."""
    assert whole.norm() > 1e-3
    assert (
        relative(
            gradient_of(tiny_checkpoint, groups, tokens_per_pass=tokens_per_pass, shared=shared),
            whole,
        )
        < 1e-6
    )


def test_the_gradient_is_that_of_the_formula(
    tiny_checkpoint: Path, groups: list[Group], whole: torch.Tensor
) -> None:
    """Eq. 5 and 8 written out over the stock model: alpha / K * sum of -A log pi, with alpha = 8/5."""
    processing = load_processing(str(tiny_checkpoint))
    policy = Policy(load_model(str(tiny_checkpoint)), processing.family, processing.tokens).double()
    tokens = sum(len(c.token_ids) for g in groups for c in g.completions)
    loss = torch.zeros((), dtype=torch.float64)
    for group in groups:
        mean = sum(group.rewards) / 3
        for completion, reward in zip(group.completions, group.rewards, strict=True):
            if len(set(group.rewards)) > 1:
                loss = (
                    loss
                    - (8 / 5)
                    * (reward - mean)
                    * naive_logp(
                        policy.model, processing.tokens, group.prompt, completion.token_ids
                    ).sum()
                    / tokens
                )
    loss.backward()
    assert relative(whole, gradients(policy)) < 1e-6


def test_order_of_groups_and_members_does_not_matter(
    tiny_checkpoint: Path, groups: list[Group], whole: torch.Tensor
) -> None:
    turned = [
        replace(g, completions=g.completions[::-1], rewards=g.rewards[::-1], reward_parts={})
        for g in groups[::-1]
    ]
    assert relative(gradient_of(tiny_checkpoint, turned), whole) < 1e-6


def test_groups_without_signal_change_nothing_under_sequence_mean_and_alpha(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    sequence = replace(OBJECTIVE, aggregation="sequence")
    valid = [g for g in groups if g.is_valid]
    assert (
        relative(
            gradient_of(tiny_checkpoint, valid, objective=sequence),
            gradient_of(tiny_checkpoint, groups, objective=sequence),
        )
        < 1e-6
    )
    off = replace(sequence, age="off")
    shrunk, full = (
        gradient_of(tiny_checkpoint, groups, objective=off),
        gradient_of(tiny_checkpoint, valid, objective=off),
    )
    assert relative(shrunk * 8 / 5, full) < 1e-6


def test_groups_without_signal_cost_no_pass(tiny_checkpoint: Path, groups: list[Group]) -> None:
    counts, deviation = global_counts(Accelerator(cpu=True), groups)
    passes = make_passes(
        groups,
        objective=OBJECTIVE,
        counts=counts,
        batch_std=deviation,
        tokens_per_pass=1,
        shared_prefix=True,
    )
    assert len(passes) == 5
    assert counts.groups == 8


WORKER = """
import json, sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
import torch
from accelerate import Accelerator
from gpg_vl.models.load import load_model, load_processing
from gpg_vl.models.policy import Policy
from gpg_vl.training.batch import make_passes
from gpg_vl.training.step import accumulate, global_counts
from test_policy import gradients
from test_step import OBJECTIVE, make_groups
checkpoint, out, deal = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
accelerator = Accelerator(cpu=True)
groups = make_groups(checkpoint)
mine = [groups[i] for i in deal[accelerator.process_index]]
processing = load_processing(str(checkpoint))
policy = Policy(load_model(str(checkpoint)), processing.family, processing.tokens).double()
wrapped = accelerator.prepare(policy).train()
counts, deviation = global_counts(accelerator, mine)
passes = make_passes(mine, objective=OBJECTIVE, counts=counts, batch_std=deviation, tokens_per_pass=80,
                     shared_prefix=True)
accumulate(wrapped, accelerator, passes)
torch.save(gradients(policy), out / f"rank-{{accelerator.process_index}}.pt")
accelerator.wait_for_everyone()
accelerator.end_training()
"""


@pytest.mark.parametrize(
    "deal",
    [[[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 2, 4, 5, 7], [1, 3, 6]]],
    ids=["half each", "one rank without signal"],
)
def test_two_processes_have_the_gradient_of_one(
    tiny_checkpoint: Path, whole: torch.Tensor, tmp_path: Path, deal: list[list[int]]
) -> None:
    """The second deal leaves one process without any valid group: it must neither hang nor change the result."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent)))
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--standalone",
            str(script),
            str(tiny_checkpoint),
            str(tmp_path),
            json.dumps(deal),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for rank in (0, 1):
        assert relative(torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True), whole) < 1e-6


def one_update(
    checkpoint: Path, groups: list[Group], *, weight_decay: float = 0.1
) -> tuple[Policy, torch.optim.Optimizer, object]:
    processing = load_processing(str(checkpoint))
    policy = Policy(load_model(str(checkpoint)), processing.family, processing.tokens)
    optimizer = make_adamw(policy.model, betas=(0.9, 0.999), weight_decay=weight_decay)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    accelerator = Accelerator(cpu=True)
    counts, deviation = global_counts(accelerator, groups)
    outcome = update(
        policy,
        optimizer,
        accelerator,
        groups,
        counts=counts,
        batch_std=deviation,
        objective=OBJECTIVE,
        tokens_per_pass=10**6,
        shared_prefix=True,
        max_grad_norm=1.0,
    )
    return policy, optimizer, outcome


def test_a_step_without_signal_touches_neither_weights_nor_moments(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    policy, optimizer, outcome = one_update(tiny_checkpoint, [g for g in groups if not g.is_valid])
    before = load_model(str(tiny_checkpoint)).state_dict()
    assert outcome.applied is False
    assert outcome.loss == 0.0
    assert all(torch.equal(v, before[k]) for k, v in policy.model.state_dict().items())
    assert not optimizer.state_dict()["state"]


def test_a_step_raises_the_probability_of_the_better_answers(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    from gpg_vl.models.layout import pack

    policy, _, outcome = one_update(tiny_checkpoint, groups[:1], weight_decay=0.0)
    assert outcome.applied
    rows = pack([groups[0].prompt], [[c.token_ids for c in groups[0].completions]])
    before = Policy(
        load_model(str(tiny_checkpoint)),
        policy.family,
        load_processing(str(tiny_checkpoint)).tokens,
    )(rows).logp_K
    gain = policy(rows).logp_K - before
    first = len(groups[0].completions[0].token_ids)
    assert gain[:first].sum() > 0, "the rewarded answer becomes likelier"
    assert gain[:first].mean() > gain[first:].mean()


def test_a_loss_that_is_no_number_is_not_applied(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    broken = replace(
        groups[0],
        prompt=replace(
            groups[0].prompt, pixel_values_N=groups[0].prompt.pixel_values_N * float("nan")
        ),
    )
    with pytest.raises(
        NonFiniteError,
        match=r"must be finite\. The update was not applied\. The loss broke in the passes of these examples: 0\.",
    ):
        one_update(tiny_checkpoint, [broken])
