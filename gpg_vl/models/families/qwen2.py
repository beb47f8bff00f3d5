"""Qwen2 and Qwen2.5: text only, and the text tower of the vision families."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gpg_vl.models.families.family import Family, Tiny
from gpg_vl.models.shape import Kept, Shape

VISION_TOKENS = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""They are in the vocabulary of text-only checkpoints too."""
POINTING_TOKENS = tuple(
    f"<|{what}_{end}|>" for what in ("object_ref", "box", "quad") for end in ("start", "end")
)
"""Around the name of an object and its place, in questions and in answers."""
TURN_START, TURN_END, TEXT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def text_positions(ids_T: Tensor, image_mask_T: Tensor, grid_thw_I_3: Tensor | None) -> Tensor:
    """0, 1, 2, ... on all three axes."""
    return torch.arange(ids_T.shape[0]).expand(3, -1).clone()


def _first_axis(positions_3_B_T: Tensor) -> Tensor:
    """[B, T]: all three are equal, and the tower knows one."""
    return positions_3_B_T[0]


def _language_model(model: Any) -> nn.Module:
    tower: nn.Module = model.model
    return tower


def _layers(model: Any) -> list[nn.Module]:
    return list(model.model.layers)


def _attentions(model: Any) -> list[nn.Module]:
    return [layer.self_attn for layer in model.model.layers]


def shape_of(config: Any) -> Shape:
    """The shape of the text tower: four projections and a gated MLP of three matrices in each layer."""
    text = config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    width, narrow = size * text.num_attention_heads, size * text.num_key_value_heads
    per_layer = text.hidden_size * (2 * width + 2 * narrow + 3 * text.intermediate_size)
    return Shape(
        body=per_layer * text.num_hidden_layers,
        head=text.hidden_size * text.vocab_size,
        layers=text.num_hidden_layers,
        width=width,
        key_values=2 * narrow * text.num_hidden_layers,
        hidden=text.hidden_size,
        kept=Kept(
            # the two norms' outputs; queries, keys, values, what was attended to, and its copy in
            # the order of the projection; gate, its activation, up, and the product of both
            computed=2 * text.hidden_size + 3 * width + 2 * narrow + 4 * text.intermediate_size,
            summed=4 * text.hidden_size,
            cast=3 * text.hidden_size,
        ),
    )


def thinned(config: Any, share: int) -> Any:
    """One in `share` of the text tower's layers and of the vocabulary."""
    thin = copy.deepcopy(config)
    text = thin.get_text_config()
    text.num_hidden_layers = max(1, text.num_hidden_layers // share)
    text.vocab_size = max(1, text.vocab_size // share)
    if hasattr(text, "layer_types"):
        text.layer_types = text.layer_types[: text.num_hidden_layers]

    # an embedding refuses a padding token beyond its end
    text.pad_token_id = None
    return thin


def tiny_ends(tokenizer: Any) -> dict[str, int]:
    """The ids with which texts and turns begin and end, as the released configs have them."""
    text_end, turn_end = tokenizer.convert_tokens_to_ids([TEXT_END, TURN_END])
    return {"bos_token_id": text_end, "eos_token_id": turn_end, "pad_token_id": text_end}


def tiny_text(tokenizer: Any, vocabulary: int) -> dict[str, Any]:
    """Hidden 128, 4 layers, 4 heads of 32 and 2 key-value heads, tied embeddings."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        **tiny_ends(tokenizer),
    }


def _tiny_config(tokenizer: Any, vocabulary: int, text: Mapping[str, Any]) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**tiny_text(tokenizer, vocabulary) | dict(text))


def _tiny_processor(tokenizer: Any, chat_template: str) -> Any:
    """The tokenizer, which is all that a text-only checkpoint has."""
    tokenizer.chat_template = chat_template
    return tokenizer


QWEN2 = Family(
    model_type="qwen2",
    model_class="Qwen2ForCausalLM",
    control_tokens=(*VISION_TOKENS, TURN_START, TURN_END),
    vision_tokens=VISION_TOKENS,
    positions=text_positions,
    tower_positions=_first_axis,
    language_model=_language_model,
    layers=_layers,
    attentions=_attentions,
    shape_of=shape_of,
    thinned=thinned,
    tiny=Tiny(
        special_tokens=(TEXT_END, TURN_START, TURN_END, *VISION_TOKENS),
        end_token=TURN_END,
        pad_token=TEXT_END,
        chat_template=_CHAT_TEMPLATE,
        config=_tiny_config,
        processor=_tiny_processor,
    ),
)
