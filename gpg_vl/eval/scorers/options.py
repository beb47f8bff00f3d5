"""Multiple choice: the options of a doc, its gold letter, and the ways to write the right answer."""

from string import ascii_uppercase

from gpg_vl.answers.verdict import Verdict
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.task import Doc, make_verdict


def option_texts(doc: Doc) -> tuple[str, ...]:
    """The texts of the options, in the order of their letters."""
    assert doc.example.choices is not None, doc.doc_id
    return doc.example.choices


def gold_letter(doc: Doc) -> str:
    """`C` for a gold of `C` or `(C)`; loaders have checked that it is the letter of an option."""
    return doc.gold.strip("()")


def gold_index(doc: Doc) -> int:
    return ascii_uppercase.index(gold_letter(doc))


def judge_letter(doc: Doc, letter: str | None) -> Verdict:
    """The verdict of a rule that reads a letter; a letter of no option is noted, and no answer."""
    if letter and letter in ascii_uppercase[: len(option_texts(doc))]:
        return make_verdict(doc, float(letter == gold_letter(doc)), letter)
    return make_verdict(doc, 0.0, None, note=f"read {letter!r}" if letter else "")


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
