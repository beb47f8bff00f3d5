"""What both sides are given: a random Qwen2-VL of about 45 million weights, and synthetic pictures with one question.

The model has the size at which one step takes seconds on two cores and the parts keep the proportions of a real one. It is
saved once as an ordinary checkpoint and loaded by each side in its own way. The tokenizer is smaller than the vocabulary
of the model: the ids behind it are sampled by both sides alike and decode to nothing.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from gpg_vl.models import tiny
from gpg_vl.quickstart import scenes

if TYPE_CHECKING:  # at run time tiny decides when transformers may be imported
    from transformers import PreTrainedTokenizerFast, Qwen2VLConfig

TOKENIZER_SIZE = 512
CHOICES = "Select from the following choices.\n(A) 2\n(B) 3\n(C) 4\n(D) 5"
SHORT = f"How many balls are there? {CHOICES}"
LONG = (
    "The picture shows a floor of square tiles; the side of a tile is one metre long. Let A be the tile of the ball that is "
    "furthest to the left, B the tile of the star that is nearest to the upper edge, and C the tile of the cube that is "
    "nearest to the lower edge. A line is drawn from the centre of A to the centre of B, and another from the centre of B "
    f"to the centre of C. How many tiles with a ball does the longer of the two lines cross? {CHOICES}"
)
THINGS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case of the comparison.

    Example: `Row(name="a", side=448, vocabulary=32_000, completion_tokens=64)`: one picture of 448 x 448 pixels (256 image
    tokens) per prompt, 8 completions of exactly 64 tokens each, 2 prompts per step.
    """

    name: str
    side: int
    """Pixels along both sides of the picture."""
    vocabulary: int
    completion_tokens: int
    """Forced length of every completion."""
    text: str = SHORT
    group_size: int = 8
    prompts_per_step: int = 2
    silent_groups: int = 0
    """Groups of a step whose rewards are all equal."""

    @property
    def completions(self) -> int:
        """Completions of one step."""
        return self.group_size * self.prompts_per_step

    def rewards(self, prompt: int) -> tuple[float, ...]:
        """Rewards of the group of the step's prompt number `prompt`: 1 on even members, or 0 for all of a silent group."""
        silent = prompt % self.prompts_per_step >= self.prompts_per_step - self.silent_groups
        return tuple(0.0 if silent or member % 2 else 1.0 for member in range(self.group_size))


ANCHOR = Row(name="a", side=448, vocabulary=32_000, completion_tokens=64)
ROWS = {
    row.name: row
    for row in (
        ANCHOR,
        replace(ANCHOR, name="b", vocabulary=2_000),
        replace(ANCHOR, name="c", side=280, completion_tokens=200, text=LONG),
        replace(ANCHOR, name="z", silent_groups=1),
    )
}
"""a: the anchor. b: where the head costs next to nothing. c: less image, more text, long answers, as in geometry data.
z: a with half of the groups silent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One prompt as both sides get it: text without marks, and one PNG file."""

    name: str
    text: str
    png: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenStep:
    """One step's completions, where sampling is left out, and what is known of them.

    Example: two prompts of two: `GivenStep(tokens_P_G_T=[[[7], [8, 9]], [[5], [6]]], rewards_P_G=[[1.0, 0.0], [0.5, 0.5]])`
    """

    tokens_P_G_T: Sequence[Sequence[Sequence[int]]]
    rewards_P_G: Sequence[Sequence[float]]
    old_logps_P_G_T: Sequence[Sequence[Sequence[float]]] = ()
    """Log-probs under the weights that are said to have sampled the tokens; empty if the loss asks for none."""


def questions(row: Row, number: int) -> list[Question]:
    """The first `number` questions of a case. The text is always the same, so that no prompt needs padding."""
    return [Question(name=str(i), text=row.text, png=_picture(row.side, i)) for i in range(number)]


def completions(row: Row, step: int) -> list[list[list[int]]]:
    """Random completions of the forced length for step number `step`, where sampling is left out."""
    rng = random.Random(step)
    ids = range(
        TOKENIZER_SIZE, row.vocabulary
    )  # behind the tokenizer: none of them means anything to either side
    return [
        [rng.choices(ids, k=row.completion_tokens) for _ in range(row.group_size)]
        for _ in range(row.prompts_per_step)
    ]


def ragged(row: Row, seed: int) -> GivenStep:
    """Random completions of 1 to `completion_tokens` ids, both of which occur, and rewards that differ within a group.

    The rewards of silent groups are all equal.
    """
    rng = random.Random(seed)
    tokens = []
    for group in completions(row, seed):
        lengths = _lengths(rng, row)
        tokens.append([ids[:length] for ids, length in zip(group, lengths, strict=True)])

    rewards = []
    for _ in range(row.prompts_per_step - row.silent_groups):
        rewards.append([rng.random() for _ in range(row.group_size)])
    silent = [[0.5] * row.group_size] * row.silent_groups
    return GivenStep(tokens_P_G_T=tokens, rewards_P_G=rewards + silent)


def _lengths(rng: random.Random, row: Row) -> list[int]:
    return [
        1,
        row.completion_tokens,
        *(rng.randint(2, row.completion_tokens) for _ in range(row.group_size - 2)),
    ]


def _picture(side: int, seed: int) -> bytes:
    rng = random.Random(seed)
    cells = side // scenes.CELL
    places = rng.sample(
        [(c, r) for c in range(cells) for r in range(cells)], min(THINGS, cells * cells // 2)
    )
    things = tuple(
        scenes.Thing(
            rng.choice(scenes.SHAPES),
            rng.choice(sorted(scenes.COLOURS)),
            *place,
            size=rng.randint(17, 23),
        )
        for place in places
    )
    scene = scenes.Scene("Count", "COCO", cells, cells, things, SHORT, ("2", "3", "4", "5"), 0)
    return scenes.png(scenes.draw(scene, seed))


def checkpoint(folder: Path, vocabulary: int, seed: int = 0) -> Path:
    """The checkpoint with `vocabulary` ids under `folder`; made on the first call. Returns its folder."""
    target = folder / f"anchor-{vocabulary}"
    if (target / "generation_config.json").is_file():  # the last file that is written
        return target
    tokenizer = tiny.tiny_tokenizer([SHORT, LONG, *"ABCD0123456789"], TOKENIZER_SIZE)
    model = tiny.tiny_model(configuration(tokenizer, vocabulary), seed)
    tiny.save_checkpoint(model, tiny.tiny_processor(tokenizer), target)
    return target


def configuration(tokenizer: "PreTrainedTokenizerFast", vocabulary: int) -> "Qwen2VLConfig":
    """Text: hidden 512, 6 layers, 8 heads and 2 key-value heads, tied. Vision: embed 320, 6 layers, 5 heads, patches of 14."""
    config = tiny.tiny_config(
        tokenizer,
        vocabulary,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=1536,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [8, 12, 12],
        },
    )
    vision = config.vision_config
    vision.depth, vision.embed_dim, vision.num_heads, vision.mlp_ratio = 6, 320, 5, 4
    return cast("Qwen2VLConfig", config)
