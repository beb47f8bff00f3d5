"""Multiple choice: the options of a doc, its gold letter, our own rule, and the ways to write the right answer."""

from string import ascii_uppercase

from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.strict import Mark, judged
from gpg_vl.eval.task import Doc, Score
from gpg_vl.rewards.choice import match_choice


def option_texts(doc: Doc) -> tuple[str, ...]:
    """The texts of the options, in the order of their letters."""
    assert doc.example.choices is not None, doc.doc_id
    return doc.example.choices


def gold_letter(doc: Doc) -> str:
    """`C` for a gold of `C` or `(C)`; loaders have checked that it is the letter of an option."""
    return doc.gold.strip("()")


def gold_index(doc: Doc) -> int:
    return ascii_uppercase.index(gold_letter(doc))


def choice_mark(doc: Doc, candidate: str) -> Mark:
    """The option that a candidate names, by the rule of the reward `choice`."""
    picked = match_choice(candidate, option_texts(doc))
    return (
        Mark(0.0, None)
        if picked is None
        else Mark(float(picked == gold_index(doc)), ascii_uppercase[picked])
    )


strict_choice = judged(choice_mark)
"""The last answer after the reasoning, matched exactly and unambiguously: the rule that training rewards use."""


def picked(doc: Doc, letter: str | None) -> Score:
    """The score of a rule that reads a letter; a letter of no option is shown, and no answer."""
    answered = letter is not None and letter in ascii_uppercase[: len(option_texts(doc))]
    return Score(
        score=float(answered and letter == gold_letter(doc)),
        answered=answered,
        parsed=letter or None,
    )


def gold_choices(doc: Doc) -> tuple[Response, ...]:
    """`(C)`, the same in tags, and the option's text unless that is a letter itself or the text of two options."""
    letters = gold_letters(doc)
    text, texts = (
        option_texts(doc)[gold_index(doc)],
        [option.strip().casefold() for option in option_texts(doc)],
    )
    names_it = texts.count(text.strip().casefold()) == 1 and not (
        len(text.strip()) == 1 and text.strip().isalpha()
    )
    return (*letters, Response(text=text)) if names_it else letters


def gold_letters(doc: Doc) -> tuple[Response, ...]:
    """`(C)`, bare and in tags."""
    letter = f"({gold_letter(doc)})"
    return Response(text=letter), Response(text=f"<answer>{letter}</answer>")
