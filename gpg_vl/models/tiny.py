"""A tiny checkpoint of a model family in the ordinary Hugging Face format, made offline from a seed.

It has every part of a real one (vision tower, merger, M-RoPE, tied embeddings, chat template, special tokens, a
near-greedy `generation_config.json` like the released checkpoints ship), so code that works with it also works with real ones;
transformers' `from_pretrained` and vLLM load it. About 1.3 million parameters. `Family.tiny` has the differences between
families.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from gpg_vl.models.adapters import merged_weights
from gpg_vl.models.families import DEFAULT, families
from gpg_vl.models.save import follow_umask, save_model
from gpg_vl.models.torchvision_shim import ensure_torchvision

ensure_torchvision()

import transformers  # noqa: E402
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers  # noqa: E402
from tokenizers.models import BPE  # noqa: E402
from transformers import PreTrainedModel, PreTrainedTokenizerFast  # noqa: E402


def tiny_tokenizer(
    corpus: Iterable[str], vocabulary: int, *, model_type: str = DEFAULT
) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on `corpus`, plus the family's special tokens. Any text can be encoded."""
    facts = families.get(model_type).tiny
    special = list(facts.special_tokens)

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(special),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(special)

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=facts.end_token,
        pad_token=facts.pad_token,
        padding_side="left",
        additional_special_tokens=special,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def tiny_config(
    tokenizer: PreTrainedTokenizerFast, vocabulary: int, *, model_type: str = DEFAULT, **text: Any
) -> Any:
    """The transformers config of a tiny model; `text` overrides settings of its text tower.

    Text: hidden 128, 4 layers, 4 heads of 32 and 2 key-value heads. Vision: 96 wide, 2 layers. Raises UnknownNameError.
    """
    return families.get(model_type).tiny.config(tokenizer, vocabulary, text)


def tiny_processor(tokenizer: PreTrainedTokenizerFast, *, model_type: str = DEFAULT) -> Any:
    """The processor with the family's chat template, which is also set on `tokenizer`."""
    facts = families.get(model_type).tiny
    return facts.processor(tokenizer, facts.chat_template)


def tiny_model(config: Any, seed: int) -> PreTrainedModel:
    """A model with weights that depend only on `seed`; the caller's random state is not changed."""
    model_class = getattr(transformers, families.get(config.model_type).model_class)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = model_class(config)
    made: PreTrainedModel = model.float().eval()
    return made


def save_checkpoint(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    """Write weights, configuration, tokenizer, processor and chat template as `from_pretrained` expects them."""
    # save_pretrained would import DeepSpeed if it is installed, which prints messages
    save_model(model, merged_weights(model), folder)
    processor.save_pretrained(folder)
    follow_umask(folder)

    text = model.config.get_text_config()
    near_greedy = {
        "do_sample": True,
        "temperature": 0.01,
        "top_p": 0.001,
        "top_k": 1,
        "bos_token_id": text.bos_token_id,
        "eos_token_id": [text.eos_token_id, text.pad_token_id],
        "pad_token_id": text.pad_token_id,
    }
    (folder / "generation_config.json").write_text(json.dumps(near_greedy, indent=2) + "\n")
