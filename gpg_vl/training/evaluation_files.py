"""The folder evaluations/ of a run: the policy's answer to each held-out row, and small images of some rows."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from gpg_vl.data.images import ImageError, image_size, load_image
from gpg_vl.errors import RunError, UserError
from gpg_vl.eval.results import Results, ScoredRow
from gpg_vl.eval.task import Doc, Task
from gpg_vl.report.groups import spread
from gpg_vl.report.pictures import encode, shrink
from gpg_vl.types import Example

MOST_PICTURED = 400
"""Maximum number of held-out rows whose images are saved, spread evenly."""
GREY = (128, 128, 128)
"""The colour of a blank image. Black or white could mean something to a model that has seen night photos and pages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The result of an evaluation.

    Example: `Evaluated(metrics={"official": 0.5, "ci95": {"official": [0.4, 0.6]}}, rows=({"doc_id": 0, ...},))`
    """

    metrics: dict[str, Any]
    """A row of metrics.jsonl: scores, `ci95` and `chance` by score, and `blank_` scores if blank images were evaluated."""
    rows: tuple[dict[str, Any], ...] = ()
    """One for each held-out row, as evaluations/ has them."""
    pictured: Mapping[int, Example] = field(default_factory=dict)
    """The examples whose images are saved, by doc_id, with images as bytes."""
    max_pixels: int = 0
    """The pixel limit for decoding an image."""


def make_evaluated(
    task: Task,
    results: Results,
    blank: Results | None,
    ready: Mapping[int, Example],
    max_pixels: int,
) -> Evaluated:
    """Combine the results of an evaluation and of the same rows with blank images into the form that a run saves."""
    with_images = [doc_id for doc_id, example in ready.items() if example.images]
    pictured = {doc_id: ready[doc_id] for doc_id in spread(with_images, MOST_PICTURED)}
    blank_rows = {row.doc.doc_id: row for row in blank.rows} if blank else {}
    return Evaluated(
        metrics=_metrics(results, blank),
        rows=tuple(
            _row(task, row, blank_rows.get(row.doc.doc_id), pictured) for row in results.rows
        ),
        pictured=pictured,
        max_pixels=max_pixels,
    )


def _metrics(results: Results, blank: Results | None) -> dict[str, Any]:
    """The scores of `strict`. A score over no rows is NaN, which JSON cannot hold, so it is left out."""
    scores: dict[str, float] = {}
    ci95: dict[str, list[float]] = {}
    for prefix, of in (("", results), ("blank_", blank)):
        for name, one in of.estimates["strict"].items() if of else ():
            if not math.isnan(one.value):
                scores[f"{prefix}{name}"] = one.value
            if math.isfinite(one.low) and math.isfinite(one.high):
                ci95[f"{prefix}{name}"] = [one.low, one.high]
    chance = {name: value for name, value in results.chance.items() if math.isfinite(value)}
    return {
        **scores,
        "answered": results.answered["strict"],
        "truncated": results.truncated,
        "rows": len(results.rows),
        "ci95": ci95,
        "chance": chance,
    }


def _row(
    task: Task, row: ScoredRow, blank: ScoredRow | None, pictured: Mapping[int, Example]
) -> dict[str, Any]:
    verdict, doc_id = row.scores["strict"], row.doc.doc_id
    images = pictured[doc_id].images if doc_id in pictured else ()
    score = 0.0 if math.isnan(verdict.score) else verdict.score
    beside: dict[str, Any] = {}
    if blank is not None:
        beside["blank_response"] = blank.prediction.response.text
        beside["blank_right"] = blank.scores["strict"].score >= task.right_from
    return {
        "doc_id": doc_id,
        "task": row.doc.example.task,
        "question": question(row.doc.example),
        "gold": row.doc.gold,
        "images": [_name(doc_id, place) for place in range(len(images))],
        "response": row.prediction.response.prefill + row.prediction.response.text,
        "finish_reason": row.prediction.response.finish_reason,
        "parsed": verdict.parsed,
        "note": verdict.note if row.error is None else row.error,
        "score": score,
        "right": score >= task.right_from,
        **beside,
    }


def _name(doc_id: int, place: int) -> str:
    """The file name of an image in evaluations/pictures/."""
    return f"{doc_id}-{place}.webp"


def question(example: Example) -> str:
    """The question without the additions of a prompt style: the prompt, or the turns of a conversation."""
    if isinstance(example.prompt, str):
        return example.prompt
    return "\n".join(f"{turn.role}: {turn.content}" for turn in example.prompt)


# ---- blank pictures


def with_blank_pictures(docs: Sequence[Doc], task: str) -> list[Doc]:
    """The docs with every image replaced by a grey one of the same size. Raises UserError if no doc has an image."""
    if not any(doc.example.images for doc in docs):
        raise UserError(
            f"eval.blank_image is true, but no row of {task} has an image. Set it to false."
        )
    return [replace(doc, example=_blank(doc)) for doc in docs]


def _blank(doc: Doc) -> Example:
    sizes = [image_size(image, root=doc.root) for image in doc.example.images]
    return replace(doc.example, images=tuple(_grey(*size) for size in sizes))


@cache
def _grey(width: int, height: int) -> bytes:
    out = BytesIO()
    Image.new("RGB", (width, height), GREY).save(out, "PNG")
    return out.getvalue()


# ---- the files


def write_evaluation(folder: Path, step: int, found: Evaluated) -> None:
    """Write `evaluations/step-N.jsonl` atomically, and the images once per run. Raises RunError."""
    place = folder / "evaluations"
    try:
        _keep_pictures(place / "pictures", found)
        partial = place / f"step-{step:06d}.partial"
        with partial.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row, allow_nan=False) + "\n" for row in found.rows)
        partial.replace(partial.with_suffix(".jsonl"))
    except OSError as error:
        raise RunError(
            f"The evaluation cannot be written to {place}: {error}. Free disk space and resume from the last "
            f"checkpoint with --resume."
        ) from error


def _keep_pictures(folder: Path, found: Evaluated) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for doc_id, example in found.pictured.items():
        for place, image in enumerate(example.images):
            file = folder / _name(doc_id, place)
            if file.exists():
                continue
            try:
                small = shrink(load_image(image, root=None, max_pixels=found.max_pixels))
            except ImageError:
                # the image cannot be read: the answer counts as wrong, and its row says why
                continue
            file.write_bytes(encode(small))
