"""Image features from the trainer's vision tower, for an engine without one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gpg_vl.models.layout import pack
from gpg_vl.models.requests import Features
from gpg_vl.rollout.engine import EngineSetup, RolloutRequest
from gpg_vl.types import Prompt


def encode_images(
    setup: EngineSetup, requests: Sequence[RolloutRequest]
) -> list[list[Tensor] | None]:
    """For each request the features of its images, [image tokens, H] each; None if it has no images, or if the engine takes
    patches.

    Each distinct image is encoded once. With a frozen tower the policy caches the features for the whole run,
    so training does not encode the image again.
    """
    if setup.options.images == "pixels":
        return [None for _ in requests]

    # one prompt for each new image: several prompts may have the same image
    fresh: dict[str, Prompt] = {}
    for request in requests:
        for key in request.prompt.image_keys:
            fresh.setdefault(key, request.prompt)
    prompts = list({id(prompt): prompt for prompt in fresh.values()}.values())

    known: dict[str, Tensor] = {}
    for start in range(0, len(prompts), setup.options.prompts_per_batch):
        known.update(_encode(setup, prompts[start : start + setup.options.prompts_per_batch]))
    return [
        [known[key] for key in request.prompt.image_keys] if request.prompt.image_keys else None
        for request in requests
    ]


def _encode(setup: EngineSetup, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Features by image key, computed as the trainer computes them."""
    policy, autocast = setup.policy(), setup.autocast
    packed = pack(prompts, [[] for _ in prompts]).to(policy.device)
    was_training = policy.training
    policy.eval()
    try:
        with (
            torch.no_grad(),
            torch.autocast(policy.device.type, autocast, enabled=autocast is not None),
        ):
            features = policy(Features(packed=packed))
    finally:
        policy.train(was_training)
    return dict(zip(packed.image_keys, features, strict=True))
