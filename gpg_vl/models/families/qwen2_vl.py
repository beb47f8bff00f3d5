"""Qwen2-VL: images of any size as patches of 14 pixels, four of them in an image token, positions on three axes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from gpg_vl.data.resizing import resized_size
from gpg_vl.errors import UserError
from gpg_vl.models.families import qwen2
from gpg_vl.models.families.boxes import PUBLISHED
from gpg_vl.models.families.family import Family, Patches
from gpg_vl.models.shape import Kept, Shape

PATCH_SIZE = 14
"""Pixels along the side of a patch."""
MERGE_SIZE = 2
"""Patches along the side of what becomes one image token."""
SIDE = PATCH_SIZE * MERGE_SIZE
LONGEST_ASPECT = 200
IMAGE_TOKEN = "<|image_pad|>"
_IMAGE = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# ---- images


def image_size(
    width: int, height: int, *, min_pixels: int, max_pixels: int, side: int = SIDE
) -> tuple[int, int]:
    """(width, height) that the model sees: multiples of `side`, that of an image token, area in the limits.

    The rule of the checkpoint's own processor, so that whoever loads what was trained with it sees the same image tokens.
    Raises UserError if the image is too long for its width, or thinner than one image token once it is shrunk.
    """
    # in words, before a library raises without saying what to do
    if max(width, height) > LONGEST_ASPECT * min(width, height):
        raise UserError(
            f"an image of {width}x{height} pixels is more than {LONGEST_ASPECT} times as long as wide. Crop or pad it."
        )

    seen = resized_size(width, height, min_pixels, max_pixels, side=side)
    if min(seen) == side and seen[0] * seen[1] > max_pixels:
        raise UserError(
            f"an image of {width}x{height} pixels is thinner than one image token once it is shrunk to {max_pixels} "
            f"pixels. Crop it or raise data.max_pixels."
        )
    return seen


def image_tokens(width: int, height: int, *, side: int = SIDE) -> int:
    """Image tokens of an image in the size that the model sees."""
    return (width // side) * (height // side)


def patches(
    image_processor: Any,
    images: Sequence[Image.Image],
    *,
    min_pixels: int,
    max_pixels: int,
    side: int = SIDE,
) -> Patches:
    """Patches of the images, each resized as `image_size` says."""
    from qwen_vl_utils.vision_process import to_rgb

    sizes = [
        image_size(*image.size, min_pixels=min_pixels, max_pixels=max_pixels, side=side)
        for image in images
    ]
    seen = [
        to_rgb(image).resize(size, Image.Resampling.BICUBIC)
        for image, size in zip(images, sizes, strict=True)
    ]

    features = image_processor(images=seen, do_resize=False, return_tensors="pt")
    grid = features["image_grid_thw"].long()
    tokens = (grid.prod(dim=1) // MERGE_SIZE**2).tolist()
    return Patches(features["pixel_values"].float(), grid, tokens)


def processor_settings(min_pixels: int, max_pixels: int) -> dict[str, Any]:
    """What makes a processor resize as `patches` does. The limits come twice: older readers know the second pair alone."""
    return {
        "do_resize": True,
        "resample": int(Image.Resampling.BICUBIC),
        "size": {"shortest_edge": min_pixels, "longest_edge": max_pixels},
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
    }


def blank_image(config: Any, tokens: int) -> Patches:
    """All zeros, nearly square, at least one image token."""
    vision = config.vision_config
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    rows = max(1, isqrt(tokens))
    columns = max(1, tokens // rows)
    grid = torch.tensor([[1, rows * MERGE_SIZE, columns * MERGE_SIZE]])
    seen = rows * columns
    return Patches(torch.zeros(seen * MERGE_SIZE**2, values), grid, [seen])


# ---- positions


def mrope_positions(ids_T: Tensor, image_mask_T: Tensor, grid_thw_I_3: Tensor | None) -> Tensor:
    """M-RoPE: text advances all axes by one, an image spans its own time, height and width.

    After an image, text continues at the largest position of the image plus one, which is less than its number of tokens.
    Raises AssertionError if the image tokens of the ids are not those of the grids.
    """
    positions: list[Tensor] = []
    following = 0
    at = 0
    grids = [] if grid_thw_I_3 is None else grid_thw_I_3.tolist()
    image_starts = _run_starts(image_mask_T)
    assert len(image_starts) == len(grids), (
        f"{len(image_starts)} runs of image tokens, {len(grids)} images"
    )

    for start, (time, height, width) in zip(image_starts, grids, strict=True):
        text = torch.arange(start - at) + following
        positions.append(text.expand(3, -1))
        following += start - at

        rows, columns = height // MERGE_SIZE, width // MERGE_SIZE
        grid = torch.cartesian_prod(torch.arange(time), torch.arange(rows), torch.arange(columns)).T
        positions.append(grid + following)
        at = start + time * rows * columns
        following += max(rows, columns)

    positions.append((torch.arange(ids_T.shape[0] - at) + following).expand(3, -1))
    return torch.cat(positions, dim=1)


def _run_starts(mask_T: Tensor) -> list[int]:
    before = torch.cat([torch.zeros(1, dtype=torch.bool), mask_T[:-1]])
    return torch.nonzero(mask_T & ~before).flatten().tolist()


def _all_axes(positions_3_B_T: Tensor) -> Tensor:
    return positions_3_B_T


# ---- features


def _image_features(model: Any, pixel_values_N: Tensor, grid_thw_I_3: Tensor) -> list[Tensor]:
    return list(model.model.get_image_features(pixel_values_N, grid_thw_I_3).pooler_output)


def _place_features(
    embeddings_T_H: Tensor, features: Sequence[Tensor], image_mask_T: Tensor
) -> Tensor:
    width = embeddings_T_H.shape[1]
    placed = torch.cat([one[:, :width] for one in features]).to(embeddings_T_H.dtype)
    return embeddings_T_H.masked_scatter(image_mask_T[:, None].expand_as(embeddings_T_H), placed)


# ---- where the parts of the model are


def _language_model(model: Any) -> nn.Module:
    tower: nn.Module = model.model.language_model
    return tower


def _layers(model: Any) -> list[nn.Module]:
    return list(model.model.language_model.layers)


def _attentions(model: Any) -> list[nn.Module]:
    return [layer.self_attn for layer in model.model.language_model.layers]


def _vision_tower(model: Any) -> nn.Module:
    tower: nn.Module = model.model.visual
    return tower


def _vision_blocks(model: Any) -> list[nn.Module]:
    return list(model.model.visual.blocks)


def _part_of(parameter_name: str) -> str:
    """The names of saved checkpoints begin with `visual.`, those of a loaded model with `model.visual.`."""
    if re.search(r"(^|\.)visual\.(merger|deepstack_merger_list)\.", parameter_name):
        return "merger"
    is_vision = ".visual." in parameter_name or parameter_name.startswith("visual.")
    return "vision" if is_vision else "language"


# ---- what is known from the config alone


def shape_of(config: Any) -> Shape:
    """In the vision tower an MLP of two matrices, and attention over the whole image in every block."""
    vision = config.vision_config
    width = vision.embed_dim
    inner = int(width * vision.mlp_ratio)
    return with_vision(
        config,
        width=width,
        mlp_weights=2 * width * inner,
        full_attention_layers=vision.depth,
        # the two norms' outputs; queries and keys as they are turned, the projection that values are
        # a part of, what was attended to and its copy; of the MLP what its activation is given, the
        # sigmoid in it, and what it gives
        kept=Kept(computed=9 * width + 3 * inner, summed=2 * width),
    )


def with_vision(
    config: Any, *, width: int, mlp_weights: int, full_attention_layers: int, kept: Kept
) -> Shape:
    """The shape of the text tower, and next to it that of a vision tower of `width` with so many weights in each MLP."""
    vision = config.vision_config
    text = qwen2.shape_of(config)
    hidden_size = config.get_text_config().hidden_size

    embedding = 3 * vision.temporal_patch_size * vision.patch_size**2 * width
    merge = vision.spatial_merge_size**2
    return replace(
        text,
        patch_weights=vision.depth * (4 * width * width + mlp_weights) + embedding,
        merger_weights=(merge * width) ** 2 + merge * width * hidden_size,
        vision_layers=full_attention_layers,
        vision_width=width,
        merge=merge,
        vision_depth=vision.depth,
        vision_kept=kept,
    )


def thinned(config: Any, share: int) -> Any:
    """One in `share` of the vision tower's blocks, too."""
    thin = qwen2.thinned(config, share)
    thin.vision_config.depth = max(1, thin.vision_config.depth // share)
    return thin


def tiny_settings(
    tokenizer: Any, vocabulary: int, text: Mapping[str, Any], vision: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of a config class: a text tower with M-RoPE, a vision tower of two layers, the ids of the tokens."""
    token, ends = tokenizer.convert_tokens_to_ids, qwen2.tiny_ends(tokenizer)
    rotation = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    layout = {
        "depth": 2,
        "num_heads": 3,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
    }
    return {
        "text_config": {
            **qwen2.tiny_text(tokenizer, vocabulary),
            "rope_parameters": rotation,
            **text,
        },
        "vision_config": {**layout, **vision},
        "image_token_id": token(IMAGE_TOKEN),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
        "tie_word_embeddings": True,
        **ends,
    }


def _tiny_config(tokenizer: Any, vocabulary: int, text: Mapping[str, Any]) -> Any:
    """Vision: embed 96, the width of the text tower behind the merger."""
    from transformers import Qwen2VLConfig

    vision = {"embed_dim": 96, "mlp_ratio": 3, "hidden_size": text.get("hidden_size", 128)}
    return Qwen2VLConfig(**tiny_settings(tokenizer, vocabulary, text, vision))


def _tiny_processor(tokenizer: Any, chat_template: str) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    tokenizer.chat_template = chat_template
    size = {"shortest_edge": (2 * SIDE) ** 2, "longest_edge": SIDE * SIDE * 256}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=chat_template,
    )


QWEN2_VL = Family(
    model_type="qwen2_vl",
    model_class="Qwen2VLForConditionalGeneration",
    has_vision=True,
    control_tokens=qwen2.QWEN2.control_tokens,
    text_tokens=qwen2.POINTING_TOKENS,
    vision_tokens=qwen2.VISION_TOKENS,
    image_token=IMAGE_TOKEN,
    image_markup=_IMAGE,
    image_size=image_size,
    image_tokens=image_tokens,
    patches=patches,
    processor_settings=processor_settings,
    blank_image=blank_image,
    positions=mrope_positions,
    tower_positions=_all_axes,
    image_features=_image_features,
    place_features=_place_features,
    language_model=_language_model,
    layers=_layers,
    attentions=_attentions,
    vision_tower=_vision_tower,
    vision_blocks=_vision_blocks,
    patch_embedding="patch_embed.proj",
    part_of=_part_of,
    shape_of=shape_of,
    thinned=thinned,
    boxes=PUBLISHED,
    tiny=replace(
        qwen2.QWEN2.tiny,
        chat_template=_CHAT_TEMPLATE,
        config=_tiny_config,
        processor=_tiny_processor,
    ),
)
