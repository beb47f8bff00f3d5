"""The clipped surrogate that GRPO and its relatives share: they differ in the advantage, the mean and the defaults.

    loss = sum_i w_i / denominator * sum_t [ -min(ratio A_i, clip(ratio, 1 - low, 1 + high) A_i) + kl_beta * k3 ]

(PPO, arXiv:1707.06347, eq. 7). Both terms run over all completions of the step.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gpg_vl.algorithms.aggregation import denominator, per_token, token_weights
from gpg_vl.algorithms.algorithm import Algorithm, Credit, Need, StepBatch
from gpg_vl.algorithms.option_types import Aggregation, ClipMode
from gpg_vl.algorithms.ratio import k3, log_ratio


class Inputs(NamedTuple):
    """What a token's loss is made of."""

    advantage_K: Tensor
    """A_i of the token's completion, float32."""
    weight_K: Tensor
    """w_i / denominator, float32."""
    old_logp_K: Tensor
    """Under the weights that sampled the token; NaN where those are the current ones."""
    reference_logp_K: Tensor
    """Under the weights the run began with; never read if `kl_beta` is 0."""


class Clip(NamedTuple):
    """How far a ratio may move from 1, down and up, and what happens to a token beyond that."""

    low: float
    high: float
    mode: ClipMode = "cut"

    def surrogate(self, ratio_K: Tensor, advantage_K: Tensor) -> Tensor:
        """min(ratio A, clip(ratio) A) of each token.

        Beyond the clip the value is constant. Its slope is 0 (`cut`), or that of the log-prob times the clipped ratio
        (`gradient_preserving`: Klear-Reasoner, arXiv:2508.07629).
        """
        clipped_K = ratio_K.clamp(1 - self.low, 1 + self.high)
        if self.mode == "gradient_preserving":
            clipped_K = clipped_K.detach() * ratio_K / ratio_K.detach()
        return torch.minimum(ratio_K * advantage_K, clipped_K * advantage_K)

    def exceeded(self, ratio_K: Tensor, advantage_K: Tensor) -> Tensor:
        """True where a token has moved beyond the clip in the direction of its advantage."""
        above_K = (advantage_K > 0) & (ratio_K > 1 + self.high)
        below_K = (advantage_K < 0) & (ratio_K < 1 - self.low)
        return above_K | below_K


def clipped(
    advantages_of: Callable[[StepBatch], Float[Tensor, "P G"]],
    clip: Clip,
    *,
    aggregation: Aggregation,
    kl_beta: float,
    updates: int,
) -> Algorithm:
    """An algorithm with one advantage per completion and the clipped surrogate.

    advantages_of: A_i of every completion, exactly 0 in groups without signal.
    aggregation: the mean over the tokens of the step.
    kl_beta: weight of the divergence from the reference. With 0 there is none, and answers of advantage 0 are not run.
    updates: optimizer updates on the same answers. With 1 the ratio is 1, except for groups that were carried over.
    """

    def credit(batch: StepBatch) -> Credit:
        old_K, reference_K = batch.old_logp_K, batch.reference_logp_K
        assert old_K is not None, "the trainer computes old_logp for a clipped ratio"
        assert reference_K is not None or kl_beta == 0, "and reference_logp if kl_beta is above 0"

        advantage_P_G = advantages_of(batch)
        divisor = denominator(batch.counts, aggregation, max_new_tokens=batch.max_new_tokens)
        weight_P_G = token_weights(batch.lengths_P_G, aggregation) / divisor

        # Without a divergence, an answer of advantage 0 has no gradient at any ratio.
        moved_P_G = (advantage_P_G != 0) | (kl_beta > 0)
        return Credit(
            inputs=Inputs(
                advantage_K=per_token(advantage_P_G, batch.lengths_P_G),
                weight_K=per_token(weight_P_G, batch.lengths_P_G),
                old_logp_K=old_K,
                reference_logp_K=old_K if reference_K is None else reference_K,
            ),
            trained_P_G=moved_P_G & (batch.lengths_P_G > 0),
            metrics={"alpha": None},
        )

    return surrogate_of(credit, clip, kl_beta=kl_beta, updates=updates)


def surrogate_of(
    credit: Callable[[StepBatch], Credit],
    clip: Clip,
    *,
    kl_beta: float,
    updates: int,
    kl_in_loss: bool = True,
) -> Algorithm:
    """The algorithm whose credit gives `Inputs` of each token: the clipped surrogate, and what it needs and logs.

    kl_in_loss: False if the divergence is part of the credit already; it is then only logged.
    """
    has_reference = kl_beta > 0

    def token_loss(logp_K: Tensor, inputs: Inputs) -> Tensor:
        ratio_K = log_ratio(logp_K, inputs.old_logp_K).exp()
        loss_K = -clip.surrogate(ratio_K, inputs.advantage_K)
        if has_reference and kl_in_loss:
            loss_K = loss_K + kl_beta * k3(logp_K, inputs.reference_logp_K)
        return inputs.weight_K * loss_K

    def observe(logp_K: Tensor, inputs: Inputs) -> Mapping[str, Tensor]:
        ratio_K = log_ratio(logp_K, inputs.old_logp_K).exp()
        exceeded_K = clip.exceeded(ratio_K, inputs.advantage_K)
        seen = {"clip_share": exceeded_K.to(logp_K.dtype)}
        return seen | ({"kl": k3(logp_K, inputs.reference_logp_K)} if has_reference else {})

    needs: set[Need] = {"old_logp", "reference_logp"} if has_reference else {"old_logp"}
    return Algorithm(
        credit=credit,
        token_loss=token_loss,
        observe=observe,
        needs=frozenset(needs),
        updates=updates,
    )
