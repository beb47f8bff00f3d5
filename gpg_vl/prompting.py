"""How an example is shown to a model, its text and its pixels, and the defaults of both.

The config's sections `prompt` and `data`, the encoder, the data recipes and the evaluation all take
their defaults from here, so that training and evaluation ask alike by default.
"""

from dataclasses import dataclass
from typing import Literal

Chat = Literal["auto", "template", "plain"]
"""`template`: the tokenizer's chat template. `plain`: the bare text. `auto`: whichever is there."""
PROMPT_PLACE = "{prompt}"
"""Where a template has the example's own prompt."""
CHOICES_PLACE = "{choices}"
"""Where a template has the example's options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptStyle:
    """How an example becomes text.

    Example: `PromptStyle(template="{prompt} Answer with a letter.", prefill="<think>")`
    """

    template: str = PROMPT_PLACE
    """The user's turn, with marks such as `{prompt}` where the example's own texts go."""
    system: str | None = None
    """A system turn in front; None leaves it to the chat template."""
    chat: Chat = "auto"
    prefill: str = ""
    """Text that already begins the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelLimits:
    """How large a picture may be, in pixels of the whole picture.

    Example: `PixelLimits(max_pixels=28 * 28 * 256)` is at most 256 image tokens.
    """

    min_pixels: int = 56 * 56
    """Smaller pictures are enlarged to this."""
    max_pixels: int = 401408
    """Larger pictures are shrunk to this: 512 image tokens of 28 x 28 pixels."""
    max_image_pixels: int = 50_000_000
    """A file that declares more is not decoded, because a few bytes can claim terabytes."""


DEFAULT_STYLE = PromptStyle()
DEFAULT_LIMITS = PixelLimits()

GOLD_FORM = "<think>\n\n</think>\n<answer>{answer}</answer>"
"""How a gold answer is written as a response where neither the config nor a reward says otherwise."""
