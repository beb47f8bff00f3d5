"""Evaluation during training: it uses the task and scorers of `gpg_vl.eval`, and the run's own engine, prompt and
pixel limits.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from rich.console import Console

from gpg_vl.activity import doing
from gpg_vl.config import Config
from gpg_vl.console import progress
from gpg_vl.errors import UserError
from gpg_vl.eval.coordinates import convention_of, with_coordinates
from gpg_vl.eval.generate import engine_responder, eval_encoder
from gpg_vl.eval.predictions import Answers, Responder
from gpg_vl.eval.runner import check_gold, evaluate_responder, prepare, select
from gpg_vl.eval.settings import EvalSettings, settings_for
from gpg_vl.eval.task import pick, pick_scorers
from gpg_vl.eval.tasks import tasks
from gpg_vl.models.load import Processing
from gpg_vl.prompting import PixelLimits, PromptStyle
from gpg_vl.rollout.engine import Engine, EngineLostError
from gpg_vl.training.collectives import gather
from gpg_vl.training.evaluation_files import Evaluated, make_evaluated, with_blank_pictures
from gpg_vl.training.failures import raise_lost
from gpg_vl.training.prepare import OncePerNode, run_alone
from gpg_vl.types import Example

StopWanted = Callable[[], bool]
"""Whether this process was asked to stop."""
Evaluation = Callable[[Engine, Processing, Accelerator, StopWanted], Evaluated | None]
"""Scores the current policy; the same on every process. None if one of them was asked to stop before the end.

Raises EngineLostError, on all processes.
"""


class _StopError(Exception):
    """The run was asked to stop before all rows were answered."""


def make_evaluation(
    config: Config,
    processing: Processing,
    once_per_node: OncePerNode = run_alone,
    *,
    console: Console | None = None,
) -> Evaluation | None:
    """The evaluation of the config's `eval` section. Reads the data, checks the scorers on the gold answers and
    encodes every doc once.

    console: shows the progress of the data check.
    Raises UserError for wrong data now, not only after the training.
    """
    if config.eval.task is None:
        return None
    if config.eval.data is None:
        raise UserError(
            f"eval.task is {config.eval.task!r}, but eval.data names no data. Set eval.data, or eval.task to null."
        )

    task = tasks.get(config.eval.task)()
    if (best := config.output.keep_best) is not None:
        pick(task, "score", best, task.aggregates)
    settings, docs = eval_settings(config), task.load(Path(config.eval.data))
    if task.boxes:
        family = processing.family
        # the encoder uses the family's patch size, whatever config.json says
        used = convention_of(family.boxes, {}, settings.coordinates, family.model_type)
        docs = with_coordinates(docs, used.coordinates, settings, used.side)
    docs = select(task, docs, config.eval.limit, seed=0)
    scorers = pick_scorers(task, ["strict"])
    ready, void = prepare(docs, settings)
    if void:
        doc_id, reason = next(iter(void.items()))
        raise UserError(
            f"Doc {doc_id} of {config.eval.data}: {reason} Fix the row or choose other data."
        )

    # find rows that cannot be scored or encoded now
    def check() -> None:
        what = f"checking {len(ready)} rows of {config.eval.data} for evaluation"
        with progress(console, what, len(ready)) as advance:
            check_gold(task, docs, scorers)
            encoder = eval_encoder(processing, settings)
            for example in ready.values():
                encoder.count(example)
                advance()

    with doing("the check of the data of the evaluation"):
        once_per_node(check)

    blank_docs = with_blank_pictures(docs, task.name) if config.eval.blank_image else None

    def evaluate(
        engine: Engine, processing: Processing, accelerator: Accelerator, stop_wanted: StopWanted
    ) -> Evaluated | None:
        responder = engine_responder(engine, processing, settings)
        respond = share_over_processes(
            responder, accelerator, batch_size=settings.batch_size, stop_wanted=stop_wanted
        )
        try:
            results = evaluate_responder(task, docs, respond, settings, scorers)
            blank = blank_docs and evaluate_responder(task, blank_docs, respond, settings, scorers)
        except _StopError:
            return None
        return make_evaluated(
            task, results, blank or None, ready, max_pixels=settings.limits.max_image_pixels
        )

    return evaluate


def eval_settings(config: Config) -> EvalSettings:
    """The settings: greedy answers, with the run's own prompt or the task's prompt style named by `eval.prompt`."""
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

    style = PromptStyle(**config.prompt.model_dump(exclude={"coordinates"}))
    return EvalSettings(
        task=config.eval.task,
        prompt="run",
        style=style,
        coordinates=config.prompt.coordinates,
        **common,
    )


class _Report(NamedTuple):
    """What a process reports to the others after each batch."""

    answers: list[Answers]
    lost: str | None
    """The error message of its engine if it was lost, else None."""
    stop: bool
    """Whether it was asked to stop."""


def share_over_processes(
    responder: Responder, accelerator: Accelerator, *, batch_size: int, stop_wanted: StopWanted
) -> Responder:
    """Distribute the examples of a responder over the processes. Every process gets all responses, in order, and
    calls its responder equally often with at most `batch_size` examples.

    If one process has a reason to, all raise EngineLostError or _StopError after a batch.
    """
    processes, index = accelerator.num_processes, accelerator.process_index
    together = batch_size * processes

    def respond(examples: Sequence[Example]) -> Iterator[Answers]:
        for start in range(0, len(examples), together):
            of_all = examples[start : start + together]
            answers, lost = _answer_or_lose(responder, of_all[index::processes])

            # all processes continue or none does, because a shared engine must be called equally often
            reports = gather(accelerator, _Report(answers, lost, stop_wanted()))
            raise_lost([report.lost for report in reports])
            for place in range(len(of_all)):
                yield reports[place % processes].answers[place // processes]
            if any(report.stop for report in reports) and start + together < len(examples):
                raise _StopError

    return respond


def _answer_or_lose(
    responder: Responder, examples: Sequence[Example]
) -> tuple[list[Answers], str | None]:
    """The answers, or the error message of a lost engine; the other processes wait for one of them."""
    try:
        return list(responder(examples)), None
    except EngineLostError as error:
        return [], str(error)
