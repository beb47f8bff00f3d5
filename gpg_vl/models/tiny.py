"""A tiny Qwen2-VL or Qwen2.5-VL checkpoint in the ordinary Hugging Face format, made offline from a seed.

It has every part of a real one (vision tower, merger, M-RoPE, tied embeddings, chat template, special tokens, a
near-greedy `generation_config.json` like the released checkpoints ship), so that what works with it works with them:
`Qwen2VLForConditionalGeneration.from_pretrained` and vLLM load it. About 1.3 million parameters.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from gpg_vl.models.load import quiet
from gpg_vl.models.torchvision_shim import ensure_torchvision

ensure_torchvision()

from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers  # noqa: E402
from tokenizers.models import BPE  # noqa: E402
from transformers import (  # noqa: E402
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(corpus: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on `corpus`, with Qwen's special tokens behind it. Any text can be encoded."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        additional_special_tokens=list(SPECIAL_TOKENS),
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def tiny_config(
    tokenizer: PreTrainedTokenizerFast,
    vocabulary: int,
    *,
    model_type: str = "qwen2_vl",
    **text: Any,
) -> Qwen2VLConfig | Qwen2_5_VLConfig:
    """Text: hidden 128, 4 layers, 4 heads of 32 and 2 key-value heads. Vision: embed 96, 2 layers. `text` overrides."""
    if model_type not in _VISION:
        raise ValueError(f"model_type is {model_type!r}; known are {', '.join(_VISION)}")
    token = tokenizer.convert_tokens_to_ids
    ends = {
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }
    config_class, vision, width = _VISION[model_type]
    made: Qwen2VLConfig | Qwen2_5_VLConfig = config_class(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            "tie_word_embeddings": True,
            **ends,
            **text,
        },
        vision_config={
            "depth": 2,
            "num_heads": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
            width: text.get("hidden_size", 128),
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
        **ends,
    )
    return made


_VISION: dict[str, tuple[Any, dict[str, Any], str]] = {
    "qwen2_vl": (Qwen2VLConfig, {"embed_dim": 96, "mlp_ratio": 3}, "hidden_size"),
    # windows of 4x4 patches in the first layer, attention over the whole image in the second
    "qwen2_5_vl": (
        Qwen2_5_VLConfig,
        {
            "hidden_size": 96,
            "intermediate_size": 192,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        "out_hidden_size",
    ),
}
"""Configuration class, vision settings, and what the width of the image features is called."""


def tiny_processor(
    tokenizer: PreTrainedTokenizerFast, chat_template: str | None = CHAT_TEMPLATE
) -> Qwen2VLProcessor:
    from transformers import Qwen2VLVideoProcessor

    tokenizer.chat_template = chat_template
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 256}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=chat_template,
    )


def tiny_model(config: Qwen2VLConfig | Qwen2_5_VLConfig, seed: int) -> PreTrainedModel:
    """Weights from `seed` alone: the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        newer = isinstance(config, Qwen2_5_VLConfig)
        model: Any = (
            Qwen2_5_VLForConditionalGeneration if newer else Qwen2VLForConditionalGeneration
        )(config)
    made: PreTrainedModel = model.float().eval()
    return made


def save_checkpoint(model: PreTrainedModel, processor: Qwen2VLProcessor, folder: Path) -> None:
    """Write weights, configuration, tokenizer, processor and chat template as `from_pretrained` expects them."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        model.save_pretrained(folder)
    processor.save_pretrained(folder)
    near_greedy = {
        "do_sample": True,
        "temperature": 0.01,
        "top_p": 0.001,
        "top_k": 1,
        "bos_token_id": model.config.text_config.bos_token_id,
        "eos_token_id": [
            model.config.text_config.eos_token_id,
            model.config.text_config.pad_token_id,
        ],
        "pad_token_id": model.config.text_config.pad_token_id,
    }
    (folder / "generation_config.json").write_text(json.dumps(near_greedy, indent=2) + "\n")
