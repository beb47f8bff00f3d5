"""ReasonSeg of LISA: pictures with an instruction that needs reasoning, and the box of the target (239 to train on).

    python data_recipes/reasonseg.py --source ~/ReasonSeg --out data/lisa                     # train/X.jpg + train/X.json
    python data_recipes/reasonseg.py --source ~/lisa_train.json --image-root ~/ReasonSeg --out data/lisa
    python data_recipes/reasonseg.py --source Zilun/ReasonSeg_train_withbbox --out data/lisa  # from the hub

Three layouts are read: the original folder, in which X.json holds `text`, `is_sentence` and `shapes`; Visual-RFT's
lisa_train.json with `image_path`, `instruction` and `boxes`; and Parquet with `image`, `text` and `bbox_list`. Each
instruction becomes a row in the prompt of the paper's run.

--box union, the default, is the box around all polygons that are targets; --box first is the paper's, that of the first
polygon whatever its label.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpg_vl.data.cells import CellError
from gpg_vl.data.images import Picture
from gpg_vl.data.json_rows import Cells
from gpg_vl.data.recipe import (
    BrokenRowError,
    Option,
    RawRow,
    Recipe,
    Request,
    Source,
    finite_numbers,
    main,
)
from gpg_vl.data.recipe.boxes import (
    CONVENTIONS,
    RESIZING,
    Box,
    box_meta,
    frame_in,
    inside,
    numbers,
    pair,
    union,
)
from gpg_vl.data.recipe.origin import open_source
from gpg_vl.errors import UserError
from gpg_vl.types import Example

PROMPT = (
    "Output the bounding box in the image corresponding to the instruction: {instruct} Output the thinking process in "
    '<think> </think> and your grouding box. Following "<think> thinking process </think>\n<answer>(x1,y1),(x2,y2)'
    '</answer>)" format.'
)
_PICTURES = (".jpg", ".jpeg", ".png")


def convert(
    row: RawRow, *, box: str, coordinates: str, max_pixels: int, side: int
) -> list[Example]:
    """One example per instruction."""
    if "shapes" in row.cells:
        picture, instructions, gold = (
            row.picture("picture"),
            row.texts("text"),
            polygon_box(row, box),
        )
    elif "boxes" in row.cells:
        picture, instructions, gold = (
            row.picture("image_path"),
            row.texts("instruction"),
            box_of(row, "boxes", box),
        )
    else:
        picture, instructions, gold = (
            row.picture("image"),
            [row.text("text")],
            box_of(row, "bbox_list", box),
        )
        refuse_other_size(row, picture)
    gold = inside(gold, picture)
    frame = frame_in(picture, coordinates, max_pixels=max_pixels, side=side)
    return [
        Example(
            id=f"{row.id}-{number}",
            images=(picture.data,),
            prompt=PROMPT.replace("{instruct}", instruction),
            answer=pair(numbers(gold, picture, frame)),
            task="reasonseg",
            meta=box_meta(gold, picture, frame) | {"box": box},
        )
        for number, instruction in enumerate(instructions)
    ]


def polygon_box(row: RawRow, which: str) -> Box:
    """The box of the first polygon, or around all that are targets: labels `flag` and `ignore...`, in any case, are not."""
    shapes = row.cell("shapes")
    if (
        not isinstance(shapes, list)
        or not shapes
        or not all(isinstance(shape, dict) for shape in shapes)
    ):
        raise BrokenRowError("The column 'shapes' is not a list of polygons with at least one.")
    if which == "first":
        return around(shapes[0])
    targets = [shape for shape in shapes if is_target(str(shape.get("label")).lower())]
    if not targets:
        raise BrokenRowError(
            f"None of the {len(shapes)} polygons is a target: {[s.get('label') for s in shapes]!r:.80}."
        )
    return union([around(shape) for shape in targets])


def is_target(label: str) -> bool:
    return label != "flag" and "ignore" not in label


def around(shape: dict[str, Any]) -> Box:
    """The box around the points of a polygon."""
    points = shape.get("points")
    if not isinstance(points, list) or not points:
        raise BrokenRowError("A polygon has no points.")
    pairs = [finite_numbers(point, "A point") for point in points]
    if any(len(point) != 2 for point in pairs):
        raise BrokenRowError("A point of a polygon is not [x, y].")
    xs, ys = zip(*pairs, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def box_of(row: RawRow, column: str, which: str) -> Box:
    """The first of the boxes in a column, or the box around all of them."""
    cell = row.cell(column)
    if not isinstance(cell, list) or not cell:
        raise BrokenRowError(f"The column {column!r} is not a list of boxes with at least one.")
    boxes = [_four_numbers(box, column) for box in cell]
    return boxes[0] if which == "first" else union(boxes)


def _four_numbers(cell: object, column: str) -> Box:
    box = finite_numbers(cell, f"A box of {column!r}")
    if len(box) != 4:
        raise BrokenRowError(
            f"The column {column!r} holds a box that is not [left, top, right, bottom]."
        )
    return box


def refuse_other_size(row: RawRow, picture: Picture) -> None:
    """Boxes are pixels of a picture of the stated size; a turned or resized one would shift them unseen."""
    stated = tuple(row.cells.get(name) for name in ("img_width", "img_height"))
    if stated not in ((None, None), (picture.width, picture.height)):
        raise BrokenRowError(
            f"The row states {stated[0]}x{stated[1]} pixels, its picture has {picture.width}x{picture.height}."
        )


def opened(request: Request) -> list[Source]:
    """The original folder of pictures and JSON files, or any other source."""
    assert request.source is not None
    folder = Path(request.source)
    splits = request.splits or RECIPE.splits
    if folder.is_dir() and any(
        (folder / split).is_dir() and any((folder / split).glob("*.json")) for split in splits
    ):
        return [_folder_source(folder, split) for split in splits]
    return open_source(
        request.source,
        splits,
        columns=("image", "text", "bbox_list"),
        optional=("img_width", "img_height"),
        patterns={},
        revision=request.revision,
        images=request.images,
    )


def _folder_source(folder: Path, split: str) -> Source:
    files = sorted((folder / split).glob("*.json"))
    if not files:
        raise UserError(
            f"{folder / split} holds no .json file. X.json beside X.jpg is needed. Correct --source or --split."
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())

    def read(start: int) -> Iterator[tuple[str, Cells | CellError]]:
        for file in files[start:]:
            yield f"{split}/{file.name}", _annotation(file, folder)

    facts = {"files": {f"{split}/*.json, {len(files)} of them": digest.hexdigest()}}
    return Source(split=split, read=read, total=len(files), root=folder, facts=facts)


def _annotation(file: Path, folder: Path) -> Cells | CellError:
    """X.json in UTF-8, or in cp1252 as some of them are, with the path of its picture."""
    content = file.read_bytes()
    try:
        try:
            cells = json.loads(content.decode())
        except UnicodeDecodeError:
            cells = json.loads(content.decode("cp1252"))
    except (ValueError, RecursionError) as error:
        return CellError("json", f"The file is not JSON: {error}.")
    if not isinstance(cells, dict):
        return CellError("json", "The file is not a JSON object.")
    beside = [file.with_suffix(suffix) for suffix in _PICTURES if file.with_suffix(suffix).exists()]
    picture = (
        (beside[0] if beside else file.with_suffix(_PICTURES[0])).relative_to(folder).as_posix()
    )
    return {"shapes": None, **cells, "picture": picture}


def settings(**options: Any) -> dict[str, Any]:
    return {"rewards": {"weights": {"grounding": 1.0, "format": 1.0}}}


RECIPE = Recipe(
    name="reasonseg",
    title="ReasonSeg (LISA): boxes from instructions that take reasoning",
    help=__doc__,
    licence="not stated for the data; the LISA code is Apache-2.0",
    hub="Zilun/ReasonSeg_train_withbbox",
    documented={"train": 239, "val": 200, "test": 779},
    convert=convert,
    open=opened,
    options={
        "box": Option(
            default="union",
            choices=("union", "first"),
            help="which polygons the gold box goes around",
        ),
        "coordinates": Option(
            default=CONVENTIONS[0], choices=CONVENTIONS, help="what the answer's numbers count"
        ),
        **RESIZING,
    },
    settings=settings,
    notes=(
        "The prompt is the paper's, with its stray `)` and its spelling; an answer that copies the `)` fails `format`.",
        "`coordinates` says what the answer's numbers count; `box_pixels` is the exact box in pixels of the picture.",
    ),
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
