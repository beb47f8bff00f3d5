"""Whether the answers of a group share the keys of their prompt while they are decoded, or have a copy each: counted work."""

import torch

WORTH = 2**20
"""Bytes of keys and values that are not read again, per prompt and layer, from which on sharing pays for its smaller products.
Measured by `python -m benchmarks.shared_keys`."""


def shares_prompts(device: torch.device, *, key_bytes: float, prompt: float, answers: int) -> bool:
    """Whether sharing is faster, for `answers` that are decoded together to a prompt of so many tokens.

    key_bytes: of a token's keys and values in one layer. Never on CUDA: a recorded graph needs shapes that stay the same, and
    these change with the prompts that are being answered.
    """
    return device.type == "cpu" and (answers - 1) * prompt * key_bytes >= WORTH
