"""The records that move through gpg_vl, and the legend of its shape suffixes.

An `Example` is encoded into a `Prompt`; an engine answers a prompt with G `Completion`s; together with their rewards they
are a `Group`. Records are frozen: a later stage makes a new one with `dataclasses.replace`.

Shape suffixes, in the order of the axes: `_P` prompts (groups), `_G` group members, `_T` tokens, `_V` vocabulary,
`_PG` the flattened axis prompt-then-member, `_3` the three M-RoPE axes (time, height, width), `_I` images, `_N` vision
patches, `_K` the tokens of all completions, concatenated, `_B` rows of one forward call. A mask is True where the
thing it names is present.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # records travel to reward workers, which must not pay for importing torch
    from torch import Tensor

FinishReason = Literal["stop", "length"]
Coordinates = Literal["rel1000", "rel1", "abs_resized", "abs_orig"]
"""What the numbers of a box count; `gpg_vl.answers.math.rectangles` defines each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation. `<image>` in the content marks where the next image of the example goes.

    Example: `Message(role="user", content="<image>How many balls are in the image?")`
    """

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row of a data set: images, question and gold answer. Reward functions receive it too.

    Example:
        `Example(id="7", images=("img/7.png",), prompt="<image>Which is closer?\\n(A) ball\\n(B) cube", answer="(B)",
        choices=("ball", "cube"), task="Depth", meta={"source": "Omni3D"})`
    """

    id: str
    """Unique within its data set."""
    images: tuple[str | bytes, ...] = ()
    """Paths relative to the data root, or encoded image files; in the order of the `<image>` marks."""
    prompt: str | tuple[Message, ...]
    """The user's text with `<image>` marks, or a conversation. In text without marks the images come first."""
    answer: str
    """The gold answer, as the data set writes it."""
    choices: tuple[str, ...] | None = None
    """The option texts of a multiple-choice question, in the order of the letters A, B, C..."""
    task: str = ""
    """A name to group metrics by."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The values of all other mapped columns; JSON values only."""
    source: str = ""
    """The name of its data set if a run trains on several (`data.sources`), else empty."""
    place: str = field(default="", compare=False, repr=False)
    """Where the row was read from, for error messages: `file.jsonl:LINE` or `file.parquet[ROW]`. Ignored when
    examples are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """An example as model input. It is computed once and used by both rollout and training, so they cannot differ.

    Example: one image of 112x84 pixels and 30 text tokens give `input_ids_T` of 42 (12 image tokens), `pixel_values_N`
    of [48, 1176], `grid_thw_I_3` of [[1, 8, 6]], `positions_3_T` of [3, 42].
    """

    example_id: str
    text: str
    """The rendered prompt with one image mark per image. Shown in logs and sent to other engines."""
    prefill: str = ""
    """The end of `text` where the prompt already begins the answer, such as `<think>`."""
    input_ids_T: Tensor
    """int64, image tokens expanded."""
    positions_3_T: Tensor
    """int64 M-RoPE positions; all three rows are equal where there is no image."""
    next_position: int
    """Position of the first completion token on all three axes; less than the prompt's length if it has an image."""
    image_mask_T: Tensor
    """bool, True at image tokens."""
    pixel_values_N: Tensor | None = None
    """float32 patches of all images, or None for a text-only prompt."""
    grid_thw_I_3: Tensor | None = None
    """int64 patches of each image in time, height and width."""
    image_keys: tuple[str, ...] = ()
    """One key per image, equal for equal patches. Used to find images that need to be computed only once."""

    @property
    def length(self) -> int:
        return int(self.input_ids_T.shape[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled answer.

    Example: `Completion(token_ids=(311, 502), logprobs=(-0.4, -0.01), text="ball", finish_reason="stop")`; to try
    a reward the text alone is enough, and the completion then has no tokens: `Completion(text="ball")`.
    """

    token_ids: tuple[int, ...] = ()
    """All sampled tokens, including the end token."""
    logprobs: tuple[float, ...] = ()
    """log pi of each token under the distribution it was sampled from; empty if it was not sampled."""
    text: str
    """The decoded tokens without special tokens; `prefill + text` is the whole answer."""
    finish_reason: FinishReason = "stop"
    """`stop`: an end token was sampled. `length`: the token limit cut the answer off."""
    prefill: str = ""
    """The beginning of the answer that the prompt already contains, such as `<think>`."""
    version: int = 0
    """The policy version that sampled it: the number of optimizer steps its weights had received."""

    @property
    def response(self) -> str:
        """The whole answer, including the prefill."""
        return self.prefill + self.text

    @property
    def logprob(self) -> float:
        """The sum of the tokens' log pi, in nats; 0 if there are no tokens."""
        return sum(self.logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyAnswer:
    """The greedy answer to a prompt. It is a baseline for the sampled answers and is never trained on.

    Example: `GreedyAnswer(completion=completion, reward=1.2, reward_parts={"choice": 1.0, "format": 1.0})`
    """

    completion: Completion
    reward: float = 0.0
    """The weighted sum of its rewards, once it has been scored."""
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    """The unweighted reward of each reward function; empty until it has been scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """G completions of one prompt, and their rewards once they have been scored.

    Example: two completions, the first right: `rewards=(1.2, 0.2)`,
    `reward_parts={"choice": (1.0, 0.0), "format": (1.0, 1.0)}` with weights 1.0 and 0.2.
    """

    example: Example
    prompt: Prompt
    completions: tuple[Completion, ...]
    rewards: tuple[float, ...] = ()
    """The weighted sum of rewards of each completion; empty until the group has been scored."""
    reward_parts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """The unweighted rewards of each reward function, one per completion."""
    draw: int = -1
    """The position in the data order at which this group was drawn. It seeds the sampling."""
    old_logps: tuple[tuple[float, ...], ...] = ()
    """The trainer's log-probs of the completions under the weights that sampled them. Filled only if the algorithm needs
    them and the group is trained on after those weights have changed."""
    greedy: GreedyAnswer | None = None
    """The greedy answer, if the algorithm uses it as a baseline. It is not one of the completions."""

    @property
    def is_valid(self) -> bool:
        """True if the group carries a signal: its rewards, including the greedy answer's, are not all equal."""
        rewards = self.rewards if self.greedy is None else (*self.rewards, self.greedy.reward)
        return bool(self.rewards) and max(rewards) > min(rewards)

    @property
    def answers(self) -> tuple[Completion, ...]:
        """Everything that is scored: the completions, then the greedy answer if there is one."""
        return self.completions + (() if self.greedy is None else (self.greedy.completion,))

    @property
    def right(self) -> int:
        """The number of answers that got full marks, 1 or more, from the first reward function."""
        return sum(value >= 1.0 for value in next(iter(self.reward_parts.values()), ()))

    @property
    def is_all_right(self) -> bool:
        """True if every answer is right and the group carries no signal."""
        return not self.is_valid and self.right == len(self.rewards)
