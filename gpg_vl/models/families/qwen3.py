"""Qwen3: text only. Queries and keys are normalised head by head, and projections have no bias."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpg_vl.models.families.qwen2 import QWEN2, tiny_text
from gpg_vl.models.families.qwen2 import shape_of as shape_without_head_norms
from gpg_vl.models.shape import Shape


def shape_of(config: Any) -> Shape:
    """That of Qwen2, and what the norms of queries and keys keep in each layer."""
    shape = shape_without_head_norms(config)
    normed = shape.width + shape.key_values // (2 * shape.layers)
    kept = shape.kept._replace(
        computed=shape.kept.computed + normed, summed=shape.kept.summed + normed
    )
    return replace(shape, kept=kept)


def _tiny_config(tokenizer: Any, vocabulary: int, text: Mapping[str, Any]) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**tiny_text(tokenizer, vocabulary) | {"head_dim": 32} | dict(text))


QWEN3 = replace(
    QWEN2,
    model_type="qwen3",
    model_class="Qwen3ForCausalLM",
    shape_of=shape_of,
    tiny=replace(QWEN2.tiny, config=_tiny_config),
)
