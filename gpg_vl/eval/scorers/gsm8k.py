"""Grade-school mathematics: the owner's `####`, and the two readings of lm-eval's `gsm8k-cot-llama`, which lmms-eval takes over.

All three compare spellings, not values: "72.0" is not "72". The two readings are those of the
task's version 3.0, which is lmms-eval's; lm-eval's 4.0 forgives a second final point.
"""

import re

from gpg_vl.answers.verdict import Verdict
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.lmms import strip_reasoning
from gpg_vl.eval.task import Doc, make_verdict

_MARKED = re.compile(r"#### (-?[0-9.,]++)")
_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]++")
_PHRASE = re.compile(r"The final answer is ((?:-?[$0-9.,]{2,})|(?:-?[0-9]++))")


def official(doc: Doc, response: Response) -> Verdict:
    """The text after the first `#### `, without commas. A final period makes it wrong."""
    found = find_marked(response.text)
    value = found[0].strip().replace(",", "") if found else None
    return make_verdict(doc, float(value == doc.gold.replace(",", "")), value)


def find_marked(text: str) -> list[str]:
    """The numbers that are behind `#### `."""
    return _MARKED.findall(text)


def flexible(doc: Doc, response: Response) -> Verdict:
    """The last number of the text, in any context; a comma or period alone does not count."""
    return _last(doc, _NUMBER.findall(response.text))


def lmms(doc: Doc, response: Response) -> Verdict:
    """The text after the last "The final answer is"."""
    return _last(doc, _PHRASE.findall(strip_reasoning(response.text)))


def _last(doc: Doc, found: list[str]) -> Verdict:
    if not found:
        return make_verdict(doc, 0.0, None)
    return make_verdict(doc, float(_bare(found[-1]) == _bare(doc.gold)), found[-1])


def _bare(number: str) -> str:
    """The number without commas and dollars, and then without a final period: `5.$` is `5`."""
    return number.replace(",", "").replace("$", "").removesuffix(".")
