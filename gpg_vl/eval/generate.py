"""Answers for an evaluation: the policy's own engine, the policy's own encoding."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from gpg_vl.errors import UserError
from gpg_vl.eval.predictions import Answers, Failed, Responder, Response
from gpg_vl.eval.settings import EvalSettings
from gpg_vl.model import DType, Model, autocast_dtype
from gpg_vl.models.encode import Encoder
from gpg_vl.models.load import Processing, load_processing
from gpg_vl.prompting import PromptStyle
from gpg_vl.rollout import engines, refuse_engine
from gpg_vl.rollout.engine import (
    Engine,
    EngineOptions,
    EngineSetup,
    RolloutRequest,
    refuse_non_finite_answers,
)
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.types import Completion, Example, Prompt

MEMORY = 0.85
"""Share of a GPU for an engine that manages its memory itself: nothing is trained next to it."""
BATCHES = 4
"""Batches that an engine is asked for at once: an answer that ends early makes room for one of a later batch."""


def eval_encoder(processing: Processing, settings: EvalSettings) -> Encoder:
    """Encodes rendered examples, whose template and system turn are filled in and whose images are bytes."""
    return Encoder(
        processing=processing,
        style=PromptStyle(chat=settings.style.chat, prefill=settings.style.prefill),
        root=None,
        limits=settings.limits,
    )


def eval_options(settings: EvalSettings) -> EngineOptions:
    """So many prompts and answers at a time as the settings say."""
    return EngineOptions(
        prompts_per_batch=settings.batch_size, slots=settings.batch_size * settings.repeats
    )


def engine_responder(engine: Engine, processing: Processing, settings: EvalSettings) -> Responder:
    """A responder that asks `engine`. Examples are rendered already, so the encoder adds the chat template and prefill only.

    Examples are answered `settings.batch_size` at a time, each `settings.repeats` times with its prompt encoded once;
    answers come in their order. An example that cannot be encoded is a `Failed`. The engine is asked once for `BATCHES`
    batches, and once where there is nothing to ask: processes that share an engine ask it equally often.
    """
    encoder = eval_encoder(processing, settings)
    sampling = Sampling(
        group_size=settings.repeats,
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        top_p=settings.top_p,
        top_k=settings.top_k,
    )

    def respond(examples: Sequence[Example]) -> Iterator[Answers]:
        together = BATCHES * settings.batch_size
        for start in range(0, max(1, len(examples)), together):
            batch = [
                (example, _encode(encoder, example))
                for example in examples[start : start + together]
            ]
            requests = [
                RolloutRequest(prompt=prompt, draw=_draw(example))
                for example, prompt in batch
                if isinstance(prompt, Prompt)
            ]
            generated = engine.generate(requests, sampling)
            refuse_non_finite_answers(requests, generated)
            answers = iter(generated)
            for _, prompt in batch:
                yield prompt if isinstance(prompt, Failed) else tuple(map(_response, next(answers)))

    return respond


def _encode(encoder: Encoder, example: Example) -> Prompt | Failed:
    try:
        return encoder.encode(example)
    except UserError as error:
        return Failed(reason=str(error))


def _response(completion: Completion) -> Response:
    return Response(
        text=completion.text,
        finish_reason=completion.finish_reason,
        n_tokens=len(completion.token_ids),
        prefill=completion.prefill,
    )


def model_responder(model: Path, settings: EvalSettings) -> Responder:
    """A responder with the checkpoint in `model`, on a GPU if there is one. Raises UserError if it cannot be loaded."""
    processing = load_processing(str(model))
    options = replace(
        eval_options(settings), vllm_memory=MEMORY, vllm_sleep=False, servers=settings.servers
    )
    refuse_engine(settings.engine, processing.family, options, processes=1)

    # the weights are loaded once, by whoever answers
    setup = EngineSetup(
        path=str(model),
        policy=lambda: _load(model, processing, settings).policy,
        processing=processing,
        autocast=autocast_dtype(settings.dtype),
        options=options,
    )
    return engine_responder(engines.get(settings.engine)(setup), processing, settings)


def _load(model: Path, processing: Processing, settings: EvalSettings) -> Model:
    dtype: DType = "bfloat16" if settings.dtype == "bfloat16" else "float32"
    return Model.load(model, dtype=dtype, processing=processing)


def _draw(example: Example) -> int:
    """The number that seeds a sampled answer: the example's own, so that a resumed evaluation draws the same."""
    return (
        int(example.id)
        if example.id.isdecimal()
        else int.from_bytes(example.id.encode()[-5:], "big")
    )
