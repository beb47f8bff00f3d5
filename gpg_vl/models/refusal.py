"""Checkpoints that gpg_vl cannot train exactly are refused, each with its reason and remedy."""

from typing import Any

from torch import nn

from gpg_vl.errors import UserError


def refuse_unsupported(model: Any) -> None:
    """What would make the shared layout differ from separate rows. Raises UserError."""
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
                f"The model's {part} config has attention_dropout {rate}; only 0 is allowed, because the policy that samples "
                f"and the one that trains must be the same, and a prompt that is computed once for its group draws one "
                f"mask where separate rows draw one each. Set it to 0 in the checkpoint's config.json."
            )

    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise UserError(
            "The model's head has a bias, which the head of gpg_vl does not compute. Choose one without."
        )

    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            raise UserError(
                f"The module {name} drops out with probability {module.p}; only 0 is allowed, because a prompt that is "
                f"computed once for its group draws one mask where separate rows draw one each. Set the dropout of the "
                f"model or adapter to 0."
            )
