"""Model types that are known and not trained, each with what is missing: the reason that a refusal gives."""

_LINEAR_ATTENTION = (
    "its linear attention layers leave a recurrent state and a convolution window where other layers leave keys and values, "
    "and the branches of a group would have to start from those (docs/families.md has the design)"
)
_EXPERTS = (
    "its layers are mixtures of experts, of which a token uses a few: the estimates of time and memory do not know experts, "
    "and in what precision they are computed with model.dtype=bfloat16 was not tested (docs/families.md has what is needed)"
)
_MASKS = (
    "some of its layers see a window of tokens alone and the tokens of an image see each other both ways, and attention over "
    "shared prompts has one mask for all layers"
)

MISSING = {
    "gemma3": _MASKS,
    "gemma3_text": _MASKS,
    "qwen3_5": _LINEAR_ATTENTION,
    "qwen3_5_text": _LINEAR_ATTENTION,
    "qwen3_5_moe": _LINEAR_ATTENTION,
    "qwen3_5_moe_text": _LINEAR_ATTENTION,
    "qwen3_next": _LINEAR_ATTENTION,
    "qwen3_vl_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "qwen2_moe": _EXPERTS,
}
"""`model_type` -> what is missing, as the end of a sentence. A family registered under such a name is trained all the same."""
