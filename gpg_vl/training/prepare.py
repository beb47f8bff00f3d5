"""Checks everything about a run that can be checked without weights: names, data, rewards, sizes.

The result is a plan.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from hashlib import sha256
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from gpg_vl.activity import doing
from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.config import Config, make_algorithm
from gpg_vl.data.check import DataReport
from gpg_vl.data.order import Order
from gpg_vl.data.sources import refuse_unreachable_source
from gpg_vl.errors import UserError
from gpg_vl.hub import UnreachableError
from gpg_vl.models.encode import Encoder
from gpg_vl.models.load import Processing, load_processing, read_config
from gpg_vl.prompting import PixelLimits, PromptStyle
from gpg_vl.rollout import engines, refuse_engine
from gpg_vl.rollout.engine import EngineOptions
from gpg_vl.training.boxes_note import describe_boxes
from gpg_vl.training.data_check import (
    check_once,
    load_data,
    needs_answers,
    picture_root,
    refuse_bad_rewards,
)
from gpg_vl.training.drawn_rows import (
    DrawnRows,
    choose_of_sets,
    describe_drawn,
    rating_of,
    refuse_few_to_skip,
)
from gpg_vl.training.eight_bit import refuse_without_package
from gpg_vl.training.launcher import describe_missing_processes
from gpg_vl.training.local_check import find_local_problems
from gpg_vl.training.plan import Plan, count_parameters, make_plan
from gpg_vl.training.prepared_data import PreparedSet, order_data, read_listed_rows
from gpg_vl.training.rank_consistency import refuse_other_data
from gpg_vl.training.row_digests import RowDigests
from gpg_vl.training.sharding import refuse_critic, refuse_sharding
from gpg_vl.training.training_sets import TrainingSet, describe_paths, training_sets
from gpg_vl.training.trial_save import refuse_unsavable
from gpg_vl.types import Example

SMALL_RATE_OF_ADAPTERS = 5e-6
"""Learning rates below this are usual for full weights but too small for adapters."""
OncePerNode = Callable[[Callable[[], Any]], list[Any]]
"""Runs an action on the first process of each node and returns the results by node. See `collectives.once_per_node`."""


def run_alone(action: Callable[[], Any]) -> list[Any]:
    """`OncePerNode` of a run of one process."""
    return [action()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A checked and planned run, without weights."""

    config: Config
    algorithm: Algorithm
    processing: Processing
    sets: tuple[PreparedSet, ...]
    examples: Sequence[Example]
    """Of all sets."""
    rows: RowDigests
    """The row digests that identify this data, as read on the first node."""
    order: Order
    rating: str | None
    """The digest of the pass rates by which rows are drawn; None: all rows are."""
    plan: Plan


def make_encoder(config: Config, processing: Processing | None = None) -> Encoder:
    """The encoder for a config's model, prompt and data sections, for a config with one data set.

    Loads the tokenizer unless it is given, no weights.
    """
    return Encoder(
        processing=processing or load_processing(config.model.path, config.model.revision),
        root=picture_root(config),
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
        coordinates=config.prompt.coordinates,
    )


def engine_options(config: Config) -> EngineOptions:
    """The engine options of the config's rollout section."""
    names = {field.name for field in fields(EngineOptions)}
    return EngineOptions(**config.rollout.model_dump(include=names))


def prepare(
    config: Config,
    *,
    processes: int,
    console: Console | None,
    once_per_node: OncePerNode = run_alone,
    device_bytes: float | None = None,
    devices: int | None = None,
    recheck: bool = False,
) -> Prepared:
    """Check data, rewards and sizes, and plan the run.

    recheck: check every row again even if the same data was checked before. device_bytes, devices: see `make_plan`.

    Raises a UserError that lists all problems.
    """
    if config.train.prompts_per_step % processes:
        raise UserError(
            f"train.prompts_per_step is {config.train.prompts_per_step}, which {processes} processes cannot share. "
            f"Choose a multiple of {processes}."
        )

    # look up all names first, including layers and parts, so that no data is read for a run that cannot start
    engines.get(config.rollout.engine)
    refuse_sharding(config.train.sharding, config.train.offload)
    if config.train.optimizer == "adamw_8bit":
        refuse_without_package()
    algorithm = make_algorithm(config.algorithm)
    if algorithm.critic is not None:
        refuse_critic(config.train.sharding)

    refuse_unreachable_parts(config, console, once_per_node)
    sets = training_sets(config)
    processing = load_processing(config.model.path, config.model.revision)
    encoders = [make_encoder(one.config, processing) for one in sets]
    refuse_engine(config.rollout.engine, processing.family, engine_options(config), processes)
    count_parameters(config, processing.family)

    with doing("the check of the data"):
        by_node = once_per_node(lambda: _check(config, sets, encoders, console, again=recheck))
        refuse_other_data([_digest(*found) for found in by_node], describe_paths(config))
        checked, listed = by_node[0]
        reports = [one.report for one in checked]
        digests = [one.rows for one in checked]
        drawn = _choose_drawn(config, sets, digests, once_per_node)
        data = order_data(config, sets, digests, drawn, listed)
        refuse_few_to_skip(config, data.epoch)

    plan = make_plan(
        config,
        algorithm=algorithm,
        family=processing.family,
        prompt_tokens=_pick([report.tokens for report in reports], data.numbers),
        image_tokens=_pick([report.image_tokens for report in reports], data.numbers),
        processes=processes,
        steps=_count_steps(config, data.epoch),
        epoch=data.epoch,
        shares=data.shares,
        first_prompt=encoders[0].render(data.examples[0]),
        device_bytes=device_bytes,
        devices=devices,
        warnings=_warnings(config, encoders[0], processes),
        rows_note=describe_drawn(sets, drawn),
    )
    plan = replace(plan, boxes_note=describe_boxes(sets, reports, processing.family))
    return Prepared(
        config=config,
        algorithm=algorithm,
        processing=processing,
        sets=tuple(
            PreparedSet(name=one.name, config=one.config, encoder=encoder, report=report)
            for one, encoder, report in zip(sets, encoders, reports, strict=True)
        ),
        examples=data.examples,
        rows=data.rows,
        order=data.order,
        rating=rating_of(drawn),
        plan=plan,
    )


def _choose_drawn(
    config: Config,
    sets: Sequence[TrainingSet],
    digests: Sequence[RowDigests],
    once_per_node: OncePerNode,
) -> list[DrawnRows]:
    """The rows to draw from each set, by the rates on the first node, because another node's store may have none."""

    def choose() -> tuple[list[DrawnRows], str]:
        try:
            return choose_of_sets(config, sets, digests), ""
        except UserError as error:
            return [], str(error)

    drawn, problem = once_per_node(choose)[0]
    if problem:
        raise UserError(problem)
    chosen: list[DrawnRows] = drawn
    return chosen


def _pick(by_set: Sequence[Sequence[int]], numbers: Sequence[int]) -> list[int]:
    """Select the values of these rows, numbered over all sets."""
    joined = [value for values in by_set for value in values]
    return [joined[number] for number in numbers]


def refuse_unreachable_parts(
    config: Config, console: Console | None, once_per_node: OncePerNode = run_alone
) -> None:
    """Raise UserError, on all processes, if checkpoint or data are only on the hub and some node cannot reach it. The
    message also lists all other problems.
    """
    sets = training_sets(config)
    model, *data = (
        next((said for said in by_node if said), "")
        for by_node in zip(*once_per_node(lambda: _unreachable_parts(config, sets)), strict=True)
    )
    if not model and not any(data):
        return

    problems = once_per_node(
        lambda: [
            problem
            for one, said in zip(sets, data, strict=True)
            for problem in _find_local_problems(one.config, console, has_rows=not said)
        ]
    )[0]
    missing = [said for said in (model, *data) if said]
    if problems:
        # an unwritable run folder is found for every set; report it once
        raise UserError("\n".join([*missing, "Besides, without it:", *dict.fromkeys(problems)]))
    checked = "Rewards and folders" if any(data) else "Data, rewards and folders"
    raise UserError("\n".join([*missing, f"{checked} were checked and are fine."]))


def _find_local_problems(config: Config, console: Console | None, *, has_rows: bool) -> list[str]:
    return find_local_problems(
        config,
        console,
        root=picture_root(config),
        has_rows=has_rows,
        needs_answers=lambda: needs_answers(config),
        refuse_rewards=lambda: refuse_bad_rewards(
            config, load_data(config) if has_rows else [], console
        ),
    )


def _unreachable_parts(config: Config, sets: Sequence[TrainingSet]) -> list[str]:
    """The message for the checkpoint and for each set if it is only on the hub and that cannot be reached; "" if it is
    available."""
    said = [_find_unreachable(lambda: read_config(config.model.path, config.model.revision))]
    for one in sets:
        said.append(_find_unreachable(partial(refuse_unreachable_source, one.config.data.only)))
    return said


def _find_unreachable(find: Callable[[], object]) -> str:
    try:
        find()
    except UnreachableError as error:
        return str(error)
    return ""


def _warnings(config: Config, encoder: Encoder, processes: int) -> list[str]:
    """What is allowed and probably not meant."""
    texts = [describe_missing_processes(os.environ, processes), describe_unknown_end(encoder)]
    if config.model.lora_targets and not config.model.lora_rank:
        texts.append(
            "model.lora_targets has no effect: model.lora_rank is 0, so all weights are trained. Set model.lora_rank, or "
            "leave model.lora_targets out"
        )
    texts += [describe_small_rate(config), _describe_unused_rewards(config)]
    return [text for text in texts if text]


def _describe_unused_rewards(config: Config) -> str:
    """The warning about rewards that no row uses; "" if there are none."""
    sources = config.data.sources
    if not config.rewards.weights or not sources or not all(one.rewards for one in sources):
        return ""
    return (
        f"rewards.weights has no effect: every one of data.sources has rewards of its own. Leave "
        f"{', '.join(config.rewards.weights)} out, or the rewards of a source that is to have them"
    )


def describe_small_rate(config: Config) -> str:
    """The warning about a learning rate that is usual for full weights but too small for adapters; "" if there is none."""
    rate = max(config.train.learning_rate, *config.train.learning_rates.values(), 0.0)
    if not config.model.lora_rank or rate >= SMALL_RATE_OF_ADAPTERS:
        return ""
    return (
        f"train.learning_rate is {rate:g} and model.lora_rank {config.model.lora_rank}: adapters begin at zero and AdamW moves "
        f"each of their numbers by about the learning rate a step, so the model would hardly change. 1e-6 is usual for whole "
        f"weights; for adapters set train.learning_rate between 1e-5 and 1e-4"
    )


def describe_unknown_end(encoder: Encoder) -> str:
    """What to say of a chat template that ends answers with a token which ends no answer here; "" if it does not."""
    tokens = encoder.processing.tokens
    if encoder.style.chat == "plain" or tokens.turn_end in (None, *tokens.ends):
        return ""

    write = encoder.processing.tokenizer.convert_ids_to_tokens
    return (
        f"the chat template ends an answer with {write(tokens.turn_end)} ({tokens.turn_end}), but the end tokens of this "
        f"checkpoint are {', '.join(f'{write(end)} ({end})' for end in tokens.ends)}: an answer that ends as the template has "
        f"it goes on to rollout.max_new_tokens. If the model was taught this template, add {tokens.turn_end} to eos_token_id "
        f"in its generation_config.json"
    )


class _Found(NamedTuple):
    """What a node has found of a set."""

    report: DataReport
    rows: RowDigests


def _check(
    config: Config,
    sets: Sequence[TrainingSet],
    encoders: Sequence[Encoder],
    console: Console | None,
    *,
    again: bool,
) -> tuple[list[_Found], np.ndarray | None]:
    """All that is looked at once on a node, every row of every set too unless it was before.

    Returns what was found of each set, and the rows that `data.order` lists. Raises UserError with what is wrong in any set.
    """
    refuse_unsavable(config, encoders[0])
    found, refused = [], []
    for one, encoder in zip(sets, encoders, strict=True):
        try:
            checked = check_once(one.config, encoder, console, again=again)
        except UserError as error:
            if len(sets) == 1:
                raise
            refused.append(f"{one.name}: {error}")
        else:
            found.append(_Found(checked.report, checked.rows))
    if refused:
        raise UserError("\n".join(refused))
    return found, read_listed_rows(config, sets)


def _digest(found: Sequence[_Found], listed: np.ndarray | None) -> str:
    """A digest of a node's data and of what is derived from it, to compare nodes."""
    made = [(one.rows.whole, one.report.tokens, one.report.image_sizes) for one in found]
    order = None if listed is None else listed.tolist()
    return sha256(repr((made, order)).encode()).hexdigest()


def _count_steps(config: Config, epoch: int) -> int:
    if config.train.steps is not None:
        return config.train.steps
    return ceil(config.train.epochs * epoch / config.train.prompts_per_step)
