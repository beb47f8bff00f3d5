"""InternVL 3 and 3.5 in the form that transformers loads: an image is cut into square tiles, with all of it as one more tile
behind them, each tile has the same number of image tokens, and positions have one axis.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any

from PIL import Image
from torch import Tensor, nn

from gpg_vl.errors import UserError
from gpg_vl.models.families import qwen2, qwen3, tiles
from gpg_vl.models.families.boxes import IN_TILES
from gpg_vl.models.families.family import Family, Patches
from gpg_vl.models.families.qwen2_vl import QWEN2_VL
from gpg_vl.models.families.tiles import Tile
from gpg_vl.models.shape import Kept, Shape

IMAGE_TOKEN = "<IMG_CONTEXT>"
IMAGE_START, IMAGE_END = "<img>", "</img>"
VISION_TOKENS = (IMAGE_START, IMAGE_END, IMAGE_TOKEN, "<video>")
POINTING_TOKENS = tuple(f"<{end}{what}>" for what in ("ref", "box", "quad") for end in ("", "/"))
"""Around the name of an object and its place, in questions and in answers."""
TEXT_TOWERS = {"qwen2": qwen2.shape_of, "qwen3": qwen3.shape_of}
"""Text towers that are computed exactly, by `model_type`, and their shapes."""
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


RELEASED = Tile(side=448, patch=14, merge=2)
"""Of the released checkpoints: 256 image tokens."""


# ---- images


def image_size(
    width: int, height: int, *, min_pixels: int, max_pixels: int, tile: Tile
) -> tuple[int, int]:
    """(width, height) that is cut into tiles: the columns and rows whose ratio is nearest to that of the image.

    The limits are those of all tiles together; the image as a whole, which is one more tile, is not among them. Of two equally
    near ones the later by tiles and then by columns is taken while the image has more than half of its area: the rule of the
    checkpoint's own processor. Raises UserError if no number of tiles is within the limits.
    """
    area = tile.side**2
    fewest, most = tile_limits(min_pixels, max_pixels, tile=tile)
    if most < max(1, fewest):
        raise UserError(
            f"an image is shown as tiles of {tile.side}x{tile.side} pixels, {area} each, and no number of them has between "
            f"{min_pixels} and {max_pixels} pixels. Set data.max_pixels to a multiple of {area}, and data.min_pixels to less."
        )

    ratio = width / height
    best, nearest = (1, 1), float("inf")
    for grid in _arrangements(fewest, most):
        distance = abs(ratio - grid[0] / grid[1])
        is_large_enough = width * height > 0.5 * area * grid[0] * grid[1]
        if distance < nearest or (distance == nearest and is_large_enough):
            best, nearest = grid, distance
    return best[0] * tile.side, best[1] * tile.side


def tile_limits(min_pixels: int, max_pixels: int, *, tile: Tile) -> tuple[int, int]:
    """The fewest and the most tiles that have so many pixels."""
    return max(1, ceil(min_pixels / tile.side**2)), max_pixels // tile.side**2


def _arrangements(fewest: int, most: int) -> list[tuple[int, int]]:
    """(columns, rows) of so many tiles: by tiles, then by columns."""
    found = [(c, r) for c in range(1, most + 1) for r in range(1, most // c + 1) if c * r >= fewest]
    return sorted(found, key=lambda grid: (grid[0] * grid[1], grid[0]))


def image_tokens(width: int, height: int, *, tile: Tile) -> int:
    """Image tokens of an image in the size that is cut; the whole of it is one more tile, unless there is one alone."""
    cut = (width // tile.side) * (height // tile.side)
    return tile.tokens * (cut if cut == 1 else cut + 1)


def image_text(width: int, height: int, *, tile: Tile) -> str:
    """All image tokens of an image between their marks."""
    return IMAGE_START + IMAGE_TOKEN * image_tokens(width, height, tile=tile) + IMAGE_END


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
        image_processor(images=[image], return_tensors="pt", **settings)["pixel_values"]
        for image in images
    ]
    return tiles.patches_of(cut, tile)


def processor_settings(min_pixels: int, max_pixels: int, *, tile: Tile) -> dict[str, Any]:
    """What makes a processor cut an image as `image_size` says."""
    fewest, most = tile_limits(min_pixels, max_pixels, tile=tile)
    return {
        "do_resize": True,
        "crop_to_patches": True,
        "size": {"height": tile.side, "width": tile.side},
        "min_patches": fewest,
        "max_patches": most,
    }


def blank_image(config: Any, tokens: int) -> Patches:
    """Tiles of zeros."""
    return tiles.blank(tile_of(config), tokens)


# ---- what depends on the config


def tile_of(config: Any) -> Tile:
    """The tiles of a transformers config."""
    vision = config.vision_config
    merge = round(1 / config.downsample_ratio)
    return Tile(side=vision.image_size[0], patch=vision.patch_size[0], merge=merge)


def fit(family: Family, config: Any) -> Family:
    """With the tiles of this config. Raises UserError for what the port can load and gpg_vl does not compute."""
    _refuse_other_towers(config)
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


def _refuse_other_towers(config: Any) -> None:
    vision, text = config.vision_config, config.get_text_config()
    if text.model_type not in TEXT_TOWERS:
        raise UserError(
            f"its text tower is of model type {text.model_type!r}; only {' and '.join(TEXT_TOWERS)} are supported. Choose a "
            f"checkpoint with one of these."
        )
    wanted = {
        "vision_feature_layer": (config.vision_feature_layer, -1),
        "vision_feature_select_strategy": (config.vision_feature_select_strategy, "default"),
        "vision_config.use_mask_token": (vision.use_mask_token, False),
        "vision_config.num_channels": (vision.num_channels, tiles.CHANNELS),
    }
    for name, (found, supported) in wanted.items():
        if found != supported:
            raise UserError(
                f"{name} in its config.json is {found!r}; only {supported!r} is supported, which all released checkpoints have."
            )

    tile = tile_of(config)
    token = tile.patch * tile.merge
    is_square = len({*vision.image_size}) == len({*vision.patch_size}) == 1
    if not is_square or tile.side % token or tile.merge * config.downsample_ratio != 1:
        raise UserError(
            f"its tiles of {tuple(vision.image_size)} pixels are not a whole number of image tokens, with patches of "
            f"{tuple(vision.patch_size)} and a downsample_ratio of {config.downsample_ratio}. Correct its config.json."
        )


# ---- features


def _image_features(model: Any, pixel_values_N: Tensor, grid_thw_I_3: Tensor) -> list[Tensor]:
    seen = model.model.get_image_features(tiles.to_tiles(pixel_values_N, grid_thw_I_3))
    return tiles.by_image(seen.pooler_output, grid_thw_I_3)


# ---- where the parts of the model are


def _vision_tower(model: Any) -> nn.Module:
    tower: nn.Module = model.model.vision_tower
    return tower


def _merger(model: Any) -> nn.Module:
    projector: nn.Module = model.model.multi_modal_projector
    return projector


def _vision_blocks(model: Any) -> list[nn.Module]:
    return list(model.model.vision_tower.encoder.layer)


def _part_of(parameter_name: str) -> str:
    """In a loaded model and in saved checkpoints alike, which have other names in front."""
    if re.search(r"(^|\.)multi_modal_projector\.", parameter_name):
        return "merger"
    return "vision" if re.search(r"(^|\.)vision_tower\.", parameter_name) else "language"


# ---- what is known from the config alone


def shape_of(config: Any) -> Shape:
    """With a merger of two matrices."""
    vision, tile = config.vision_config, tile_of(config)
    text = TEXT_TOWERS[config.get_text_config().model_type](config)
    width, inner = vision.hidden_size, vision.intermediate_size
    return tiles.add_vision(
        text,
        vision,
        tile,
        merger_weights=tile.merge**2 * width * text.hidden + text.hidden**2,
        # the two norms' outputs; queries, keys, values, what was attended to and its copy; what is
        # scaled before each sum; of the MLP what its activation is given, and what it gives
        kept=Kept(computed=9 * width + 2 * inner, summed=2 * width, cast=2 * width),
    )


def _tiny_config(tokenizer: Any, vocabulary: int, text: Mapping[str, Any]) -> Any:
    """Tiles of 56 pixels, 16 patches and 4 image tokens each. Vision: 96 wide, two layers. `text_tower` in `text`
    is the `model_type` of another text tower.
    """
    from transformers import InternVLConfig

    token = tokenizer.convert_tokens_to_ids
    ends: dict[str, Any] = {**qwen2.tiny_ends(tokenizer)}
    vision = {
        "hidden_size": 96,
        "intermediate_size": 288,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "attention_bias": True,
        "image_size": [56, 56],
        "patch_size": [14, 14],
    }
    tower = {**qwen2.tiny_text(tokenizer, vocabulary), **text}
    tower["model_type"] = tower.pop("text_tower", "qwen2")
    return InternVLConfig(
        text_config=tower,
        vision_config=vision,
        image_token_id=token(IMAGE_TOKEN),
        image_seq_length=4,
        tie_word_embeddings=True,
        **ends,
    )


def _tiny_processor(tokenizer: Any, chat_template: str) -> Any:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLProcessor,
        InternVLVideoProcessor,
        PreTrainedTokenizerFast,
    )

    named = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=tokenizer.model_max_length,
        # under these names the library's processor asks for them
        extra_special_tokens={
            "start_image_token": IMAGE_START,
            "end_image_token": IMAGE_END,
            "context_image_token": IMAGE_TOKEN,
            "video_token": "<video>",
        },
    )
    named.chat_template = tokenizer.chat_template = chat_template
    size = {"height": 56, "width": 56}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True),
        tokenizer=named,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=chat_template,
    )


INTERNVL = with_tile(
    Family(
        model_type="internvl",
        model_class="InternVLForConditionalGeneration",
        has_vision=True,
        control_tokens=(*VISION_TOKENS, qwen2.TURN_START, qwen2.TURN_END),
        text_tokens=POINTING_TOKENS,
        vision_tokens=VISION_TOKENS,
        image_token=IMAGE_TOKEN,
        image_markup=f"{IMAGE_TOKEN}\n",
        blank_image=blank_image,
        fit=fit,
        positions=qwen2.text_positions,
        tower_positions=qwen2.QWEN2.tower_positions,
        image_features=_image_features,
        place_features=QWEN2_VL.place_features,
        language_model=QWEN2_VL.language_model,
        layers=QWEN2_VL.layers,
        attentions=QWEN2_VL.attentions,
        vision_tower=_vision_tower,
        merger=_merger,
        vision_blocks=_vision_blocks,
        part_of=_part_of,
        shape_of=shape_of,
        thinned=tiles.thinned,
        boxes=IN_TILES,
        sampled_by_vllm=False,
        tiny=replace(
            qwen2.QWEN2.tiny,
            special_tokens=(qwen2.TEXT_END, qwen2.TURN_START, qwen2.TURN_END, *VISION_TOKENS),
            chat_template=_CHAT_TEMPLATE,
            config=_tiny_config,
            processor=_tiny_processor,
        ),
    ),
    RELEASED,
)
