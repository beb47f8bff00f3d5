"""A loaded checkpoint: its policy, its prompt encoder, and engines that sample from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from gpg_vl.data.question import Pictures, make_question
from gpg_vl.models.answer_tokens import tokens_of_answer
from gpg_vl.models.attention import Kernel, choose_kernel
from gpg_vl.models.encode import Encoder
from gpg_vl.models.families import Family
from gpg_vl.models.features import FeatureCache
from gpg_vl.models.layout import pack
from gpg_vl.models.load import Processing, load_model, load_processing
from gpg_vl.models.policy import Policy
from gpg_vl.models.policy_copy import cast_matrices, round_gathered
from gpg_vl.models.prefix import PrefixStore
from gpg_vl.models.requests import Score
from gpg_vl.models.run_checkpoints import newest_or_name
from gpg_vl.models.weight_precision import frozen, hold_matrices
from gpg_vl.prompting import DEFAULT_LIMITS, DEFAULT_STYLE, PixelLimits, PromptStyle
from gpg_vl.rollout import DEFAULT, engines
from gpg_vl.rollout.engine import (
    DEFAULT_OPTIONS,
    Engine,
    EngineOptions,
    EngineSetup,
    RolloutRequest,
    refuse_non_finite_answers,
)
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.types import Completion

DType = Literal["float32", "bfloat16"]


def autocast_dtype(dtype: str) -> torch.dtype | None:
    """The autocast dtype of the forward pass for a config's `dtype`; None means no autocast: it runs in float32."""
    return torch.bfloat16 if dtype == "bfloat16" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A loaded checkpoint that can generate answers, score given answers and be trained.

    Example:
        `model = Model.load("Qwen/Qwen2-VL-2B-Instruct", dtype="bfloat16")`, then
        `for answer in model.generate("street.png", "How many cars are there?", n=8): print(answer.text)`. For many prompts
        at once: `model.engine().generate([RolloutRequest(prompt=model.encoder().encode(example), draw=0)], Sampling(...))`.
    """

    path: str
    """The checkpoint it was loaded from, for engines that load their own copy; "" if there is none."""
    revision: str | None = None
    policy: Policy
    processing: Processing
    autocast: torch.dtype | None = None
    """The autocast dtype of the forward pass; None computes in the weights' own dtype."""
    gathered: torch.dtype | None = None
    """The dtype to which sharded weights are cast when they are gathered for computing; None keeps their dtype."""

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
        """Load a checkpoint from a folder or from the hub. For the folder of a run, load its newest complete checkpoint.
        Weights are float32; with dtype bfloat16 the matrices that `prepare` has frozen are bfloat16 (`models.weight_precision`).

        path: a checkpoint folder, the folder of a run, or a hub name. revision: a branch, tag or commit of the hub.
        dtype: the dtype of the forward pass; bfloat16 runs under autocast.
        gathered: see the field of that name; it affects only `copy`.
        device: the device to load it to; None takes a GPU if there is one.
        placed: False leaves the weights on the CPU, so that the caller can move them to the device part by part.
        temperature: divides the logits when completions are scored.
        attention: the attention kernel; "auto" takes the fastest one that works here.
        vision_cache_mb: memory in MiB for cached image features, used while the vision tower is frozen.
        processing: the tokenizer and image processor, if they were already loaded from the same checkpoint.
        prepare: called with the model and its family before the policy is built, to add adapters or freeze parts.
        Raises UserError if the checkpoint cannot be read, or cannot be trained exactly.
        """
        path = newest_or_name(path)
        processing = processing or load_processing(path, revision)
        model = load_model(path, revision=revision)
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
            path=path,
            revision=revision,
            policy=policy.to(where) if placed else policy,
            processing=processing,
            autocast=autocast,
            gathered=gathered,
        )

    def generate(
        self,
        pictures: Pictures,
        question: str,
        *,
        n: int = 1,
        temperature: float = 1.0,
        max_new_tokens: int = 256,
        seed: int = 0,
        style: PromptStyle = DEFAULT_STYLE,
        limits: PixelLimits = DEFAULT_LIMITS,
    ) -> tuple[Completion, ...]:
        """Sample `n` answers to one question. The question is encoded once. `answer.text` is the text of an answer.

        pictures: a path, the bytes of an image file, a Pillow image, a list of these, or None.
        temperature: 0 is greedy. seed: the same seed gives the same answers.
        max_new_tokens: the maximum length of an answer, including the end token; an answer that was cut off has
            `finish_reason` "length".
        Raises UserError for a picture or a question that cannot be encoded, RunError if the model computes NaN.
        """
        prompt = self.encoder(style, limits).encode(make_question(pictures, question))
        sampling = Sampling(
            group_size=n, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed
        )
        requests = [RolloutRequest(prompt=prompt, draw=0)]
        answers = self.engine().generate(requests, sampling)
        refuse_non_finite_answers(requests, answers)
        return answers[0]

    def score(
        self,
        pictures: Pictures,
        question: str,
        responses: Sequence[str | Completion],
        *,
        style: PromptStyle = DEFAULT_STYLE,
        limits: PixelLimits = DEFAULT_LIMITS,
    ) -> tuple[Completion, ...]:
        """Compute this model's log-probs of given responses. Returns a completion for each: `logprobs` holds one value per token,
        `logprob` their sum.

        responses: texts, to which an end-of-turn token is added; or completions, such as those of `generate`, whose tokens
            are scored unchanged. The log-probs are those at the temperature given to `load`.
        Raises UserError as `generate` does, and for a text with control tokens.
        """
        prompt = self.encoder(style, limits).encode(make_question(pictures, question))
        given = [
            response
            if isinstance(response, Completion)
            else Completion(
                token_ids=tokens_of_answer(self.processing, response, f"Response {number}"),
                text=response,
                prefill=prompt.prefill,
            )
            for number, response in enumerate(responses)
        ]
        if not given:
            return ()

        packed = pack([prompt], [[completion.token_ids for completion in given]])
        device = self.policy.device
        with (
            torch.no_grad(),
            torch.autocast(device.type, self.autocast, enabled=self.autocast is not None),
        ):
            logp_K = self.policy(Score(packed=packed.to(device))).logp_K.cpu()
        by_completion = logp_K.split([len(completion.token_ids) for completion in given])
        return tuple(
            replace(completion, logprobs=tuple(logp_T.tolist()))
            for completion, logp_T in zip(given, by_completion, strict=True)
        )

    def copy(self) -> Policy:
        """A second policy, read from the checkpoint again: without adapters, in the dtype of the forward pass, never trained.
        It shares the cached image features with this one if the vision tower is frozen.
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
        """The encoder that turns examples into prompts. `root`: image paths are relative to this folder and may not
        leave it."""
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
        """An engine that samples from this model; see `rollout.engine.EngineSetup`. Raises UserError for an unknown
        name.

        awaits_sync: True if `Engine.sync` will be called before the first answer is sampled.
        by_copy: True to sample from a copy of the policy, because this process may hold only a part of its weights; `Engine.sync`
            copies the weights.
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
