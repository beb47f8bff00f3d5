"""In which coordinates the answers to an example are read, and the sizes of its image that pixels are counted in.

A row says with `coordinates` what the numbers of its gold answer count. What those of a model's answers count is, in this
order, what the row names (`answer_coordinates`), what the config names (`prompt.coordinates`), or what its family was taught.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from gpg_vl.answers.math.rectangles import COORDINATES
from gpg_vl.errors import UserError
from gpg_vl.models.families import Family
from gpg_vl.types import Example


class Sizes(NamedTuple):
    """(width, height) of an image in pixels, in its file and as the model sees it.

    Example: `Sizes((640, 480), (644, 476))`
    """

    stored: tuple[int, int]
    seen: tuple[int, int]


def with_frames(
    example: Example, family: Family, wanted: str | None, measure: Callable[[], Sequence[Sizes]]
) -> Example:
    """The example with all that its answers are read by: `answer_coordinates`, `answer_size`, and sizes that its row lacks.

    An example without `coordinates` is returned as it is, and so is one that a family without vision is asked.

    wanted: the coordinates that the config names. measure: finds the sizes of the images; called only if pixels are counted.
    Raises UserError that names the example.
    """
    gold, given = example.meta.get("coordinates"), example.meta
    if gold not in COORDINATES or not family.has_vision:
        return example
    answered = _answered_in(example, family, wanted)

    # pixels of the gold answer may be those of another size, which the row then gives
    needs_stored = "abs_orig" in (answered, gold) and "image_size" not in given
    lacks_seen = gold == "abs_resized" and "input_size" not in given
    found: dict[str, Any] = {} if answered is None else {"answer_coordinates": answered}
    if lacks_seen or answered == "abs_resized":
        _refuse_tiles(example, family)
        size = list(_only([one.seen for one in measure()], example, "input_size"))
        found |= {"answer_size": size} if answered == "abs_resized" else {}
        found |= {"input_size": size} if lacks_seen else {}
    if needs_stored:
        found["image_size"] = list(_only([one.stored for one in measure()], example, "image_size"))
    return replace(example, meta={**given, **found})


def _answered_in(example: Example, family: Family, wanted: str | None) -> str | None:
    """The coordinates of answers; None leaves them to the gold answer's. Raises UserError."""
    named: str | None = example.meta.get("answer_coordinates")
    if named is not None and named not in COORDINATES:
        raise UserError(
            f"Example {example.id}: its column `answer_coordinates` has {named!r:.80}. It says what the numbers of a model's "
            f"answers count, one of {', '.join(COORDINATES)}. Correct it, or set it to null to use the model's own."
        )
    return named or wanted or (family.boxes.coordinates if family.boxes else None)


def _refuse_tiles(example: Example, family: Family) -> None:
    """Raises UserError for pixels of a resized image where the family has no such image."""
    if family.boxes is None:
        return
    try:
        family.boxes.refuse("abs_resized", family.model_type)
    except UserError as error:
        raise UserError(
            f"Example {example.id}: {error} Change prompt.coordinates or the row's column that names it."
        ) from None


def _only(sizes: Sequence[tuple[int, int]], example: Example, column: str) -> tuple[int, int]:
    """The one size that all images have. Raises UserError that names the example."""
    different = sorted(set(sizes))
    if len(different) != 1:
        listed = ", ".join(f"{width}x{height}" for width, height in different) or "none"
        raise UserError(
            f"Example {example.id}: its boxes are in pixels, and its {len(sizes)} image(s) have the sizes {listed}, where one "
            f"is needed. Give the row a column `{column}` with [width, height], or use boxes in rel1000."
        )
    return different[0]
