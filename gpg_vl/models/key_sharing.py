"""Decides whether the answers of a group share their prompt's keys during decoding or have a copy each, by the counted
work."""

import torch

WORTH = 2**20
"""Bytes of keys and values saved per prompt and layer from which on sharing is faster despite its smaller products. Measured by
`python -m benchmarks.shared_keys`."""


def shares_prompts(device: torch.device, *, key_bytes: float, prompt: float, answers: int) -> bool:
    """Whether sharing is faster, for `answers` answers decoded together to a prompt of `prompt` tokens.

    key_bytes: bytes of a token's keys and values in one layer. Always False on CUDA: a recorded graph needs constant shapes, but
    these change with the prompts.
    """
    return device.type == "cpu" and (answers - 1) * prompt * key_bytes >= WORTH
