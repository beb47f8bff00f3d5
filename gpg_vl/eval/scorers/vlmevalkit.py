"""Rules of VLMEvalKit with its judge model off, restated with their quirks.

They are those of version 0.2rc1 at commit e8e78f0 (August 2026). The phrase "answer is X" counts
since June 2026, so that tables of earlier versions read fewer letters.

With the judge on, what these rules cannot read goes to a language model, and where that fails a random option is drawn;
neither is done here. Answer tags and reasoning are not looked at.
"""

import re
from string import ascii_uppercase

from gpg_vl.answers.verdict import Verdict
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.options import judge_letter, option_texts
from gpg_vl.eval.task import Doc

REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_FAILED = "Failed to obtain answer via API"
_BLANKED = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_PHRASE = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
_LAST = 5  # a letter counts if it is behind the fifth token from the end


def vlmevalkit_choice(doc: Doc, response: Response) -> Verdict:
    """A lone option letter among the last four words, else "answer is X", else the one option that the text contains.

    A refusal is wrong. Texts are contained as characters, not as words: "1" is in "11". An answer more than twice as long
    as all options together is not searched for them.
    """
    letter = infer(response.text, option_texts(doc))
    return judge_letter(doc, letter)


def infer(text: str, options: tuple[str, ...]) -> str | None:
    """The letter that the text names by these rules; Z for a refusal; None if they find none."""
    letters = ascii_uppercase[: len(options)]
    if _FAILED not in text and (letter := _option(text, letters)):
        return letter
    lowered = text.lower()
    if len(lowered) > 2 * sum(map(len, options)):
        return None
    inside = [
        letter for letter, option in zip(letters, options, strict=True) if option.lower() in lowered
    ]
    return inside[0] if len(inside) == 1 else None


def _option(text: str, letters: str) -> str | None:
    """The lone letter among the last words, else that of "answer is X"; Z for a refusal."""
    if any(refusal in text for refusal in REFUSALS):
        return "Z"
    tokens = text.translate(_BLANKED).split()
    named = [letter for letter in letters if letter in tokens]
    if len(named) == 1 and tokens.index(named[0]) > len(tokens) - _LAST:
        return named[0]
    if not named and "Z" in tokens:
        return "Z"
    phrase = _PHRASE.search(text)
    return phrase[1].upper() if phrase and phrase[1].upper() in letters else None
