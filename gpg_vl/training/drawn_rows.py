"""Selects the rows of a checked data set that a run draws: all, or those whose pass rate is within the bounds of the
config."""

from collections.abc import Sequence
from dataclasses import dataclass

from gpg_vl.config import Config
from gpg_vl.data.pass_rates import choose_rows
from gpg_vl.errors import UserError
from gpg_vl.training.rating_store import find_rating
from gpg_vl.training.row_digests import WIDTH, RowDigests
from gpg_vl.training.training_sets import TrainingSet


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRows:
    """The rows that a run draws.

    Example: of four rows, of which one is too hard: `DrawnRows(numbers=(0, 1, 3), rating="9f86...", note="3 of 4 rows ...")`
    """

    numbers: tuple[int, ...] | None = None
    """Row numbers in the order of the data; None: all rows."""
    rating: str | None = None
    """The digest of the pass rates by which they were selected."""
    note: str = ""
    """How many rows are left, for the plan."""

    def of(self, rows: range) -> Sequence[int]:
        """The row numbers in the numbering of all sets, in which this set has the range `rows`."""
        return rows if self.numbers is None else [rows[number] for number in self.numbers]


def choose_of_sets(
    config: Config, sets: Sequence[TrainingSet], digests: Sequence[RowDigests]
) -> list[DrawnRows]:
    """The rows that a run draws from each of its checked sets, by the pass rates measured for each set alone.

    Raises UserError as `choose_drawn` does, with the name of the set if there are several.
    """
    needed = config.train.prompts_per_step if len(sets) == 1 else 1
    drawn = []
    for one, rows in zip(sets, digests, strict=True):
        try:
            drawn.append(choose_drawn(one.config, rows, needed=needed))
        except UserError as error:
            raise UserError(f"{one.name}: {error}" if one.name else str(error)) from None
    return drawn


def describe_drawn(sets: Sequence[TrainingSet], drawn: Sequence[DrawnRows]) -> str:
    """How many rows of each set are left, for the plan; "" if all are."""
    notes = [
        f"{one.name}: {rows.note}" if one.name else rows.note
        for one, rows in zip(sets, drawn, strict=True)
        if rows.note
    ]
    return "; ".join(notes)


def rating_of(drawn: Sequence[DrawnRows]) -> str | None:
    """The digests of the pass rates by which the rows of all sets were selected; None if all rows are drawn."""
    return " ".join(one.rating for one in drawn if one.rating is not None) or None


def choose_drawn(config: Config, rows: RowDigests, *, needed: int) -> DrawnRows:
    """Select the rows that a config with one data set draws from the checked rows.

    Raises UserError if pass rates are needed and missing, or if fewer than `needed` rows are left.
    """
    number = len(rows.texts) // WIDTH
    if config.data.pass_rate is None:
        return DrawnRows()

    low, high = config.data.pass_rate
    rating = find_rating(config, rows)
    chosen = choose_rows(rating.rates.values(), low, high)
    note = (
        f"{len(chosen.numbers)} of {number} rows have a pass rate from {low:g} to {high:g}, by {rating.samples} answers each "
        f"({chosen.below} are below, {chosen.above} above)"
    )
    if len(chosen.numbers) < needed:
        raise UserError(
            f"{note}, but {needed} are needed (train.prompts_per_step, or one of each of several sources). Widen "
            f"data.pass_rate, lower train.prompts_per_step, or take more rows. "
            f"gpg-vl data rate CONFIG shows the rates without rating anything again."
        )
    return DrawnRows(numbers=chosen.numbers, rating=rating.digest, note=note)


def refuse_few_to_skip(config: Config, rows: int) -> None:
    """Raise UserError if there are so few rows that none could ever be skipped."""
    if config.data.skip_solved and rows < config.train.prompts_per_step:
        raise UserError(
            f"data.skip_solved is {config.data.skip_solved}, but there are {rows} rows and a step draws "
            f"{config.train.prompts_per_step} (train.prompts_per_step), so no row could ever be skipped. Lower "
            f"train.prompts_per_step, take more rows, or set data.skip_solved to 0."
        )
