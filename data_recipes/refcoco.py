"""RefCOCO, RefCOCO+ and RefCOCOg: pictures, an expression for one thing in them, and its box.

    python data_recipes/refcoco.py refcoco --source ~/rec_jsons/refcoco_train.json --image-root ~/coco --out data/refcoco
    python data_recipes/refcoco.py refcocog --source lmms-lab/RefCOCOg --split val --out data/refcocog

Two layouts are read: VLM-R1's JSON with `image` (a path below --image-root), `problem` and `solution` (left, top, right
and bottom in pixels), and the hub's Parquet with `image`, `answer` (a list of expressions) and `bbox` (left, top, width
and height in pixels). Each expression becomes a row. The hub's copies hold evaluation splits only: do not train on what
you evaluate on. The original refs(...).p is a pickle and is not opened.

--prompt visual_rft, the default, asks as the paper's LISA run does and takes boxes in thousandths, as Qwen2-VL writes
them; --prompt vlm_r1 asks for JSON, with pixels of the original picture unless --coordinates says otherwise. A run converts
either to what its model answers in.
"""

import json
import sys
from typing import Any

from gpg_vl.data.recipe import BrokenRowError, Option, RawRow, Recipe, Request, Source, main
from gpg_vl.data.recipe.boxes import (
    CONVENTIONS,
    RESIZING,
    Box,
    box_meta,
    frame_in,
    inside,
    numbers,
    pair,
)
from gpg_vl.data.recipe.origin import open_source
from gpg_vl.types import Example

VISUAL_RFT = (
    "Output the bounding box in the image corresponding to the instruction: {instruct} Output the thinking process in "
    '<think> </think> and your grouding box. Following "<think> thinking process </think>\n<answer>(x1,y1),(x2,y2)'
    '</answer>)" format.'
)
VLM_R1 = (
    "{problem} First output the thinking process in <think> </think> tags and then output the final answer in <answer> "
    "</answer> tags. Output the final answer in JSON format."
)
SENTENCE = "Please provide the bounding box coordinate of the region this sentence describes: "


def convert(
    row: RawRow, *, prompt: str, coordinates: str, max_pixels: int, side: int
) -> list[Example]:
    """One example per expression. VLM-R1's JSON holds one whole question, the Parquet copies bare expressions."""
    picture = row.picture("image")
    if "solution" in row.cells:
        corners, questions = row.numbers("solution"), [row.text("problem")]
    else:
        corners, questions = (
            corners_of(row.numbers("bbox")),
            [SENTENCE + text for text in row.texts("answer")],
        )
    box = inside(corners, picture)
    told = (
        ("rel1000" if prompt == "visual_rft" else "abs_orig")
        if coordinates == "auto"
        else coordinates
    )
    frame = frame_in(picture, told, max_pixels=max_pixels, side=side)
    written = numbers(box, picture, frame)
    return [
        Example(
            id=f"{row.id}-{number}",
            images=(picture.data,),
            prompt=VISUAL_RFT.replace("{instruct}", question.removeprefix(SENTENCE))
            if prompt == "visual_rft"
            else VLM_R1.replace("{problem}", question),
            answer=pair(written)
            if prompt == "visual_rft"
            else json.dumps([{"bbox_2d": list(written)}]),
            task="refcoco",
            meta=box_meta(box, picture, frame) | {"expression": question.removeprefix(SENTENCE)},
        )
        for number, question in enumerate(questions)
    ]


def corners_of(box: tuple[float, ...]) -> Box:
    """Left, top, width and height into corners."""
    if len(box) != 4:
        raise BrokenRowError(
            f"The column 'bbox' has {len(box)} numbers, not left, top, width and height."
        )
    left, top, width, height = box
    return left, top, left + width, top + height


def opened(request: Request) -> list[Source]:
    """Parquet must have the hub's columns; each row of a JSON file says by itself what it has."""
    assert request.source is not None
    return open_source(
        request.source,
        request.splits or ("train",),
        columns=("image", "answer", "bbox"),
        patterns={},
        revision=request.revision,
        images=request.images,
    )


def settings(**options: Any) -> dict[str, Any]:
    return {"rewards": {"weights": {"grounding": 1.0, "format": 1.0}}}


def recipe(name: str, title: str, hub: str, documented: dict[str, int]) -> Recipe:
    return Recipe(
        name=name,
        title=f"{title}: boxes from referring expressions",
        help=__doc__ or "",
        licence="not stated on the hub's card; the pictures are COCO's, under Flickr terms",
        hub=hub,
        documented=documented,
        convert=convert,
        open=opened,
        options={
            "prompt": Option(
                default="visual_rft",
                choices=("visual_rft", "vlm_r1"),
                help="the text and form of the answer",
            ),
            "coordinates": Option(
                default="auto",
                choices=("auto", *CONVENTIONS),
                help="what the answer's numbers count; auto: see above",
            ),
            **RESIZING,
        },
        settings=settings,
        notes=(
            "`coordinates` says what the answer's numbers count; `box_pixels` is the exact box in pixels of the picture.",
            "The splits val of the hub's RefCOCO and RefCOCOg are not the standard ones: they mix two annotations.",
        ),
    )


RECIPES = {
    "refcoco": recipe(
        "refcoco",
        "RefCOCO",
        "lmms-lab/RefCOCO",
        {"val": 8811, "test": 5000, "testA": 1975, "testB": 1810},
    ),
    "refcocoplus": recipe("refcocoplus", "RefCOCO+", "lmms-lab/RefCOCOplus", {}),
    "refcocog": recipe("refcocog", "RefCOCOg", "lmms-lab/RefCOCOg", {"val": 7573, "test": 5023}),
}

if __name__ == "__main__":
    sys.exit(main(RECIPES))
