"""The entry point of a training run: the config is unpacked here, and nothing below receives it.

`prepare` (training/prepare.py) has checked everything that can be checked without weights; `launch`
loads the model, builds the parts and trains.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from gpg_vl.activity import doing
from gpg_vl.config import Config
from gpg_vl.console import progress
from gpg_vl.model import Model
from gpg_vl.models.licence import read_licence
from gpg_vl.models.prefix import PrefixStore
from gpg_vl.rewards.reasons import Explainer
from gpg_vl.rollout.engine import Engine
from gpg_vl.training.build import (
    count_rounds,
    encode_ahead,
    export_dtype,
    load_model,
    make_collector,
    make_engine,
    make_intervals,
    make_learner,
    make_picture_source,
    make_sharding,
    make_source,
)
from gpg_vl.training.checkpoint import Checkpoints
from gpg_vl.training.collectives import on_main
from gpg_vl.training.data_check import make_pool
from gpg_vl.training.display import Display, no_signal
from gpg_vl.training.dropped_groups import add_steps
from gpg_vl.training.evaluation import Evaluation
from gpg_vl.training.evaluation_files import Evaluated
from gpg_vl.training.folder import CHECKPOINTS, METRICS, open_folder
from gpg_vl.training.identity import Identity, make_identity
from gpg_vl.training.interrupt import StopRequest
from gpg_vl.training.launches import Launch, command, log_checkpoints, report_launch, versions
from gpg_vl.training.learner import Learner
from gpg_vl.training.lock import hold_folder
from gpg_vl.training.loop import Hooks, train
from gpg_vl.training.model_card import last_evaluation, make_card
from gpg_vl.training.prepare import Prepared
from gpg_vl.training.prompt_source import PromptSource
from gpg_vl.training.rank_consistency import refuse_folder_of_its_own
from gpg_vl.training.rank_state import reseed
from gpg_vl.training.resume import Start, cut_metrics, find_start
from gpg_vl.training.run_writer import Record
from gpg_vl.training.signals import read_seen
from gpg_vl.training.state import RunState
from gpg_vl.training.trackers import tracker_options


def launch(
    prepared: Prepared,
    accelerator: Accelerator,
    *,
    resume: bool,
    console: Console,
    evaluation: Evaluation | None,
    stop: StopRequest,
) -> bool:
    """Load the model and train.

    stop: the stop request, which ends the run after the current step; its context is entered here.
    Returns False if the run was interrupted before its end. Raises UserError or RunError.
    """
    job = _Job(
        prepared=prepared,
        accelerator=accelerator,
        console=console,
        evaluation=evaluation,
        stop=stop,
    )
    with hold_folder(job.folder, accelerator, console):
        return _launch(job, resume=resume)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """The inputs of a launch."""

    prepared: Prepared
    accelerator: Accelerator
    console: Console
    evaluation: Evaluation | None
    stop: StopRequest

    @property
    def config(self) -> Config:
        return self.prepared.config

    @property
    def folder(self) -> Path:
        return Path(self.config.output.folder)

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def main_console(self) -> Console | None:
        """The console, only on the main process."""
        return self.console if self.is_main else None


def _launch(job: _Job, *, resume: bool) -> bool:
    """See `launch`. Called with the lock of the run folder."""
    config, folder, accelerator = job.config, job.folder, job.accelerator

    # sampling does not depend on these seeds, but a reward or a library may, and checkpoints save
    # the random states
    reseed(seed=config.train.seed, step=0, rank=accelerator.process_index)

    identity = _identify(job.prepared, accelerator)
    start = None
    if resume:
        start = find_start(folder, identity, job.prepared.examples, accelerator, job.console)
    on_main(accelerator, lambda: open_folder(config, resume=resume))

    # the folder now belongs to this run, so record the launch in it from here on
    with report_launch(folder, accelerator, job.console) as this_launch:
        refuse_folder_of_its_own(accelerator, folder)
        final = _train(job, _make_parts(job, identity), this_launch, start)

    if job.is_main:
        _report_no_signal(final, folder, job.console)
    return this_launch.finished


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """The model, its engine, sharding and other parts."""

    model: Model
    learner: Learner
    engine: Engine
    source: PromptSource
    checkpoints: Checkpoints


def _make_parts(job: _Job, identity: Identity | None) -> _Parts:
    """Load the model and build the parts of the run, each from those before it."""
    config, accelerator = job.config, job.accelerator
    prefixes = PrefixStore() if config.train.reuse_prefill else None
    what = f"loading the weights of {config.model.path}"
    with doing("the loading of the model"), progress(job.main_console, what):
        sharding = make_sharding(config, accelerator)
        model = load_model(job.prepared, sharding, accelerator)
        learner = make_learner(job.prepared, model, sharding, accelerator, prefixes)
    what = f"starting the engine {config.rollout.engine}"
    with doing("the start of the engine"), progress(job.main_console, what):
        engine = make_engine(config, model, sharding, prefixes)

    source = make_source(job.prepared)
    checkpoints = Checkpoints(
        job.folder / CHECKPOINTS,
        metrics=job.folder / METRICS,
        identity=identity,
        keep=config.output.keep_checkpoints,
        model=model,
        sharding=sharding,
        source=source,
        accelerator=accelerator,
        export=export_dtype(config),
        card=partial(_write_card, identity, job.folder / METRICS) if identity else None,
    )
    return _Parts(
        model=model, learner=learner, engine=engine, source=source, checkpoints=checkpoints
    )


def _train(job: _Job, parts: _Parts, this_launch: Launch, start: Start | None) -> RunState:
    """Train from `start` if there is one. Returns the last state.

    this_launch: receives the steps of this launch, and whether the run was finished.
    """
    prepared, accelerator = job.prepared, job.accelerator

    with doing("the reading of the checkpoint"):
        state = _first_state(job, parts.checkpoints, start)
    this_launch.set_step(state.step)
    _start_trackers(job.config, accelerator)

    # worker processes, display and Ctrl-C handling end with the run, however it ends
    steps, engine = prepared.plan.steps, parts.engine
    with (
        make_pool(job.config) as rewarder,
        encode_ahead(job.config, parts.source) as source,
        _make_display(job, steps, state) as display,
        job.stop as stop,
    ):
        final = train(
            collector=make_collector(prepared, source, engine, rewarder, display, accelerator),
            learner=parts.learner,
            engine=engine,
            state=state,
            intervals=make_intervals(job.config, steps),
            record=Record(
                job.folder, accelerator, make_picture_source(prepared), Explainer(rewarder)
            ),
            hooks=Hooks(
                evaluate=_bind_evaluation(job, parts),
                checkpoint=log_checkpoints(parts.checkpoints.save),
                show=partial(_show, this_launch, display),
                stop_wanted=stop.is_wanted,
            ),
            accelerator=accelerator,
        )
        this_launch.finished = final.step == steps and not final.evaluation_due
    return final


def _make_display(job: _Job, steps: int, state: RunState) -> Display:
    return Display(
        job.console,
        steps=steps,
        done=state.step,
        enabled=job.is_main,
        rounds=count_rounds(job.config),
    )


def _bind_evaluation(job: _Job, parts: _Parts) -> Callable[[], Evaluated | None] | None:
    if job.evaluation is None:
        return None
    processing, wanted = parts.model.processing, job.stop.is_wanted
    return partial(job.evaluation, parts.engine, processing, job.accelerator, wanted)


def _start_trackers(config: Config, accelerator: Accelerator) -> None:
    if not config.output.trackers:
        return
    accelerator.init_trackers(
        config.output.project,
        config=_flatten(config),
        init_kwargs=tracker_options(
            run_name=config.output.run_name,
            group=config.output.run_group,
            resume_id=config.output.resume_id,
        ),
    )


def _show(
    this_launch: Launch,
    display: Display,
    step: int,
    metrics: dict[str, Any],
    seconds: dict[str, float],
) -> None:
    """Show a step, and record it as done in case the next one fails."""
    this_launch.set_step(step)
    display.step(step, metrics, seconds)


def _report_no_signal(final: RunState, folder: Path, console: Console) -> None:
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    steps = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    message = no_signal(
        steps=final.step,
        skipped=final.skipped_steps,
        folder=folder,
        dropped=add_steps(steps),
        seen=read_seen(steps),
    )
    if message:
        console.print(message, soft_wrap=True)


def _identify(prepared: Prepared, accelerator: Accelerator) -> Identity | None:
    """The identity of the run; only on the main process, which reads its files."""
    identities: list[Identity] = []

    def make() -> None:
        steps = prepared.plan.steps
        made = make_identity(
            prepared.config, prepared.algorithm, prepared.rows, steps, rating=prepared.rating
        )
        identities.append(made)

    with doing("the digest of the files that the run depends on"):
        on_main(accelerator, make)
    return identities[0] if identities else None


def _write_card(identity: Identity, metrics: Path, step: int) -> str:
    """The model card of the checkpoint after `step` steps."""
    words = [word for word in command() if word != "--resume"]
    return make_card(
        step=step,
        settings=identity.settings,
        data_digest=identity.rows.whole,
        licence=read_licence(Path(identity.settings["model"]["path"])),
        evaluation=last_evaluation(metrics),
        command=words,
        versions=dict(versions()),
    )


def _first_state(job: _Job, checkpoints: Checkpoints, start: Start | None) -> RunState:
    """The state in which the run starts or resumes. Drops later metric rows, which will be computed
    again.

    A checkpoint is loaded into the wrapped model.
    """
    config = job.config
    beginning = RunState(evaluation_due=config.eval.at_start or config.eval.blank_image)
    if start is None:
        return beginning

    state = beginning
    if start.checkpoint:
        with progress(job.main_console, f"reading the checkpoint {start.checkpoint}"):
            state = checkpoints.restore(start.checkpoint)
    if job.is_main:
        dropped = cut_metrics(job.folder / METRICS, start)
        job.console.print(
            f"resuming from {start.checkpoint or 'the beginning (no complete checkpoint)'}; "
            f"{dropped} later metric row(s) will be computed again",
        )
    return state


def _flatten(config: Config) -> dict[str, Any]:
    """Flatten the config to `section.key` with values that every tracker accepts."""
    flat: dict[str, Any] = {}
    for section, keys in config.model_dump(mode="json").items():
        for key, value in keys.items():
            is_plain = isinstance(value, int | float | str | bool)
            flat[f"{section}.{key}"] = value if is_plain else json.dumps(value)
    return flat
