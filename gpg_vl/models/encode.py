"""Examples into prompts: rendering, tokens, patches and positions, computed once for rollout and
training alike.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gpg_vl.data.check import PromptCounts
from gpg_vl.data.images import Examined, examine_image, image_size, load_image
from gpg_vl.data.prompts import IMAGE_MARK
from gpg_vl.errors import UserError
from gpg_vl.models.box_frames import Sizes, with_frames
from gpg_vl.models.families.family import Patches
from gpg_vl.models.features import image_key
from gpg_vl.models.load import Processing
from gpg_vl.models.template import TEMPLATE_ERRORS
from gpg_vl.models.turns import apply_style, notes_on, refuse_loss, split_content, texts_of_row
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
    coordinates: str | None = None
    """What the numbers of boxes in answers count; None leaves it to the rows, and then to the family."""

    def __post_init__(self) -> None:
        smallest, largest = self.limits.min_pixels, self.limits.max_pixels
        if largest < smallest:
            raise UserError(
                f"max_pixels is {largest}, below min_pixels, {smallest}: no image could have an allowed size. "
                f"Raise max_pixels, or lower min_pixels."
            )
        family = self.processing.family
        if family.boxes is not None and self.coordinates is not None:
            family.boxes.refuse(self.coordinates, family.model_type)

    def render(self, example: Example) -> str:
        """The prompt as text, one image mark of the model per image. Raises UserError."""
        messages = apply_style(example, self.style)
        self._refuse_control_tokens(example, messages)

        template = self.processing.chat_template
        if self.style.chat == "template" and template is None:
            raise UserError(
                "prompt.chat is 'template', but the checkpoint has no chat template. Use 'plain' for a base model."
            )
        if self.style.chat == "plain" or template is None:
            return self._join_plainly(messages) + self.style.prefill

        text = self._fill_template(messages)
        refuse_loss(example, messages, text, self.processing.family.image_token)
        return text + self.style.prefill

    def examine(self, example: Example) -> list[Examined]:
        """What the images of an example are, each decoded to its last pixel. Any thread may call it. Raises ImageError."""
        return [
            examine_image(image, root=self.root, max_pixels=self.limits.max_image_pixels)
            for image in example.images
        ]

    def count(self, example: Example, examined: Sequence[Examined] | None = None) -> PromptCounts:
        """Tokens of the prompt, image tokens included, without computing patches.

        examined: what `examine` has found; None: it is still to be done. Raises UserError.
        """
        self._refuse_images_of_text_model(example)
        if examined is None:
            examined = self.examine(example)
        sizes = [self._size((image.width, image.height), example) for image in examined]
        image_tokens = sum(self.processing.family.image_tokens(*size) for size in sizes)
        text = self.render(example)
        marks = self._token_ids(text)
        _refuse_other_images(marks, self.processing.tokens.image, len(sizes), example.id)

        tokens = len(marks) - len(sizes) + sum(len(self._image_ids(size)) for size in sizes)
        self._refuse_beyond_context(tokens, example.id)
        return PromptCounts(
            tokens=tokens,
            image_tokens=image_tokens,
            image_sizes=tuple(sizes),
            notes=(
                *notes_on(example, self.style),
                *self._notes_on_tokens(text, marks),
                *_notes_on_images(examined),
            ),
        )

    def encode(self, example: Example) -> Prompt:
        """The example as tensors. Raises UserError for an example that cannot be encoded.

        The number of image tokens in the ids is asserted here, once, to be what the vision tower
        will produce.
        """
        family = self.processing.family
        text = self.render(example)
        images = self._images(example)
        # what cannot be shown is refused in words that name the example, before a library asserts it
        sizes = [self._size(image.size, example) for image in images]
        patches = self._patches(images) if images else None
        pixel_values, grid, per_image = patches if patches is not None else (None, None, [])

        image_id = self.processing.tokens.image
        runs = [self._image_ids(size) for size in sizes]
        found = [run.count(image_id) for run in runs if image_id is not None]
        assert found == per_image, (example.id, found, per_image)

        ids = _put_images(self._token_ids(text), image_id, runs, example.id)
        ids_T = torch.tensor(ids, dtype=torch.long)
        self._refuse_beyond_context(len(ids), example.id)
        image_mask_T = ids_T == (-1 if image_id is None else image_id)
        assert int(image_mask_T.sum()) == sum(per_image), (example.id, per_image)

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

    def place(self, example: Example) -> Example:
        """The example with the frame that its boxes are answered in and the sizes that it needs; reads headers of images at most.

        Rewards are given this one. Raises UserError.
        """
        return with_frames(
            example, self.processing.family, self.coordinates, lambda: self._sizes(example)
        )

    # ---- text

    def _refuse_control_tokens(self, example: Example, messages: tuple[Message, ...]) -> None:
        """Raises UserError if a text has what the tokenizer reads as a token of its own kind: in a row any of them, in the
        style, whose author may mean it, those that would open a turn, end it, or stand for an image.
        """
        of_turns, all_of_them = (
            self.processing.family.control_tokens,
            self.processing.tokens.special,
        )
        texts = [(message.content, of_turns) for message in messages]
        texts += [(self.style.prefill, of_turns)]
        texts += [(text, all_of_them) for text in texts_of_row(example)]

        for text, tokens in texts:
            if tokens and (token := _any_of(tokens).search(text)):
                raise UserError(
                    f"Example {example.id}: the prompt contains the control token {token[0]}. Only {IMAGE_MARK} may stand "
                    f"for an image; remove the token from the text."
                )

    def _fill_template(self, messages: tuple[Message, ...]) -> str:
        turns: list[dict[str, Any]] = []
        for message in messages:
            content: Any = message.content
            if self.processing.family.has_vision:
                content = split_content(message.content)
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

    def _refuse_beyond_context(self, tokens: int, example_id: str) -> None:
        """Raises UserError for a prompt that has positions the model was never trained on."""
        most = self.processing.tokens.context
        if most is not None and tokens > most:
            raise UserError(
                f"Example {example_id}: the prompt has {tokens} tokens, more than the {most} that the checkpoint reads "
                f"(max_position_embeddings in its config.json). Shorten the text, shrink the images (max_pixels), or remove "
                f"the row."
            )

    def _notes_on_tokens(self, text: str, ids: list[int]) -> Iterator[tuple[str, str]]:
        """Says so where the tokens do not spell the text, composed and decomposed letters apart."""
        read = self.processing.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        # nearly every text comes back as it was, and that is quickly known
        if read == text:
            return
        if unicodedata.normalize("NFC", read) != unicodedata.normalize("NFC", text):
            differ = (place for place, (a, b) in enumerate(zip(read, text, strict=False)) if a != b)
            place = next(differ, min(len(read), len(text)))
            said = (
                f"the tokenizer changes the text: {text[place : place + 30]!r} is read as "
                f"{read[place : place + 30]!r}. Use the checkpoint's own tokenizer, or correct the text"
            )
            yield "tokenizer", said

    # ---- images

    def _refuse_images_of_text_model(self, example: Example) -> None:
        if example.images and not self.processing.family.has_vision:
            raise UserError(
                f"Example {example.id} has {len(example.images)} image(s), but {self.processing.family.model_type} "
                f"reads text only. Use a vision-language checkpoint or data without images."
            )

    def _images(self, example: Example) -> list[Image.Image]:
        self._refuse_images_of_text_model(example)
        return [
            load_image(image, root=self.root, max_pixels=self.limits.max_image_pixels)
            for image in example.images
        ]

    def _sizes(self, example: Example) -> list[Sizes]:
        stored = [image_size(image, root=self.root) for image in example.images]
        return [Sizes(size, self._size(size, example)) for size in stored]

    def _size(self, size: tuple[int, int], example: Example) -> tuple[int, int]:
        """(width, height) that the model sees. Raises UserError that names the example."""
        try:
            return self.processing.family.image_size(
                *size, min_pixels=self.limits.min_pixels, max_pixels=self.limits.max_pixels
            )
        except UserError as error:
            raise UserError(f"Example {example.id}: {error}") from None

    def _image_ids(self, size: tuple[int, int]) -> list[int]:
        """What stands for an image that is seen in this size, in the ids of a prompt."""
        family, image_id = self.processing.family, self.processing.tokens.image
        if family.image_text is not None:
            return self._token_ids(family.image_text(*size))
        assert image_id is not None, "a family without vision has no images"
        return [image_id] * family.image_tokens(*size)

    def _patches(self, images: Sequence[Image.Image]) -> Patches:
        assert self.processing.image_processor is not None, "a family without vision has no images"
        return self.processing.family.patches(
            self.processing.image_processor,
            images,
            min_pixels=self.limits.min_pixels,
            max_pixels=self.limits.max_pixels,
        )


@lru_cache(maxsize=16)
def _any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)))


def _notes_on_images(examined: Sequence[Examined]) -> Iterator[tuple[str, str]]:
    """(kind, text) of what is odd about the images of a prompt."""
    if any(image.has_frames for image in examined):
        yield "frames", "a picture has several frames or pages, and the first alone is used"


def _make_image_keys(pixel_values_N: Tensor | None, grid_thw_I_3: Tensor | None) -> tuple[str, ...]:
    if pixel_values_N is None or grid_thw_I_3 is None:
        return ()
    patches = pixel_values_N.split(grid_thw_I_3.prod(dim=1).tolist())
    return tuple(image_key(one, grid) for one, grid in zip(patches, grid_thw_I_3, strict=True))


def _put_images(
    ids: list[int], image_id: int | None, runs: Sequence[list[int]], example_id: str
) -> list[int]:
    """The ids with what stands for each image in the place of its image id."""
    _refuse_other_images(ids, image_id, len(runs), example_id)
    next_runs = iter(runs)
    placed: list[int] = []
    for token_id in ids:
        placed += next(next_runs) if token_id == image_id else [token_id]
    return placed


def _refuse_other_images(
    ids: list[int], image_id: int | None, images: int, example_id: str
) -> None:
    """Raises UserError unless there is one image token for each image."""
    found = ids.count(image_id) if image_id is not None else 0
    if found != images:
        raise UserError(
            f"Example {example_id}: the rendered prompt holds {found} image token(s) for {images} image(s). The chat "
            f"template must write one per image."
        )
