"""The door of a training run: a config is unpacked here, and nothing below receives one.

`prepare` (training/prepare.py) has checked everything that can be checked without weights; `launch`
loads the model, puts the parts together and trains.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from gpg_vl.activity import doing
from gpg_vl.config import Config, SampledConfig
from gpg_vl.model import Model
from gpg_vl.models.adapters import add_adapters
from gpg_vl.models.families import Family
from gpg_vl.models.prefix import PrefixStore
from gpg_vl.models.reference import make_reference
from gpg_vl.rollout.engine import Engine
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.training.agreement import refuse_folder_of_its_own
from gpg_vl.training.checkpoint import Checkpoints
from gpg_vl.training.collect import Collector, EngineResponder, Quota, Responder, Rewarder
from gpg_vl.training.display import Display, no_signal
from gpg_vl.training.evaluation import Evaluation
from gpg_vl.training.folder import CHECKPOINTS, METRICS, open_folder
from gpg_vl.training.gold import GoldResponder
from gpg_vl.training.identity import Identity, make_identity
from gpg_vl.training.interrupt import StopRequest
from gpg_vl.training.launches import logged, reported
from gpg_vl.training.learner import Learner, LearnerSettings
from gpg_vl.training.lock import hold_folder
from gpg_vl.training.loop import Hooks, Intervals, train
from gpg_vl.training.micro_batch import Layout
from gpg_vl.training.optimizer import freeze, learning_rate, make_adamw
from gpg_vl.training.prepare import Prepared, engine_options, make_pool
from gpg_vl.training.ranks import on_main
from gpg_vl.training.record import Record
from gpg_vl.training.resume import Start, cut_metrics, find_start
from gpg_vl.training.samples import PictureSource
from gpg_vl.training.sharding import shardings
from gpg_vl.training.sharding.protocol import Sharding, ShardingSetup
from gpg_vl.training.source import PromptSource
from gpg_vl.training.state import RunState
from gpg_vl.training.trackers import tracker_options

MAX_LOGP_GAP = {"float32": 1e-4, "bfloat16": 0.1}
"""Of the mean over the tokens of a step: what rounding may do to two ways of computing the same, and no more."""

BYTES_OF_MOMENTS = {"adamw": 4, "adamw_8bit": 1}
"""Of each number, by `train.optimizer`."""


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
    identity = _identify(prepared, accelerator)
    start = None
    if resume:
        start = find_start(folder, identity, prepared.examples, accelerator, console)
    on_main(accelerator, lambda: open_folder(config, resume=resume))
    refuse_folder_of_its_own(accelerator, folder)

    # the parts, each made of what stands before it
    prefixes = PrefixStore() if config.train.reuse_prefill else None
    with doing("the loading of the model"):
        sharding = _make_sharding(config, accelerator)
        model = _load_model(prepared, sharding, accelerator)
        learner = _make_learner(prepared, model, sharding, accelerator, prefixes)
    with doing("the start of the engine"):
        engine = _make_engine(config, model, sharding, prefixes)
    evaluate = partial(evaluation, engine, model.processing, accelerator) if evaluation else None

    # where the run begins; a checkpoint goes into a model that is wrapped already
    source = _make_source(prepared)
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
        reported(folder, accelerator, console, first_step=state.step) as story,
        make_pool(config) as rewarder,
        Display(console, steps=steps, done=state.step, enabled=is_main) as display,
        StopRequest(console if is_main else None) as stop,
    ):
        final = train(
            collector=_make_collector(prepared, source, engine, rewarder, display, accelerator),
            learner=learner,
            engine=engine,
            state=state,
            intervals=_make_intervals(config, steps),
            record=Record(folder, accelerator, _make_picture_source(prepared)),
            hooks=Hooks(
                evaluate=evaluate,
                checkpoint=logged(checkpoints.save),
                show=display.step,
                stop_wanted=stop.wanted,
            ),
            accelerator=accelerator,
        )
        is_done = final.step == steps and not final.evaluation_due
        story.last_step, story.finished = final.step, is_done

    message = no_signal(steps=final.step, skipped=final.skipped_steps, folder=folder)
    if message and is_main:
        console.print(message, soft_wrap=True)
    return is_done


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


def _load_model(prepared: Prepared, sharding: Sharding, accelerator: Accelerator) -> Model:
    config = prepared.config

    def prepare_parts(model: Any, family: Family) -> None:
        if config.model.lora_rank:
            add_adapters(
                model,
                family,
                rank=config.model.lora_rank,
                alpha=config.model.lora_alpha,
                parts=config.model.lora_on,
                targets=config.model.lora_targets,
                seed=config.train.seed,
            )
        freeze(model, family, config.model.freeze)
        if config.model.gradient_checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )

    return Model.load(
        config.model.path,
        revision=config.model.revision,
        dtype=config.model.dtype,
        gathered=_weights_dtype(config),
        device=accelerator.device,
        placed=sharding.holds_whole,
        temperature=config.rollout.temperature,
        attention=prepared.plan.kernel,
        vision_cache_mb=config.model.vision_cache_mb,
        processing=prepared.processing,
        prepare=prepare_parts,
    )


def _make_sharding(config: Config, accelerator: Accelerator) -> Sharding:
    setup = ShardingSetup(
        device=accelerator.device,
        processes=accelerator.num_processes,
        is_main=accelerator.is_main_process,
        offload=config.train.offload,
        weights=_weights_dtype(config),
        defer_reduction=config.train.defer_reduction,
    )
    return shardings.get(config.train.sharding)(setup)


def _weights_dtype(config: Config) -> torch.dtype | None:
    """Of what is trained; None leaves it as it was loaded."""
    return torch.bfloat16 if config.model.weights == "bfloat16" else None


def _make_learner(
    prepared: Prepared,
    model: Model,
    sharding: Sharding,
    accelerator: Accelerator,
    prefixes: PrefixStore | None,
) -> Learner:
    config, algorithm = prepared.config, prepared.algorithm
    parts: tuple[str, ...] = tuple(config.train.learning_rates)

    # the reference is the policy of the beginning, also in a run that is resumed: made before a
    # checkpoint is read
    reference = None
    if "reference_logp" in algorithm.needs:
        dtype = model.autocast or torch.float32
        reference = make_reference(model.policy, dtype, sharding.spread)

    return Learner(
        model.policy,
        algorithm,
        sharding,
        LearnerSettings(
            layout=Layout(
                tokens_per_pass=config.train.tokens_per_pass,
                shared_prefix=config.train.shared_prefix,
            ),
            max_grad_norm=config.train.max_grad_norm,
            max_new_tokens=config.rollout.max_new_tokens,
            learning_rate=_make_learning_rate(config, prepared.plan.steps),
            parts=parts,
            autocast=model.autocast,
            max_logp_gap=max_logp_gap(config),
        ),
        accelerator,
        make_optimizer=partial(
            make_adamw,
            betas=config.train.betas,
            weight_decay=config.train.weight_decay,
            parts=parts,
            bytes_of_moments=BYTES_OF_MOMENTS[config.train.optimizer],
            seed=config.train.seed,
        ),
        reference=reference,
        prefixes=prefixes,
    )


def max_logp_gap(config: Config) -> float:
    """The gap that the config allows, or what its dtype makes of it."""
    given = config.rollout.max_logp_gap
    return MAX_LOGP_GAP[config.model.dtype] if given is None else given


def _make_learning_rate(config: Config, steps: int) -> Callable[[int, str], float]:
    peaks: dict[str, float] = {"": config.train.learning_rate}
    for part, peak in config.train.learning_rates.items():
        peaks[part] = peak

    def rate(step: int, part: str) -> float:
        return learning_rate(
            step,
            peak=peaks[part],
            schedule=config.train.schedule,
            warmup_steps=config.train.warmup_steps,
            steps=steps,
            final_fraction=config.train.final_lr_fraction,
        )

    return rate


def _make_engine(
    config: Config, model: Model, sharding: Sharding, prefixes: PrefixStore | None
) -> Engine:
    return model.engine(
        config.rollout.engine,
        options=engine_options(config),
        prefixes=prefixes,
        awaits_sync=True,
        by_copy=not sharding.holds_whole,
    )


def _make_source(prepared: Prepared) -> PromptSource:
    return PromptSource(
        examples=prepared.examples, encoder=prepared.encoder, seed=prepared.config.train.seed
    )


def _make_collector(
    prepared: Prepared,
    source: PromptSource,
    engine: Engine,
    rewarder: Rewarder,
    display: Display,
    accelerator: Accelerator,
) -> Collector:
    return Collector(
        source,
        _make_responder(prepared, engine),
        rewarder,
        _make_quota(prepared.config),
        accelerator,
        drop_broken=prepared.config.rewards.on_error == "drop_group",
        progress=display.phase,
    )


def _make_responder(prepared: Prepared, engine: Engine) -> Responder:
    config = prepared.config
    if not prepared.algorithm.samples:
        return GoldResponder(processing=prepared.processing, response=prepared.algorithm.response)
    sampling = Sampling(
        group_size=config.rollout.group_size,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        seed=config.train.seed,
    )
    return EngineResponder(engine=engine, sampling=sampling)


def _make_quota(config: Config) -> Quota:
    section = config.algorithm

    # an algorithm that samples nothing has no second round to hope for
    if not isinstance(section, SampledConfig):
        return Quota(
            prompts_per_step=config.train.prompts_per_step, beta_th=0.0, max_resample_attempts=1
        )
    return Quota(
        prompts_per_step=config.train.prompts_per_step,
        beta_th=section.beta_th,
        max_resample_attempts=section.max_resample_attempts,
    )


def _make_picture_source(prepared: Prepared) -> PictureSource:
    encoder = prepared.encoder
    return PictureSource(root=encoder.root, max_pixels=encoder.limits.max_image_pixels)


def _make_intervals(config: Config, steps: int) -> Intervals:
    return Intervals(
        steps=steps,
        eval_every=config.eval.every,
        checkpoint_every=config.output.checkpoint_every,
        samples_every=config.output.samples_every,
    )


def _flatten(config: Config) -> dict[str, Any]:
    """`section.key` to values that every tracker takes."""
    flat: dict[str, Any] = {}
    for section, keys in config.model_dump(mode="json").items():
        for key, value in keys.items():
            is_plain = isinstance(value, int | float | str | bool)
            flat[f"{section}.{key}"] = value if is_plain else json.dumps(value)
    return flat
