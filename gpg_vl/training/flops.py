"""The cost of a group in floating point operations, for the naive way and with image and prompt computed once.

    forward of T tokens over K keys each      2 body T + 4 layers width T K / 2      (causal: half
    of the square) head of C tokens                          2 head C, and 4 head C more for its
    gradient training                                  3 forwards; 4 if activations are computed
    again vision                                    likewise, without the half; 1 forward if frozen,
    none if its features are kept

A multiplication and an addition count as two. Norms, rotations and softmax are left out: they are
bytes, not arithmetic. The numbers of this model are compared with counted operations in
tests/test_flops.py.
"""

from dataclasses import dataclass, replace
from typing import Literal

from gpg_vl.models.shape import Shape

VisionMode = Literal["trained", "frozen", "kept"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of one group."""

    prefill: float
    """Operations of the rollout before decoding."""
    decode: float
    train: float
    tokens: int
    """Tokens through the text tower in training."""
    patches: int
    """Patches through the vision tower, rollout and training together."""

    @property
    def total(self) -> float:
        return self.prefill + self.decode + self.train


def group_cost(
    shape: Shape,
    *,
    prompt: int,
    image_tokens: int,
    completion: int,
    group_size: int,
    shared: bool,
    recompute: bool,
    vision: VisionMode,
) -> Cost:
    """The cost of one group of equally long completions; `prompt` includes the image tokens, all in
    one image.
    """
    copies = 1 if shared else group_size
    forwards = 4 if recompute else 3
    vision_forwards = {"trained": forwards, "frozen": 1, "kept": 0}[vision]

    # the last token predicts nothing
    run = completion - 1

    see = image_forward(shape, image_tokens)
    prefix = 2 * shape.body * prompt + _attention(shape, prompt, prompt / 2)
    suffixes = group_size * (2 * shape.body * run + _attention(shape, run, prompt + run / 2))
    head = shape.head * group_size * completion
    return Cost(
        prefill=copies * (prefix + (0 if vision == "kept" else see)),
        decode=suffixes + 2 * head,
        train=forwards * (copies * prefix + suffixes) + copies * vision_forwards * see + 6 * head,
        tokens=copies * prompt + group_size * run,
        patches=0 if vision == "kept" else 2 * copies * image_tokens * shape.merge,
    )


def add_greedy(cost: Cost, group_size: int, *, shared: bool) -> Cost:
    """The cost of a group with an additional greedy answer, which is decoded and not trained on. `cost`: the cost without
    it; half of its patches are the rollout's.
    """
    more = 1 + 1 / group_size
    if shared:
        return replace(cost, decode=cost.decode * more)
    patches = round(cost.patches * (1 + more) / 2)
    return replace(cost, prefill=cost.prefill * more, decode=cost.decode * more, patches=patches)


def image_forward(shape: Shape, image_tokens: int) -> float:
    """Operations of one image through vision tower and merger."""
    patches = image_tokens * shape.merge
    attention = 4 * shape.vision_layers * shape.vision_width * patches
    attention *= shape.vision_window or patches
    return 2 * shape.patch_weights * patches + 2 * shape.merger_weights * image_tokens + attention


def _attention(shape: Shape, queries: float, keys: float) -> float:
    """Scores and weighted sums of `queries` queries over `keys` keys each, in all layers."""
    return 4 * shape.layers * shape.width * queries * keys
