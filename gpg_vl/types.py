"""The records that move through gpg_vl, and the legend of its shape suffixes.

An `Example` is encoded into a `Prompt`; an engine answers a prompt with G `Completion`s; together with their rewards they
are a `Group`. Records are frozen: a later stage makes a new one with `dataclasses.replace`.

Shape suffixes, in the order of the axes: `_P` prompts (groups), `_G` group members, `_T` tokens, `_V` vocabulary,
`_PG` the flattened axis prompt-then-member, `_3` the three M-RoPE axes (time, height, width), `_I` images, `_N` vision
patches, `_K` completion tokens one behind the other, `_B` rows of one forward call. A mask is True where the thing it names
is present.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # records travel to reward workers, which must not pay for importing torch
    from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation. `<image>` in the content stands for the next image of the example.

    Example: `Message(role="user", content="<image>How many balls are in the image?")`
    """

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row of a data set: what is asked and what is right. It is also what a reward function is given.

    Example:
        `Example(id="7", images=("img/7.png",), prompt="<image>Which is closer?\\n(A) ball\\n(B) cube", answer="(B)",
        choices=("ball", "cube"), task="Depth", meta={"source": "Omni3D"})`
    """

    id: str
    """Unique within its data set."""
    images: tuple[str | bytes, ...] = ()
    """Paths relative to the data root, or encoded image files; in the order of the `<image>` marks."""
    prompt: str | tuple[Message, ...]
    """The user's text with `<image>` marks, or a conversation. Text without any mark gets its images in front."""
    answer: str
    """The gold answer, as the data set writes it."""
    choices: tuple[str, ...] | None = None
    """The option texts of a multiple-choice question, in the order of the letters A, B, C..."""
    task: str = ""
    """A name to group metrics by."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Every other mapped column, JSON values only."""
    source: str = ""
    """The name of its data set, where a run trains on several (`data.sources`)."""
    place: str = field(default="", compare=False, repr=False)
    """Where its row was read, for messages: `file.jsonl:LINE` or `file.parquet[ROW]`. Not a part of what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """An example as the model sees it, computed exactly once so that rollout and training cannot disagree.

    Example: one image of 112x84 pixels and 30 text tokens give `input_ids_T` of 42 (12 image tokens), `pixel_values_N`
    of [48, 1176], `grid_thw_I_3` of [[1, 8, 6]], `positions_3_T` of [3, 42].
    """

    example_id: str
    text: str
    """The rendered prompt, one image mark per image (what is shown to people and sent to other engines)."""
    prefill: str = ""
    """The end of `text` that already belongs to the answer, such as `<think>`."""
    input_ids_T: Tensor
    """int64, image tokens expanded."""
    positions_3_T: Tensor
    """int64 M-RoPE positions; all three rows are equal where there is no image."""
    next_position: int
    """Position of the first completed token on all three axes; less than the length as soon as there is an image."""
    image_mask_T: Tensor
    """bool, True at image tokens."""
    pixel_values_N: Tensor | None = None
    """float32 patches of all images, or None for a text-only prompt."""
    grid_thw_I_3: Tensor | None = None
    """int64 patches of each image in time, height and width."""
    image_keys: tuple[str, ...] = ()
    """One per image, equal for equal patches: what an image is known by when it is to be computed once."""

    @property
    def length(self) -> int:
        return int(self.input_ids_T.shape[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled answer.

    Example: `Completion(token_ids=(311, 502), logprobs=(-0.4, -0.01), text="ball", finish_reason="stop")`; its text alone
    is enough to try a reward, which then sees an answer of no tokens: `Completion(text="ball")`.
    """

    token_ids: tuple[int, ...] = ()
    """Every sampled token, the end token included."""
    logprobs: tuple[float, ...] = ()
    """log pi of each token under the distribution it was sampled from; empty if it was not sampled."""
    text: str
    """The decoded tokens without special tokens; `prefill + text` is the whole answer."""
    finish_reason: FinishReason = "stop"
    """`stop`: an end token was sampled. `length`: the token limit cut the answer off."""
    prefill: str = ""
    """What the prompt had already written of the answer, such as `<think>`."""
    version: int = 0
    """Optimizer steps that the weights had behind them which sampled it."""

    @property
    def response(self) -> str:
        """The whole answer, prefill included."""
        return self.prefill + self.text

    @property
    def logprob(self) -> float:
        """log pi of all tokens together, in nats; 0 where there are none."""
        return sum(self.logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyAnswer:
    """The answer to a prompt that takes the likeliest token every time: what others are measured by, never trained on.

    Example: `GreedyAnswer(completion=completion, reward=1.2, reward_parts={"choice": 1.0, "format": 1.0})`
    """

    completion: Completion
    reward: float = 0.0
    """The weighted total, once it is scored."""
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    """The unweighted reward of each function; empty until it is scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """G completions of one prompt, with their rewards once they are scored.

    Example: two completions, the first right: `rewards=(1.2, 0.2)`,
    `reward_parts={"choice": (1.0, 0.0), "format": (1.0, 1.0)}` with weights 1.0 and 0.2.
    """

    example: Example
    prompt: Prompt
    completions: tuple[Completion, ...]
    rewards: tuple[float, ...] = ()
    """Weighted totals, one per completion; empty until the group is scored."""
    reward_parts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """The unweighted reward of each function."""
    draw: int = -1
    """The place in the data order that this group was drawn at; it seeds the sampling."""
    old_logps: tuple[tuple[float, ...], ...] = ()
    """The trainer's own log-probs of the completions under the weights that sampled them, where the group is trained on
    after those weights have changed and the algorithm needs them."""
    greedy: GreedyAnswer | None = None
    """Only if the algorithm compares with it. It is not one of the completions."""

    @property
    def is_valid(self) -> bool:
        """True if the rewards are not all equal, that of a greedy answer included: if the group carries a signal."""
        rewards = self.rewards if self.greedy is None else (*self.rewards, self.greedy.reward)
        return bool(self.rewards) and max(rewards) > min(rewards)

    @property
    def answers(self) -> tuple[Completion, ...]:
        """All that is scored: the completions, and behind them the greedy answer if there is one."""
        return self.completions + (() if self.greedy is None else (self.greedy.completion,))

    @property
    def right(self) -> int:
        """Answers that got full marks, 1 or more, from the reward that is named first."""
        return sum(value >= 1.0 for value in next(iter(self.reward_parts.values()), ()))

    @property
    def is_all_right(self) -> bool:
        """True if every answer is right and the group carries no signal."""
        return not self.is_valid and self.right == len(self.rewards)
