"""Group Policy Gradient (arXiv:2504.02546, eq. 5 and 8): the policy gradient itself, and nothing else.

    loss = - sum_i c_i sum_t log pi(o_it),     c_i = alpha * A_i * w_i / denominator

No critic, no reference model, no old log-probs, no clip. The loss is linear in log pi, so one number per completion, known
before the forward pass, says everything.
"""

from gpg_vl.algorithms.advantages import advantages
from gpg_vl.algorithms.age import age_factor
from gpg_vl.algorithms.aggregation import denominator, token_weights
from gpg_vl.algorithms.algorithm import Algorithm, Credit, StepBatch
from gpg_vl.algorithms.linear import linear_credit, linear_loss
from gpg_vl.algorithms.option_types import Age, Aggregation, FNorm


def gpg(
    *,
    f_norm: FNorm = "one",
    age: Age = "inverse_valid_fraction",
    aggregation: Aggregation = "token",
) -> Algorithm:
    """GPG with its switches. An answer of weight 0, among them all of a group without signal, is not run.

    f_norm: what an advantage is divided by; 1 is GPG's.
    age: the correction for groups without signal; `inverse_valid_fraction` is the paper's alpha = B/(B-M).
    aggregation: the mean over the tokens of the step.
    """

    def credit(batch: StepBatch) -> Credit:
        alpha = age_factor(batch.counts, age)
        advantages_P_G = advantages(
            batch.rewards_P_G, f_norm=f_norm, batch_std=batch.reward_std
        ).double()
        divisor = denominator(batch.counts, aggregation, max_new_tokens=batch.max_new_tokens)
        weight_P_G = (
            alpha * advantages_P_G * token_weights(batch.lengths_P_G, aggregation) / divisor
        )

        has_signal = batch.counts.valid_groups > 0
        return linear_credit(batch, weight_P_G, {"alpha": alpha if has_signal else None})

    return Algorithm(credit=credit, token_loss=linear_loss)
