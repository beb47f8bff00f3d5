"""Multiple choice as the Cambrian-1 evaluation scripts for CV-Bench read it."""

from string import ascii_uppercase

from gpg_vl.answers.verdict import Verdict
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.options import gold_index, option_texts
from gpg_vl.eval.task import Doc, make_verdict


def cambrian(doc: Doc, response: Response) -> Verdict:
    """The first character after "answer is".

    Kept with its quirks, for comparison with published numbers: "answer is: b" leaves the colon, the article "a" is
    option A, and tags are not looked at. Needs the column `type`, as 2D and 3D questions are read differently.
    """
    flat = doc.columns["type"] == "2D"
    text = response.text.lower().strip()
    for keyword in ("answer is", "answer is:", "answer:"):
        text = text.rpartition(keyword)[2].strip()
    text = text.rstrip("." if flat else ".:,").lstrip("(").rstrip(")")
    first = text[:1]
    options = option_texts(doc)
    letters = ascii_uppercase[: len(options)].lower()
    gold = gold_index(doc)
    right = first != "" and (
        first == letters[gold] or (not flat and first == options[gold].lower())
    )
    if right or (first != "" and first in letters):
        return make_verdict(doc, float(right), first.upper())
    return make_verdict(doc, 0.0, None, note=f"read {first.upper()!r}")
