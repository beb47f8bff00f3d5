"""The model section of a config: which policy is trained, and which part of it."""

from typing import Literal

from pydantic import Field, model_validator

from gpg_vl.config.declaration import Section

Part = Literal["vision", "merger", "language"]
"""The vision tower, the merger behind it, the language model."""


class ModelConfig(Section):
    """Which policy is trained, and which part of it."""

    path: str
    """A checkpoint folder in the Hugging Face format (or a hub name, where a network is to be had)."""
    revision: str | None = None
    """Branch, tag or commit of a hub checkpoint."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Numbers of the forward pass. bfloat16 runs under autocast: what is trained stays float32 (see `weights`), frozen matrices
    are held in bfloat16, which gives the same numbers."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Numbers of what is trained. bfloat16, only with `dtype: bfloat16`, holds its matrices in 2 bytes instead of 4: each step is
    rounded at random to one of the two nearest numbers, right on average. Under `train.sharding: fsdp2` each process keeps its
    part in float32, and what is gathered is bfloat16. Norms and biases, gradients and moments stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    freeze: tuple[Part, ...] = ()
    """Parts whose weights must not change: the vision tower, the merger behind it, the language model."""
    vision_cache_mb: int = Field(2048, ge=0)
    """Memory for the features of images while vision and merger are frozen: each image is encoded once per run. 0: none."""
    lora_rank: int = Field(0, ge=0)
    """Rank of low-rank adapters (peft). 0 trains the weights themselves."""
    lora_alpha: float = Field(32.0, gt=0)
    """Scale of the adapters: they add alpha/rank times their product."""
    lora_on: tuple[Part, ...] = Field(("language",), min_length=1)
    """Parts that get adapters: vision, merger, language. Every other weight is frozen."""
    lora_targets: tuple[str, ...] | None = Field(None, min_length=1)
    """Names of linear layers in these parts that get adapters, such as `[q_proj, v_proj]`; None: all of them but the head."""
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Must be 0: dropout would make the log-probs of training differ from those that were sampled."""

    @model_validator(mode="after")
    def _trains_its_adapters(self) -> "ModelConfig":
        if not self.lora_rank and self.lora_on != ModelConfig.model_fields["lora_on"].default:
            raise ValueError(
                f"lora_on is {list(self.lora_on)}, but lora_rank is 0: there would be no adapters, and every weight would be "
                f"trained. Set lora_rank, to 16 for example, or leave lora_on out."
            )
        if self.lora_rank and (both := [part for part in self.lora_on if part in self.freeze]):
            raise ValueError(
                f"freeze names {', '.join(both)}, which lora_on puts adapters on: they would never be trained. All weights but "
                f"those of adapters are frozen anyway: take {', '.join(both)} out of freeze, or out of lora_on."
            )
        return self

    @model_validator(mode="after")
    def _weights_of_the_forward_pass(self) -> "ModelConfig":
        if self.weights == "bfloat16" and self.dtype != "bfloat16":
            raise ValueError(
                f"weights is bfloat16, but dtype is {self.dtype}: rounded weights would be computed with as if they were exact. "
                f"bfloat16 weights go with dtype bfloat16 alone. Set dtype to bfloat16, or weights to float32."
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
