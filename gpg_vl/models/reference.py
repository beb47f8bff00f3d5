"""The reference: the policy at the start of the run, for algorithms that measure how far the policy has moved."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from gpg_vl.models.adapters import adapters_off, has_adapters
from gpg_vl.models.policy import Policy
from gpg_vl.models.requests import Score, ScoreOutput
from gpg_vl.models.weight_precision import hold_matrices

Reference = Callable[[Score], ScoreOutput]
"""Scores completions with the initial weights, without gradient."""


def make_reference(
    policy: Policy, dtype: torch.dtype, spread: Callable[[Policy], nn.Module] | None = None
) -> Reference:
    """The reference of a policy that has not been trained yet.

    With adapters it is the policy itself with its adapters turned off. Otherwise it is a frozen copy with its matrices in
    `dtype`, the policy's compute dtype, which gives the same results.

    spread: a function that shards the copy, if no process is to hold all of it.
    """
    if has_adapters(policy.model):

        def score_without_adapters(request: Score) -> ScoreOutput:
            with torch.no_grad(), adapters_off(policy.model):
                output: ScoreOutput = policy(request)
            return output

        return score_without_adapters

    # cast only matrices: rounded position frequencies would change the positions
    frozen = copy.deepcopy(policy).requires_grad_(False).eval()
    hold_matrices(frozen.parameters(), dtype)
    scoring = frozen if spread is None else spread(frozen)

    def score_with_copy(request: Score) -> ScoreOutput:
        with torch.no_grad():
            output: ScoreOutput = scoring(request)
        return output

    return score_with_copy
