"""SmolVLM and SmolVLM2: an image is scaled to a whole number of square tiles on its longer side and cut, with all of it as
one more tile behind them; each tile is named by its row and column in the prompt, and positions have one axis.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, isqrt
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from gpg_vl.errors import UserError
from gpg_vl.models.families import qwen2, tiles
from gpg_vl.models.families.boxes import IN_TILES
from gpg_vl.models.families.family import Family, Patches, Tiny
from gpg_vl.models.families.qwen2_vl import QWEN2_VL
from gpg_vl.models.families.tiles import Tile
from gpg_vl.models.shape import Kept, Shape

IMAGE_TOKEN = "<image>"
AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"
TURN_END = "<end_of_utterance>"
RELEASED = Tile(side=512, patch=16, merge=4)
"""Of SmolVLM2-500M: 64 image tokens. SmolVLM2-2.2B has `Tile(side=384, patch=14, merge=3)`, 81 image tokens."""
LONGEST = 4096
"""Pixels of the longer side of an image, that the checkpoint's own processor does not exceed."""
_CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% if message['content'] is string %} {{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif 'text' in part %}"
    "{% if loop.first %} {% endif %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


# ---- images


def image_size(
    width: int, height: int, *, min_pixels: int, max_pixels: int, tile: Tile
) -> tuple[int, int]:
    """(width, height) that is cut into tiles; the rule of the checkpoint's own processor, rounding included.

    The longer side of every image has as many tiles as a square of them may have within `max_pixels`. The image as a whole,
    which is one more tile, is not counted. Raises UserError if that is outside of the limits.
    """
    longest = longest_side(max_pixels, tile=tile)
    if longest == 0:
        raise UserError(
            f"an image is shown as tiles of {tile.side}x{tile.side} pixels, {tile.side**2} each, and data.max_pixels, "
            f"{max_pixels}, is less than one of them. Raise it."
        )

    seen = _scaled(width, height, longest, tile.side)
    if seen[0] * seen[1] < min_pixels:
        raise UserError(
            f"an image of {width}x{height} pixels is shown as {seen[0]}x{seen[1]}, which is less than data.min_pixels, "
            f"{min_pixels}. Raise data.max_pixels, or lower data.min_pixels."
        )
    return seen


def longest_side(max_pixels: int, *, tile: Tile) -> int:
    """Pixels of the longer side of every image: of a square of tiles that has at most `max_pixels`. 0 if there is none."""
    return min(isqrt(max_pixels // tile.side**2), LONGEST // tile.side) * tile.side


def _scaled(width: int, height: int, longest: int, side: int) -> tuple[int, int]:
    """The shorter side in proportion, an even number of pixels; then a whole number of tiles."""
    ratio = width / height
    if width >= height:
        return longest, _whole_tiles(longest, int(longest / ratio), side, is_height=True)
    return _whole_tiles(longest, int(longest * ratio), side, is_height=False), longest


def _whole_tiles(longest: int, shorter: int, side: int, *, is_height: bool) -> int:
    # the processor multiplies and divides by the ratio of rounded sides once more, which may lose a pixel
    even = max(1, shorter + shorter % 2)
    again = int(longest / (longest / even)) if is_height else int(longest * (even / longest))
    return ceil(again / side) * side


def image_tokens(width: int, height: int, *, tile: Tile) -> int:
    """Image tokens of an image in the size that is cut."""
    cut = (width // tile.side) * (height // tile.side)
    return tile.tokens * (cut if cut == 1 else cut + 1)


def image_text(width: int, height: int, *, tile: Tile) -> str:
    """The tiles row by row, each behind its name, and the image as a whole."""
    shown = IMAGE_TOKEN * tile.tokens
    rows, columns = height // tile.side, width // tile.side
    whole = f"{AROUND}{WHOLE}{shown}{AROUND}"
    if rows * columns == 1:
        return whole
    lines = (
        "".join(f"{AROUND}<row_{row}_col_{column}>{shown}" for column in range(1, columns + 1))
        for row in range(1, rows + 1)
    )
    return "".join(f"{line}\n" for line in lines) + "\n" + whole


def patches(
    image_processor: Any,
    images: Sequence[Image.Image],
    *,
    min_pixels: int,
    max_pixels: int,
    tile: Tile,
) -> Patches:
    """Tiles as the checkpoint's own processor cuts them, under our limits, as rows of patches."""
    settings = processor_settings(min_pixels, max_pixels, tile=tile)
    # one by one: an image is known by its content, which must not depend on its neighbours
    cut = [
        image_processor(images=[[image]], return_tensors="pt", **settings)["pixel_values"][0]
        for image in images
    ]
    return tiles.patches_of(cut, tile)


def processor_settings(min_pixels: int, max_pixels: int, *, tile: Tile) -> dict[str, Any]:
    """What makes a processor cut an image as `image_size` says."""
    return {
        "do_resize": True,
        "do_image_splitting": True,
        "do_pad": True,
        "size": {"longest_edge": longest_side(max_pixels, tile=tile)},
        "max_image_size": {"longest_edge": tile.side},
    }


def blank_image(config: Any, tokens: int) -> Patches:
    """Tiles of zeros."""
    return tiles.blank(tile_of(config), tokens)


# ---- what depends on the config


def tile_of(config: Any) -> Tile:
    """The tiles of a transformers config."""
    vision = config.vision_config
    return Tile(side=vision.image_size, patch=vision.patch_size, merge=config.scale_factor)


def fit(family: Family, config: Any) -> Family:
    """With the tiles of this config. Raises UserError for what the library can load and gpg_vl does not compute."""
    vision, text = config.vision_config, config.get_text_config()
    if text.model_type != "llama":
        raise UserError(
            f"its text tower is of model type {text.model_type!r}; only 'llama' is supported. Choose a checkpoint with one."
        )
    if vision.num_channels != tiles.CHANNELS:
        raise UserError(
            f"vision_config.num_channels in its config.json is {vision.num_channels}; only {tiles.CHANNELS} is supported."
        )

    sizes = (vision.image_size, vision.patch_size, config.scale_factor)
    if not all(isinstance(size, int) for size in sizes) or sizes[0] % (sizes[1] * sizes[2]):
        raise UserError(
            f"its tiles of {sizes[0]} pixels are not a whole number of image tokens, with patches of {sizes[1]} and a "
            f"scale_factor of {sizes[2]}. Correct its config.json."
        )
    return with_tile(family, tile_of(config))


def with_tile(family: Family, tile: Tile) -> Family:
    """The family with tiles of these sizes."""
    return replace(
        family,
        image_size=partial(image_size, tile=tile),
        image_tokens=partial(image_tokens, tile=tile),
        image_text=partial(image_text, tile=tile),
        patches=partial(patches, tile=tile),
        processor_settings=partial(processor_settings, tile=tile),
    )


# ---- features


def _image_features(model: Any, pixel_values_N: Tensor, grid_thw_I_3: Tensor) -> list[Tensor]:
    """By the tower and the connector themselves: the library's own method leaves out a tile of zeros as padding."""
    tower = model.model.vision_model
    # not narrower: the tower finds the place of a patch in the dtype of the pixels
    dtype = torch.promote_types(torch.float32, tower.embeddings.patch_embedding.weight.dtype)
    cut = tiles.to_tiles(pixel_values_N, grid_thw_I_3).to(dtype)
    states = tower(pixel_values=cut).last_hidden_state
    return tiles.by_image(model.model.connector(states), grid_thw_I_3)


# ---- where the parts of the model are


def _language_model(model: Any) -> nn.Module:
    tower: nn.Module = model.model.text_model
    return tower


def _layers(model: Any) -> list[nn.Module]:
    return list(model.model.text_model.layers)


def _attentions(model: Any) -> list[nn.Module]:
    return [layer.self_attn for layer in model.model.text_model.layers]


def _vision_tower(model: Any) -> nn.Module:
    tower: nn.Module = model.model.vision_model
    return tower


def _merger(model: Any) -> nn.Module:
    connector: nn.Module = model.model.connector
    return connector


def _vision_blocks(model: Any) -> list[nn.Module]:
    return list(model.model.vision_model.encoder.layers)


def _part_of(parameter_name: str) -> str:
    if re.search(r"(^|\.)connector\.", parameter_name):
        return "merger"
    return "vision" if re.search(r"(^|\.)vision_model\.", parameter_name) else "language"


# ---- what is known from the config alone


def shape_of(config: Any) -> Shape:
    """With a merger of one matrix."""
    vision, tile = config.vision_config, tile_of(config)
    text = qwen2.shape_of(config)
    width, inner = vision.hidden_size, vision.intermediate_size
    return tiles.add_vision(
        text,
        vision,
        tile,
        merger_weights=tile.merge**2 * width * text.hidden,
        # the two norms' outputs; queries, keys, values, what was attended to; of the MLP what
        # its activation is given, and what it gives
        kept=Kept(computed=6 * width + 2 * inner, summed=2 * width, cast=2 * width),
    )


def _tiny_config(tokenizer: Any, vocabulary: int, text: Mapping[str, Any]) -> Any:
    """Tiles of 128 pixels, 64 patches and 4 image tokens each. Vision: 96 wide, two layers."""
    from transformers import SmolVLMConfig

    start, end, pad, image = tokenizer.convert_tokens_to_ids(
        [qwen2.TURN_START, TURN_END, qwen2.TEXT_END, IMAGE_TOKEN]
    )
    ends = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": pad}
    sizes = {**qwen2.tiny_text(tokenizer, vocabulary), **ends, **text}
    return SmolVLMConfig(
        text_config={"model_type": "llama", **sizes},
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 128,
            "patch_size": 16,
        },
        scale_factor=4,
        image_token_id=image,
        tie_word_embeddings=True,
        **ends,
    )


@dataclass(frozen=True, slots=True)
class _Processor:
    """What a processor saves. The library's own class asks for a package that reads numbers aloud, for videos."""

    tokenizer: Any
    image_processor: Any

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        joint = {"image_seq_len": 4, "processor_class": "SmolVLMProcessor"}
        text = json.dumps(joint, indent=2) + "\n"
        (Path(folder) / "processor_config.json").write_text(text, encoding="utf-8")


def _tiny_processor(tokenizer: Any, chat_template: str) -> Any:
    from transformers import SmolVLMImageProcessor

    tokenizer.chat_template = chat_template
    images = SmolVLMImageProcessor(
        size={"longest_edge": 4 * 128}, max_image_size={"longest_edge": 128}
    )
    return _Processor(tokenizer, images)


SMOLVLM = with_tile(
    Family(
        model_type="smolvlm",
        model_class="SmolVLMForConditionalGeneration",
        has_vision=True,
        # the image token is the mark that rows have for an image: it is not among them
        control_tokens=(AROUND, WHOLE, "<video>", qwen2.TURN_START, TURN_END),
        vision_tokens=(IMAGE_TOKEN, AROUND, WHOLE, "<video>"),
        image_token=IMAGE_TOKEN,
        image_markup=IMAGE_TOKEN,
        blank_image=blank_image,
        fit=fit,
        positions=qwen2.text_positions,
        tower_positions=qwen2.QWEN2.tower_positions,
        image_features=_image_features,
        place_features=QWEN2_VL.place_features,
        language_model=_language_model,
        layers=_layers,
        attentions=_attentions,
        vision_tower=_vision_tower,
        merger=_merger,
        vision_blocks=_vision_blocks,
        part_of=_part_of,
        shape_of=shape_of,
        thinned=tiles.thinned,
        boxes=IN_TILES,
        sampled_by_vllm=False,
        tiny=Tiny(
            special_tokens=(
                *(
                    qwen2.TEXT_END,
                    qwen2.TURN_START,
                    TURN_END,
                    AROUND,
                    IMAGE_TOKEN,
                    WHOLE,
                    "<video>",
                ),
                *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
            ),
            end_token=TURN_END,
            pad_token=qwen2.TEXT_END,
            chat_template=_CHAT_TEMPLATE,
            config=_tiny_config,
            processor=_tiny_processor,
        ),
    ),
    RELEASED,
)
