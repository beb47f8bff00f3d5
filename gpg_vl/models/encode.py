"""Examples into prompts: rendering, tokens, patches and positions, computed once for rollout and
training alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gpg_vl.data.check import PromptCounts
from gpg_vl.data.images import load_image
from gpg_vl.data.rows import IMAGE_MARK, count_marks
from gpg_vl.errors import UserError
from gpg_vl.models.families.family import Patches
from gpg_vl.models.features import image_key
from gpg_vl.models.load import Processing
from gpg_vl.models.template import TEMPLATE_ERRORS
from gpg_vl.prompting import PixelLimits, PromptStyle
from gpg_vl.types import Example, Message, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """Turns examples into prompts for one checkpoint, one prompt style and one image root."""

    processing: Processing
    style: PromptStyle
    limits: PixelLimits
    root: Path | None
    """Image paths are relative to this folder and may not leave it."""

    def __post_init__(self) -> None:
        smallest, largest = self.limits.min_pixels, self.limits.max_pixels
        if largest < smallest:
            raise UserError(
                f"max_pixels is {largest}, below min_pixels, {smallest}: no image could have an allowed size. "
                f"Raise max_pixels, or lower min_pixels."
            )

    def render(self, example: Example) -> str:
        """The prompt as text, one image mark of the model per image. Raises UserError."""
        messages = _apply_style(example, self.style)
        for message in messages:
            if token := self._find_control_token(message.content):
                raise UserError(
                    f"Example {example.id}: the prompt contains the control token {token}. Only {IMAGE_MARK} may stand "
                    f"for an image; remove the token from the text."
                )

        template = self.processing.chat_template
        if self.style.chat == "template" and template is None:
            raise UserError(
                "prompt.chat is 'template', but the checkpoint has no chat template. Use 'plain' for a base model."
            )
        is_plain = self.style.chat == "plain" or template is None
        text = self._join_plainly(messages) if is_plain else self._fill_template(messages)
        return text + self.style.prefill

    def count(self, example: Example) -> PromptCounts:
        """Tokens of the prompt, image tokens included, without computing patches.

        Raises UserError.
        """
        sizes = [self._size(image, example) for image in self._images(example)]
        per_image = [self.processing.family.image_tokens(width, height) for width, height in sizes]
        marks = self._token_ids(self.render(example))
        return PromptCounts(
            tokens=len(marks) - len(sizes) + sum(per_image),
            image_tokens=sum(per_image),
            image_sizes=tuple(sizes),
        )

    def encode(self, example: Example) -> Prompt:
        """The example as tensors. Raises UserError for an example that cannot be encoded.

        The number of image tokens in the ids is asserted here, once, to be what the vision tower
        will produce.
        """
        family = self.processing.family
        text = self.render(example)
        patches = self._patches(example)
        pixel_values, grid, per_image = patches if patches is not None else (None, None, [])

        image_id = self.processing.tokens.image
        ids = _repeat_image_ids(self._token_ids(text), image_id, per_image, example.id)
        ids_T = torch.tensor(ids, dtype=torch.long)
        image_mask_T = ids_T == (-1 if image_id is None else image_id)
        image_tokens = int(image_mask_T.sum())
        assert image_tokens == sum(per_image), (example.id, image_tokens, per_image)

        positions = family.positions(ids_T, image_mask_T, grid)
        return Prompt(
            example_id=example.id,
            text=text,
            prefill=self.style.prefill,
            input_ids_T=ids_T,
            positions_3_T=positions,
            next_position=int(positions.max()) + 1,
            image_mask_T=image_mask_T,
            pixel_values_N=pixel_values,
            grid_thw_I_3=grid,
            image_keys=_make_image_keys(pixel_values, grid),
        )

    # ---- text

    def _find_control_token(self, text: str) -> str | None:
        for token in self.processing.family.control_tokens:
            if token in text:
                return token
        return None

    def _fill_template(self, messages: tuple[Message, ...]) -> str:
        turns: list[dict[str, Any]] = []
        for message in messages:
            content: Any = message.content
            if self.processing.family.has_vision:
                content = _split_content(message.content)
            turns.append({"role": message.role, "content": content})

        try:
            text = self.processing.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        except TEMPLATE_ERRORS as error:
            raise UserError(
                f"The checkpoint's chat template refuses a conversation of {', '.join(m.role for m in messages)}: "
                f"{type(error).__name__}: {error}. Change its turns (prompt.system adds one), correct the template, or set "
                f"prompt.chat to plain."
            ) from error
        return str(text)

    def _join_plainly(self, messages: tuple[Message, ...]) -> str:
        markup = self.processing.family.image_markup
        return "\n".join(m.content.replace(IMAGE_MARK, markup) for m in messages)

    def _token_ids(self, text: str) -> list[int]:
        return list(self.processing.tokenizer(text, add_special_tokens=False).input_ids)

    # ---- images

    def _images(self, example: Example) -> list[Image.Image]:
        if example.images and not self.processing.family.has_vision:
            raise UserError(
                f"Example {example.id} has {len(example.images)} image(s), but {self.processing.family.model_type} "
                f"reads text only. Use a vision-language checkpoint or data without images."
            )
        return [
            load_image(image, root=self.root, max_pixels=self.limits.max_image_pixels)
            for image in example.images
        ]

    def _size(self, image: Image.Image, example: Example) -> tuple[int, int]:
        """(width, height) that the model sees. Raises UserError that names the example."""
        try:
            return self.processing.family.image_size(
                *image.size, min_pixels=self.limits.min_pixels, max_pixels=self.limits.max_pixels
            )
        except UserError as error:
            raise UserError(f"Example {example.id}: {error}") from None

    def _patches(self, example: Example) -> Patches | None:
        images = self._images(example)
        if not images:
            return None

        # what cannot be shown is refused in words that name the example, before a library
        # asserts it
        for image in images:
            self._size(image, example)

        assert self.processing.image_processor is not None, "a family without vision has no images"
        return self.processing.family.patches(
            self.processing.image_processor,
            images,
            min_pixels=self.limits.min_pixels,
            max_pixels=self.limits.max_pixels,
        )


def _make_image_keys(pixel_values_N: Tensor | None, grid_thw_I_3: Tensor | None) -> tuple[str, ...]:
    if pixel_values_N is None or grid_thw_I_3 is None:
        return ()
    patches = pixel_values_N.split(grid_thw_I_3.prod(dim=1).tolist())
    return tuple(image_key(one, grid) for one, grid in zip(patches, grid_thw_I_3, strict=True))


def _apply_style(example: Example, style: PromptStyle) -> tuple[Message, ...]:
    """The conversation with the style's template on its last user turn, its system turn, and a mark
    for every image.
    """
    if isinstance(example.prompt, str):
        turns: tuple[Message, ...] = (Message(role="user", content=example.prompt),)
    else:
        turns = example.prompt

    marks = count_marks(example.prompt)
    if marks not in (0, len(example.images)):
        raise UserError(
            f"Example {example.id}: the prompt has {marks} {IMAGE_MARK} mark(s) for {len(example.images)} image(s). Write one "
            f"mark per image, or none to put the images in front."
        )

    of_user = [i for i, turn in enumerate(turns) if turn.role == "user"]
    if not of_user:
        raise UserError(
            f"Example {example.id}: the prompt has no user turn. Add a message with role 'user'."
        )

    messages = []
    if style.system is not None:
        messages.append(Message(role="system", content=style.system))
    for i, turn in enumerate(turns):
        content = turn.content
        if i == of_user[-1]:
            # the prompt goes in last: what looks like a place of the template in it is left alone
            template = style.template.replace("{choices}", _list_choices(example.choices or ()))
            content = template.replace("{prompt}", content)
        if i == of_user[0] and marks == 0:
            content = IMAGE_MARK * len(example.images) + content
        messages.append(Message(role=turn.role, content=content))
    return tuple(messages)


def _list_choices(choices: Sequence[str]) -> str:
    """`a, b or c`, as SAT's prompts write options."""
    if len(choices) < 2:
        return "".join(choices)
    return " or ".join([", ".join(choices[:-1]), choices[-1]])


def _split_content(content: str) -> list[dict[str, str]]:
    """Text with marks as the content parts that chat templates of vision models read."""
    parts: list[dict[str, str]] = []
    for i, text in enumerate(content.split(IMAGE_MARK)):
        if i:
            parts.append({"type": "image"})
        if text:
            parts.append({"type": "text", "text": text})
    return parts


def _repeat_image_ids(
    ids: list[int], image_id: int | None, per_image: list[int], example_id: str
) -> list[int]:
    """Each image id repeated as often as the vision tower will produce features for its image."""
    found = ids.count(image_id) if image_id is not None else 0
    if found != len(per_image):
        raise UserError(
            f"Example {example_id}: the rendered prompt holds {found} image token(s) for {len(per_image)} image(s). The chat "
            f"template must write one per image."
        )

    counts = iter(per_image)
    repeated: list[int] = []
    for token_id in ids:
        repeated += [token_id] * (next(counts) if token_id == image_id else 1)
    return repeated
