"""A checkpoint put together once for everybody: the policy, what prepares its prompts, and engines that answer with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from gpg_vl.models.attention import Kernel, choose_kernel
from gpg_vl.models.copy import cast_matrices, round_gathered
from gpg_vl.models.encode import Encoder
from gpg_vl.models.families import Family
from gpg_vl.models.features import FeatureCache
from gpg_vl.models.held import frozen, hold_matrices
from gpg_vl.models.load import Processing, load_model, load_processing
from gpg_vl.models.policy import Policy
from gpg_vl.models.prefix import PrefixStore
from gpg_vl.prompting import DEFAULT_LIMITS, DEFAULT_STYLE, PixelLimits, PromptStyle
from gpg_vl.rollout import DEFAULT, engines
from gpg_vl.rollout.engine import DEFAULT_OPTIONS, Engine, EngineOptions, EngineSetup

DType = Literal["float32", "bfloat16"]


def autocast_dtype(dtype: str) -> torch.dtype | None:
    """What the forward pass is autocast to for a config's `dtype`; None computes in the weights' own float32."""
    return torch.bfloat16 if dtype == "bfloat16" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A checkpoint that can answer, be scored and be trained.

    Example:
        `model = Model.load("Qwen/Qwen2-VL-2B-Instruct", dtype="bfloat16")`, then `prompt = model.encoder().encode(example)`
        and `model.engine().generate([RolloutRequest(prompt=prompt, draw=0)], Sampling(...))`.
    """

    path: str
    """Where it was loaded from, for engines that hold a copy of their own; "" if nowhere."""
    revision: str | None = None
    policy: Policy
    processing: Processing
    autocast: torch.dtype | None = None
    """Of the forward pass; None computes in the weights' own dtype."""
    gathered: torch.dtype | None = None
    """Of weights that are spread over processes, while they are computed with; None computes with them as they are."""

    @staticmethod
    def load(
        path: str | Path,
        *,
        revision: str | None = None,
        dtype: DType = "float32",
        gathered: torch.dtype | None = None,
        device: torch.device | str | None = None,
        placed: bool = True,
        temperature: float = 1.0,
        attention: Literal["auto"] | Kernel = "auto",
        vision_cache_mb: int = 0,
        processing: Processing | None = None,
        prepare: Callable[[Any, Family], None] | None = None,
    ) -> "Model":
        """The checkpoint in a folder, or on the hub under a name and revision. Weights are float32; under bfloat16 matrices
        that `prepare` has frozen are bfloat16, see `models.held`.

        gathered: see the field; it changes nothing but copies.
        device: where it goes; None is a GPU if there is one.
        placed: False leaves the weights on the CPU, for somebody who brings them to the device part by part.
        temperature: divides the logits when completions are scored.
        vision_cache_mb: memory for the features of images while the vision tower is frozen.
        processing: what was loaded of the same checkpoint before.
        prepare: called with the model and its family before the policy is made, to add adapters or freeze parts.
        Raises UserError if the checkpoint cannot be read, or cannot be trained exactly.
        """
        processing = processing or load_processing(str(path), revision)
        model = load_model(str(path), revision=revision)
        if prepare is not None:
            prepare(model, processing.family)

        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        autocast = autocast_dtype(dtype)
        if autocast is not None:
            hold_matrices(frozen(model), autocast)
        kernel, _ = choose_kernel(attention, where, autocast or torch.float32)
        policy = Policy(
            model,
            processing.family,
            processing.tokens,
            temperature=temperature,
            kernel=kernel,
            features=FeatureCache(vision_cache_mb * 2**20) if vision_cache_mb else None,
        )
        return Model(
            path=str(path),
            revision=revision,
            policy=policy.to(where) if placed else policy,
            processing=processing,
            autocast=autocast,
            gathered=gathered,
        )

    def copy(self) -> Policy:
        """A policy beside this one, read from the checkpoint again: without adapters, in the dtype of the forward pass, never
        trained. Features of images are shared while they do not change.
        """
        trained = self.policy
        policy = Policy(
            load_model(self.path, revision=self.revision).requires_grad_(False),
            trained.family,
            self.processing.tokens,
            temperature=trained.temperature,
            kernel=trained.kernel,
            features=None if trained.images.is_trained else trained.images.kept,
        )
        if self.autocast is not None:
            cast_matrices(policy, self.autocast)
        if self.gathered is not None:
            round_gathered(policy, self.gathered, but_vision=not trained.images.is_trained)
        return policy.to(trained.device)

    def encoder(
        self,
        style: PromptStyle = DEFAULT_STYLE,
        limits: PixelLimits = DEFAULT_LIMITS,
        root: Path | None = None,
    ) -> Encoder:
        """What turns examples into prompts. `root`: the folder that image paths are relative to and may not leave."""
        return Encoder(
            processing=self.processing,
            style=style,
            limits=limits,
            root=root,
        )

    def engine(
        self,
        name: str = DEFAULT,
        *,
        options: EngineOptions = DEFAULT_OPTIONS,
        prefixes: PrefixStore | None = None,
        awaits_sync: bool = False,
        by_copy: bool = False,
    ) -> Engine:
        """An engine that answers with this model; see `rollout.engine.EngineSetup`. Raises UserError for an unknown name.

        awaits_sync: `Engine.sync` is called before the first answer is wanted.
        by_copy: not with the policy itself, of which this process may hold a part only; `Engine.sync` hands the weights over.
        """
        setup = EngineSetup(
            path=self.path,
            revision=self.revision,
            policy=self.copy if by_copy else lambda: self.policy,
            fills_policy=by_copy,
            processing=self.processing,
            autocast=self.autocast,
            options=options,
            awaits_sync=awaits_sync,
            trains_vision=self.policy.images.is_trained,
            prefixes=prefixes,
        )
        return engines.get(name)(setup)
