"""ReasonSeg of LISA: the box, or the segmentation, of what an instruction means. 200 docs in val, 779 in test.

Four layouts are read: LISA's folder of X.jpg and X.json; Parquet with `mask` (there the ignored region is part of the
mask); Visual-RFT's lisa_val.json and lisa_test.json, which have only the box of the first polygon; and tables with `bbox`.

Boxes come from the answers' text. Masks come from a segmenter that was given those boxes (GPG: SAM ViT-H), as COCO run
lengths in the column `mask` of the predictions; where they are given, `official` (LISA's gIoU and cIoU), `segzero` and
`visual_rft_mask` are printed. LISA's polygons are drawn by OpenCV for that (the extra `masks`). The ground truths differ
between them: see `gpg_vl.eval.scorers.masks`. The aggregate `mIoU` is LISA's gIoU where a scorer is of masks, and the mean
box IoU of the GPG tables under `visual_rft`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from gpg_vl.answers.math.rectangles import Frame, convert
from gpg_vl.errors import UserError
from gpg_vl.eval.coordinates import gold_box, pixels_of
from gpg_vl.eval.loading import (
    Entry,
    Place,
    Row,
    box_cell,
    image_cell,
    rows_of,
    sized,
    tables,
    with_columns,
)
from gpg_vl.eval.masks import box_of, encode
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.boxes import blind_iou, gold_boxes
from gpg_vl.eval.scorers.masks import (
    gold_mask,
    has_drawn_mask,
    is_target,
    lisa_mask,
    regions,
    segzero_mask,
    visual_rft_mask,
)
from gpg_vl.eval.scorers.strict import strict_box
from gpg_vl.eval.scorers.visual_rft import visual_rft_box
from gpg_vl.eval.statistics import Aggregate, Sample, mean_of
from gpg_vl.eval.task import Doc, Task, TaskPrompt
from gpg_vl.eval.tasks.refcoco import THRESHOLDS, share

_SYSTEM = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant first "
    "thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning process and "
    "answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process "
    "here </think><answer> answer here </answer>"
)
# The stray parenthesis and the spelling are the original's; a model that copies the parenthesis still answers with a box.
_VISUAL_RFT = (
    "Output the bounding box in the image corresponding to the instruction: {prompt}. Output the thinking process in <think> "
    '</think> and your grouding box. Following "<think> thinking process </think>\n<answer>(x1,y1),(x2,y2)</answer>)" format.'
)
_PICTURES = (".jpg", ".jpeg", ".png")


PROMPTS = {
    # 128 tokens are published; they cut long reasoning off, which the share of truncated answers shows.
    "visual_rft": TaskPrompt(
        template=_VISUAL_RFT, system=_SYSTEM, max_new_tokens=128, coordinates="rel1000"
    ),
    "visual_rft_train": TaskPrompt(
        template=_VISUAL_RFT.replace("{prompt}.", "{prompt}"),
        max_new_tokens=256,
        coordinates="rel1000",
    ),
    "plain": TaskPrompt(template="Output the bounding box of: {prompt}", max_new_tokens=128),
}
OF_MASKS = {"official": lisa_mask, "segzero": segzero_mask, "visual_rft_mask": visual_rft_mask}
AGGREGATES: dict[str, Aggregate] = {
    "mIoU": Sample.mean,
    "cIoU": lambda sample: sample.ratio("intersection", "union"),
    **{f"@{threshold}": share(threshold) for threshold in THRESHOLDS},
    "phrase": mean_of("query", "phrase"),
    "sentence": mean_of("query", "sentence"),
}


def lisa() -> Task:
    """The task, for `python -m gpg_vl.eval lisa`."""
    return Task(
        name="lisa",
        version="2",
        description="ReasonSeg (LISA): find what an instruction means, which takes reasoning",
        source="https://github.com/dvlab-research/LISA, ReasonSeg/val and test; Ricky06662/ReasonSeg_test (no licence stated)",
        sizes={"test": 779, "val": 200},
        metric="mean box IoU; with masks gIoU and cIoU",
        blind="the whole image as the box",
        files=_files,
        load=load,
        prompts=PROMPTS,
        default_prompt="visual_rft",
        scorers={"strict": strict_box, "visual_rft": visual_rft_box, **OF_MASKS},
        default_scorers=("strict", "visual_rft"),
        needs_mask=tuple(OF_MASKS),
        gold_responses=_golds,
        published_golds=_published_golds,
        # They measure against other regions than the whole target.
        flawed=("visual_rft", "segzero", "visual_rft_mask"),
        boxes=True,
        chance=blind_iou,
        right_from=0.5,
        aggregates=AGGREGATES,
        groups=("query",),
        strata=("query",),
    )


def _golds(doc: Doc) -> tuple[Response, ...]:
    """The gold box as text, with the gold mask where there is one that can be drawn."""
    mask = gold_mask(doc) if has_drawn_mask(doc) else None
    return tuple(replace(gold, mask=mask) for gold in gold_boxes(doc))


def _published_golds(doc: Doc) -> tuple[Response, ...]:
    """What the other ground truths take for right: the box and the mask of the first polygon, and ignored pixels, too."""
    edges = convert(gold_box(doc, "box_first"), pixels_of(doc), Frame("rel1000", 1000.0, 1000.0))
    text = "({},{}),({},{})".format(*map(round, edges))
    if not has_drawn_mask(doc):
        return (Response(text=text),)
    found = regions(doc)
    return tuple(
        Response(text=text, mask=encode(mask))
        for mask in (found.first, found.target | found.ignored)
    )


# --- data -------------------------------------------------------------------------------------------------------------


def _files(path: Path) -> tuple[Path, ...]:
    """The annotation files: X.json next to X.jpg, one JSON list, or tables."""
    if path.is_dir():
        beside = tuple(file for file in sorted(path.glob("*.json")) if _find_picture(file))
        if beside:
            return beside
        for split in ("test", "val"):
            if (path / split).is_dir() and any((path / split).glob("*.json")):
                raise UserError(
                    f"{path} holds the splits of ReasonSeg. Give one of them: {path / 'val'} or {path / 'test'}."
                )
    if path.is_file() and path.suffix == ".json":
        return (path,)
    return tables(path, name="ReasonSeg", split="test")


def _find_picture(file: Path) -> Path | None:
    return next(
        (picture for suffix in _PICTURES if (picture := file.with_suffix(suffix)).exists()), None
    )


def load(path: Path, *, images: bool = True, root: Path | None = None) -> list[Doc]:
    """A doc per image with its first instruction. Images are opened for their size. Raises UserError."""
    files = _files(path)
    rows = _json_rows(files, root) if files[0].suffix == ".json" else _table_rows(files, root)
    docs = [
        _doc(Entry(doc_id=number, row=row, place=place, images=images))
        for number, (row, place) in enumerate(rows)
    ]
    if not docs:
        raise UserError(f"{path} has no rows. Give the right file, or fetch it again.")
    return docs


def _doc(entry: Entry) -> Doc:
    """A picture with the first instruction for it, and the column `query`: sentence or phrase."""
    text = entry.get("text") or entry.get("instruction")
    prompt = text[0] if isinstance(text, list) and text else text
    if not (isinstance(prompt, str) and prompt.strip()):
        raise entry.place.wrong("text", text, "an instruction, or a list of them")
    query = "sentence" if entry.get("is_sentence") else "phrase"
    doc = entry.doc(prompt=prompt, gold="", more={"query": query})

    doc = sized(doc, image_cell(entry["image"], "image", entry.place), keep=entry.images)
    if doc.problem is not None:
        return doc
    whole, first, column = _boxes(entry.row, entry.place)
    box = box_cell(whole, doc, column, entry.place)
    doc = with_columns(doc, box=box, box_first=box_cell(first, doc, column, entry.place))
    gold = str([round(edge, 2) for edge in box])
    return replace(doc, example=replace(doc.example, answer=gold))


def _boxes(row: Row, place: Place) -> tuple[object, object, str]:
    """The box of the whole target, that of the first region, and the column they come from."""
    if "shapes" in row:
        shapes = row["shapes"]
        if not (isinstance(shapes, list) and shapes and all(map(_is_polygon, shapes))):
            raise place.wrong("shapes", shapes, "a list of polygons with labels and points")
        targets = [_around(shape["points"]) for shape in shapes if is_target(shape)]
        if not targets:
            raise place.wrong(
                "shapes", [shape["label"] for shape in shapes], "a list with a target"
            )
        left, top, right, bottom = zip(*targets, strict=True)
        return (
            [min(left), min(top), max(right), max(bottom)],
            _around(shapes[0]["points"]),
            "shapes",
        )
    if "mask" in row:
        box = row["mask_box"]
        return box, box, "mask"
    if "boxes" in row:
        first = row["boxes"][0] if isinstance(row["boxes"], list) and row["boxes"] else row["boxes"]
        return first, first, "boxes"
    return row.get("bbox"), row.get("bbox"), "bbox"


def _is_polygon(shape: Any) -> bool:
    return (
        isinstance(shape, Mapping)
        and isinstance(shape.get("label"), str)
        and isinstance(shape.get("points"), list)
        and bool(shape["points"])
        and all(
            isinstance(point, list)
            and len(point) == 2
            and all(isinstance(number, int | float) for number in point)
            for point in shape["points"]
        )
    )


def _around(points: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _json_rows(files: Sequence[Path], root: Path | None) -> Iterator[tuple[Row, Place]]:
    for number, file in enumerate(files):
        content = _json(file)
        if isinstance(content, list):
            for row_number, row in enumerate(content):
                yield (
                    {**row, "image": row.get("image_path") or row.get("image")},
                    Place(file, row_number, root),
                )
        else:
            picture = _find_picture(file)
            if not isinstance(content, dict) or picture is None:
                raise UserError(
                    f"{file} is neither a list of rows nor the annotation of an image next to it. Fetch it again."
                )
            yield (
                {"shapes": None, **content, "image": picture.name, "file": file.stem},
                Place(file, number, root),
            )


def _json(file: Path) -> Any:
    """The JSON of a file in UTF-8, or in cp1252 as some of them are."""
    content = file.read_bytes()
    try:
        try:
            return json.loads(content.decode())
        except UnicodeDecodeError:
            return json.loads(content.decode("cp1252"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}. Fetch it again.") from None


def _table_rows(files: Sequence[Path], root: Path | None) -> Iterator[tuple[Row, Place]]:
    for file in files:
        rows = rows_of((file,), required=("image", "text"), without=("mask",), root=root)
        # The masks of a file may be fewer than its rows only where there are none at all.
        for (row, place), mask in zip(rows, _masks(file), strict=False):
            yield {**row, **mask}, place


def _masks(file: Path) -> Iterator[dict[str, Any]]:
    """The column `mask` of each row as run lengths with their box, {} for every row of a table without it.

    It is read row by row into arrays: as Python lists the masks of a file would take gigabytes.
    """
    if file.suffix != ".parquet":
        yield from repeat({})
    with pq.ParquetFile(file) as table:
        if "mask" not in table.schema_arrow.names:
            yield from repeat({})
        for batch in table.iter_batches(batch_size=1, columns=["mask"]):
            rows = batch.column(0)[0].values
            mask = np.asarray(rows.flatten().to_numpy(zero_copy_only=False), dtype=bool).reshape(
                len(rows), -1
            )
            yield {"mask": encode(mask), "mask_box": box_of(mask)}
