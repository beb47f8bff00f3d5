"""The losses of TRL 1.16.0's GRPOTrainer and RLOOTrainer, restated over padded rows of the stock model, and ours through the
whole of an update: image and prompt once, several micro-batches, the tiles of the head.

`_N` answers, one row each, padded at the right; `mask_N_T` is True where a row has a token. TRL itself is no dependency;
where it is installed, `benchmarks/parity_trl.py` compares with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from test_learner import LIMIT, gradient_of, make_groups, members, stock_logps
from test_policy import gradients, relative
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.algorithms.cispo import cispo
from gpg_vl.algorithms.dapo import dapo
from gpg_vl.algorithms.dr_grpo import dr_grpo
from gpg_vl.algorithms.grpo import grpo
from gpg_vl.algorithms.gspo import gspo
from gpg_vl.algorithms.remax import remax
from gpg_vl.algorithms.rloo import rloo
from gpg_vl.types import Completion, GreedyAnswer, Group

LOW, HIGH, LARGEST = 0.2, 0.28, 1.2
SHIFTS = (0.6, -0.6, 0.1, -0.1, 0.0)
"""log pi_old - log pi of one token after the other: beyond both clips and within them."""
MEMBER_SHIFTS = (0.3, -0.5, 0.1)
"""The same of one answer after the other, for ratios of whole answers."""
GREEDY = (0.0, 1.0, 0.5, 0.0, 1.0, 0.25, 0.5, 1.0)
"""What the greedy answer to each prompt is worth: as the group, better, worse."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What TRL's losses are given."""

    logp_N_T: Tensor
    old_N_T: Tensor
    mask_N_T: Tensor
    rewards_P_G: Tensor


Loss = Callable[[Rows], Tensor]


# ---- theirs


def standard_advantages(rows: Rows) -> Tensor:
    """[N, 1]: `scale_rewards="group"`."""
    rewards = rows.rewards_P_G
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return (centred / (rewards.std(dim=1, keepdim=True) + 1e-4)).reshape(-1, 1)


def centred_advantages(rows: Rows) -> Tensor:
    """[N, 1]: `scale_rewards="none"`."""
    return (rows.rewards_P_G - rows.rewards_P_G.mean(dim=1, keepdim=True)).reshape(-1, 1)


def clipped_loss(log_ratio: Tensor, advantages_N_1: Tensor) -> Tensor:
    ratio = torch.exp(log_ratio)
    bounded = torch.clamp(ratio, 1 - LOW, 1 + HIGH)
    return -torch.min(ratio * advantages_N_1, bounded * advantages_N_1)


def mean_of_means(loss_N_T: Tensor, rows: Rows) -> Tensor:
    return ((loss_N_T * rows.mask_N_T).sum(-1) / rows.mask_N_T.sum(-1)).mean()


def token_mean(loss_N_T: Tensor, rows: Rows) -> Tensor:
    """Over the tokens of the whole batch, whatever the micro-batch (`num_items_in_batch`)."""
    return (loss_N_T * rows.mask_N_T).sum() / rows.mask_N_T.sum()


def their_grpo(rows: Rows) -> Tensor:
    loss = clipped_loss(rows.logp_N_T - rows.old_N_T, standard_advantages(rows))
    return mean_of_means(loss, rows)


def their_dapo(rows: Rows) -> Tensor:
    loss = clipped_loss(rows.logp_N_T - rows.old_N_T, standard_advantages(rows))
    return token_mean(loss, rows)


def their_dr_grpo(rows: Rows) -> Tensor:
    """With the setting that its documentation asks for, `scale_rewards="none"`."""
    loss = clipped_loss(rows.logp_N_T - rows.old_N_T, centred_advantages(rows))
    return (loss * rows.mask_N_T).sum() / (len(rows.logp_N_T) * LIMIT)


def their_cispo(rows: Rows) -> Tensor:
    ratio = torch.exp(rows.logp_N_T - rows.old_N_T)
    weight = torch.clamp(ratio, max=LARGEST).detach()
    return token_mean(-weight * standard_advantages(rows) * rows.logp_N_T, rows)


def their_gspo(rows: Rows) -> Tensor:
    """`importance_sampling_level="sequence"`."""
    gaps_N_T = (rows.logp_N_T - rows.old_N_T) * rows.mask_N_T
    log_ratio_N_1 = (gaps_N_T.sum(-1) / rows.mask_N_T.sum(-1))[:, None]
    loss_N_1 = clipped_loss(log_ratio_N_1, standard_advantages(rows))
    return mean_of_means(loss_N_1.expand(rows.logp_N_T.shape), rows)


def their_rloo(rows: Rows) -> Tensor:
    """RLOOTrainer with one iteration: the ratio of a whole answer is 1, and its slope is that of its log-prob."""
    rewards = rows.rewards_P_G
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    logp_N_1 = (rows.logp_N_T * rows.mask_N_T).sum(-1, keepdim=True)
    loss_N_1 = clipped_loss(logp_N_1 - logp_N_1.detach(), (rewards - others).reshape(-1, 1))
    return loss_N_1.mean()


def remax_of_the_paper(rows: Rows) -> Tensor:
    """TRL has none: arXiv:2310.10505, the log-prob of an answer times its reward over that of the greedy one."""
    greedy = torch.tensor(GREEDY[: len(rows.rewards_P_G)], dtype=torch.float64)
    advantages_N = (rows.rewards_P_G - greedy[:, None]).flatten()
    return -(advantages_N * (rows.logp_N_T * rows.mask_N_T).sum(-1)).mean()


# ---- ours beside them


def aged(groups: Sequence[Group], *, by_answer: bool) -> list[Group]:
    """The groups as if other weights had sampled them, under which tokens were likelier or less likely."""
    made = []
    for number, group in enumerate(groups):
        old = []
        for member, completion in enumerate(group.completions):
            answer = MEMBER_SHIFTS[(number + member) % len(MEMBER_SHIFTS)]
            old.append(
                tuple(
                    logp + (answer if by_answer else SHIFTS[(number + member + t) % len(SHIFTS)])
                    for t, logp in enumerate(completion.logprobs)
                )
            )
        made.append(replace(group, old_logps=tuple(old)))
    return made


def with_greedy(groups: Sequence[Group]) -> list[Group]:
    said = Completion(token_ids=(5, 6), text="never trained on")
    return [
        replace(group, greedy=GreedyAnswer(completion=said, reward=reward))
        for group, reward in zip(groups, GREEDY, strict=True)
    ]


@pytest.fixture(scope="module")
def groups(tiny_checkpoint: Path) -> list[Group]:
    return make_groups(tiny_checkpoint)


@pytest.fixture(scope="module")
def stock(tiny_checkpoint: Path, groups: list[Group]) -> tuple[nn.Module, list[Tensor]]:
    return stock_logps(tiny_checkpoint, groups)


@pytest.mark.parametrize(
    ("algorithm", "theirs"),
    [
        (grpo(clip_low=LOW, clip_high=HIGH, kl_beta=0.0), their_grpo),
        (dapo(clip_low=LOW, clip_high=HIGH), their_dapo),
        (dr_grpo(clip_low=LOW, clip_high=HIGH), their_dr_grpo),
        (cispo(ratio_max=LARGEST), their_cispo),
        (gspo(clip_low=LOW, clip_high=HIGH), their_gspo),
        (rloo(), their_rloo),
        (remax(), remax_of_the_paper),
    ],
    ids=["grpo", "dapo", "dr_grpo", "cispo", "gspo", "rloo", "remax"],
)
def test_an_update_has_the_gradient_of_padded_rows(
    tiny_checkpoint: Path,
    groups: list[Group],
    stock: tuple[nn.Module, list[Tensor]],
    algorithm: Algorithm,
    theirs: Loss,
) -> None:
    given = aged(groups, by_answer=algorithm.whole_completions)
    if "greedy_reward" in algorithm.needs:
        given = with_greedy(given)
    assert len({len(c.token_ids) for group in given for c in group.completions}) > 4, "ragged"

    model, logps = stock
    rows = Rows(
        logp_N_T=pad_sequence(logps, batch_first=True),
        old_N_T=pad_sequence(
            [
                torch.tensor(group.old_logps[member], dtype=torch.float64)
                for group, member in members(given)
            ],
            batch_first=True,
        ),
        mask_N_T=pad_sequence([torch.ones(len(logp), dtype=torch.bool) for logp in logps], True),
        rewards_P_G=torch.tensor([group.rewards for group in given], dtype=torch.float64),
    )
    model.zero_grad()
    theirs(rows).backward(retain_graph=True)
    expected = gradients(model)

    ours = gradient_of(tiny_checkpoint, given, algorithm, tokens_per_pass=250)
    assert relative(ours, expected) < 1e-6
