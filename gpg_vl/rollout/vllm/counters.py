"""What vLLM was asked and how long it took, counted the same for an engine in this process and for servers."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from gpg_vl.clock import timed
from gpg_vl.types import Completion, Prompt


@dataclass(slots=True, kw_only=True)
class Counters:
    """Counts since the engine was made."""

    prompts: int = 0
    prompt_tokens: int = 0
    """Tokens of prompts, each prompt once; what vLLM computes of them depends on its blocks."""
    decoded_tokens: int = 0
    decode_seconds: float = 0.0
    """From prompts in to answers out: vLLM mixes both phases."""
    sync_seconds: float = 0.0

    def count(self, prompt: Prompt, completions: Sequence[Completion]) -> None:
        """One prompt that is answered."""
        self.prompts += 1
        self.prompt_tokens += prompt.length
        self.decoded_tokens += sum(len(completion.token_ids) for completion in completions)

    def decoding(self, device: torch.device) -> AbstractContextManager[None]:
        """Within, answers are written."""
        return timed(self._add_decode, device)

    def syncing(self, device: torch.device) -> AbstractContextManager[None]:
        """Within, weights are handed over."""
        return timed(self._add_sync, device)

    def _add_decode(self, seconds: float) -> None:
        self.decode_seconds += seconds

    def _add_sync(self, seconds: float) -> None:
        self.sync_seconds += seconds
