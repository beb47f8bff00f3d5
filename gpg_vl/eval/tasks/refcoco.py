"""RefCOCO, RefCOCO+ and RefCOCOg: the box of what an expression refers to.

The copies of lmms-lab have a row per object with several expressions; here each expression is a doc, and the bootstrap
draws images. `val` of RefCOCO and RefCOCOg there is the standard split and 5,000 Google ones together; testA, testB, all of
RefCOCO+ and test of RefCOCOg are the standard ones. Published tables give every split for itself.
"""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from gpg_vl.eval.loading import Entry, box_cell, image_cell, rows_of, sized, tables, with_columns
from gpg_vl.eval.scorers.boxes import (
    blind_iou,
    gold_boxes,
    last_box,
    lmms_grounding,
    lmms_rec,
    published_boxes,
    vlm_r1,
    vlmevalkit_box,
)
from gpg_vl.eval.scorers.strict import strict_box
from gpg_vl.eval.statistics import Aggregate, Floats, Sample
from gpg_vl.eval.task import Doc, Loader, Task, TaskPrompt

SPLITS = ("val", "testA", "testB", "test")
THRESHOLDS = (0.5, 0.3, 0.7, 0.9)
REQUIRED = ("question_id", "image", "answer", "bbox")
SIZES = {  # expressions of the standard splits, as they are usually given
    "refcoco": {"val": 10834, "testA": 5657, "testB": 5095},
    "refcoco+": {"val": 10758, "testA": 5726, "testB": 4889},
    "refcocog": {"val": 4896, "test": 9602},
}
_OBJECT = re.compile(r"(\d{12})_\d+(?=\.|$)")
"""REFER names a file per object, the image's name with the object's number: COCO_train2014_000000581857_16.jpg."""
HUB = {"refcoco": "RefCOCO", "refcoco+": "RefCOCOplus", "refcocog": "RefCOCOg"}

_SENTENCE = (
    "Please provide the bounding box coordinate of the region this sentence describes: {prompt}"
)
PROMPTS = {
    # The Qwen authors' own question; the answer is in the convention of the model's family.
    "qwen": TaskPrompt(
        template='Locate every object that matches the description "{prompt}" in the image. Report bbox coordinates in JSON '
        "format.",
        max_new_tokens=512,
    ),
    "lmms_rec": TaskPrompt(
        template="Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, bottom-right "
        "y). All values are floating point numbers bounded between 0 and 1. " + _SENTENCE,
        max_new_tokens=512,
        coordinates="rel1",
    ),
    "vlm_r1": TaskPrompt(
        template=_SENTENCE
        + " First output the thinking process in <think> </think> tags and then output the final answer "
        "in <answer> </answer> tags. Output the final answer in JSON format.",
        max_new_tokens=256,
    ),
    "vlm_r1_plain": TaskPrompt(
        template=_SENTENCE + " Please provide the bounding box coordinate in JSON format.",
        max_new_tokens=256,
    ),
}


def share(threshold: float, **where: str) -> Aggregate:
    """Acc@threshold: the share of expressions whose box has at least this IoU."""
    return lambda sample: sample.share(threshold, **where)


def centre(sample: Sample) -> Floats:
    """lmms-eval's Center_ACC: the share of boxes whose centre is in the gold box; only its own scorer gives it."""
    return sample.ratio("centre", "rows")


SCORERS = {
    "strict": strict_box,
    "official": last_box,
    "lmms": lmms_rec,
    "lmms_grounding": lmms_grounding,
    "vlmevalkit": vlmevalkit_box,
    "vlm_r1": vlm_r1,
}
AGGREGATES: dict[str, Aggregate] = {
    **{f"@{threshold}": share(threshold) for threshold in THRESHOLDS},
    "mIoU": Sample.mean,
    "centre": centre,
    **{split: share(0.5, split=split) for split in SPLITS},
}


def _task(name: str) -> Task:
    return Task(
        name=name,
        version="2",
        description=f"{HUB[name].replace('plus', '+')}: the box of what an expression refers to",
        source=f"https://huggingface.co/datasets/lmms-lab/{HUB[name]} (images of COCO)",
        sizes=SIZES[name],
        metric="Acc@0.5 per expression",
        blind="the whole image as the box",
        files=partial(_files, name=name),
        load=_loader(name),
        prompts=PROMPTS,
        default_prompt="qwen",
        scorers=SCORERS,
        gold_responses=gold_boxes,
        published_golds=published_boxes,
        # Each of them reads one convention and one notation, and the gold is written in the notation of Qwen2-VL.
        flawed=("lmms", "lmms_grounding", "vlmevalkit", "vlm_r1"),
        boxes=True,
        chance=blind_iou,
        right_from=0.5,
        aggregates=AGGREGATES,
        groups=("split",),
        strata=("split",),
        cluster="picture",
    )


refcoco, refcoco_plus, refcocog = (partial(_task, name) for name in SIZES)


def _files(path: Path, name: str) -> tuple[Path, ...]:
    """The file itself, or every split that the folder holds, in the order of the published tables."""
    if path.is_dir():
        found = []
        for split in SPLITS:
            here = [folder for folder in (path, path / "data") if any(folder.glob(f"{split}[-.]*"))]
            found += [
                file
                for folder in here[:1]
                for file in tables(folder, name=name, split=split, folders=("",))
            ]
        if found:
            return tuple(found)
    return tables(path, name=name, split="val")


def _loader(name: str) -> Loader:
    def load(path: Path, *, images: bool = True, root: Path | None = None) -> list[Doc]:
        """A doc per expression, in the order of the rows. Images are opened for their size. Raises UserError."""
        docs: list[Doc] = []
        for row, place in rows_of(_files(path, name), required=REQUIRED, root=root):
            docs += _docs(Entry(doc_id=len(docs), row=row, place=place, images=images))
        return docs

    return load


def _docs(entry: Entry) -> list[Doc]:
    """The docs of an object, one for each of its expressions."""
    expressions, edges = entry["answer"], entry["bbox"]
    if not (
        isinstance(expressions, list)
        and expressions
        and all(isinstance(one, str) for one in expressions)
    ):
        raise entry.wrong("answer", "a list of expressions")
    if not (isinstance(edges, list) and len(edges) == 4):
        raise entry.wrong("bbox", "[left, top, width, height]")

    file = entry.place.file.name
    split = next((one for one in SPLITS if file.startswith((f"{one}-", f"{one}."))), "val")
    picture = _OBJECT.sub(r"\1", str(entry.get("file_name") or entry["question_id"]))
    doc = entry.doc(
        prompt=expressions[0],
        gold="",
        without=("image", "segmentation", "question"),
        more={"split": split, "picture": picture},
    )

    doc = sized(doc, image_cell(entry["image"], "image", entry.place), keep=entry.images)
    if doc.problem is None:
        left, top, width, height = edges
        corners = [left, top, left + width, top + height]
        doc = with_columns(doc, box=box_cell(corners, doc, "bbox", entry.place))
    return [
        _expression(entry.doc_id + number, doc, text) for number, text in enumerate(expressions)
    ]


def _expression(doc_id: int, doc: Doc, text: str) -> Doc:
    box = doc.columns.get("box")
    gold = "no box" if box is None else str([round(edge, 2) for edge in box])
    return replace(
        doc,
        doc_id=doc_id,
        example=replace(doc.example, id=str(doc_id), prompt=text, answer=gold),
    )
