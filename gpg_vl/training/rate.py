"""`gpg-vl data rate`: the base model of a config answers each row of its data k times; the answers are scored and counted.

Rows are divided over the processes of a launch. The first process appends each batch to the rating's file. So however the command
ends, the next start continues with the missing rows.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from accelerate import Accelerator
from rich.console import Console

from gpg_vl.activity import doing
from gpg_vl.config import Config
from gpg_vl.console import make_console, progress
from gpg_vl.data.pass_rates import RowRate
from gpg_vl.errors import RunError
from gpg_vl.eval.generate import MEMORY
from gpg_vl.eval.predictions import appending
from gpg_vl.model import Model, autocast_dtype
from gpg_vl.models.encode import Encoder
from gpg_vl.rollout import engines, refuse_engine
from gpg_vl.rollout.engine import (
    Engine,
    EngineLostError,
    EngineSetup,
    RolloutRequest,
    refuse_non_finite_answers,
)
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.training.collect import Rewarder
from gpg_vl.training.collectives import gather, on_main, once_per_node, wait_for_all
from gpg_vl.training.data_check import check_once, load_data, make_pool
from gpg_vl.training.failures import raise_lost
from gpg_vl.training.interrupt import StopRequest
from gpg_vl.training.prepare import engine_options, make_encoder, refuse_unreachable_parts
from gpg_vl.training.prompt_source import PromptSource
from gpg_vl.training.rank_consistency import (
    agree_on_the_hub,
    refuse_other_data,
    refuse_other_settings,
)
from gpg_vl.training.rating_report import describe_pace, render_plan, render_rating
from gpg_vl.training.rating_store import Rating, open_rating, row_digest
from gpg_vl.training.row_digests import RowDigests
from gpg_vl.training.training_sets import training_sets
from gpg_vl.types import Group

LEAST_SAMPLES = 8
"""Default number of answers per row; the group size if that is larger."""
SEED = 0x72617465
"""The seed of the sampling. It is independent of `train.seed`, because a rating is used by runs with any seed."""
SAY_EVERY = 30.0
"""Seconds between progress lines if the output is not a terminal."""
STOPPING = "stopping after this batch; its rows are saved, and the same command continues later; send it again to stop at once"


def rate(config: Config, accelerator: Accelerator, *, samples: int | None) -> int:
    """Rate the rows of a config that are not rated yet, and print a summary. Every process of the launch calls it.

    Several sources are rated one after the other, each as in a run on it alone.

    samples: answers per row; None: `LEAST_SAMPLES`, or a group's.
    Returns 0, or the exit code of the signal that interrupted it. Raises UserError, RunError for a reward that fails.
    """
    refuse_other_settings(accelerator, config)
    sets = training_sets(config)
    paths = [one.config.data.only for one in sets]
    agree_on_the_hub(accelerator, model=config.model.path, data=paths)
    console = make_console()
    code = 0
    for one in sets:
        code = code or _rate_set(one.config, accelerator, console, samples)

    # a process that exits early could cut off the last output of another
    wait_for_all(accelerator)
    accelerator.end_training()
    return code


def _rate_set(
    config: Config, accelerator: Accelerator, console: Console, samples: int | None
) -> int:
    """Rate one set. Returns what `rate` does."""
    shown = console if accelerator.is_main_process else None
    encoder, rows = _check(config, accelerator, shown)

    wanted = samples or max(LEAST_SAMPLES, config.rollout.group_size)
    ratings: list[Rating] = []
    with doing("the digest of the files that the rates depend on"):
        on_main(accelerator, lambda: ratings.append(open_rating(config, rows, wanted)))
    rating: Rating = gather(accelerator, ratings[0] if ratings else None)[0]
    if shown:
        render_plan(rating, config, accelerator.num_processes, shown)

    # as in a run, a row is read, compared with its digest, and encoded
    source = PromptSource(examples=load_data(config), encoder=encoder, seed=0, rows=rows)
    stop = StopRequest(announces=accelerator.is_main_process, says=STOPPING)
    if not rating.is_complete:
        rating = _rate_missing(config, source, rating, accelerator, stop, shown)
    if shown and rating.is_complete:
        render_rating(rating, config, shown)
    elif shown:
        shown.print(
            f"{len(rating.rates)} of {rating.rows} rows are rated; the same command rates the others."
        )
    return 0 if rating.is_complete else stop.exit_code


def _check(
    config: Config, accelerator: Accelerator, console: Console | None
) -> tuple[Encoder, RowDigests]:
    """Check everything that needs no weights. Returns the encoder and the row digests."""
    once = partial(once_per_node, accelerator)
    engines.get(config.rollout.engine)
    refuse_unreachable_parts(config, console, once)
    encoder = make_encoder(config)
    family, options = encoder.processing.family, engine_options(config)
    refuse_engine(config.rollout.engine, family, options, accelerator.num_processes)

    with doing("the check of the data"):
        by_node = once(lambda: check_once(config, encoder, console, again=False).rows)
        refuse_other_data([rows.whole for rows in by_node], config.data.only)
    return encoder, by_node[0]


class _Report(NamedTuple):
    """What a process reports to the others after each batch."""

    rates: list[RowRate]
    lost: str | None
    """The error message of its engine if it was lost, else None."""
    broken: str | None
    """The message of the first failed reward, if any."""
    stop: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rater:
    """Answers rows, scores the answers and counts them."""

    source: PromptSource
    engine: Engine
    rewarder: Rewarder
    sampling: Sampling
    stop_wanted: Callable[[], bool]

    def rate(self, numbers: Sequence[int]) -> _Report:
        """Rate rows. A lost engine or a failed reward is reported instead of raised, because the other processes wait for
        the report."""
        with doing("the reading of examples"):
            groups = [self.source.group_of(number, draw=number) for number in numbers]
        try:
            with doing("the sampling of answers"):
                answered = self._answer(groups)
        except EngineLostError as error:
            return _Report([], lost=str(error), broken=None, stop=self.stop_wanted())

        with doing("the rewards"):
            scored = self.rewarder.score(answered)
        broken = str(scored.failures[0]) if scored.failures else None
        rates = [self._count(group) for group in scored.groups]
        return _Report(rates, lost=None, broken=broken, stop=self.stop_wanted())

    def _answer(self, groups: Sequence[Group]) -> list[Group]:
        requests = [
            RolloutRequest(prompt=group.prompt, draw=group.draw, images=group.example.images)
            for group in groups
        ]
        with self.engine.step():
            answers = self.engine.generate(requests, self.sampling)
        refuse_non_finite_answers(requests, answers)
        return [
            replace(group, completions=completions)
            for group, completions in zip(groups, answers, strict=True)
        ]

    def _count(self, group: Group) -> RowRate:
        rows = self.source.rows
        assert rows is not None
        parts = {name: sum(values) / len(values) for name, values in group.reward_parts.items()}
        return RowRate(
            number=group.draw,
            id=group.example.id,
            digest=row_digest(rows, group.draw),
            right=group.right,
            rewards=group.rewards,
            parts=parts,
        )


def _rate_missing(
    config: Config,
    source: PromptSource,
    rating: Rating,
    accelerator: Accelerator,
    stop: StopRequest,
    console: Console | None,
) -> Rating:
    """Rate the missing rows. Returns the rating, which is incomplete if the run was asked to stop.

    console: the console, on the main process, which writes the file.
    """
    with progress(console, f"loading {config.model.path} into the engine {config.rollout.engine}"):
        engine = _make_engine(config, source.encoder, accelerator)
    sampling = Sampling(
        group_size=rating.samples,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        seed=SEED,
    )
    missing = [number for number in range(rating.rows) if number not in rating.rates]
    with (
        make_pool(config) as rewarder,
        stop,
        appending(rating.file) if console else _nothing_to_append() as append,
        _show_pace(console, done=len(rating.rates), of=rating.rows) as show,
    ):
        rater = _Rater(
            source=source,
            engine=engine,
            rewarder=rewarder,
            sampling=sampling,
            stop_wanted=stop.is_wanted,
        )
        rates = dict(rating.rates)
        for batch in _share(rater, missing, accelerator, size=config.rollout.prompts_per_batch):
            for rated in batch:
                append(rated.to_json())
                rates[rated.number] = rated
                show()
    return replace(rating, rates=rates)


def _share(
    rater: _Rater, numbers: Sequence[int], accelerator: Accelerator, *, size: int
) -> Iterator[list[RowRate]]:
    """Rate rows batch by batch, divided over the processes. Every process gets all rates, and all end after the same batch.

    Raises EngineLostError, or RunError for a failed reward, on all processes, after yielding what was rated.
    """
    processes, index = accelerator.num_processes, accelerator.process_index
    together = size * processes
    for start in range(0, len(numbers), together):
        reports = gather(
            accelerator, rater.rate(numbers[start : start + together][index::processes])
        )
        rates = [rated for report in reports for rated in report.rates]
        yield sorted(rates, key=lambda rated: rated.number)

        raise_lost([report.lost for report in reports])
        broken = [report.broken for report in reports if report.broken]
        if broken:
            raise RunError(
                f"A reward failed: {broken[0]} The rated rows are saved. Correct the reward (gpg-vl rewards test shows "
                f"how it scores an answer) and run the same command again. If the reward's file has changed, all rows are "
                f"rated again."
            )
        if any(report.stop for report in reports):
            return


def _make_engine(config: Config, encoder: Encoder, accelerator: Accelerator) -> Engine:
    """The config's engine with the base model. An engine with its own weights may use all the memory, because nothing is
    trained."""

    def load() -> Model:
        return Model.load(
            config.model.path,
            revision=config.model.revision,
            dtype=config.model.dtype,
            device=accelerator.device,
            temperature=config.rollout.temperature,
            processing=encoder.processing,
        )

    setup = EngineSetup(
        path=config.model.path,
        revision=config.model.revision,
        policy=lambda: load().policy,
        processing=encoder.processing,
        autocast=autocast_dtype(config.model.dtype),
        options=replace(engine_options(config), vllm_memory=MEMORY, vllm_sleep=False),
    )
    return engines.get(config.rollout.engine)(setup)


@contextmanager
def _nothing_to_append() -> Iterator[Callable[[object], None]]:
    yield lambda record: None


@contextmanager
def _show_pace(console: Console | None, *, done: int, of: int) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each row. Shows a bar on a terminal, elsewhere a line every `SAY_EVERY` seconds."""
    started = said = time.monotonic()
    rated = 0

    def show() -> None:
        nonlocal said, rated
        rated += 1
        advance()
        now = time.monotonic()
        is_due = now - said >= SAY_EVERY or done + rated == of
        if console and not console.is_terminal and is_due:
            console.print(describe_pace(done, rated, of, now - started), soft_wrap=True)
            said = now

    with progress(console, f"rating {of - done} of {of} rows", of - done) as advance:
        yield show
