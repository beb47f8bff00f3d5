"""Qwen2.5-VL: Qwen2-VL with windows and gated MLPs in its vision tower, and boxes in pixels of the resized image."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpg_vl.models.families.boxes import PUBLISHED
from gpg_vl.models.families.qwen2_vl import QWEN2_VL, tiny_settings, with_vision
from gpg_vl.models.families.qwen2_vl import thinned as without_windows
from gpg_vl.models.shape import Kept, Shape


def shape_of(config: Any) -> Shape:
    """In the vision tower a gated MLP of three matrices; few blocks attend over the whole image, the others in windows."""
    vision = config.vision_config
    width = vision.hidden_size
    return with_vision(
        config,
        width=width,
        mlp_weights=3 * width * vision.intermediate_size,
        full_attention_layers=len(vision.fullatt_block_indexes),
        # as in the other family, but norms without a mean keep what they give before their weight,
        # and a gated MLP its gate, the activation of it, up, and the product
        kept=Kept(computed=9 * width + 4 * vision.intermediate_size, summed=4 * width, cast=width),
    )


def thinned(config: Any, share: int) -> Any:
    """Of the blocks that attend over the whole image, those that are left."""
    thin = without_windows(config, share)
    vision = thin.vision_config
    vision.fullatt_block_indexes = [i for i in vision.fullatt_block_indexes if i < vision.depth]
    return thin


def _tiny_config(tokenizer: Any, vocabulary: int, text: Mapping[str, Any]) -> Any:
    """Windows of 4x4 patches in the first block, attention over the whole image in the second."""
    from transformers import Qwen2_5_VLConfig

    vision = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "out_hidden_size": text.get("hidden_size", 128),
    }
    return Qwen2_5_VLConfig(**tiny_settings(tokenizer, vocabulary, text, vision))


QWEN2_5_VL = replace(
    QWEN2_VL,
    model_type="qwen2_5_vl",
    model_class="Qwen2_5_VLForConditionalGeneration",
    shape_of=shape_of,
    thinned=thinned,
    boxes=replace(PUBLISHED, coordinates="abs_resized"),
    tiny=replace(QWEN2_VL.tiny, config=_tiny_config),
)
