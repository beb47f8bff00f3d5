"""Classification with a known list of classes: plain top-1."""

from gpg_vl.answers.classes import plain_name
from gpg_vl.answers.extract import extract_answer
from gpg_vl.answers.verdict import Verdict
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.task import Doc, make_verdict


def official_class(doc: Doc, response: Response) -> Verdict:
    """Top-1: the answer is the class name but for case, blanks, `_`, `-` and punctuation, and nothing else."""
    answer = extract_answer(response.text, prefilled_think=response.prefilled_think).candidate
    return make_verdict(doc, float(plain_name(answer or "") == plain_name(doc.gold)), answer)
