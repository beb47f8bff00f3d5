"""Counts of vLLM's requests and times, the same for an engine in this process and for servers."""

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
    """Tokens of prompts, each prompt counted once; how many vLLM computes depends on its blocks."""
    decoded_tokens: int = 0
    decode_seconds: float = 0.0
    """Seconds from the prompts to the answers; vLLM mixes prefill and decoding."""
    sync_seconds: float = 0.0

    def count(self, prompt: Prompt, completions: Sequence[Completion]) -> None:
        """Count one answered prompt."""
        self.prompts += 1
        self.prompt_tokens += prompt.length
        self.decoded_tokens += sum(len(completion.token_ids) for completion in completions)

    def decoding(self, device: torch.device) -> AbstractContextManager[None]:
        """Time the block as decoding."""
        return timed(self._add_decode, device)

    def syncing(self, device: torch.device) -> AbstractContextManager[None]:
        """Time the block as weight sync."""
        return timed(self._add_sync, device)

    def _add_decode(self, seconds: float) -> None:
        self.decode_seconds += seconds

    def _add_sync(self, seconds: float) -> None:
        self.sync_seconds += seconds
