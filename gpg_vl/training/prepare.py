"""Everything about a run that can be checked without weights: names, data, rewards, sizes.

It ends in a plan.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any

from rich.console import Console

from gpg_vl.activity import doing
from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.config import Config, make_algorithm
from gpg_vl.data.check import DataReport, check
from gpg_vl.data.read import load_examples, read_rows
from gpg_vl.errors import UserError
from gpg_vl.models.encode import Encoder
from gpg_vl.models.load import Processing, load_processing
from gpg_vl.prompting import PixelLimits, PromptStyle
from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.scoring import check_gold
from gpg_vl.rollout import engines, refuse_engine
from gpg_vl.rollout.engine import EngineOptions
from gpg_vl.training.agreement import refuse_other_data
from gpg_vl.training.eight_bit import refuse_without_package
from gpg_vl.training.plan import Plan, count_parameters, make_plan
from gpg_vl.training.row_digests import RowDigests, digest_rows
from gpg_vl.training.sharding import refuse_sharding
from gpg_vl.types import Example

OncePerNode = Callable[[Callable[[], Any]], list[Any]]
"""Runs an action on the first process of each node: what it returned, by node. See `ranks.once_per_node`."""


def alone(action: Callable[[], Any]) -> list[Any]:
    """`OncePerNode` of a run of one process."""
    return [action()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A run that is checked and planned, without weights."""

    config: Config
    algorithm: Algorithm
    processing: Processing
    encoder: Encoder
    examples: Sequence[Example]
    report: DataReport
    rows: RowDigests
    """What tells this data from other data, as the first node reads it."""
    plan: Plan


def make_encoder(config: Config) -> Encoder:
    """The encoder of a config's model, prompt and data sections.

    Loads the tokenizer, no weights.
    """
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


def engine_options(config: Config) -> EngineOptions:
    """What the config's rollout section says to engines."""
    names = {field.name for field in fields(EngineOptions)}
    return EngineOptions(**config.rollout.model_dump(include=names))


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


def prepare(
    config: Config,
    *,
    processes: int,
    console: Console | None,
    once_per_node: OncePerNode = alone,
    device_bytes: float | None = None,
    devices: int | None = None,
) -> Prepared:
    """Check data, rewards and sizes, and plan the run.

    device_bytes, devices: see `make_plan`. Raises UserError with everything that is wrong.
    """
    if config.train.prompts_per_step % processes:
        raise UserError(
            f"train.prompts_per_step is {config.train.prompts_per_step}, which {processes} processes cannot share. "
            f"Choose a multiple of {processes}."
        )

    # names that are looked up are looked up first, those of layers and parts too: no data is read for a run that cannot
    # start
    engines.get(config.rollout.engine)
    refuse_sharding(config.train.sharding, config.train.offload)
    if config.train.optimizer == "adamw_8bit":
        refuse_without_package()
    algorithm = make_algorithm(config.algorithm)
    encoder = make_encoder(config)
    refuse_engine(
        config.rollout.engine, encoder.processing.family, engine_options(config), processes
    )
    count_parameters(config, encoder.processing.family)

    with doing("the check of the data"):
        checked = once_per_node(lambda: _check(config, encoder, console))
        digests = [rows.whole + sizes for _, rows, sizes in checked]
        refuse_other_data(digests, config.data.train)
        report, rows, _ = checked[0]
        examples = load_examples(config.data.train, config.data.columns, limit=config.data.limit)

    plan = make_plan(
        config,
        algorithm=algorithm,
        family=encoder.processing.family,
        prompt_tokens=report.tokens,
        image_tokens=report.image_tokens,
        processes=processes,
        steps=_count_steps(config, len(examples)),
        first_prompt=encoder.render(examples[0]),
        device_bytes=device_bytes,
        devices=devices,
    )
    return Prepared(
        config=config,
        algorithm=algorithm,
        processing=encoder.processing,
        encoder=encoder,
        examples=examples,
        report=report,
        rows=rows,
        plan=plan,
    )


def _check(
    config: Config, encoder: Encoder, console: Console | None
) -> tuple[DataReport, RowDigests, str]:
    """All that takes a look at every row. The report, and what tells this data, and what is made of it, from others."""
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
    sizes = sha256(repr((report.tokens, report.image_sizes)).encode()).hexdigest()
    return report, digest_rows(examples, encoder.root), sizes


def _count_steps(config: Config, examples: int) -> int:
    if config.train.steps is not None:
        return config.train.steps
    return ceil(config.train.epochs * examples / config.train.prompts_per_step)


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


def _folder_of(source: str) -> Path | None:
    if source.startswith("datasets:"):
        return None
    path = Path(source)
    return path if path.is_dir() else path.parent
