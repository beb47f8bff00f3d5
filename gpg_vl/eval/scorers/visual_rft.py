"""Rules of Visual-RFT: GPG's LISA and few-shot classification rows."""

import re

from gpg_vl.answers.math.rectangles import Box, overlap_parts
from gpg_vl.answers.verdict import Verdict
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.boxes import box_score, relative
from gpg_vl.eval.scorers.tags import first_block
from gpg_vl.eval.task import Doc, make_verdict

_BOX = re.compile(r"\(\s*+(\d++)\s*+,\s*+(\d++)\s*+\)\s*+,\s*+\(\s*+(\d++)\s*+,\s*+(\d++)\s*+\)")


def visual_rft_class(doc: Doc, response: Response) -> Verdict:
    """The first `<answer>` of one line contains the class, or the class contains the answer; blanks, `_` and case aside.

    That is no classification accuracy: an empty answer is in every class name, "BMW" in every BMW, "2012" in every car of
    that year, and a list of all classes contains the right one.
    """
    found = first_block(response.text, one_line=True)
    if found is None:
        return make_verdict(doc, 0.0, None)
    answer, gold = _remove_blanks(found), _remove_blanks(doc.gold)
    return make_verdict(doc, float(gold in answer or answer in gold), found)


def _remove_blanks(text: str) -> str:
    return text.replace(" ", "").replace("_", "").lower()


def visual_rft_box(doc: Doc, response: Response) -> Verdict:
    """IoU of the first `(x1,y1),(x2,y2)` of whole numbers anywhere, reasoning included, with the box of the first polygon.

    Numbers are thousandths whatever the model was taught; corners are not sorted, and nothing is clipped. Brackets,
    decimals and negative numbers are no box. GPG's mIoU is the mean of this.
    """
    found = _BOX.search(response.text)
    gold = relative(doc, "box_first")
    if found is None or max(map(len, found.groups())) > 18:
        return make_verdict(doc, 0.0, None, parts=overlap_parts(None, gold))
    box = Box(*(int(number) / 1000 for number in found.groups()))
    return box_score(box, gold, found[0], slack=1e-6)
