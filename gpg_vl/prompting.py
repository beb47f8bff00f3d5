"""How the text and the images of an example are presented to the model, with the defaults for both.

The config's sections `prompt` and `data`, the encoder, the data recipes and the evaluation all take their defaults
from here, so training and evaluation use the same prompts by default.
"""

from dataclasses import dataclass
from typing import Literal

Chat = Literal["auto", "template", "plain"]
"""`template`: the tokenizer's chat template. `plain`: the bare text. `auto`: the chat template if there is one,
else the bare text."""
PROMPT_PLACE = "{prompt}"
"""The mark in a template that is replaced by the example's prompt."""
CHOICES_PLACE = "{choices}"
"""The mark in a template that is replaced by the example's options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptStyle:
    """How an example is turned into prompt text.

    Example: `PromptStyle(template="{prompt} Answer with a letter.", prefill="<think>")`
    """

    template: str = PROMPT_PLACE
    """The user's turn. Marks such as `{prompt}` are replaced by the example's texts."""
    system: str | None = None
    """A system turn before the user's turn; None leaves it to the chat template."""
    chat: Chat = "auto"
    prefill: str = ""
    """Text with which the prompt already begins the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelLimits:
    """The allowed size of an image, in pixels (width times height).

    Example: `PixelLimits(max_pixels=28 * 28 * 256)` is at most 256 image tokens.
    """

    min_pixels: int = 56 * 56
    """Smaller images are enlarged to this size."""
    max_pixels: int = 401408
    """Larger images are shrunk to this size: 512 image tokens of 28 x 28 pixels."""
    max_image_pixels: int = 50_000_000
    """A file that declares more pixels is not decoded, because a few bytes can declare terabytes."""


DEFAULT_STYLE = PromptStyle()
DEFAULT_LIMITS = PixelLimits()

GOLD_FORM = "<think>\n\n</think>\n<answer>{answer}</answer>"
"""The default form in which a gold answer is written as a response; the config or a reward can set another."""
