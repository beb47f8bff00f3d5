"""Qwen3-VL: patches of 16 pixels, and features of several layers of the vision tower enter behind the first layers of the
text tower (DeepStack, arXiv:2406.04334). They enter at image tokens, which are in the prompt: it is still computed once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpg_vl.models.families import qwen2_vl, qwen3
from gpg_vl.models.families.boxes import PATCHES_OF_16
from gpg_vl.models.families.qwen2_vl import MERGE_SIZE, QWEN2_VL, tiny_settings, with_vision
from gpg_vl.models.shape import Kept, Shape

PATCH_SIZE = 16
"""Pixels along the side of a patch."""
SIDE = PATCH_SIZE * MERGE_SIZE


# ---- features


def _image_features(model: Any, pixel_values_N: Tensor, grid_thw_I_3: Tensor) -> list[Tensor]:
    """[image tokens, (1 + D) * H]: what the merger gives, and next to it what D layers of the tower gave."""
    seen = model.model.get_image_features(pixel_values_N, grid_thw_I_3)
    by_image = zip(seen.pooler_output, *seen.deepstack_features, strict=True)
    return [torch.cat(of_layers, dim=1) for of_layers in by_image]


def _deep_features(
    model: Any, features: Sequence[Tensor], image_mask_T: Tensor
) -> Mapping[str, Any]:
    """Layer d of the text tower adds the d-th of them to its output, at the image tokens."""
    width = model.config.text_config.hidden_size
    _, *deep = torch.cat(list(features)).split(width, dim=1)
    return {"visual_pos_masks": image_mask_T[None], "deepstack_visual_embeds": deep}


# ---- what is known from the config alone


def shape_of(config: Any) -> Shape:
    """In the vision tower an MLP of two matrices and attention over the whole image; a merger for each layer that is read."""
    vision = config.vision_config
    width, inner = vision.hidden_size, vision.intermediate_size
    text = qwen3.shape_of(config)
    shape = with_vision(
        config,
        width=width,
        mlp_weights=2 * width * inner,
        full_attention_layers=vision.depth,
        # as in Qwen2-VL, but the activation of the MLP keeps what it is given alone
        kept=Kept(computed=9 * width + 2 * inner, summed=2 * width),
    )
    mergers = 1 + len(vision.deepstack_visual_indexes)
    return replace(shape, kept=text.kept, merger_weights=mergers * shape.merger_weights)


def thinned(config: Any, share: int) -> Any:
    """Of the layers that are read, as many as there are blocks to read and layers to take them."""
    thin = qwen2_vl.thinned(config, share)
    vision = thin.vision_config
    most = min(vision.depth, thin.get_text_config().num_hidden_layers)
    vision.deepstack_visual_indexes = list(range(len(vision.deepstack_visual_indexes)))[:most]
    return thin


def _tiny_config(tokenizer: Any, vocabulary: int, text: Mapping[str, Any]) -> Any:
    """Vision: 96 wide; each of its two layers is read, for the outputs of the first two layers of the text tower."""
    from transformers import Qwen3VLConfig

    vision = {
        "hidden_size": 96,
        "intermediate_size": 288,
        "patch_size": PATCH_SIZE,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
        "out_hidden_size": text.get("hidden_size", 128),
    }
    settings = tiny_settings(tokenizer, vocabulary, {"head_dim": 32, **text}, vision)
    settings["text_config"]["rope_parameters"]["mrope_interleaved"] = True
    return Qwen3VLConfig(**settings)


def _tiny_processor(tokenizer: Any, chat_template: str) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    tokenizer.chat_template = chat_template
    size = {"shortest_edge": (2 * SIDE) ** 2, "longest_edge": SIDE * SIDE * 256}
    half = [0.5, 0.5, 0.5]
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size=size, patch_size=PATCH_SIZE, image_mean=half, image_std=half
        ),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=chat_template,
    )


QWEN3_VL = replace(
    QWEN2_VL,
    model_type="qwen3_vl",
    model_class="Qwen3VLForConditionalGeneration",
    image_size=partial(qwen2_vl.image_size, side=SIDE),
    image_tokens=partial(qwen2_vl.image_tokens, side=SIDE),
    patches=partial(qwen2_vl.patches, side=SIDE),
    image_features=_image_features,
    deep_features=_deep_features,
    shape_of=shape_of,
    thinned=thinned,
    boxes=PATCHES_OF_16,
    tiny=replace(QWEN2_VL.tiny, config=_tiny_config, processor=_tiny_processor),
)
