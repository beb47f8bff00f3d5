"""Segmentation of ReasonSeg under its three ground truths, which give three numbers for one prediction.

`official` is LISA's: all targets, ignored pixels left out. `segzero` counts ignored pixels as target. `visual_rft_mask`
knows the first polygon only. The mean score is LISA's gIoU (a mean of IoUs, not the generalised IoU of boxes), the sums of
the parts its cIoU.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gpg_vl.answers.verdict import Verdict
from gpg_vl.errors import UserError
from gpg_vl.eval.masks import Areas, Mask, can_draw, decode, encode, overlap, polygon
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.task import Doc, make_verdict

_GIOU_SLACK, _RFT_SLACK = 1e-5, 1e-6


class Regions(NamedTuple):
    """The regions of an annotation: the targets, the ignored pixels, and the first polygon."""

    target: Mask
    ignored: Mask
    first: Mask


def has_mask(doc: Doc) -> bool:
    """True if the doc's annotation is more than a box."""
    return bool(doc.columns.get("shapes") or doc.columns.get("mask"))


def has_drawn_mask(doc: Doc) -> bool:
    """True if the doc's mask is available: it is given, or OpenCV can draw it."""
    return has_mask(doc) and (can_draw() or not doc.columns.get("shapes"))


def is_flag(shape: Mapping[str, Any]) -> bool:
    """True for a polygon that marks nothing. LISA's rule: the label is the word "flag", in any case."""
    return bool(shape["label"].lower() == "flag")


def is_target(shape: Mapping[str, Any]) -> bool:
    """True for a polygon that is neither a flag nor to be ignored. `ignore` may be a part of the label, in any case."""
    return not is_flag(shape) and "ignore" not in shape["label"].lower()


def regions(doc: Doc) -> Regions:
    """The annotated regions: drawn from polygons as LISA does, or from a mask, which then stands for all three.

    Polygons are drawn from the largest to the smallest, of equal ones the last first, flags left out; what is drawn later
    overwrites, whether it is target or ignored.
    """
    if not has_mask(doc):
        raise UserError(
            f"Doc {doc.doc_id} has no segmentation, only a box. Give ReasonSeg with its polygons (X.jpg and X.json) or masks, "
            "or drop the scorers of masks."
        )
    shapes = doc.columns.get("shapes")
    if not shapes:
        mask = decode(doc.columns["mask"])
        return Regions(mask, np.zeros_like(mask), mask)
    size = (int(doc.columns["width"]), int(doc.columns["height"]))
    drawn = [(shape, polygon(shape["points"], size)) for shape in shapes if not is_flag(shape)]
    target, ignored = np.zeros(size[::-1], dtype=bool), np.zeros(size[::-1], dtype=bool)
    for shape, area in sorted(drawn, key=lambda one: int(one[1].sum()))[::-1]:
        into, out_of = (target, ignored) if is_target(shape) else (ignored, target)
        into |= area
        out_of &= ~area
    return Regions(target, ignored, polygon(shapes[0]["points"], size))


def gold_mask(doc: Doc) -> dict[str, Any]:
    """The mask of a right answer."""
    return encode(regions(doc).target)


def lisa_mask(doc: Doc, response: Response) -> Verdict:
    """LISA's rule: I / (U + 1e-5) over the pixels that are not ignored; an empty union counts as 1."""
    target, ignored, _ = regions(doc)
    predicted, why, _ = _read_prediction(response, target)
    areas = overlap(predicted, target, ignored)
    # The slack is the owner's guard against an empty union; a prediction that is the target counts in full.
    score = (
        1.0
        if areas.union == areas.intersection
        else areas.intersection / (areas.union + _GIOU_SLACK)
    )
    return _make_verdict(doc, score, areas, why)


def segzero_mask(doc: Doc, response: Response) -> Verdict:
    """Seg-Zero's rule: ignored pixels are target; a missing mask has the target's area as its union; 0 if U is 0.

    A mask that cannot be read or has another size raises there, behind the count of rows: it is left out.
    """
    found = regions(doc)
    predicted, why, _ = _read_prediction(response, found.target)
    if why and response.mask is not None:
        return _left_out(doc, why)
    areas = overlap(predicted, found.target | found.ignored)
    return _make_verdict(doc, areas.intersection / areas.union if areas.union else 0.0, areas, why)


def visual_rft_mask(doc: Doc, response: Response) -> Verdict:
    """Visual-RFT's rule: the first polygon alone, I / (U + 1e-6). A mask of another size is left out.

    Rows whose prediction failed never reach its file of masks; here they score 0.
    """
    first = regions(doc).first
    predicted, why, missized = _read_prediction(response, first)
    if missized:
        return _left_out(doc, why)
    areas = overlap(predicted, first)
    return _make_verdict(doc, areas.intersection / (areas.union + _RFT_SLACK), areas, why)


def _left_out(doc: Doc, why: str) -> Verdict:
    return make_verdict(doc, math.nan, None, note=why)


def _make_verdict(doc: Doc, score: float, areas: Areas, why: str) -> Verdict:
    parts = {"intersection": areas.intersection, "union": areas.union}
    return make_verdict(doc, score, None if why else "mask", note=why, parts=parts)


class _Predicted(NamedTuple):
    """The mask of an answer; or an empty one of the right size, and the reason."""

    mask: Mask
    why: str = ""
    missized: bool = False


def _read_prediction(response: Response, target: Mask) -> _Predicted:
    none = np.zeros_like(target)
    if response.mask is None:
        return _Predicted(none, "no mask: none is given")
    try:
        mask = decode(response.mask)
    except ValueError as error:
        return _Predicted(none, f"no mask: {error}")
    if mask.shape != target.shape:
        return _Predicted(
            none, f"no mask: it is {mask.shape} where the image is {target.shape}", missized=True
        )
    return _Predicted(mask)
