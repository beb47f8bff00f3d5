"""Rules of R1-V: geometry by math_verify on the whole output (GPG's GEOQA rows), counts from the first answer tag."""

import re

from gpg_vl.answers.verdict import Verdict
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.mathverify import parse_math, same_math
from gpg_vl.eval.task import Doc, make_verdict

_COUNT = re.compile(r"<answer>\s*(\d+)\s*</answer>")


def r1v_math(doc: Doc, response: Response) -> Verdict:
    """The whole output and the raw gold through math_verify, the prediction in the place of the gold.

    Its defects are those of the published numbers: the reasoning counts as much as the answer; a number that touches `>` or
    `(` is not seen, so `<answer>145</answer>` is scored by whatever the reasoning mentions last; `√` and `π` are not
    read, so a gold of `√{3}` can never be right and one of `8√{3}` counts as 8.
    """
    parsed = parse_math(response.text)
    right = same_math(parsed, parse_math(doc.gold))
    return make_verdict(doc, float(right), str(parsed[-1]) if parsed else None)


def r1v_count(doc: Doc, response: Response) -> Verdict:
    """The whole number that is all of the first such `<answer>`; anything else is no answer."""
    found = _COUNT.search(response.text)
    if found is None or len(found[1]) > 18:
        return make_verdict(doc, 0.0, None)
    return make_verdict(doc, float(int(found[1]) == int(doc.gold)), str(int(found[1])))
