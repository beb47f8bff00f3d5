"""Evaluation while training: the eval room's task and scorers, the training policy's engine, its
prompt and its pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from gpg_vl.activity import doing
from gpg_vl.config import Config
from gpg_vl.errors import UserError
from gpg_vl.eval.coordinates import DEFAULT, DEFAULT_SIDE, located
from gpg_vl.eval.generate import engine_responder, eval_encoder
from gpg_vl.eval.predictions import Answers, Responder
from gpg_vl.eval.runner import check_gold, evaluate_responder, prepare, select
from gpg_vl.eval.settings import EvalSettings, settings_for
from gpg_vl.eval.task import pick_scorers
from gpg_vl.eval.tasks import tasks
from gpg_vl.models.load import Processing
from gpg_vl.prompting import PixelLimits, PromptStyle
from gpg_vl.rollout.engine import Engine, EngineLostError
from gpg_vl.training.evaluation_files import Evaluated, evaluated, with_blank_pictures
from gpg_vl.training.failures import raise_lost
from gpg_vl.training.prepare import OncePerNode, alone
from gpg_vl.training.ranks import gathered
from gpg_vl.types import Example

Evaluation = Callable[[Engine, Processing, Accelerator], Evaluated]
"""Scores the current policy; the same on every process. Raises EngineLostError, on all processes."""


def make_evaluation(
    config: Config, processing: Processing, once_per_node: OncePerNode = alone
) -> Evaluation | None:
    """The evaluation that the config's `eval` section asks for: data read, scorers proved, every
    doc encoded once.

    Raises UserError: what is wrong with the data must not come out after the training.
    """
    if config.eval.task is None:
        return None
    if config.eval.data is None:
        raise UserError(
            f"eval.task is {config.eval.task!r}, but eval.data names no data. Set eval.data, or eval.task to null."
        )

    task = tasks.get(config.eval.task)()
    settings, docs = eval_settings(config), task.load(Path(config.eval.data))
    if task.boxes:
        taught = processing.family.boxes
        coordinates = settings.coordinates or (taught.coordinates if taught else DEFAULT)
        # the encoder cuts images by the family's own measures, whatever the config says
        side = taught.image_side({}) if taught else DEFAULT_SIDE
        docs = located(docs, coordinates, settings, side)
    docs = select(task, docs, config.eval.limit, seed=0)
    scorers = pick_scorers(task, ["strict"])
    ready, void = prepare(docs, settings)
    if void:
        doc_id, reason = next(iter(void.items()))
        raise UserError(
            f"Doc {doc_id} of {config.eval.data}: {reason} Fix the row or choose other data."
        )

    # what cannot be proved or encoded must come out now
    def check() -> None:
        check_gold(task, docs, scorers)
        encoder = eval_encoder(processing, settings)
        for example in ready.values():
            encoder.count(example)

    with doing("the check of the data of the evaluation"):
        once_per_node(check)

    blank_docs = with_blank_pictures(docs, task.name) if config.eval.blank_image else None

    def evaluate(engine: Engine, processing: Processing, accelerator: Accelerator) -> Evaluated:
        responder = engine_responder(engine, processing, settings)
        respond = shared(responder, accelerator, batch_size=settings.batch_size)
        results = evaluate_responder(task, docs, respond, settings, scorers)
        blank = blank_docs and evaluate_responder(task, blank_docs, respond, settings, scorers)
        return evaluated(
            task, results, blank or None, ready, max_pixels=settings.limits.max_image_pixels
        )

    return evaluate


def eval_settings(config: Config) -> EvalSettings:
    """Greedy answers in the run's own prompt, or in the task's style that `eval.prompt` names."""
    pixels = config.data.model_dump(include={field.name for field in fields(PixelLimits)})
    common: dict[str, Any] = {
        "max_new_tokens": config.eval.max_new_tokens or config.rollout.max_new_tokens,
        "limits": PixelLimits(**pixels),
        "dtype": config.model.dtype,
        "batch_size": config.rollout.prompts_per_batch,
    }
    assert config.eval.task is not None
    if config.eval.prompt is not None:
        return settings_for(tasks.get(config.eval.task)(), config.eval.prompt, **common)

    style = PromptStyle(**config.prompt.model_dump())
    return EvalSettings(task=config.eval.task, prompt="run", style=style, **common)


def shared(responder: Responder, accelerator: Accelerator, *, batch_size: int) -> Responder:
    """The responder with its examples dealt out over the processes; every one of them gets all
    responses, in order, and asks its responder equally often for at most `batch_size`.
    """
    processes = accelerator.num_processes
    if processes == 1:
        return responder
    index = accelerator.process_index

    def respond(examples: Sequence[Example]) -> Iterator[Answers]:
        reports = gathered(accelerator, _answer_or_lose(answer_mine, examples))
        raise_lost([said for _, said in reports])

        hands = [answers for answers, _ in reports]
        return (hands[i % processes][i // processes] for i in range(len(examples)))

    def answer_mine(examples: Sequence[Example]) -> Iterator[Answers]:
        for start in range(0, len(examples), batch_size * processes):
            of_all = examples[start : start + batch_size * processes]
            yield from responder(of_all[index::processes])

    return respond


def _answer_or_lose(
    responder: Responder, examples: Sequence[Example]
) -> tuple[list[Answers], str | None]:
    """The answers, or what the engine said when it was lost: the other processes wait for either."""
    try:
        return list(responder(examples)), None
    except EngineLostError as error:
        return [], str(error)
