"""The door of a training run: a config is unpacked here, and nothing below receives one.

`prepare` (training/prepare.py) has checked everything that can be checked without weights; `launch`
loads the model, puts the parts together and trains.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from gpg_vl.activity import doing
from gpg_vl.config import Config
from gpg_vl.models.prefix import PrefixStore
from gpg_vl.rewards.reasons import Explainer
from gpg_vl.training.agreement import refuse_folder_of_its_own
from gpg_vl.training.build import (
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
from gpg_vl.training.display import Display, no_signal
from gpg_vl.training.evaluation import Evaluation
from gpg_vl.training.folder import CHECKPOINTS, METRICS, open_folder
from gpg_vl.training.identity import Identity, make_identity
from gpg_vl.training.interrupt import StopRequest
from gpg_vl.training.launches import Launch, logged, reported
from gpg_vl.training.lock import hold_folder
from gpg_vl.training.loop import Hooks, train
from gpg_vl.training.prepare import Prepared, make_pool
from gpg_vl.training.rank_state import reseed
from gpg_vl.training.ranks import on_main
from gpg_vl.training.record import Record
from gpg_vl.training.resume import Start, cut_metrics, find_start
from gpg_vl.training.state import RunState
from gpg_vl.training.trackers import tracker_options


def launch(
    prepared: Prepared,
    accelerator: Accelerator,
    *,
    resume: bool,
    console: Console,
    evaluation: Evaluation | None,
) -> bool:
    """Load the model and train.

    Returns False if the run was interrupted before its end. Raises UserError or RunError.
    """
    with hold_folder(Path(prepared.config.output.folder), accelerator, console):
        return _launch(prepared, accelerator, resume=resume, console=console, evaluation=evaluation)


def _launch(
    prepared: Prepared,
    accelerator: Accelerator,
    *,
    resume: bool,
    console: Console,
    evaluation: Evaluation | None,
) -> bool:
    """See `launch`. The run folder is ours."""
    config, folder = prepared.config, Path(prepared.config.output.folder)

    # nothing that is sampled depends on these; a reward or a library may, and checkpoints hold them
    reseed(seed=config.train.seed, step=0, rank=accelerator.process_index)

    identity = _identify(prepared, accelerator)
    start = None
    if resume:
        start = find_start(folder, identity, prepared.examples, accelerator, console)
    on_main(accelerator, lambda: open_folder(config, resume=resume))

    # from here on the folder is that of this run: whatever ends it is written down there
    with reported(folder, accelerator, console) as story:
        refuse_folder_of_its_own(accelerator, folder)
        final = _train(prepared, accelerator, console, story, identity, start, evaluation)

    message = no_signal(steps=final.step, skipped=final.skipped_steps, folder=folder)
    if message and accelerator.is_main_process:
        console.print(message, soft_wrap=True)
    return story.finished


def _train(
    prepared: Prepared,
    accelerator: Accelerator,
    console: Console,
    story: Launch,
    identity: Identity | None,
    start: Start | None,
    evaluation: Evaluation | None,
) -> RunState:
    """Make the parts of the run and train with them, from `start` if there is one. Returns the last state.

    story: is given the steps of this launch, and whether it came to the end of the run.
    """
    config, folder = prepared.config, Path(prepared.config.output.folder)

    # the parts, each made of what stands before it
    prefixes = PrefixStore() if config.train.reuse_prefill else None
    with doing("the loading of the model"):
        sharding = make_sharding(config, accelerator)
        model = load_model(prepared, sharding, accelerator)
        learner = make_learner(prepared, model, sharding, accelerator, prefixes)
    with doing("the start of the engine"):
        engine = make_engine(config, model, sharding, prefixes)
    evaluate = partial(evaluation, engine, model.processing, accelerator) if evaluation else None

    # where the run begins; a checkpoint goes into a model that is wrapped already
    source = make_source(prepared)
    checkpoints = Checkpoints(
        folder / CHECKPOINTS,
        metrics=folder / METRICS,
        identity=identity,
        keep=config.output.keep_checkpoints,
        model=model,
        sharding=sharding,
        source=source,
        accelerator=accelerator,
    )
    with doing("the reading of the checkpoint"):
        state = RunState(evaluation_due=config.eval.at_start or config.eval.blank_image)
        if start:
            state = _resume(start, state, checkpoints, folder, accelerator, console)
    story.reached(state.step)
    if config.output.trackers:
        accelerator.init_trackers(
            config.output.project,
            config=_flatten(config),
            init_kwargs=tracker_options(
                run_name=config.output.run_name,
                group=config.output.run_group,
                resume_id=config.output.resume_id,
            ),
        )

    # worker processes, the display and the handling of Ctrl-C end with the run, however it ends
    is_main, steps = accelerator.is_main_process, prepared.plan.steps
    with (
        make_pool(config) as rewarder,
        Display(console, steps=steps, done=state.step, enabled=is_main) as display,
        StopRequest(console if is_main else None) as stop,
    ):
        final = train(
            collector=make_collector(prepared, source, engine, rewarder, display, accelerator),
            learner=learner,
            engine=engine,
            state=state,
            intervals=make_intervals(config, steps),
            record=Record(folder, accelerator, make_picture_source(prepared), Explainer(rewarder)),
            hooks=Hooks(
                evaluate=evaluate,
                checkpoint=logged(checkpoints.save),
                show=partial(_show, story, display),
                stop_wanted=stop.wanted,
            ),
            accelerator=accelerator,
        )
        story.finished = final.step == steps and not final.evaluation_due
    return final


def _show(
    story: Launch, display: Display, step: int, metrics: dict[str, Any], seconds: dict[str, float]
) -> None:
    """Show a step, and note that the run has come so far, should it fail in the next one."""
    story.reached(step)
    display.step(step, metrics, seconds)


def _identify(prepared: Prepared, accelerator: Accelerator) -> Identity | None:
    """What the run depends on; on the main process, which alone reads its files."""
    made: list[Identity] = []

    def make() -> None:
        steps = prepared.plan.steps
        made.append(make_identity(prepared.config, prepared.algorithm, prepared.rows, steps))

    with doing("the digest of the files that the run depends on"):
        on_main(accelerator, make)
    return made[0] if made else None


def _resume(
    start: Start,
    beginning: RunState,
    checkpoints: Checkpoints,
    folder: Path,
    accelerator: Accelerator,
    console: Console,
) -> RunState:
    """The state that the run goes on from, with later metric rows dropped: they will be computed again."""
    state = checkpoints.restore(start.checkpoint) if start.checkpoint else beginning
    if accelerator.is_main_process:
        dropped = cut_metrics(folder / METRICS, start)
        console.print(
            f"resuming from {start.checkpoint or 'the beginning (no complete checkpoint)'}; "
            f"{dropped} later metric row(s) will be computed again",
        )
    return state


def _flatten(config: Config) -> dict[str, Any]:
    """`section.key` to values that every tracker takes."""
    flat: dict[str, Any] = {}
    for section, keys in config.model_dump(mode="json").items():
        for key, value in keys.items():
            is_plain = isinstance(value, int | float | str | bool)
            flat[f"{section}.{key}"] = value if is_plain else json.dumps(value)
    return flat
