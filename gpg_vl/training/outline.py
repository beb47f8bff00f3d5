"""A small model of the same widths as the run's, with few layers and random weights, for timing a device.

Widths, parts that are trained, adapters and dtypes are those of the run, so a call of it is a call of the model with a part of
the work. Body and head are cut alike, so that both have the share in it that they have in the model.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor

from gpg_vl.config import Config
from gpg_vl.model import Model, autocast_dtype
from gpg_vl.models.attention import Kernel
from gpg_vl.models.layout import Packed, pack
from gpg_vl.models.load import Processing, Tokens, read_config
from gpg_vl.models.policy import Policy
from gpg_vl.models.shape import Shape
from gpg_vl.models.weight_precision import frozen, hold_matrices
from gpg_vl.rollout.engine import Engine, EngineOptions
from gpg_vl.training.flops import Cost, VisionMode, group_cost
from gpg_vl.training.meta_model import make_empty_model
from gpg_vl.training.speed import Pass
from gpg_vl.types import Prompt

MOST_WEIGHTS = {"cpu": 2**23, "cuda": 2**28}
"""Of body and head together; a model that has more is cut, down to one layer."""
NO_TOKENS = Tokens(ends=(), pad=0, image=None, never_sampled=())
"""No token ends an answer, so every answer has the maximum length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """The small model, and its share of the full model."""

    policy: Policy
    processing: Processing
    autocast: torch.dtype | None
    shape: Shape
    whole: Shape
    """The sizes of the full model."""
    vision: VisionMode
    shares_prefix: bool
    recomputes: bool
    tokens_per_pass: int

    def cost(self, one: Pass) -> Cost:
        """Operations of this outline for the groups of a pass; `tokens` and `patches` are those of one group."""
        of_group = group_cost(
            self.shape,
            prompt=one.prompt,
            image_tokens=self._shown(one.image),
            completion=one.completion,
            group_size=one.members,
            shared=self.shares_prefix,
            recompute=self.recomputes,
            vision=self.vision,
        )
        return replace(
            of_group,
            prefill=one.groups * of_group.prefill,
            decode=one.groups * of_group.decode,
            train=one.groups * of_group.train,
        )

    def decode_cost(self, rows: int, context: int, *, whole: bool = False) -> float:
        """Operations of one more token in each row, in the outline or in the full model."""
        shape = self.whole if whole else self.shape
        return rows * (2.0 * (shape.body + shape.head) + 4.0 * shape.layers * shape.width * context)

    def autocasting(self) -> AbstractContextManager[object]:
        device = self.policy.device.type
        return torch.autocast(device, self.autocast, enabled=self.autocast is not None)

    def engine(self, options: EngineOptions) -> Engine:
        """The native engine with the outline as its policy."""
        processing = replace(self.processing, tokens=NO_TOKENS)
        model = Model(path="", policy=self.policy, processing=processing, autocast=self.autocast)
        return model.engine(options=options)

    def pack(self, one: Pass, *, answered: bool) -> Packed:
        """The groups of a pass on the device; if not answered, only their prompts."""
        # an image with cached features does not pass through the vision tower
        image = 0 if self.vision == "kept" else self._shown(one.image)
        prompts = [self.make_prompt(number, one.prompt, image) for number in range(one.groups)]
        members: Sequence[Sequence[int]] = [[0] * one.completion] * one.members
        packed = pack(
            prompts,
            [members if answered else [] for _ in prompts],
            shared_prefix=self.shares_prefix or not answered,
            tokens_per_pass=self.tokens_per_pass,
        )
        return packed.to(self.policy.device)

    def make_prompt(self, number: int, tokens: int, image: int) -> Prompt:
        """A prompt of this many tokens, of which at most `image` belong to one image, different from all other prompts."""
        family, config = self.policy.family, self.policy.model.config
        blank = family.blank_image(config, image) if image else None
        pixels_N, grid_1_3, (seen,) = blank if blank else (None, None, [0])

        length = max(tokens, seen + 1)
        ids_T = torch.zeros(length, dtype=torch.long)
        mask_T = torch.arange(length) < seen
        positions_3_T = family.positions(ids_T, mask_T, grid_1_3)
        return Prompt(
            example_id=str(number),
            text="",
            input_ids_T=ids_T,
            positions_3_T=positions_3_T,
            next_position=int(positions_3_T.max()) + 1,
            image_mask_T=mask_T,
            pixel_values_N=pixels_N,
            grid_thw_I_3=grid_1_3,
            image_keys=(str(number),) if blank else (),
        )

    def _shown(self, image: int) -> int:
        """Of so many image tokens those that a blank image has: whole tiles, where images are cut into tiles."""
        tile = max(1, self.shape.vision_window // self.shape.merge)
        return max(tile, image // tile * tile) if image else 0


def make_outline(
    config: Config,
    processing: Processing,
    *,
    kernel: Kernel,
    vision: VisionMode,
    device: torch.device,
) -> Outline:
    """The outline of the model that a config trains, on a device. Reads nothing but the checkpoint's config, and draws from a
    generator of its own.

    At most `MOST_WEIGHTS` weights, but one layer at least; float32 weights, and gradients once it is trained.
    """
    family = processing.family
    checkpoint = read_config(config.model.path, config.model.revision)
    whole = family.shape_of(checkpoint)
    share = _choose_share(whole, MOST_WEIGHTS[device.type])
    thin = family.thinned(checkpoint, share) if share > 1 else checkpoint

    model = make_empty_model(_without_numbered_targets(config), family, thin)
    _fill(model, device)
    autocast = autocast_dtype(config.model.dtype)
    if autocast is not None:
        hold_matrices(frozen(model), autocast)
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    policy = Policy(model, family, NO_TOKENS, temperature=config.rollout.temperature, kernel=kernel)
    return Outline(
        policy=policy.to(device).train(),
        processing=processing,
        autocast=autocast,
        shape=family.shape_of(thin),
        whole=whole,
        vision=vision,
        shares_prefix=config.train.shared_prefix,
        recomputes=config.model.gradient_checkpointing,
        tokens_per_pass=config.train.tokens_per_pass,
    )


def _choose_share(shape: Shape, most: int) -> int:
    """The model is cut to one in so many layers, the fewest that leave it at most `most` weights."""
    return max(1, min(shape.layers, ceil((shape.body + shape.head) / most)))


def _without_numbered_targets(config: Config) -> Config:
    """Adapters that are on a layer by its number are put on all of its kind: the outline may not have that layer."""
    targets = config.model.lora_targets or ()
    plain = [".".join(part for part in t.split(".") if not part.isdecimal()) for t in targets]
    if not targets or plain == list(targets):
        return config
    last = [target.rpartition(".")[2] for target in plain]
    model = config.model.model_copy(update={"lora_targets": list(dict.fromkeys(last))})
    return config.model_copy(update={"model": model})


def _fill(model: Any, device: torch.device) -> None:
    """Fill parameters with random numbers, small enough for any depth. Buffers computed from the config are not changed."""
    generator = torch.Generator(device).manual_seed(0)
    computed = dict(model.named_buffers())
    model._apply(partial(_empty_like, device))
    for name, buffer in model.named_buffers():
        buffer.copy_(computed[name])

    # a weight that two modules share has become two
    model.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.uniform_(-0.02, 0.02, generator=generator)
            else:
                parameter.fill_(1.0)


def _empty_like(device: torch.device, tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device=device)
