"""Losses as their papers write them, for autograd: what the losses of gpg_vl are compared with.

Written answer by answer over whole log-probs, apart from `gpg_vl.algorithms`, whose losses know one token. Also the numbers
to compare them on: log-probs so far from the current ones that every branch of a clipped loss is taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpg_vl.algorithms import clipped, grpo, gspo, linear, sft
from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.models.head import Objective

CLIP_LOW, CLIP_HIGH, KL_BETA = 0.2, 0.28, 0.2
LOG_RATIOS = (-0.5, -0.1, 0.1, 0.5)
"""log pi - log pi_old of one token after the other: two within the clip, two beyond it, none near its edge."""
REFERENCE_GAPS = (0.3, -0.3, 0.1)
"""log pi_ref - log pi."""

ALGORITHMS: dict[str, Algorithm] = {
    "grpo": grpo.grpo(clip_low=CLIP_LOW, clip_high=CLIP_HIGH, kl_beta=KL_BETA),
    "sft": sft.sft(),
}
"""What is trained through the model."""

TRL_GPG = {"loss_type": "dapo", "beta": 0.0, "scale_rewards": "none", "num_iterations": 1}
"""Settings of TRL's config under which its loss has the gradient of GPG's, averaged over tokens, with alpha 1."""
TRL_GRPO = {
    "loss_type": "grpo",
    "beta": KL_BETA,
    "epsilon": CLIP_LOW,
    "epsilon_high": CLIP_HIGH,
    "scale_rewards": "group",
    "use_bias_correction_kl": False,  # the paper's divergence; TRL would multiply it by the ratio
    "num_iterations": 2,  # old log-probs are kept only where a batch is trained on again
}
"""Those under which it has the gradient of GRPO's, averaged over answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenGroup:
    """What is known of a group besides its tokens. `_G` answers, `_T` tokens of one."""

    rewards_G: tuple[float, ...]
    old_G_T: list[Tensor]
    """Log-probs under the weights that are said to have sampled the answers."""
    reference_G_T: list[Tensor]

    @staticmethod
    def around(logp_G_T: Sequence[Tensor], *, by_answer: bool = False) -> "GivenGroup":
        """Log-probs around the current ones, float64, and rewards on both sides of their mean.

        by_answer: the tokens of an answer have one ratio, so that clips cut whole answers.
        """
        rewards, old, reference = [], [], []
        seen = 0
        for member, logp_T in enumerate(logp_G_T):
            current_T = logp_T.detach().double()
            at = [member if by_answer else seen + t for t in range(len(current_T))]
            old.append(current_T - _cycle(LOG_RATIOS, at))
            reference.append(current_T + _cycle(REFERENCE_GAPS, at))
            rewards.append((5 * member + 2) % 8 / 8)
            seen += len(current_T)

        given = GivenGroup(rewards_G=tuple(rewards), old_G_T=old, reference_G_T=reference)
        given.require_every_branch(logp_G_T)
        return given

    def require_every_branch(self, logp_G_T: Sequence[Tensor]) -> None:
        """Both clips must cut tokens, and leave others: a comparison says nothing of a branch that is not taken."""
        taken = set()
        for member, advantage in enumerate(standardize(self.rewards_G).tolist()):
            ratio_T = torch.exp(logp_G_T[member].detach().double() - self.old_G_T[member])
            is_cut_T = ratio_T > 1 + CLIP_HIGH if advantage > 0 else ratio_T < 1 - CLIP_LOW
            taken |= {(advantage > 0, is_cut) for is_cut in is_cut_T.tolist()}
        missing = {(True, True), (True, False), (False, True)} - taken
        assert not missing, f"no token with (positive advantage, cut by the clip) {missing}"


def _cycle(values: Sequence[float], places: Sequence[int]) -> Tensor:
    return torch.tensor([values[place % len(values)] for place in places], dtype=torch.float64)


def standardize(rewards_G: Sequence[float]) -> Tensor:
    """A_i of GRPO, float64: reward minus mean, over deviation (ddof 1) + 1e-4."""
    rewards = torch.tensor(rewards_G, dtype=torch.float64)
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


def grpo_loss(logp_G_T: Sequence[Tensor], given: GivenGroup) -> Tensor:
    """arXiv:2402.03300, equations 3 and 4: the mean over answers of the mean over their tokens."""
    answers = []
    advantages = standardize(given.rewards_G)
    for member, logp_T in enumerate(logp_G_T):
        old_T, reference_T = given.old_G_T[member], given.reference_G_T[member]
        ratio_T = torch.exp(logp_T.double() - old_T)
        clipped_T = torch.clamp(ratio_T, 1 - CLIP_LOW, 1 + CLIP_HIGH)
        advantage = advantages[member]
        gain_T = torch.minimum(ratio_T * advantage, clipped_T * advantage)

        inverse_T = torch.exp(reference_T - logp_T.double())
        divergence_T = inverse_T - torch.log(inverse_T) - 1
        answers.append((gain_T - KL_BETA * divergence_T).mean())
    return -torch.stack(answers).mean()


def sft_loss(logp_G_T: Sequence[Tensor], given: GivenGroup) -> Tensor:
    """The mean of -log pi over all tokens."""
    return -torch.cat(list(logp_G_T)).double().mean()


def gspo_loss(logp_G_T: Sequence[Tensor], given: GivenGroup) -> Tensor:
    """arXiv:2507.18071, equation 5: one ratio for each answer, the geometric mean of those of its tokens."""
    answers = []
    advantages = standardize(given.rewards_G)
    for member, logp_T in enumerate(logp_G_T):
        ratio = torch.exp((logp_T.double() - given.old_G_T[member]).mean())
        clipped = torch.clamp(ratio, 1 - CLIP_LOW, 1 + CLIP_HIGH)
        answers.append(torch.minimum(ratio * advantages[member], clipped * advantages[member]))
    return -torch.stack(answers).mean()


LOSSES: dict[str, Callable[[Sequence[Tensor], GivenGroup], Tensor]] = {
    "grpo": grpo_loss,
    "sft": sft_loss,
    "gspo": gspo_loss,
}


# ---- the same losses as objectives of the head, in float64: what an algorithm gives of a token is float32


def make_objective(name: str, given: GivenGroup) -> Objective:
    """A loss of LOSSES in the form that the head takes."""
    lengths_G = torch.tensor([len(old_T) for old_T in given.old_G_T])
    member_K = torch.arange(len(lengths_G)).repeat_interleave(lengths_G)
    advantage_K = standardize(given.rewards_G)[member_K]
    weight_K = (1.0 / (lengths_G.double() * len(lengths_G)))[member_K]
    old_K, reference_K = torch.cat(given.old_G_T), torch.cat(given.reference_G_T)

    match name:
        case "grpo":
            inputs = clipped.Inputs(advantage_K, weight_K, old_K, reference_K)
            return Objective(inputs, ALGORITHMS[name].token_loss)
        case "sft":
            per_token_K = torch.full_like(weight_K, 1.0 / len(member_K))
            return Objective(linear.Inputs(per_token_K), ALGORITHMS[name].token_loss)
        case "gspo":
            whole = gspo.Inputs(advantage_K, weight_K, old_K, member_K)
            algorithm = gspo.gspo(clip_low=CLIP_LOW, clip_high=CLIP_HIGH)
            return Objective(whole, algorithm.token_loss, whole_completions=True)
    raise ValueError(f"{name!r} is none of {', '.join(LOSSES)}")
