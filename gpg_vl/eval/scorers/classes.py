"""Classification with a known list of classes: our rule, and plain top-1."""

from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.strict import Mark, judged
from gpg_vl.eval.task import Doc, Score
from gpg_vl.rewards.classification import match_class, named_class, plain_name
from gpg_vl.rewards.parse import extract_answer


def _mark(doc: Doc, candidate: str) -> Mark:
    classes = doc.example.choices or ()
    index = named_class(candidate, classes)
    if index is None:
        return Mark(0.0, None)
    return Mark(float(match_class(candidate, doc.gold, classes)), classes[index])


strict_class = judged(_mark)
"""The one class that the answer names, in at most twice its length: the rule of the reward `classification`."""


def official_class(doc: Doc, response: Response) -> Score:
    """Top-1: the answer is the class name but for case, blanks, `_`, `-` and punctuation, and nothing else."""
    candidate = extract_answer(response.text, prefilled_think=response.prefilled_think).candidate
    if candidate is None:
        return Score(score=0.0, answered=False, parsed=None)
    return Score(
        score=float(plain_name(candidate) == plain_name(doc.gold)), answered=True, parsed=candidate
    )
