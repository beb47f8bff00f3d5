"""The requests that a policy accepts, and its answers. Every computation that uses a parameter is one of these requests.

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
    """The state of prompts that the completions after them need."""

    states_S_H: Tensor
    """Final hidden states: the last of each prompt predicts the first token of its completions."""
    keys: Keys

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors: states, then keys and values by layer."""
        return [self.states_S_H, *(tensor for pair in self.keys for tensor in pair)]

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> "Prefix":
        """The inverse of `tensors`."""
        return Prefix(tensors[0], list(zip(tensors[1::2], tensors[2::2], strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Log-probs of the completions of a micro-batch and, with an objective, their loss. Answered by a `ScoreOutput`.

    With gradients enabled one call computes one chunk: that of a micro-batch with a single chunk, or the given chunk of a prefix.
    Without gradients all chunks are computed, one after the other.
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
    """Entropy in nats of the distribution each token was sampled from, without gradient."""
    value_K: Tensor | None = None
    """The value of every completion token, without gradient; None without a critic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """Only the prefixes of a micro-batch. Answered by a `Prefix`, with its graph if gradients are enabled."""

    packed: Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """One more token for each of S sequences. Answered by their hidden states [S, H]."""

    token_S: Tensor
    position_S: Tensor
    """The same on all three axes, because only text is decoded."""
    attention: LayerAttention
    """Has the keys and values of the tokens before, and stores those of the new token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predict:
    """Logits [B, V] of the sampling distribution after B hidden states: over the temperature, vision tokens out of reach."""

    hidden_B_H: Tensor
    head_V_H: Tensor
    """The result of `CastHead` for the current weights."""
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Features of the distinct images of a micro-batch. Answered by a list of [image tokens, H]."""

    packed: Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class CastMatrices:
    """The text tower's linear layers in another dtype. Answered by a mapping of parameter names to tensors.

    Norms, embeddings and the head are left out; for them the weights themselves are used.
    """

    dtype: torch.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class CastHead:
    """The head's weight in the dtype that products are computed in. Answered by [V, H] without gradient.

    Autocast keeps its own cast of a weight only if the weight is trained and is the factor itself, not its transpose.
    Without autocast, and if it already has that dtype, the result is the weight itself.
    """

    rows: int = 0
    """Above 0: in the layout for products of so many rows, where there is one (`models.blocked`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLayers:
    """The text tower's linear layers in the layout for products of few rows. Answered by a `BlockedLayers`."""

    rows: int


Request = Score | Prefill | Decode | Predict | Features | CastMatrices | CastHead | BlockLayers
