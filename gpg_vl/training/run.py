"""The door of a training run: a config is unpacked here, and nothing below receives one.

`prepare` reads and checks everything that can be checked without weights and ends in a plan; `launch` loads the model and
trains.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from gpg_vl.config import Config
from gpg_vl.data.check import DataReport, check
from gpg_vl.data.read import load_examples, read_rows
from gpg_vl.errors import UserError
from gpg_vl.models.adapters import add_adapters
from gpg_vl.models.attention import Kernel
from gpg_vl.models.encode import Encoder
from gpg_vl.models.features import FeatureCache
from gpg_vl.models.load import Processing, load_model, load_processing
from gpg_vl.models.policy import Policy
from gpg_vl.prompting import PixelLimits, PromptStyle
from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.scoring import check_gold
from gpg_vl.rollout.engine import Sampling
from gpg_vl.rollout.native import NativeEngine
from gpg_vl.training import checkpoint as checkpoints
from gpg_vl.training.batch import Objective
from gpg_vl.training.display import Display, no_signal
from gpg_vl.training.evaluation import Evaluation
from gpg_vl.training.folder import open_folder
from gpg_vl.training.interrupt import StopRequest
from gpg_vl.training.loop import Hooks, Schedule, empty_group, train
from gpg_vl.training.optimizer import freeze, learning_rate, make_adamw
from gpg_vl.training.plan import Plan, make_plan
from gpg_vl.training.ranks import on_main
from gpg_vl.training.record import Record, truncate_metrics
from gpg_vl.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A run that is checked and planned, without weights."""

    config: Config
    processing: Processing
    encoder: Encoder
    examples: Sequence[Example]
    report: DataReport
    plan: Plan


def make_encoder(config: Config) -> Encoder:
    """The encoder of a config's model, prompt and data sections. Loads the tokenizer, no weights."""
    root = Path(config.data.root) if config.data.root else _folder_of(config.data.train)
    return Encoder(
        processing=load_processing(config.model.path, config.model.revision),
        root=root,
        style=PromptStyle(
            template=config.prompt.template,
            system=config.prompt.system,
            chat=config.prompt.chat,
            prefill=config.prompt.prefill,
        ),
        limits=PixelLimits(
            min_pixels=config.data.min_pixels,
            max_pixels=config.data.max_pixels,
            max_image_pixels=config.data.max_image_pixels,
        ),
    )


def check_data(config: Config, encoder: Encoder, console: Console | None) -> DataReport:
    """Read and check every row of the training data."""
    rows = read_rows(config.data.train, config.data.columns, limit=config.data.limit)
    return check(
        rows,
        count=encoder.count,
        max_prompt_tokens=config.data.max_prompt_tokens,
        console=console,
        source=config.data.train,
    )


def prepare(config: Config, *, processes: int, console: Console | None) -> Prepared:
    """Check data, rewards and sizes, and plan the run. Raises UserError with everything that is wrong."""
    if config.train.prompts_per_step % processes:
        raise UserError(
            f"train.prompts_per_step is {config.train.prompts_per_step}, which {processes} processes cannot share. "
            f"Choose a multiple of {processes}."
        )
    if config.rollout.engine != "native":
        raise UserError(f"rollout.engine is {config.rollout.engine!r}. Known: native.")
    encoder = make_encoder(config)
    report = check_data(config, encoder, console)
    if not report.ok:
        if console:
            report.render(console)
        raise UserError(
            f"The data {config.data.train} has {len(report.problems)} problem(s), listed above. Mend the rows or choose others; "
            f"nothing is dropped silently."
        )
    examples = load_examples(config.data.train, config.data.columns, limit=config.data.limit)
    _refuse_bad_rewards(config, examples)
    steps = (
        config.train.steps
        if config.train.steps is not None
        else ceil(config.train.epochs * len(examples) / config.train.prompts_per_step)
    )
    plan = make_plan(
        config,
        family=encoder.processing.family,
        prompt_tokens=report.tokens,
        image_tokens=report.image_tokens,
        processes=processes,
        steps=steps,
        first_prompt=encoder.render(examples[0]),
    )
    return Prepared(
        config=config,
        processing=encoder.processing,
        encoder=encoder,
        examples=examples,
        report=report,
        plan=plan,
    )


def _refuse_bad_rewards(config: Config, examples: Sequence[Example]) -> None:
    with RewardPool(
        config.rewards.weights, time_limit=config.rewards.time_limit, workers=config.rewards.workers
    ) as pool:
        problems = check_gold(config.rewards.weights, examples, pool=pool)
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError(
            f"{len(problems)} gold answer(s) do not get full marks from their own reward:\n{shown}{more}\n"
            f"Mend the data or the reward: a policy could not be rewarded for the right answer."
        )


def make_accelerator(config: Config) -> Accelerator:
    """Devices, precision, processes and trackers. Deterministic algorithms are switched on here if asked for."""
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # on a GPU some library kernels have no such form: there a warning names them instead of stopping the run
        torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    folder = Path(config.output.folder)
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if config.model.dtype == "bfloat16" else "no",
        log_with=[_tracker(name) for name in config.output.trackers] or None,
        project_dir=str(folder),
    )


def _tracker(name: str) -> str:
    import importlib.util

    if importlib.util.find_spec(name) is None:
        raise UserError(
            f"output.trackers names {name}, which is not installed. Install it with: pip install 'gpg_vl[{name}]', or remove it."
        )
    return name


def launch(
    prepared: Prepared,
    accelerator: Accelerator,
    *,
    resume: bool,
    console: Console,
    evaluation: Evaluation | None,
) -> bool:
    """Load the model and train. Returns False if the run was interrupted before its end. Raises UserError or RunError."""
    config, plan = prepared.config, prepared.plan
    folder = Path(config.output.folder)
    on_main(accelerator, lambda: open_folder(config, resume=resume))
    policy, optimizer = _policy_and_optimizer(prepared, plan.kernel)
    state, start = checkpoints.RunState(), None
    wrapped, optimizer_wrapped = accelerator.prepare(policy, optimizer)
    data = checkpoints.data_digest(prepared.examples)
    optimizer_plain = getattr(optimizer_wrapped, "optimizer", optimizer_wrapped)
    if resume and (start := checkpoints.latest(folder / "checkpoints")):
        state = checkpoints.restore(
            start,
            model=policy.model,
            optimizer=optimizer_plain,
            accelerator=accelerator,
            data=data,
            group_of=lambda draw: empty_group(
                prepared.encoder, prepared.examples, draw, config.train.seed
            ),
        )
    if accelerator.is_main_process:
        dropped = truncate_metrics(folder / "metrics.jsonl", state.step)
        if resume:
            console.print(
                f"resuming from {start or 'the beginning (no complete checkpoint)'}; "
                f"{dropped} later metric row(s) will be computed again"
            )
    if config.output.trackers:
        accelerator.init_trackers("gpg_vl", config=_flat(config))
    autocast = torch.bfloat16 if config.model.dtype == "bfloat16" else None
    engine = NativeEngine(
        policy,
        prepared.processing,
        # kept prompts are computed one by one: each is freed by the pass that trains on it
        prompts_per_batch=1 if config.train.reuse_prefill else config.rollout.prompts_per_batch,
        slots=config.rollout.slots,
        autocast=autocast,
    )
    main = accelerator.is_main_process
    with (
        RewardPool(
            config.rewards.weights,
            time_limit=config.rewards.time_limit,
            workers=config.rewards.workers,
        ) as rewarder,
        Display(console, steps=plan.steps, done=state.step, enabled=main) as display,
        StopRequest(console if main else None) as stop,
    ):
        hooks = Hooks(
            evaluate=partial(evaluation, engine, prepared.processing, accelerator)
            if evaluation
            else None,
            checkpoint=lambda now: _checkpoint(
                now,
                folder,
                policy,
                prepared.processing,
                optimizer_plain,
                accelerator,
                config.output.keep_checkpoints,
                data,
            ),
            show=display.step,
            progress=display.phase,
            stop_wanted=stop.wanted,
        )
        final = train(
            policy=wrapped,
            optimizer=optimizer_plain,
            accelerator=accelerator,
            engine=engine,
            rewarder=rewarder,
            encoder=prepared.encoder,
            examples=prepared.examples,
            sampling=_sampling(config),
            objective=_objective(config),
            schedule=_schedule(prepared),
            state=state,
            record=Record(folder, accelerator),
            hooks=hooks,
        )
    told = no_signal(steps=final.step, skipped=final.skipped_steps, folder=folder)
    if told and main:
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    return final.step == plan.steps


def _checkpoint(
    state: checkpoints.RunState,
    folder: Path,
    policy: Policy,
    processing: Processing,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    keep: int,
    data: str,
) -> None:
    checkpoints.save(
        folder / "checkpoints",
        state=state,
        model=policy.model,
        processing=processing,
        optimizer=optimizer,
        accelerator=accelerator,
        keep=keep,
        data=data,
    )


def _policy_and_optimizer(prepared: Prepared, kernel: Kernel) -> tuple[Policy, torch.optim.AdamW]:
    config, family = prepared.config, prepared.processing.family
    model: Any = load_model(config.model.path, revision=config.model.revision)
    if config.model.lora_rank:
        add_adapters(
            model,
            family,
            rank=config.model.lora_rank,
            alpha=config.model.lora_alpha,
            targets=config.model.lora_targets,
            seed=config.train.seed,
        )
    freeze(model, family, config.model.freeze)
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = Policy(
        model,
        family,
        prepared.processing.tokens,
        temperature=config.rollout.temperature,
        kernel=kernel,
        features=FeatureCache(config.model.vision_cache_mb * 2**20)
        if config.model.vision_cache_mb
        else None,
    )
    return policy, make_adamw(
        model, betas=config.train.betas, weight_decay=config.train.weight_decay
    )


def _sampling(config: Config) -> Sampling:
    return Sampling(
        group_size=config.rollout.group_size,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        seed=config.train.seed,
    )


def _objective(config: Config) -> Objective:
    return Objective(
        f_norm=config.algorithm.f_norm,
        age=config.algorithm.age,
        aggregation=config.algorithm.aggregation,
        max_new_tokens=config.rollout.max_new_tokens,
    )


def _schedule(prepared: Prepared) -> Schedule:
    config, steps = prepared.config, prepared.plan.steps
    rate = partial(
        learning_rate,
        peak=config.train.learning_rate,
        schedule=config.train.schedule,
        warmup_steps=config.train.warmup_steps,
        steps=steps,
        final_fraction=config.train.final_lr_fraction,
    )
    return Schedule(
        steps=steps,
        prompts_per_step=config.train.prompts_per_step,
        beta_th=config.algorithm.beta_th,
        max_resample_attempts=config.algorithm.max_resample_attempts,
        learning_rate=rate,
        max_grad_norm=config.train.max_grad_norm,
        tokens_per_pass=config.train.tokens_per_pass,
        shared_prefix=config.train.shared_prefix,
        reuse_prefill=config.train.reuse_prefill,
        seed=config.train.seed,
        drop_broken_groups=config.rewards.on_error == "drop_group",
        eval_every=config.eval.every,
        checkpoint_every=config.output.checkpoint_every,
        samples_every=config.output.samples_every,
    )


def _flat(config: Config) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        if isinstance(value, int | float | str | bool)
        else json.dumps(value)
        for section, keys in config.model_dump(mode="json").items()
        for key, value in keys.items()
    }


def _folder_of(source: str) -> Path | None:
    if source.startswith("datasets:"):
        return None
    path = Path(source)
    return path if path.is_dir() else path.parent
