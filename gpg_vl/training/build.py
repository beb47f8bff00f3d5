"""The parts of a run, made from its config: model, sharding, learner, engine, collector.

`launch` (training/run.py) puts them together. Nothing that is made here receives the config itself.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from gpg_vl.config import Config, SampledConfig
from gpg_vl.data.solved_rows import SkipRule
from gpg_vl.model import Model
from gpg_vl.models.families import Family
from gpg_vl.models.policy import Policy
from gpg_vl.models.prefix import PrefixStore
from gpg_vl.models.reference import make_reference
from gpg_vl.rollout.engine import Engine
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.training.collect import Collector, EngineResponder, Quota, Responder, Rewarder
from gpg_vl.training.display import Display
from gpg_vl.training.encode_ahead import encoding_ahead
from gpg_vl.training.gold_responder import GoldResponder
from gpg_vl.training.learner import Learner, LearnerSettings
from gpg_vl.training.loop import Intervals
from gpg_vl.training.meta_model import add_configured_adapters
from gpg_vl.training.micro_batch import Layout
from gpg_vl.training.optimizer import CRITIC, freeze, learning_rate, make_adamw
from gpg_vl.training.prepare import Prepared, engine_options
from gpg_vl.training.prompt_source import PromptSource, Source
from gpg_vl.training.samples import PictureSource
from gpg_vl.training.sharding import shardings
from gpg_vl.training.sharding.protocol import Sharding, ShardingSetup

MAX_LOGP_GAP = {"float32": 1e-4, "bfloat16": 0.1}
"""Of the mean over the tokens of a step: what rounding may do to two ways of computing the same, and no more."""

BYTES_OF_MOMENTS = {"adamw": 4, "adamw_8bit": 1}
"""Of each number, by `train.optimizer`."""


def load_model(prepared: Prepared, sharding: Sharding, accelerator: Accelerator) -> Model:
    config = prepared.config

    def prepare_parts(model: Any, family: Family) -> None:
        add_configured_adapters(model, family, config)
        freeze(model, family, config.model.freeze)
        if config.model.gradient_checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )

    return Model.load(
        config.model.path,
        revision=config.model.revision,
        dtype=config.model.dtype,
        gathered=weights_dtype(config),
        device=accelerator.device,
        placed=sharding.holds_whole,
        temperature=config.rollout.temperature,
        attention=prepared.plan.kernel,
        vision_cache_mb=config.model.vision_cache_mb,
        processing=prepared.processing,
        prepare=prepare_parts,
    )


def make_sharding(config: Config, accelerator: Accelerator) -> Sharding:
    setup = ShardingSetup(
        device=accelerator.device,
        processes=accelerator.num_processes,
        is_main=accelerator.is_main_process,
        offload=config.train.offload,
        weights=weights_dtype(config),
        defer_reduction=config.train.defer_reduction,
        keeps_weights=export_dtype(config) is not None,
    )
    return shardings.get(config.train.sharding)(setup)


def export_dtype(config: Config) -> torch.dtype | None:
    """Of every number in `model/` of a checkpoint; None: each as it is held."""
    return torch.bfloat16 if config.output.weights == "bfloat16" else None


def weights_dtype(config: Config) -> torch.dtype | None:
    """Of what is trained; None leaves it as it was loaded."""
    return torch.bfloat16 if config.model.weights == "bfloat16" else None


def make_learner(
    prepared: Prepared,
    model: Model,
    sharding: Sharding,
    accelerator: Accelerator,
    prefixes: PrefixStore | None,
) -> Learner:
    config, algorithm = prepared.config, prepared.algorithm
    rates = {str(part): rate for part, rate in config.train.learning_rates.items()}

    # the reference is the policy of the beginning, also in a run that is resumed: made before a
    # checkpoint is read
    reference = None
    if "reference_logp" in algorithm.needs:
        dtype = model.autocast or torch.float32
        reference = make_reference(model.policy, dtype, sharding.spread)
    if algorithm.critic is not None:
        model.policy.add_critic()
        rates[CRITIC] = algorithm.critic.learning_rate

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
            learning_rate=_make_learning_rate(config, prepared.plan.steps, rates),
            parts=tuple(rates),
            autocast=model.autocast,
            max_logp_gap=max_logp_gap(config),
        ),
        accelerator,
        make_optimizer=optimizer_maker(config),
        reference=reference,
        prefixes=prefixes,
    )


def optimizer_maker(config: Config) -> Callable[[Policy], torch.optim.Optimizer]:
    """Makes the optimizer of a policy's trained weights."""
    return partial(
        make_adamw,
        betas=config.train.betas,
        weight_decay=config.train.weight_decay,
        parts=tuple(config.train.learning_rates),
        bytes_of_moments=BYTES_OF_MOMENTS[config.train.optimizer],
        seed=config.train.seed,
    )


def max_logp_gap(config: Config) -> float:
    """The gap that the config allows, or what its dtype makes of it."""
    given = config.rollout.max_logp_gap
    return MAX_LOGP_GAP[config.model.dtype] if given is None else given


def _make_learning_rate(
    config: Config, steps: int, rates: Mapping[str, float]
) -> Callable[[int, str], float]:
    """rates: peaks of the parts that have one of their own."""
    peaks = {"": config.train.learning_rate, **rates}

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


def make_engine(
    config: Config, model: Model, sharding: Sharding, prefixes: PrefixStore | None
) -> Engine:
    return model.engine(
        config.rollout.engine,
        options=engine_options(config),
        prefixes=prefixes,
        awaits_sync=True,
        by_copy=not sharding.holds_whole,
    )


def make_source(prepared: Prepared) -> PromptSource:
    return PromptSource(
        examples=prepared.examples,
        encoder=prepared.sets[0].encoder,
        seed=prepared.config.train.seed,
        rows=prepared.rows,
        order=prepared.order,
        encoders={one.name: one.encoder for one in prepared.sets},
    )


def encode_ahead(config: Config, source: Source) -> AbstractContextManager[Source]:
    """Within, the source has its groups made ahead by processes, if the config wants any."""
    if not config.data.workers:
        return nullcontext(source)
    return encoding_ahead(source, workers=config.data.workers, ahead=config.train.prompts_per_step)


def make_collector(
    prepared: Prepared,
    source: Source,
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
        progress=display,
        skip=_make_skip_rule(prepared),
    )


def _make_skip_rule(prepared: Prepared) -> SkipRule | None:
    config = prepared.config
    if not config.data.skip_solved:
        return None
    return SkipRule(
        needed=config.data.skip_solved,
        rows=prepared.plan.examples - prepared.plan.left_out,
        least=config.train.prompts_per_step,
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
        with_greedy="greedy_reward" in prepared.algorithm.needs,
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


def count_rounds(config: Config) -> int:
    """Rounds of answers that a step may sample; 0 where the algorithm samples none."""
    section = config.algorithm
    if not isinstance(section, SampledConfig):
        return 0
    return section.max_resample_attempts if section.beta_th else 1


def make_picture_source(prepared: Prepared) -> PictureSource:
    encoder = prepared.sets[0].encoder
    return PictureSource(
        root=encoder.root,
        max_pixels=encoder.limits.max_image_pixels,
        roots={one.name: one.encoder.root for one in prepared.sets},
    )


def make_intervals(config: Config, steps: int) -> Intervals:
    return Intervals(
        steps=steps,
        eval_every=config.eval.every,
        checkpoint_every=config.output.checkpoint_every,
        samples_every=config.output.samples_every,
        keep_best=config.output.keep_best,
    )
