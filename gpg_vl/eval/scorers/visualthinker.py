"""Multiple choice as VisualThinker-R1-Zero reads it: the rule behind the CV-Bench rows of the GPG paper."""

from dataclasses import replace
from functools import lru_cache
from string import ascii_uppercase

from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig

from gpg_vl.answers.verdict import Verdict
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.mathverify import Config, parse_math, same_math
from gpg_vl.eval.scorers.options import gold_index, gold_letter, judge_letter, option_texts
from gpg_vl.eval.scorers.tags import first_block
from gpg_vl.eval.task import Doc

_LETTERS = "ABCDEF"


def visualthinker(doc: Doc, response: Response) -> Verdict:
    """math_verify on the first `<answer>` of one line, else on the whole output, with letters and options as strings.

    Kept for parity: the article "a" is option A, an option's text in another case is missed, an answer block with a line
    break is not seen, and reasoning counts where there is no block.
    """
    text = first_block(response.text, one_line=True, trimmed=True) or response.text
    # An option that the text does not contain cannot be found in it, and every new set of strings costs milliseconds.
    parsed = parse_math(
        text, _configs(tuple(option for option in option_texts(doc) if option in text))
    )
    letter, option = gold_letter(doc), option_texts(doc)[gold_index(doc)]
    golds = [option.lower(), option, letter, letter.lower(), f"({letter.lower()})", f"({letter})"]
    if same_math(golds, parsed):
        return judge_letter(doc, letter)
    other = _find_letter(str(parsed[-1]), option_texts(doc)) if parsed else None
    # `$Car$` is not the option "car" there, however it may be shown.
    return replace(judge_letter(doc, other), score=0.0)


def _find_letter(found: str, options: tuple[str, ...]) -> str:
    """The letter that a found string stands for, else the string."""
    if (letter := found.strip("()").upper()) in _LETTERS[: len(options)]:
        return letter
    lowered = [option.lower() for option in options]
    return ascii_uppercase[lowered.index(found.lower())] if found.lower() in lowered else found


@lru_cache(maxsize=4096)
def _configs(options: tuple[str, ...]) -> tuple[Config, ...]:
    strings = (
        *_LETTERS,
        *_LETTERS.lower(),
        *(f"({c})" for c in _LETTERS.lower()),
        *(f"({c})" for c in _LETTERS),
    )
    return (
        LatexExtractionConfig(),
        ExprExtractionConfig(),
        StringExtractionConfig(strings=tuple(dict.fromkeys((*strings, *options)))),
    )
