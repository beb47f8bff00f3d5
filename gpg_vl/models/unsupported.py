"""Refuses checkpoints that gpg_vl cannot train exactly, with the reason and a remedy."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from gpg_vl.errors import UserError

ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Attention names that a config may have: they are part of transformers, and gpg_vl ignores them and computes attention
itself."""
_ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_KERNEL_KEYS = ("use_kernels", "kernel_config", "experts_implementation")


def refuse_foreign_parts(written: Mapping[str, Any], path: str) -> None:
    """Refuse a config.json that asks for quantised weights, or for kernels that would be downloaded from the hub.

    written: the content of the file. Raises UserError.
    """
    for where, settings in _sections(written):
        if quantised := settings.get("quantization_config"):
            method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
            raise UserError(
                f"The checkpoint {path} is quantised ({method or 'by an unnamed method'}, {where}quantization_config in "
                f"its config.json); gpg_vl trains plain float32, bfloat16 and float16 weights. Use the original "
                f"checkpoint. To save memory see model.dtype, model.weights and model.lora_rank."
            )
        for key in _ATTENTION_KEYS:
            if (named := settings.get(key)) not in (None, *ATTENTIONS):
                _refuse_kernel(path, f"{where}{key}", named)
        for key in _KERNEL_KEYS:
            if named := settings.get(key):
                _refuse_kernel(path, f"{where}{key}", named)


def _refuse_kernel(path: str, key: str, named: object) -> None:
    raise UserError(
        f"config.json of {path} says {key}: {named!r:.80}, which may be code downloaded from the hub; gpg_vl does not run "
        f"such code. Known: {', '.join(ATTENTIONS)}. Remove the key: attention is computed by gpg_vl (train.attention)."
    )


def _sections(
    written: Mapping[str, Any], where: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A config and the configs of its parts, each with a prefix for its keys."""
    yield where, written
    for name, part in written.items():
        if isinstance(part, Mapping) and name != "quantization_config":
            yield from _sections(part, f"{where}{name}.")


def refuse_unsupported(model: Any) -> None:
    """Refuse models for which the shared layout would differ from separate rows. Raises UserError."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise UserError(
            f"The model has layers of type {', '.join(sorted(kinds))}; only full_attention is supported. Set "
            f"use_sliding_window to false in the checkpoint's config.json if its prompts are short enough."
        )

    parts = {"text": config, "vision": getattr(model.config, "vision_config", None)}
    for part, settings in parts.items():
        if rate := getattr(settings, "attention_dropout", 0.0):
            raise UserError(
                f"The model's {part} config has attention_dropout {rate}; only 0 is allowed, because sampling and "
                f"training must use the same policy, and a prompt computed once per group would use one dropout mask "
                f"where separate rows use one each. Set it to 0 in the checkpoint's config.json."
            )

    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise UserError(
            "The model's head has a bias, which the head of gpg_vl does not compute. Choose one without."
        )

    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            raise UserError(
                f"The module {name} has dropout probability {module.p}; only 0 is allowed, because a prompt computed once "
                f"per group would use one dropout mask where separate rows use one each. Set the dropout of the model or "
                f"adapter to 0."
            )
