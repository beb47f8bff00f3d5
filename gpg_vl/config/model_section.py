"""The model section of a config: which checkpoint is trained, and which parts of it."""

from typing import Literal

from pydantic import Field, model_validator

from gpg_vl.config.declaration import Section

Part = Literal["vision", "merger", "language"]
"""The vision tower, the merger behind it, the language model."""


class ModelConfig(Section):
    """Which checkpoint is trained, and which parts of it."""

    path: str
    """A checkpoint folder in the Hugging Face format, or a hub name (needs a network)."""
    revision: str | None = None
    """Branch, tag or commit of a hub checkpoint."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass. bfloat16 runs under autocast: trained weights stay float32 (see `weights`), frozen
    matrices are stored in bfloat16, which gives the same results."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Precision of the trained weights. bfloat16, allowed only with `dtype: bfloat16`, stores trained matrices in 2 bytes
    per weight instead of 4; updates use stochastic rounding, which is right on average. Under `train.sharding: fsdp2` each
    process keeps its part in float32 and gathers weights in bfloat16. Norms, biases, gradients and moments stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    freeze: tuple[Part, ...] = ()
    """Parts whose weights are not trained: `vision` (the vision tower), `merger` (between vision tower and language model),
    `language` (the language model)."""
    vision_cache_mb: int = Field(2048, ge=0)
    """Memory in MiB for cached image features, used while vision and merger are frozen: each image is then encoded once per run.
    0: no cache."""
    lora_rank: int = Field(0, ge=0)
    """Rank of LoRA adapters (peft). 0 trains the weights themselves."""
    lora_alpha: float = Field(32.0, gt=0)
    """Scale of the adapters: they add lora_alpha / lora_rank times the product of their matrices."""
    lora_on: tuple[Part, ...] = Field(("language",), min_length=1)
    """Parts that get adapters: vision, merger, language. Every other weight is frozen."""
    lora_targets: tuple[str, ...] | None = Field(None, min_length=1)
    """Names of linear layers in these parts that get adapters, such as `[q_proj, v_proj]`; None: all of them but the head."""
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Must be 0: with dropout the log-probs in training would differ from those at sampling."""

    @model_validator(mode="after")
    def _trains_its_adapters(self) -> "ModelConfig":
        if not self.lora_rank and self.lora_on != ModelConfig.model_fields["lora_on"].default:
            raise ValueError(
                f"lora_on is {list(self.lora_on)}, but lora_rank is 0: there would be no adapters, and every weight would be "
                f"trained. Set lora_rank, to 16 for example, or leave lora_on out."
            )
        if self.lora_rank and (both := [part for part in self.lora_on if part in self.freeze]):
            raise ValueError(
                f"freeze names {', '.join(both)}, on which lora_on puts adapters: they would never be trained. With "
                f"adapters all other weights are frozen anyway: remove {', '.join(both)} from freeze, or from lora_on."
            )
        return self

    @model_validator(mode="after")
    def _weights_of_the_forward_pass(self) -> "ModelConfig":
        if self.weights == "bfloat16" and self.dtype != "bfloat16":
            raise ValueError(
                f"weights is bfloat16, but dtype is {self.dtype}: rounded weights would be used as if they were exact. "
                f"bfloat16 weights need dtype bfloat16. Set dtype to bfloat16, or weights to float32."
            )
        return self

    @model_validator(mode="after")
    def _no_dropout(self) -> "ModelConfig":
        if self.lora_dropout:
            raise ValueError(
                f"lora_dropout is {self.lora_dropout}; only 0 is allowed: GPG has no ratio that could correct "
                f"for a policy that samples and trains under different dropout masks. Set it to 0."
            )
        return self
