"""Problems of a row's gold answer that do not depend on the reward: it is empty, or names none of the choices."""

from collections.abc import Iterator

from gpg_vl.answers.extract import gold_text
from gpg_vl.answers.options import equal_options, gold_readings, letter_of, strip_letters
from gpg_vl.data.cells import Kind
from gpg_vl.types import Example


def answer_problems(example: Example) -> Iterator[tuple[Kind, str]]:
    """The problems of a gold answer: it is empty, names none of the choices, or one that occurs
    twice.

    An answer names a choice by its text, by its letter (`B`, `(b)`, `B.`), or by both (`(B) cube`);
    case and outer blanks do not matter, and neither does an `<answer>` block around it. Rewards read it in the same way.
    """
    if not gold_text(example.answer):
        yield (
            "answer",
            "The answer is empty. Every row needs a gold answer. Fill it in or remove the row.",
        )
    elif example.choices is not None:
        yield from _choice_problems(example.answer, example.choices)


def _choice_problems(answer: str, choices: tuple[str, ...]) -> Iterator[tuple[Kind, str]]:
    listed = ", ".join(map(repr, choices))
    named = gold_readings(answer, choices)
    if not named:
        last = chr(ord("A") + min(len(choices), 26) - 1)
        text = (
            f"The answer {answer!r} is none of the {len(choices)} choices {listed}. A letter from A to "
            f"{last} or the text of an option is allowed. Correct the answer or the choices."
        )
        yield "choices", text

    # options that differ only in case, such as Cu and cu, may be different
    texts = strip_letters(choices)
    for first, second in equal_options(choices):
        if texts[first].strip() == texts[second].strip() and named & {first, second}:
            text = (
                f"The options {letter_of(first)} and {letter_of(second)} of {listed} have one text, and the "
                f"answer {answer!r} is one of the two. Different options are needed, or a right answer could "
                f"count as wrong. Correct the choices or remove the row."
            )
            yield "choices", text
