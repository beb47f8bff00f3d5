"""Examples into prompts: rendering, tokens, patches and positions, computed once for rollout and training alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gpg_vl.data.check import PromptCounts
from gpg_vl.data.images import load_image
from gpg_vl.data.rows import IMAGE_MARK, count_marks
from gpg_vl.errors import UserError
from gpg_vl.models.families import VISION_TOKENS
from gpg_vl.models.features import image_key
from gpg_vl.models.load import Processing
from gpg_vl.prompting import PixelLimits, PromptStyle
from gpg_vl.types import Example, Message, Prompt

LONGEST_ASPECT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """Turns examples into prompts for one checkpoint, one prompt style and one image root."""

    processing: Processing
    style: PromptStyle
    limits: PixelLimits
    root: Path | None
    """Image paths are relative to this folder and may not leave it."""

    def render(self, example: Example) -> str:
        """The prompt as text, one image mark of the model per image. Raises UserError."""
        messages = _styled(example, self.style)
        for message in messages:
            if token := next(
                (t for t in (*VISION_TOKENS, "<|im_start|>", "<|im_end|>") if t in message.content),
                None,
            ):
                raise UserError(
                    f"Example {example.id}: the prompt contains the control token {token}. Only {IMAGE_MARK} may stand "
                    f"for an image; remove the token from the text."
                )
        template = self.processing.chat_template
        if self.style.chat == "template" and template is None:
            raise UserError(
                "prompt.chat is 'template', but the checkpoint has no chat template. Use 'plain' for a base model."
            )
        plain = self.style.chat == "plain" or template is None
        text = self._plain(messages) if plain else self._templated(messages)
        return text + self.style.prefill

    def count(self, example: Example) -> PromptCounts:
        """Tokens of the prompt, image tokens included, without computing patches. Raises UserError."""
        sizes = [self._resized(image, example) for image in self._images(example)]
        per_image = [self._tokens_of(height, width) for height, width in sizes]
        marks = self._token_ids(self.render(example))
        return PromptCounts(
            tokens=len(marks) - len(sizes) + sum(per_image),
            image_tokens=sum(per_image),
            image_sizes=tuple((width, height) for height, width in sizes),
        )

    def encode(self, example: Example) -> Prompt:
        """The example as tensors. Raises UserError for an example that cannot be encoded.

        The number of image tokens in the ids is asserted here, once, to be what the vision tower will produce.
        """
        family = self.processing.family
        text = self.render(example)
        pixel_values, grid = self._patches(example)
        per_image = [] if grid is None else (grid.prod(dim=1) // family.merge_size**2).tolist()
        ids = _expand(self._token_ids(text), self.processing.tokens.image, per_image, example.id)
        ids_T = torch.tensor(ids, dtype=torch.long)
        image_mask_T = ids_T == (
            -1 if self.processing.tokens.image is None else self.processing.tokens.image
        )
        assert int(image_mask_T.sum()) == sum(per_image), (
            example.id,
            int(image_mask_T.sum()),
            per_image,
        )
        positions = family.positions(ids_T, image_mask_T, grid, family.merge_size)
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
            image_keys=_keys(pixel_values, grid),
        )

    def _templated(self, messages: tuple[Message, ...]) -> str:
        vision = self.processing.family.has_vision
        turns = [
            {"role": m.role, "content": _parts(m.content) if vision else m.content}
            for m in messages
        ]
        return str(
            self.processing.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        )

    def _plain(self, messages: tuple[Message, ...]) -> str:
        markup = self.processing.family.image_markup
        return "\n".join(m.content.replace(IMAGE_MARK, markup) for m in messages)

    def _token_ids(self, text: str) -> list[int]:
        return list(self.processing.tokenizer(text, add_special_tokens=False).input_ids)

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

    def _resized(self, image: Image.Image, example: Example) -> tuple[int, int]:
        """(height, width) that the model sees; multiples of the side of an image token."""
        from qwen_vl_utils.vision_process import smart_resize

        width, height = image.size
        side = self.processing.family.patch_size * self.processing.family.merge_size
        if max(width, height) > LONGEST_ASPECT * min(width, height):
            raise UserError(
                f"Example {example.id}: an image of {width}x{height} pixels is more than {LONGEST_ASPECT} times as long as "
                f"wide. Crop or pad it."
            )
        resized: tuple[int, int] = smart_resize(
            height,
            width,
            factor=side,
            min_pixels=self.limits.min_pixels,
            max_pixels=self.limits.max_pixels,
        )
        if min(resized) < side:
            raise UserError(
                f"Example {example.id}: an image of {width}x{height} pixels is thinner than one image token once it is "
                f"shrunk to {self.limits.max_pixels} pixels. Crop it or raise data.max_pixels."
            )
        return resized

    def _tokens_of(self, height: int, width: int) -> int:
        side = self.processing.family.patch_size * self.processing.family.merge_size
        return (height // side) * (width // side)

    def _patches(self, example: Example) -> tuple[Tensor | None, Tensor | None]:
        images = self._images(example)
        if not images:
            return None, None
        from qwen_vl_utils.vision_process import fetch_image

        resized = []
        for image in images:
            self._resized(image, example)  # says in words what the library would assert
            resized.append(
                fetch_image(
                    {
                        "image": image,
                        "min_pixels": self.limits.min_pixels,
                        "max_pixels": self.limits.max_pixels,
                    },
                    image_patch_size=self.processing.family.patch_size,
                )
            )
        assert self.processing.image_processor is not None, "a family without vision has no images"
        features = self.processing.image_processor(
            images=resized, do_resize=False, return_tensors="pt"
        )
        return features["pixel_values"].float(), features["image_grid_thw"].long()


def _keys(pixel_values_N: Tensor | None, grid_thw_I_3: Tensor | None) -> tuple[str, ...]:
    if pixel_values_N is None or grid_thw_I_3 is None:
        return ()
    patches = pixel_values_N.split(grid_thw_I_3.prod(dim=1).tolist())
    return tuple(image_key(one, grid) for one, grid in zip(patches, grid_thw_I_3, strict=True))


def _styled(example: Example, style: PromptStyle) -> tuple[Message, ...]:
    """The conversation with the style's template on its last user turn, its system turn, and a mark for every image."""
    turns = (
        (Message(role="user", content=example.prompt),)
        if isinstance(example.prompt, str)
        else example.prompt
    )
    marks = count_marks(example.prompt)
    if marks not in (0, len(example.images)):
        raise UserError(
            f"Example {example.id}: the prompt has {marks} {IMAGE_MARK} mark(s) for {len(example.images)} image(s). Write one "
            f"mark per image, or none to put the images in front."
        )
    last = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None:
        raise UserError(
            f"Example {example.id}: the prompt has no user turn. Add a message with role 'user'."
        )
    first = next(i for i, turn in enumerate(turns) if turn.role == "user")
    styled = []
    for i, turn in enumerate(turns):
        content = turn.content
        if i == last:
            content = style.template.replace("{choices}", _listed(example.choices or ())).replace(
                "{prompt}", content
            )
        if i == first and marks == 0:
            content = IMAGE_MARK * len(example.images) + content
        styled.append(Message(role=turn.role, content=content))
    system = (Message(role="system", content=style.system),) if style.system is not None else ()
    return (*system, *styled)


def _listed(choices: Sequence[str]) -> str:
    """`a, b or c`, as SAT's prompts write options."""
    return (
        " or ".join([", ".join(choices[:-1]), choices[-1]])
        if len(choices) > 1
        else "".join(choices)
    )


def _parts(content: str) -> list[dict[str, str]]:
    """Text with marks as the content parts that chat templates of vision models read."""
    parts: list[dict[str, str]] = []
    for i, text in enumerate(content.split(IMAGE_MARK)):
        if i:
            parts.append({"type": "image"})
        if text:
            parts.append({"type": "text", "text": text})
    return parts


def _expand(
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
    return [
        token
        for token_id in ids
        for token in ([token_id] * next(counts) if token_id == image_id else [token_id])
    ]
