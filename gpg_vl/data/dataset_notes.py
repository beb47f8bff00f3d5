"""Notes on a data set as a whole: what looks wrong in it. They are reported before training but do not prevent it.

`DatasetNotes` receives every example once, in order, and returns its notes at the end. It stores two numbers per row.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpg_vl.answers.extract import gold_text
from gpg_vl.answers.options import gold_readings
from gpg_vl.data.contamination import EvaluationRows
from gpg_vl.data.prompts import texts_of
from gpg_vl.data.row_notes import find_notes, shown
from gpg_vl.data.text_damage import find_damage
from gpg_vl.data.unused_pictures import UnusedPictures
from gpg_vl.types import Example

_FEW = 3
"""This few rows may have the same answer by chance."""
_MANY = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Properties of the model that reads the prompts.

    Example: `Reader(sees_images=True, context=32768, max_new_tokens=256)`
    """

    sees_images: bool = False
    context: int | None = None
    """Maximum number of tokens of prompt and answer together; None is no limit."""
    max_new_tokens: int = 0


class DatasetNotes:
    """Counts the notes on single rows, and collects what only several rows together show.

    unused: the caller passes it the same rows. evaluation: rows that training should not contain.
    """

    def __init__(
        self,
        reader: Reader,
        unused: UnusedPictures | None = None,
        evaluation: EvaluationRows | None = None,
    ) -> None:
        self._reader, self._unused, self._evaluation = reader, unused, evaluation
        self._notes: dict[str, tuple[int, str, str]] = {}
        """By kind: number of rows, place of the first, and the text of its note."""
        self._rows = Counter[str]()
        """Number of rows of some sorts."""
        self._choices: dict[str, list[int]] = {}
        """By task: rows with choices, and without."""
        self._answers: dict[int, tuple[int, int]] = {}
        """By hash of the question: the number of the first row, and the hash of its answer."""
        self._first: Example | None = None

    def add(
        self,
        number: int,
        example: Example,
        place: str,
        *,
        tokens: int | None,
        notes: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Add a row. tokens: length of its prompt, None if it cannot be encoded; notes: (kind, text) from its encoder."""
        found = [
            *find_damage(example),
            *notes,
            *find_notes(example),
            *self._repeats(number, example),
        ]
        if tokens is not None:
            found += self._of_encoded(example, tokens)

        # only the first note of each kind, because rows are counted
        for kind, said in dict(reversed(found)).items():
            rows, first, words = self._notes.get(kind, (0, place, said))
            self._notes[kind] = rows + 1, first, words
        self._count(number, example)

    def notes(self) -> Iterator[str]:
        """The notes as sentences, those about images first."""
        yield from self._about_pictures()
        if self._unused is not None:
            yield from self._unused.notes()
        yield from self._about_fields()
        yield from self._about_choices()
        for rows, first, words in self._notes.values():
            yield f"{rows} row(s), the first of them {first}: {words}."

    # ---- one row

    def _count(self, number: int, example: Example) -> None:
        first = self._first = self._first or example
        gold, asked = gold_text(example.answer), _question(example)
        self._rows["all"] += 1
        self._rows["with images"] += bool(example.images)
        self._rows["answer of the first"] += example.answer == first.answer
        self._rows["question of the first"] += not example.images and example.prompt == first.prompt
        self._rows["answer is id"] += gold == example.id != str(number)
        self._rows["answer asks"] += gold.endswith(("?", "？")) and not asked.endswith(("?", "？"))
        self._choices.setdefault(example.task, [0, 0])[example.choices is None] += 1

    def _of_encoded(self, example: Example, tokens: int) -> Iterator[tuple[str, str]]:
        if self._evaluation is not None and (said := self._evaluation.find(example)):
            yield "held out", said

        context, answer = self._reader.context, self._reader.max_new_tokens
        if context is not None and tokens + answer > context:
            room = (
                f"rollout.max_new_tokens={answer} of the {context} tokens that the checkpoint reads"
            )
            yield (
                "room",
                f"its prompt of {tokens} leaves less than {room}. Shorten the prompts, or lower it",
            )

    def _repeats(self, number: int, example: Example) -> Iterator[tuple[str, str]]:
        """Notes if the same question occurred before, with the same or another answer."""
        asked = hash((example.images, example.prompt, example.choices))
        answer = hash(_plain_answer(example))
        first, before = self._answers.setdefault(asked, (number, answer))
        if first == number:
            return
        if before == answer:
            yield (
                "repeated",
                f"it repeats an earlier row, images, question and answer (row {first}). Remove what was not meant",
            )
        else:
            said = f"it asks what an earlier row asks, with another answer ({shown(example.answer)}; row {first})"
            yield "contradiction", f"{said}. Correct one of the two, or remove both"

    # ---- all rows

    def _about_pictures(self) -> Iterator[str]:
        rows, with_images = self._rows["all"], self._rows["with images"]
        if 0 < with_images < rows:
            yield (
                f"{rows - with_images} of the {rows} rows have no image, and {with_images} have one. If that is not meant, "
                f"fill in the images or remove these rows."
            )
        elif rows and not with_images and self._reader.sees_images:
            yield (
                f"None of the {rows} rows has an image, and the model reads images: it would be trained on text alone. If "
                f"that is not meant, declare their column: columns: {{images: <column>}}."
            )

    def _about_fields(self) -> Iterator[str]:
        rows, first = self._rows["all"], self._first
        if first is None or rows < _FEW:
            return
        if rows >= _MANY and self._rows["answer of the first"] == rows:
            yield f"All {rows} rows have the answer {shown(first.answer)}. If that is not meant, map the column of the answers."
        if self._rows["question of the first"] == rows:
            yield f"All {rows} rows ask the same, {shown(_question(first))}, without an image. Map the column of the questions."
        if self._rows["answer is id"] == rows:
            yield "The answer of every row is its id. Map the column of the answers."
        if self._rows["answer asks"] >= 0.8 * rows:
            yield "The answers end with a question mark and the questions do not. Map the columns of both the other way round."

    def _about_choices(self) -> Iterator[str]:
        for task, (with_choices, without) in self._choices.items():
            if with_choices and without:
                of_task = f" of the task {shown(task)}" if task else ""
                yield (
                    f"{without} row(s){of_task} have no choices, and {with_choices} have some. If that is not meant, fill "
                    f"them in, or give open questions a task of their own."
                )


def _question(example: Example) -> str:
    return texts_of(example.prompt)[-1].strip()


def _plain_answer(example: Example) -> object:
    """The meaning of an answer: its option if there are choices, else its text without case and blanks."""
    if example.choices is not None and (named := gold_readings(example.answer, example.choices)):
        return named
    return " ".join(gold_text(example.answer).casefold().split())
