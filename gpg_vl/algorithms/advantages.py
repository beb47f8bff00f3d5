"""Advantages of Group Policy Gradient: reward minus group mean, over F_norm (arXiv:2504.02546, eq. 6).

Pure functions of rewards. A group is one prompt's row; a group never spans rows.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gpg_vl.algorithms.option_types import FNorm

STD_FLOOR = 1e-4
"""Added to a standard deviation before dividing by it, as GRPO and the official code do."""


def valid_groups(rewards_P_G: Float[Tensor, "P G"]) -> Bool[Tensor, "P"]:
    """True for each group whose rewards are not all equal: the groups that carry a signal.

    The test is exact. A tolerance would drop small real differences, and a zero test on advantages would take the
    rounding residue of a constant group (1e-7 for eight times 2.9 in float32) for a signal.
    """
    return rewards_P_G.amax(dim=1) > rewards_P_G.amin(dim=1)


def advantages(
    rewards_P_G: Float[Tensor, "P G"], *, f_norm: FNorm = "one", batch_std: float | None = None
) -> Float[Tensor, "P G"]:
    """A = (r - mean of the group) / F_norm; exactly 0 in groups without signal.

    f_norm: `one` is GPG. `group_std` divides by the group's standard deviation + 1e-4 (GRPO). `batch_std` divides by
        `batch_std` + 1e-4.
    batch_std: the standard deviation (ddof 1) over all rewards of the optimizer step on all ranks; required by, and
        only used for, `f_norm="batch_std"`.
    """
    if f_norm == "batch_std" and batch_std is None:
        raise ValueError(
            "f_norm 'batch_std' needs batch_std, the deviation over all rewards of the step."
        )

    # Group by group: a deviation taken over many rows at once can round differently, and a group's numbers must not
    # depend on which others its process holds.
    scaled_P_G = torch.zeros_like(rewards_P_G)
    for group in range(len(rewards_P_G)):
        row = slice(group, group + 1)
        scaled_P_G[row] = _scale(rewards_P_G[row], f_norm, batch_std)

    return torch.where(valid_groups(rewards_P_G)[:, None], scaled_P_G, torch.zeros_like(scaled_P_G))


def _scale(
    rewards_1_G: Float[Tensor, "1 G"], f_norm: FNorm, batch_std: float | None
) -> Float[Tensor, "1 G"]:
    centred_1_G = rewards_1_G - rewards_1_G.mean(dim=1, keepdim=True)
    match f_norm:
        case "one":
            return centred_1_G
        case "group_std":
            return centred_1_G / (rewards_1_G.std(dim=1, keepdim=True) + STD_FLOOR)
        case "batch_std":
            assert batch_std is not None
            return centred_1_G / (batch_std + STD_FLOOR)
