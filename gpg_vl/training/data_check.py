"""The check of training data: every row and image is checked once, and again only if something has changed.

Unless noted otherwise, a config here is one with a single data set (`gpg_vl.training.training_sets`).

`check_once` finds the result of an earlier check of the same data (`gpg_vl.training.check_store`), or checks the data and
stores the result.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from gpg_vl.config import Config, SampledConfig
from gpg_vl.console import progress
from gpg_vl.data.check import Checks, DataReport, PromptCounts, ReadGold, check, show_progress
from gpg_vl.data.contamination import EvaluationRows
from gpg_vl.data.dataset_notes import DatasetNotes, Reader
from gpg_vl.data.images import Examined, ImageError
from gpg_vl.data.look_ahead import look_ahead
from gpg_vl.data.placed import Placed
from gpg_vl.data.read import Examples, files_of, folder_of, notes_of, read_rows
from gpg_vl.data.rows import Row
from gpg_vl.data.store import status_of
from gpg_vl.data.unused_pictures import UnusedPictures
from gpg_vl.errors import UserError
from gpg_vl.eval.tasks import tasks
from gpg_vl.models.encode import Encoder
from gpg_vl.rewards import BUILTIN
from gpg_vl.rewards.gold_proof import check_gold, explain, needs_answer
from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.scoring import SourceRewards, load
from gpg_vl.training.check_store import (
    Checked,
    CheckStore,
    digest_pairs,
    digest_statuses,
    locate,
    open_check_store,
)
from gpg_vl.training.row_digests import RowDigests, digest_row
from gpg_vl.training.training_sets import all_rewards, training_sets
from gpg_vl.types import Example


def picture_root(config: Config) -> Path | None:
    """The folder that image paths are relative to; None if images are bytes."""
    return Path(config.data.root) if config.data.root else folder_of(config.data.only)


def make_pool(config: Config) -> RewardPool:
    """The worker processes of the rewards of a run, on one set or on several."""
    sets = training_sets(config)
    sources = {
        one.name: SourceRewards(weights=one.config.rewards.weights, root=picture_root(one.config))
        for one in sets
        if one.name
    }
    return RewardPool(
        all_rewards(config),
        time_limit=config.rewards.time_limit,
        workers=config.rewards.workers,
        gold=config.rewards.gold,
        root=None if sources else picture_root(config),
        sources=sources,
    )


def needs_answers(config: Config) -> bool:
    """Whether every row needs a gold answer, to train on it or for a reward. Imports users' rewards in a worker."""
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


def load_data(config: Config) -> Examples:
    """Load the examples of a config whose rows were checked before; they may lack answers."""
    data = config.data
    return Examples(data.only, data.columns, limit=data.limit, answers=False)


def check_data(
    config: Config,
    encoder: Encoder,
    console: Console | None,
    *,
    read_gold: ReadGold | None = None,
) -> DataReport:
    """Read and check every row of the training data, ignoring stored results. `read_gold`: see `Checks`; the gold check of a run
    reports more.
    """
    answers = needs_answers(config)
    store = _open_store(config, encoder, answers=answers)
    checked = _check_rows(config, encoder, console, answers=answers, read_gold=read_gold)
    _keep(store, _open_store(config, encoder, answers=answers), checked)
    return checked.report


def check_once(
    config: Config, encoder: Encoder, console: Console | None, *, again: bool
) -> Checked:
    """The stored result of an earlier check of the same data, or the result of a new check.

    again: check even if there is a stored result. Raises UserError if there are problems in the data, or if gold answers do
    not get full marks.
    """
    answers = needs_answers(config)
    store = _open_store(config, encoder, answers=answers)
    checked = None if again or store is None else store.find()
    if checked is not None and console:
        console.print(
            f"The data {config.data.only} was checked before and has not changed; --recheck checks every row again.",
            soft_wrap=True,
        )
    found = checked
    if checked is None:
        checked = _check_rows(config, encoder, console, answers=answers, read_gold=None)
    _refuse_problems(config, checked.report, console)

    # a user's own code may depend on other files, so its gold check is repeated at every start
    if not checked.is_proved:
        refuse_bad_rewards(config, Placed(load_data(config), encoder.place), console)
        checked = replace(checked, is_proved=set(config.rewards.weights) <= set(BUILTIN))
    if checked != found:
        _keep(store, _open_store(config, encoder, answers=answers), checked)
    return checked


def refuse_bad_rewards(
    config: Config, examples: Sequence[Example], console: Console | None
) -> None:
    """Raises UserError for gold answers that do not get full marks from the rewards of the run."""
    gold = config.rewards.gold
    names = ", ".join(config.rewards.weights)
    what = f"checking that the rewards ({names}) accept the gold answers of {len(examples)} rows"
    if not examples:
        what = f"loading the rewards ({names})"
    with progress(console, what), make_pool(config) as pool:
        problems = check_gold(config.rewards.weights, examples, pool=pool, gold=gold)
    if problems:
        raise UserError(explain(problems, gold))


def _refuse_problems(config: Config, report: DataReport, console: Console | None) -> None:
    if report.ok:
        return
    if console:
        report.render(console)
    raise UserError(
        f"The data {config.data.only} has {len(report.problems)} problem(s), listed above. Correct the "
        f"rows or choose others; nothing is dropped silently."
    )


def _open_store(config: Config, encoder: Encoder, *, answers: bool) -> CheckStore | None:
    """Where the result of this check is stored; None if it cannot be stored, or if the source cannot be read."""
    try:
        files = files_of(config.data.only, config.data.columns)
        notes = notes_of(config.data.only, config.data.columns)
    except UserError:
        # the check reports it with the other problems
        return None
    if not files:
        return None
    return open_check_store(
        config,
        files,
        notes,
        answers=answers,
        folder=folder_of(config.data.only),
        root=encoder.root,
    )


def _keep(before: CheckStore | None, after: CheckStore | None, checked: Checked) -> None:
    """Store a result unless there were problems, or files changed while they were read."""
    if before is None or before != after or not checked.report.ok:
        return
    if digest_statuses(locate(before.root, checked.pictures)) == checked.statuses:
        before.keep(checked)


def _check_rows(
    config: Config,
    encoder: Encoder,
    console: Console | None,
    *,
    answers: bool,
    read_gold: ReadGold | None,
) -> Checked:
    unused = UnusedPictures(encoder.root)
    reader = Reader(
        sees_images=encoder.processing.family.has_vision,
        context=encoder.processing.tokens.context,
        max_new_tokens=config.rollout.max_new_tokens,
    )
    rows = read_rows(
        config.data.only,
        config.data.columns,
        limit=config.data.limit,
        on_example=unused.add,
        answers=answers,
    )

    # the rows are read only once, so counts, notes and digests are collected on the way
    looking = _Looking(encoder)
    report = check(
        show_progress(looking.ahead(rows), console, source=config.data.only),
        checks=Checks(
            count=looking.count,
            max_prompt_tokens=config.data.max_prompt_tokens,
            answers=answers,
            read_gold=read_gold,
            place=encoder.place,
        ),
        source=config.data.only,
        dataset_notes=DatasetNotes(reader, unused, _evaluation_rows(config, encoder.root)),
        notes=_notes_of_source(config),
    )
    return looking.checked(report)


def _evaluation_rows(config: Config, root: Path | None) -> EvaluationRows | None:
    """The rows of the run's evaluation, which should not be in the training data; None if there is no evaluation."""
    if config.eval.task is None or config.eval.data is None:
        return None
    docs = tasks.get(config.eval.task)().load(Path(config.eval.data))
    return EvaluationRows(((doc.example, doc.root) for doc in docs), root=root)


def _notes_of_source(config: Config) -> Iterator[str]:
    """Notes on the source. Read after the rows, so that an unreadable source is reported only once."""
    yield from notes_of(config.data.only, config.data.columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looked:
    """What was found for one row: its images or what is wrong with them, its digests, and the status of its files."""

    pictures: Sequence[Examined] | ImageError
    digests: tuple[bytes, bytes] = (b"", b"")
    statuses: tuple[tuple[str, str], ...] = ()


class _Looking:
    """Reads images ahead of the check, and records the digests of rows and the status of files."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._current: Future[_Looked] | None = None
        self._texts, self._pictures = bytearray(), bytearray()
        self._statuses: dict[str, str] = {}

    def ahead(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The same rows, whose images have been read when they are returned."""
        for row, looked in look_ahead(rows, self._look):
            self._current = looked
            yield row

    def count(self, example: Example) -> PromptCounts:
        """The counts of the last returned row. Raises UserError."""
        assert self._current is not None, example.id
        looked = self._current.result()
        if isinstance(looked.pictures, ImageError):
            raise looked.pictures

        self._texts += looked.digests[0]
        self._pictures += looked.digests[1]
        self._statuses |= looked.statuses
        return self._encoder.count(example, looked.pictures)

    def checked(self, report: DataReport) -> Checked:
        """The result, after the last row."""
        root = self._encoder.root
        return Checked(
            report=report,
            rows=RowDigests(texts=bytes(self._texts), pictures=bytes(self._pictures)),
            pictures=tuple(self._statuses),
            statuses=digest_pairs(
                zip(locate(root, self._statuses), self._statuses.values(), strict=True)
            ),
        )

    def _look(self, example: Example) -> _Looked:
        encoder = self._encoder
        # a text-only model refuses such a row with its own message
        if not encoder.processing.family.has_vision:
            return _Looked(pictures=(), digests=digest_row(replace(example, images=()), None))
        try:
            # get the status before reading, so that a later change is noticed
            statuses = tuple(
                (image, self._status(image)) for image in example.images if isinstance(image, str)
            )
            return _Looked(
                pictures=encoder.examine(example),
                digests=digest_row(example, encoder.root),
                statuses=statuses,
            )
        except ImageError as error:
            return _Looked(pictures=error)

    def _status(self, image: str) -> str:
        try:
            return status_of((self._encoder.root or Path()) / image)
        except (OSError, ValueError):
            # opening the file reports why
            return ""
