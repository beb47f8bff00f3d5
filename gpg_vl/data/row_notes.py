"""Notes on one example: what looks wrong in it. It can be used for training, and may be intended, so it is not refused.

Each note is a kind, by which rows are counted, and a text that follows "3 row(s), the first of them row 7: ...".
"""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from gpg_vl.answers.box import parse_boxes
from gpg_vl.answers.extract import gold_text
from gpg_vl.answers.math.rectangles import COORDINATES, Box
from gpg_vl.answers.options import equal_options, gold_readings, letter_of
from gpg_vl.data.media import is_media_path
from gpg_vl.data.prompts import IMAGE_MARK, turns_of
from gpg_vl.errors import cut
from gpg_vl.types import Example, Message

Note = tuple[str, str]

# ---- texts

_SIGNS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    (
        "entity",
        re.compile(r"&(?:lt|gt|amp|quot|apos|nbsp|#[0-9]{2,6}|#[xX][0-9a-fA-F]{2,5});"),
        "{found!r}, which is HTML and is read as it stands. Unescape the texts where the data is made",
    ),
    (
        "invisible",
        re.compile("[\u200b\u2060\u00ad\ufeff\U000e0000-\U000e007f]"),
        "{found!a}, a character that nobody sees and no answer repeats. Remove it where the data is made",
    ),
    (
        "direction",
        re.compile("[\u202a-\u202e]"),
        "{found!a}, which changes the direction in which a text is shown. Remove it where the data is made",
    ),
    (
        "raw escape",
        re.compile(r"\\n(?=[A-Z0-9(\s]|$)|\\u[0-9a-fA-F]{4}"),
        "{found!r}, an escape that was never read: a line end or a letter is meant. Decode the texts once more",
    ),
    (
        "other mark",
        re.compile(
            r"<\|?image[_ ]?[0-9]+\|?>|<(?!image>)[iI][mM](?:[aA][gG][eE]|[gG])(?:\s[^<>\n]{0,300})?/?>|</im(?:age|g)>|\[IMG\]"
            r"|<image[_-](?:placeholder|pad|token|soft_token)>|<ImageHere>|<\|image\|>|<im_patch>|<__(?:media|image)__>|!\[[^\]\n]{0,200}\]\([^)\n]+\)"
            r"|<\|?video(?:_pad)?\|?>"
        ),
        f"{{found!r}}, which is read as text: only {IMAGE_MARK} stands for an image. Write {IMAGE_MARK}, or remove it",
    ),
    (
        "other chat",
        re.compile(
            r"\[/?INST\]|<</?SYS>>|<\|(?:system|user|assistant|eot_id|end|start_header_id|end_header_id|begin_of_text)\|>"
            r"|<(?:start|end)_of_turn>|(?:^|\n)\s*(?:USER|ASSISTANT|Assistant|### Response|### Assistant):\s*$"
        ),
        "{found!r}, the mark of a turn in the chats of another model. Store the question without it",
    ),
    (
        "place",
        re.compile(
            r"\{\{?\s*(?:question|problem|prompt|query|choices|options|image)\s*\}\}?", re.I
        ),
        "{found!r}, a place of a template that nobody filled in. Fill it in where the data is made",
    ),
    (
        "encoded picture",
        re.compile(r"data:image/[\w.+-]+;base64,|\b(?:iVBORw0KGgo|/9j/4)[A-Za-z0-9+/]{40}"),
        "a picture as text ({found!r}), which is read letter by letter. Move it into the images column",
    ),
)
"""(kind, pattern, text after "it holds "). Damaged encodings are found in `text_damage`."""
_QUICK = re.compile(
    "[&<{\\[\\\\\u00ad\u200b\u2060\ufeff\u202a-\u202e\U000e0000-\U000e007f]|data:|iVBORw|/9j/|USER:|ASSISTANT:|Assistant:|Response:"
)

# ---- answers

_EMPTY_CELLS = frozenset({"nan", "<na>", "nat", "null", "undefined", "#n/a"})
_NOT_FILLED = _EMPTY_CELLS | {"todo", "tbd", "fixme", "placeholder", "?", "??", "???"}
_WRAPPED_QUESTION = re.compile(
    r"\[\s*['\"].*['\"]\s*,?\s*\]|\{\s*['\"](?:question|problem|prompt|query|instruction|text)['\"]\s*:.*\}",
    re.DOTALL,
)
_LIST_OF_TEXTS = re.compile(r"\s*[\[(]\s*['\"].*['\"]\s*,?\s*[\])]\s*", re.DOTALL)
_STATED = re.compile(
    r"(?:\b(?:answer|solution|ground[ _]truth|label)\b\s*(?:is|[:：=])\s*|答案\s*(?:是|[:：])\s*|<answer>\s*|\\boxed\{\s*)",
    re.IGNORECASE,
)


def find_notes(example: Example) -> Iterator[Note]:
    """The notes on the texts of an example, its answer, its options and its boxes; a kind may come twice."""
    turns = turns_of(example.prompt)
    asked = turns[-1].content.replace(IMAGE_MARK, "").strip()
    for text in (*(turn.content for turn in turns), example.answer):
        yield from _of_texts(text)
    yield from _of_turns(turns)
    if is_media_path(asked):
        yield (
            "question",
            f"it has the path of a picture as its question ({shown(asked)}). Map the column of the question",
        )
    if _WRAPPED_QUESTION.fullmatch(asked):
        yield (
            "wrapped question",
            f"it has its question in brackets, which the model would read ({shown(asked)}). Store the text alone",
        )
    yield from _of_answer(example, asked)
    if example.choices is not None:
        yield from _of_choices(example.answer, example.choices)
    yield from _of_boxes(example.answer, example.meta)


def shown(text: str) -> str:
    """A text for a message, escaped and cut to a few words."""
    return repr(cut(text, 60))


def _of_texts(text: str) -> Iterator[Note]:
    # fast path: most texts have no such character
    if not _QUICK.search(text):
        return
    for kind, pattern, words in _SIGNS:
        if found := pattern.search(text):
            yield kind, "it holds " + words.format(found=found[0].strip()[:60])


def _of_turns(turns: tuple[Message, ...]) -> Iterator[Note]:
    if any(turn.role == "system" for turn in turns[1:]):
        yield "turns", "it has its system turn behind another one. Put it first"
    if turns[0].role == "assistant":
        yield (
            "turns",
            "it begins with a turn of the assistant. Begin with the system's or the user's",
        )
    if any(one.role == other.role for one, other in pairwise(turns)):
        yield (
            "turns",
            "it has two turns of one role behind each other. Join them, or add the turn between them",
        )


def _of_answer(example: Example, asked: str) -> Iterator[Note]:
    gold = gold_text(example.answer)
    if gold.casefold() in _NOT_FILLED:
        yield (
            "answer",
            f"it has the answer {gold!r}, as if the cell had been empty. Fill it in or remove the row",
        )
    if _LIST_OF_TEXTS.fullmatch(gold):
        yield (
            "answer list",
            f"it has a list as its answer ({shown(gold)}), which no response repeats. Store one text",
        )
    if is_media_path(gold):
        yield (
            "answer",
            f"it has the path of a picture as its answer ({shown(gold)}). Map the column of the answer",
        )
    if gold and gold.casefold() == asked.casefold():
        yield (
            "answer",
            f"it has its question as its answer ({shown(gold)}). Map the columns of both",
        )
    elif gold and _is_stated(gold, asked):
        yield (
            "leak",
            f"it states its answer in the question ({shown(gold)}). Remove it there, or a model learns to copy",
        )


def _is_stated(gold: str, asked: str) -> bool:
    """True for "Answer: 4" in the question: an introduction followed by the gold answer as a whole word."""
    for found in _STATED.finditer(asked):
        rest = asked[found.end() : found.end() + len(gold) + 2].lstrip("(\"'*$ ")
        behind = rest[len(gold) : len(gold) + 1]
        if (
            rest[: len(gold)].casefold() == gold.strip("()").casefold()[: len(gold)]
            and not behind.isalnum()
        ):
            return True
    return False


def _of_choices(answer: str, choices: tuple[str, ...]) -> Iterator[Note]:
    if len(choices) == 1:
        yield (
            "one option",
            "it has one option alone, which every answer would name. Add the others, or set the choices to null",
        )
    if any(not option.strip() for option in choices):
        yield "blank option", "it has an option without text. Remove it, or fill it in"
    if any(option.strip().casefold() in _EMPTY_CELLS for option in choices):
        yield (
            "blank option",
            "it has an option such as 'nan', as if the cell had been empty. Remove it, or fill it in",
        )

    named = gold_readings(answer, choices)
    if len(named) > 1:
        letters = " or ".join(letter_of(index) for index in sorted(named))
        yield (
            "two readings",
            f"it has an answer that could be option {letters} ({shown(answer)}). Write it as a letter, (A)",
        )
    for first, second in equal_options(choices):
        pair = f"{shown(choices[first])} and {shown(choices[second])}"
        yield (
            "equal options",
            f"it has options with one text, but for case and blanks ({pair}). Make them different",
        )
        break


def _of_boxes(answer: str, meta: Mapping[str, Any]) -> Iterator[Note]:
    """Notes on boxes that contradict the coordinates declared in the row."""
    coordinates = meta.get("coordinates")
    if not isinstance(coordinates, str):
        return

    boxes = parse_boxes(gold_text(answer))
    if coordinates not in COORDINATES:
        if boxes:
            yield (
                "box",
                f"it has the coordinates {shown(coordinates)}. One of {', '.join(COORDINATES)} is known",
            )
    elif boxes is None:
        yield (
            "box",
            f"it declares coordinates, and its answer is no box ({shown(answer)}). Write it as [x1, y1, x2, y2]",
        )
    else:
        said = next(filter(None, (_of_box(box, coordinates, meta) for box in boxes)), None)
        if said:
            yield "box", f"it has {said} ({shown(answer)})"


def _of_box(box: Box, coordinates: str, meta: Mapping[str, Any]) -> str | None:
    """What is wrong with a box and what to do; None if nothing is."""
    if box.x1 >= box.x2 or box.y1 >= box.y2:
        return "a box whose corners are swapped, or without area. Write x1, y1, x2, y2, or convert x, y, width, height"

    farthest = max(box)
    if farthest <= 1.0 and coordinates != "rel1":
        return f"boxes from 0 to 1 though its coordinates are {coordinates}. Declare rel1, or convert them"

    size = meta.get("input_size" if coordinates == "abs_resized" else "image_size")
    limits = {"rel1": (1.0, 1.0), "rel1000": (1000.0, 1000.0)}.get(coordinates) or size
    if not isinstance(limits, list | tuple) or [type(n) in (int, float) for n in limits] != [
        True,
        True,
    ]:
        return None
    if min(box) < 0 or box.x2 > limits[0] or box.y2 > limits[1]:
        reach = "x".join(f"{limit:g}" for limit in limits)
        return f"a box outside of {reach}, which {coordinates} allows. Correct it, or declare its own coordinates"
    return None
