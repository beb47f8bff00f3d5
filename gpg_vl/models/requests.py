"""What a policy can be asked, and what it answers: everything that touches a parameter is one of these requests.

They go through the policy's `forward`, so that wrappers which gather or shard weights see ordinary module calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gpg_vl.models.attention import LayerAttention
from gpg_vl.models.head import Objective
from gpg_vl.models.layout import Packed

Keys = Sequence[tuple[Tensor, Tensor]]
"""Keys and values [1, Hkv, S, D] of each layer."""


class Prefix(NamedTuple):
    """What prompts leave behind for the completions that continue them."""

    states_S_H: Tensor
    """Final hidden states: the last of each prompt predicts the first token of its completions."""
    keys: Keys

    @property
    def tensors(self) -> list[Tensor]:
        """All of it: states, then keys and values by layer."""
        return [self.states_S_H, *(tensor for pair in self.keys for tensor in pair)]

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> "Prefix":
        """The inverse of `tensors`."""
        return Prefix(tensors[0], list(zip(tensors[1::2], tensors[2::2], strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Log-probs of the completions of a micro-batch and, with an objective, their loss. Answered by a `ScoreOutput`.

    With gradients enabled one joined call computes one chunk: a micro-batch that has one, or the chunk that is named,
    against a prefix. Without gradients all chunks are computed, one after the other.
    """

    packed: Packed
    objective: Objective | None = None
    prefix: Prefix | None = None
    """What an earlier `Prefill` of the same micro-batch returned; only `chunk` is computed then."""
    chunk: int = 0


class ScoreOutput(NamedTuple):
    """`_K` are the completion tokens that were scored, in the order of the completions."""

    loss: Tensor
    """The sum of the objective's losses, those of values too, to differentiate; 0 without an objective."""
    logp_K: Tensor
    """log pi of every completion token, without gradient."""
    entropy_K: Tensor
    """Entropy in nats of the distribution each token was drawn from, without gradient."""
    value_K: Tensor | None = None
    """The value of every completion token, without gradient; None without a critic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """The prefixes of a micro-batch alone. Answered by a `Prefix`, with its graph if gradients are enabled."""

    packed: Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """One more token for each of S sequences. Answered by their hidden states [S, H]."""

    token_S: Tensor
    position_S: Tensor
    """The same on all three axes: what is decoded is text."""
    attention: LayerAttention
    """Holds the keys and values of what came before, and takes those of the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predict:
    """Logits [B, V] of the sampling distribution after B hidden states: over the temperature, vision tokens out of reach."""

    hidden_B_H: Tensor
    head_V_H: Tensor
    """What `CastHead` gave, while the weights are the same."""
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Features of the distinct images of a micro-batch. Answered by a list of [image tokens, H]."""

    packed: Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class CastMatrices:
    """The text tower's linear layers in another dtype. Answered by a mapping of parameter names to tensors.

    Norms, embeddings and the head stay as they are: what is left out is computed with the weights themselves.
    """

    dtype: torch.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class CastHead:
    """The head's weight in the dtype that products are computed in. Answered by [V, H] without gradient.

    Autocast keeps its own cast of a weight only if the weight is trained and is the factor itself, not its transpose. Without
    autocast, and where it is held in that dtype, it is the weight itself.
    """


Request = Score | Prefill | Decode | Predict | Features | CastMatrices | CastHead
