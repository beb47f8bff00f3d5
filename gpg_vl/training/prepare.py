"""Everything about a run that can be checked without weights: names, data, rewards, sizes.

It ends in a plan.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any

from rich.console import Console

from gpg_vl.activity import doing
from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.config import Config, SampledConfig, make_algorithm
from gpg_vl.data.check import DataReport, ReadGold, check
from gpg_vl.data.contamination import EvaluationRows
from gpg_vl.data.dataset_notes import DatasetNotes, Reader
from gpg_vl.data.read import folder_of, load_examples, notes_of, read_rows
from gpg_vl.data.unused_pictures import UnusedPictures
from gpg_vl.errors import UserError
from gpg_vl.eval.tasks import tasks
from gpg_vl.models.encode import Encoder
from gpg_vl.models.load import Processing, load_processing
from gpg_vl.prompting import PixelLimits, PromptStyle
from gpg_vl.rewards import BUILTIN
from gpg_vl.rewards.gold_proof import check_gold, explain, needs_answer
from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.scoring import load
from gpg_vl.rollout import engines, refuse_engine
from gpg_vl.rollout.engine import EngineOptions
from gpg_vl.training.agreement import refuse_other_data
from gpg_vl.training.eight_bit import refuse_without_package
from gpg_vl.training.launcher import describe_missing_processes
from gpg_vl.training.plan import Plan, count_parameters, make_plan
from gpg_vl.training.row_digests import RowDigests, digest_rows
from gpg_vl.training.sharding import refuse_sharding
from gpg_vl.training.trial_save import refuse_unsavable
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
    return Encoder(
        processing=load_processing(config.model.path, config.model.revision),
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
    )


def picture_root(config: Config) -> Path | None:
    """The folder that paths of pictures start from; None where pictures are bytes."""
    return Path(config.data.root) if config.data.root else folder_of(config.data.train)


def make_pool(config: Config) -> RewardPool:
    """The worker processes of the config's rewards."""
    return RewardPool(
        config.rewards.weights,
        time_limit=config.rewards.time_limit,
        workers=config.rewards.workers,
        gold=config.rewards.gold,
        root=picture_root(config),
    )


def needs_answers(config: Config) -> bool:
    """Whether every row needs a gold answer: to learn it, or for a reward. Imports rewards of your own in a worker."""
    if not isinstance(config.algorithm, SampledConfig):
        return True

    own = [name for name in config.rewards.weights if name not in BUILTIN]
    built_in = [
        load(name, config.rewards.gold) for name in config.rewards.weights if name in BUILTIN
    ]
    if any(needs_answer(reward.gold) for reward in built_in):
        return True
    if not own:
        return False
    with make_pool(config) as pool:
        return bool(pool.need_answers())


def engine_options(config: Config) -> EngineOptions:
    """What the config's rollout section says to engines."""
    names = {field.name for field in fields(EngineOptions)}
    return EngineOptions(**config.rollout.model_dump(include=names))


def check_data(
    config: Config,
    encoder: Encoder,
    console: Console | None,
    *,
    read_gold: ReadGold | None = None,
) -> DataReport:
    """Read and check every row of the training data. `read_gold`: see `check`; the gold proof of a
    run says more.
    """
    answers = needs_answers(config)
    unused = UnusedPictures(encoder.root)
    reader = Reader(
        sees_images=encoder.processing.family.has_vision,
        context=encoder.processing.tokens.context,
        max_new_tokens=config.rollout.max_new_tokens,
    )
    rows = read_rows(
        config.data.train,
        config.data.columns,
        limit=config.data.limit,
        on_example=unused.add,
        answers=answers,
    )
    return check(
        rows,
        answers=answers,
        count=encoder.count,
        max_prompt_tokens=config.data.max_prompt_tokens,
        console=console,
        source=config.data.train,
        dataset_notes=DatasetNotes(reader, unused, _evaluation_rows(config, encoder.root)),
        read_gold=read_gold,
        notes=_notes_of_source(config),
    )


def _evaluation_rows(config: Config, root: Path | None) -> EvaluationRows | None:
    """What the evaluation of the run shows, which training should not; None if it has none."""
    if config.eval.task is None or config.eval.data is None:
        return None
    docs = tasks.get(config.eval.task)().load(Path(config.eval.data))
    return EvaluationRows(((doc.example, doc.root) for doc in docs), root=root)


def _notes_of_source(config: Config) -> Iterator[str]:
    """Asked for once the rows are read, so that a source which cannot be read is one problem, not an error twice."""
    yield from notes_of(config.data.train, config.data.columns)


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
        examples = load_data(config)

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
        warnings=_warnings(config, encoder, processes),
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


def _warnings(config: Config, encoder: Encoder, processes: int) -> list[str]:
    """What is allowed and probably not meant."""
    texts = [describe_missing_processes(os.environ, processes), describe_unknown_end(encoder)]
    if config.model.lora_targets and not config.model.lora_rank:
        texts.append(
            "model.lora_targets has no effect: model.lora_rank is 0, so all weights are trained. Set model.lora_rank, or "
            "leave model.lora_targets out"
        )
    return [text for text in texts if text]


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


def _check(
    config: Config, encoder: Encoder, console: Console | None
) -> tuple[DataReport, RowDigests, str]:
    """All that is looked at once on a node, every row too.

    Returns the report, and what tells this data, and what is made of it, from other data.
    """
    refuse_unsavable(config, encoder)
    report = check_data(config, encoder, console)
    if not report.ok:
        if console:
            report.render(console)
        raise UserError(
            f"The data {config.data.train} has {len(report.problems)} problem(s), listed above. Correct the "
            f"rows or choose others; nothing is dropped silently."
        )

    examples = load_data(config)
    _refuse_bad_rewards(config, examples)
    sizes = sha256(repr((report.tokens, report.image_sizes)).encode()).hexdigest()
    return report, digest_rows(examples, encoder.root), sizes


def load_data(config: Config) -> list[Example]:
    """The examples of a config whose rows were checked: one without an answer may do without."""
    data = config.data
    return load_examples(data.train, data.columns, limit=data.limit, answers=False)


def _count_steps(config: Config, examples: int) -> int:
    if config.train.steps is not None:
        return config.train.steps
    return ceil(config.train.epochs * examples / config.train.prompts_per_step)


def _refuse_bad_rewards(config: Config, examples: Sequence[Example]) -> None:
    gold = config.rewards.gold
    with make_pool(config) as pool:
        problems = check_gold(config.rewards.weights, examples, pool=pool, gold=gold)
    if problems:
        raise UserError(explain(problems, gold))
