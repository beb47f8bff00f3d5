"""Evaluates a model from Python, in memory: the results of `python -m gpg_vl.eval` without its files."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpg_vl.errors import UserError
from gpg_vl.eval.coordinates import convention_of, model_convention, with_coordinates
from gpg_vl.eval.generate import engine_responder, eval_options, model_responder
from gpg_vl.eval.predictions import Responder
from gpg_vl.eval.results import Results
from gpg_vl.eval.runner import Answerer, select
from gpg_vl.eval.runner import evaluate as run
from gpg_vl.eval.settings import EvalSettings, settings_for
from gpg_vl.eval.task import Doc, Task, pick_scorers
from gpg_vl.eval.tasks import tasks
from gpg_vl.model import Model
from gpg_vl.models.run_checkpoints import newest_or_name


def evaluate(
    task: str,
    *,
    model: Model | Path | str,
    data: Path | str,
    limit: int | float | None = None,
    prompt: str | None = None,
    scorers: Sequence[str] | None = None,
    **settings: Any,
) -> Results:
    """Evaluate a model on a benchmark. Returns the results.

    task: a name that `python -m gpg_vl.eval --list` shows, or "file.py:function".
    model: a checkpoint folder, the folder of a run, whose newest complete checkpoint is taken, or a loaded model.
    limit: a number of questions, or a fraction up to 1.0; each stratum keeps its share.
    prompt: a prompt style of the task. scorers: names, or ["all"]; None uses the task's default scorers.
    settings: fields of `EvalSettings`, such as `max_new_tokens=6, batch_size=64, temperature=0.6, repeats=4`.

    First checks that the scorers accept the gold answers. Raises UserError for unknown names, for data that cannot be read and
    for a model that cannot be loaded.

    Example: `evaluate("cvbench", model="runs/a", data="test.parquet").flat()["acc,strict"]`
    """
    built_task = tasks.get(task)()
    chosen = pick_scorers(built_task, scorers or built_task.default_scorers)
    run_settings = _settings(built_task, prompt, settings)
    model = model if isinstance(model, Model) else newest_or_name(model)
    docs, run_settings = _docs(built_task, Path(data), model, run_settings)

    def make_responder() -> Responder:
        if not isinstance(model, Model):
            return model_responder(Path(model), run_settings)
        engine = model.engine(options=eval_options(run_settings))
        return engine_responder(engine, model.processing, run_settings)

    # nothing is resumed here, so answers need no digest of the weights
    answerer = Answerer(make=make_responder, settings=run_settings, model_sha="")
    with tempfile.TemporaryDirectory(prefix="gpg_vl-eval-") as folder:
        log = Path(folder) / "predictions.jsonl"
        return run(
            built_task,
            select(built_task, docs, limit, run_settings.seed),
            answerer,
            chosen,
            log=log,
        )


def _settings(task: Task, prompt: str | None, changes: dict[str, Any]) -> EvalSettings:
    """Raises UserError for a setting that does not exist."""
    unknown = sorted(changes.keys() - EvalSettings.__dataclass_fields__.keys())
    if unknown:
        known = ", ".join(EvalSettings.__dataclass_fields__)
        raise UserError(
            f"There is no setting called {unknown[0]!r}. Known: {known}. Correct the name, or leave it out."
        )
    return settings_for(task, prompt, **changes)


def _docs(
    task: Task, data: Path, model: Model | Path | str, settings: EvalSettings
) -> tuple[list[Doc], EvalSettings]:
    """The docs of the data, and the settings completed with the model's convention for boxes if the task has boxes."""
    docs = list(task.load(data))
    if not task.boxes:
        return docs, settings

    wanted = settings.coordinates
    if isinstance(model, Model):
        family = model.processing.family
        used = convention_of(family.boxes, {}, wanted, family.model_type)
    else:
        used = model_convention(Path(model), wanted)
    settings = replace(settings, coordinates=used.coordinates)
    return with_coordinates(docs, used.coordinates, settings, used.side), settings
