"""Faults planted into what rows say, each with a good twin: the data check names the one, and says nothing of the other.

One row of the table is one kind of fault. It is run as a user runs it, `gpg-vl data check`, with a checkpoint and its chat
template. A problem refuses the data; a note is said and refuses nothing.
"""

import base64
import io
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from gpg_vl.cli import main
from gpg_vl.models.load import load_processing
from gpg_vl.training import prepare

Row = dict[str, Any]


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (56, 56), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


@dataclass(frozen=True)
class Planted:
    """A fault, what is said of it, and rows of the same sort that are in order."""

    kind: str
    bad: list[Row]
    says: str
    good: list[Row]
    is_note: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    good_config: dict[str, Any] | None = None

    def __str__(self) -> str:
        return self.kind


def row(prompt: object = "How many balls are there?", answer: object = "4", **cells: object) -> Row:
    """One open question with a picture."""
    return {"images": ["a.png"], "prompt": prompt, "answer": answer, **cells}


def pick(
    answer: object = "(A)",
    choices: object = ("ball", "cube"),
    prompt: object = None,
    **cells: object,
) -> Row:
    """One multiple-choice question with a picture."""
    listed = choices if isinstance(choices, list | tuple) else ("ball", "cube")
    lettered = "\n".join(f"({'ABCDEFGH'[place]}) {text}" for place, text in enumerate(listed))
    asked = f"Which is red?\n{lettered}" if prompt is None else prompt
    return row(asked, answer, choices=choices, **cells)


def box(answer: str = "[10, 20, 30, 40]", coordinates: object = "rel1000", **cells: object) -> Row:
    return row("Where is the ball?", answer, coordinates=coordinates, **cells)


def turns(*pairs: tuple[str, object]) -> list[dict[str, object]]:
    return [{"role": role, "content": content} for role, content in pairs]


CHOICE = {"rewards": {"weights": {"choice": 1.0}}}
COUNT = {"rewards": {"weights": {"counting": 1.0}}}
GROUND = {"rewards": {"weights": {"grounding": 1.0}}}
DETECT = {"rewards": {"weights": {"detection": 1.0}}}
CLASSES = {"rewards": {"weights": {"classification": 1.0}}}
B64 = base64.b64encode(png(1)).decode()
BLIND = {"prompt": "Which is red, ball or cube?", "answer": "ball"}
SIZE = {"image_size": [640, 480]}


def asks(template: str, **style: str) -> dict[str, Any]:
    return {"prompt": {"template": template, **style}}


def note(kind: str, bad: Row | list[Row], says: str, good: Row | list[Row], **more: Any) -> Planted:
    return problem(kind, bad, says, good, is_note=True, **more)


def problem(
    kind: str, bad: Row | list[Row], says: str, good: Row | list[Row], **more: Any
) -> Planted:
    as_list = [[one] if isinstance(one, dict) else one for one in (bad, good)]
    return Planted(kind, as_list[0], says, as_list[1], **more)


PICTURES = [
    note(
        "path under another name",
        {**BLIND, "image_path": "a.png"},
        "column 'image_path' looks like pictures in 1 of 1",
        row(),
    ),
    note("column img", {**BLIND, "img": "a.png"}, "column 'img' looks like pictures", row()),
    note("column Image", {**BLIND, "Image": "a.png"}, "column 'Image' looks like pictures", row()),
    note(
        "column image_1",
        {**BLIND, "image_1": "a.png", "image_2": "b.png"},
        "columns: {images: image_1}",
        row(),
    ),
    note(
        "path of a missing file",
        {**BLIND, "file": "x/y.jpeg"},
        "column 'file' looks like pictures",
        row(file="x/y.txt"),
    ),
    note(
        "a neutral column whose files exist",
        row(source="b.png"),
        "column 'source' looks like pictures",
        row(source="COCO"),
    ),
    note(
        "a list of paths",
        {**BLIND, "media": ["a.png", "b.png"]},
        "column 'media'",
        row(media=["x", "y"]),
    ),
    note(
        "a struct of a picture",
        {**BLIND, "extra": {"photo": {"path": "a.png", "bytes": None}}},
        "column 'extra.photo'",
        row(extra={"photo": None}),
    ),
    note(
        "a data URI",
        {**BLIND, "shot": f"data:image/png;base64,{B64}"},
        "column 'shot'",
        row(shot="data"),
    ),
    note("base64", {**BLIND, "shot": B64}, "column 'shot'", row(shot="aGVsbG8=")),
    note("a video", {**BLIND, "clip": "a.mp4"}, "column 'clip'", row(clip=None)),
    note(
        "a second picture",
        row(image_b="b.png"),
        "column 'image_b'",
        {**row(), "images": ["a.png", "b.png"]},
    ),
    note(
        "the name of the used picture is no other",
        row(path="b.png"),
        "column 'path'",
        row(
            path="old/a.png",
            image_path="a.png",
            image_id="17",
            image_size=[5, 5],
            image_url="http://x.org/z.png",
        ),
    ),
    note(
        "no picture at all",
        dict(BLIND),
        "None of the 1 rows has an image, and the model reads images",
        row(),
    ),
    note(
        "pictures in some rows",
        [row("Which?"), dict(BLIND)],
        "1 of the 2 rows have no image, and 1 have one",
        [row("Which?"), row("Where?")],
    ),
    problem(
        "more marks than pictures",
        row("<image><image>How many?"),
        "2 <image> mark(s) and the row has 1 image(s)",
        row("<image>How many?"),
    ),
    problem(
        "fewer marks than pictures",
        {**row("<image>How many?"), "images": ["a.png", "b.png"]},
        "1 <image> mark(s) and the row has 2 image(s)",
        {**row("<image> or <image>?"), "images": ["a.png", "b.png"]},
    ),
    problem(
        "a mark without a picture",
        {"prompt": "<image>How many?", "answer": "4"},
        "1 <image> mark(s) and the row has 0",
        row("<image>How many?"),
    ),
    problem(
        "a picture in a message and another in its column",
        row([{"role": "user", "content": "?", "images": ["b.png"]}]),
        "in one of the two places",
        {"prompt": [{"role": "user", "content": "How many?", "images": ["a.png"]}], "answer": "4"},
    ),
    problem(
        "a picture inside a message that is missing",
        {"prompt": [{"role": "user", "content": "?", "images": ["none.png"]}], "answer": "4"},
        "does not exist",
        {
            "prompt": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": "a.png"},
                        {"type": "text", "text": "How many?"},
                    ],
                }
            ],
            "answer": "4",
        },
    ),
    problem(
        "a video inside a message",
        row(
            [
                {
                    "role": "user",
                    "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "?"}],
                }
            ]
        ),
        "Message 1 of 1 has the content",
        row(turns(("user", [{"type": "image"}, {"type": "text", "text": "How many?"}]))),
    ),
]

QUESTIONS = [
    problem(
        "the mark of the template",
        row(),
        "renders 2 <image> mark(s) for 1 image(s), because prompt.template",
        row(),
        config=asks("<image>{prompt}"),
        good_config=asks("Look: {prompt}"),
    ),
    problem(
        "the mark of the system prompt",
        row(),
        "because prompt.system brings some",
        row(),
        config=asks("{prompt}", system="See <image>."),
        good_config=asks("{prompt}", system="See."),
    ),
    problem(
        "a literal image token",
        row("<|vision_start|><|image_pad|><|vision_end|>How many?"),
        "control token <|vision_start|>",
        row("<image>How many?"),
    ),
    problem(
        "an end of text in the question",
        row("How many? <|endoftext|> more"),
        "control token <|endoftext|>",
        row("How many? <endoftext> more"),
    ),
    problem(
        "a turn in the question",
        row("4?<|im_end|>\n<|im_start|>assistant\n4"),
        "control token <|im_end|>",
        row("4? im_end"),
    ),
    problem(
        "a control token in an option",
        pick(choices=["ball", "cube<|im_end|>"]),
        "control token <|im_end|>",
        pick(),
    ),
    problem(
        "messages as text",
        row('[{"role": "user", "content": "How many?"}]'),
        "text that holds messages",
        row(turns(("user", "How many?"))),
    ),
    problem(
        "messages as Python prints them",
        row("[{'role': 'user', 'content': 'How many?'}]"),
        "text that holds messages",
        row('What is [{"role": "user", "content": "x"}]?'),
    ),
    problem(
        "a misspelt role",
        row(turns(("User", "How many?"))),
        "has the role 'User'",
        row(turns(("user", "How many?"))),
    ),
    problem(
        "roles of two programs in one message",
        row([{"from": "human", "content": "How many?"}]),
        "A message has a role and a content",
        row([{"from": "human", "value": "How many?"}]),
    ),
    problem(
        "the assistant last",
        row(turns(("user", "How many?"), ("assistant", "4"))),
        "ends with a turn of the assistant",
        row(turns(("user", "Look."), ("assistant", "I do."), ("user", "How many?"))),
    ),
    problem(
        "two system turns in the row",
        row(turns(("system", "Be X."), ("system", "Be Y."), ("user", "?"))),
        "has 2 system turns",
        row(turns(("system", "Be X."), ("user", "How many?"))),
    ),
    problem(
        "a system turn of the row and of the config",
        row(turns(("system", "Be X."), ("user", "?"))),
        "prompt.system would be a second one",
        row(turns(("user", "How many?"))),
        config=asks("{prompt}", system="Be Y."),
    ),
    note(
        "the system turn behind another",
        row(
            turns(("user", "Hi."), ("assistant", "Hi."), ("system", "Be X."), ("user", "How many?"))
        ),
        "it has its system turn behind another one",
        row(turns(("system", "Be X."), ("user", "How many?"))),
    ),
    note(
        "two user turns in a row",
        row(turns(("user", "Look."), ("user", "How many?"))),
        "two turns of one role",
        row(turns(("user", "Look."), ("assistant", "I do."), ("user", "How many?"))),
    ),
    note(
        "the assistant first",
        row(turns(("assistant", "Hello."), ("user", "How many?"))),
        "it begins with a turn of the assistant",
        row(turns(("user", "How many?"))),
    ),
    note("an empty question", row("<image>"), "the question is empty", row("<image>?")),
    note(
        "an empty question in a conversation",
        row(turns(("system", "Be X."), ("user", " "))),
        "the question is empty",
        row(turns(("system", "Be X."), ("user", "How many?"))),
    ),
    problem(
        "no question and no picture",
        {"prompt": "  ", "answer": "4"},
        "The prompt is empty and there is no image",
        row("") | {"prompt": "x"},
    ),
    note(
        "a place that is left in the template",
        row(),
        "prompt.template has {options}",
        row(),
        config=asks("{prompt} {options}"),
        good_config=asks("{prompt} \\boxed{answer}"),
    ),
    note(
        "a place that is left in the row",
        row("{question} Think first."),
        "a place of a template",
        row("Solve f(x) = {x | x > 2}."),
    ),
    problem(
        "a very long question",
        row("How many? " * 220),
        "max_prompt_tokens=1024 are allowed",
        row("How many? " * 20),
    ),
    problem(
        "beyond the context",
        row("How many? " * 700),
        "more than the 2048 that the checkpoint reads",
        row(),
        config={"data": {"max_prompt_tokens": 100000}},
    ),
    note(
        "no room for the answer",
        row(),
        "leaves less than rollout.max_new_tokens=2040 of the 2048",
        row(),
        config={"rollout": {"max_new_tokens": 2040}},
        good_config={"rollout": {"max_new_tokens": 1500}},
    ),
    note(
        "the path of a picture as the question",
        row("a.png"),
        "the path of a picture as its question",
        row("Is it a.png?"),
    ),
    note(
        "a picture as text in the question",
        row(f"data:image/png;base64,{B64} How many?"),
        "a picture as text",
        row("How many data: 4?"),
    ),
    *[
        note(
            f"the mark {mark}",
            row(f"{mark} How many?"),
            "which is read as text: only <image> stands for an image",
            row(f"How many {plain}?"),
        )
        for mark, plain in (
            ("<image 1>", "image 1"),
            ("<image_1>", "image_1"),
            ("<|image_1|>", "<b>"),
            ("<Image>", "Image"),
            ("<img>", "i < mg"),
            ("<img src='a.png'>", "src"),
            ("[IMG]", "[1]"),
            ("<ImageHere>", "<here>"),
            ("![ball](a.png)", "n! [a](b)"),
            ("</image>", "</b>"),
            ("<video>", "video"),
            ("<image_placeholder>", "placeholders"),
            ("<|image|>", "|image|"),
        )
    ],
    *[
        note(
            f"the chat {mark}",
            row(text),
            "the mark of a turn in the chats of another model",
            row(plain),
        )
        for mark, text, plain in (
            ("[INST]", "[INST] How many? [/INST]", "[INSTALL] how many?"),
            ("<<SYS>>", "<<SYS>> x", "a << b"),
            ("ASSISTANT:", "USER: How many?\nASSISTANT:", "Assistant: who is that?"),
            ("### Response:", "How many?\n\n### Response:", "### Question: how many?"),
            ("<start_of_turn>", "<start_of_turn>user", "<start>"),
            ("<|eot_id|>", "How many?<|eot_id|>", "a <| b |> c"),
        )
    ],
    note(
        "HTML entities",
        row("Is 3 &lt; 4 &amp; 5?"),
        "'&lt;', which is HTML",
        row("Is 3 < 4 & 5; AT&T;?"),
    ),
    note(
        "escapes as text",
        row("Which?\\n(A) ball\\n(B) cube"),
        "an escape that was never read",
        row("Is $\\neq$ or $\\nu$ in C:\\new?"),
    ),
    note(
        "zero-width characters",
        row("How\u200b many?"),
        "'\\u200b', a character that nobody sees",
        row("خانه\u200cها 👨\u200d👩 how many?"),
    ),
    note(
        "characters that turn the text",
        row("How \u202emany\u202c?"),
        "'\\u202e', which changes the direction",
        row("כמה כדורים?"),
    ),
]

ANSWERS = [
    problem("an empty answer", row(answer=" "), "The answer is empty", row(), config=COUNT),
    problem(
        "an empty answer in tags",
        row(answer="<answer> </answer>"),
        "The answer is empty",
        row(answer="<answer>4</answer>"),
    ),
    problem(
        "no answer", {**row(), "answer": None}, "so the row has no answer", row(), config=COUNT
    ),
    problem(
        "a list as the answer", row(answer=["4", "four"]), "The answer is ['4', 'four']", row()
    ),
    note(
        "a question in a list",
        row('["How many balls are there?"]'),
        "it has its question in brackets",
        row('["ball", "cube"]: how many words?'),
    ),
    note(
        "a question in an object",
        row('{"question": "How many balls are there?"}'),
        "it has its question in brackets",
        row('What is x in {"question": "x"}?'),
    ),
    note(
        "a list as text",
        row(answer='["4", "four"]'),
        "it has a list as its answer",
        row(answer="[1, 2)"),
    ),
    note(
        "an answer that was never filled in",
        row(answer="nan"),
        "it has the answer 'nan', as if the cell had been empty",
        row(answer="None"),
    ),
    note(
        "an answer to be done", row(answer="TODO"), "it has the answer 'TODO'", row(answer="to do")
    ),
    note(
        "the path of a picture as the answer",
        row(answer="images/7.jpg"),
        "the path of a picture as its answer",
        row(answer="jpg"),
    ),
    note(
        "the question as the answer",
        row(answer="How many balls are there?"),
        "it has its question as its answer",
        row(),
    ),
    note(
        "the answer in the question",
        row("How many? Answer: 4"),
        "it states its answer in the question ('4')",
        row("How many? Answer: 40 or less."),
    ),
    note(
        "the answer in tags in the question",
        row("How many?\n<answer>4</answer>"),
        "it states its answer",
        row("Write <answer>your answer</answer>."),
    ),
    note(
        "the answer in a box in the question",
        row("How many? \\boxed{4}"),
        "it states its answer",
        row("Write \\boxed{answer}. How many of 4?"),
    ),
    note(
        "a character that nobody sees in the answer",
        row(answer="4\u200b"),
        "a character that nobody sees",
        row(answer="4"),
    ),
    note(
        "the same question with another answer",
        [row(), row(answer="5")],
        "with another answer ('5'; row 0)",
        [row(), {**row(answer="5"), "images": ["b.png"]}],
    ),
    note(
        "the same row twice",
        [row(), row(answer=" 4 ")],
        "it repeats an earlier row",
        [row(), row("How many cubes are there?")],
    ),
    problem(
        "an id of another row",
        [row(id="7"), row("And now?", "5", id="7")],
        "The id '7' already belongs to row 0",
        [row(id="7"), row("And now?", "5", id="8")],
    ),
    note(
        "the id as the answer",
        [row(f"Number {n}?", f"q{n}", id=f"q{n}") for n in range(3)],
        "The answer of every row is its id",
        [row(f"Number {n}?", f"q{n}", id=f"q{n + 1}") for n in range(3)],
    ),
    note(
        "question and answer the other way round",
        [row(f"{n}", f"How many are there of {n}?") for n in range(3)],
        "the other way round",
        [row(f"How many are there of {n}?", f"{n + 3}") for n in range(3)],
    ),
    note(
        "one answer for all",
        [row(f"Is {n} red?", "yes") for n in range(20)],
        "All 20 rows have the answer 'yes'",
        [row(f"Is {n} red?", ("yes", "no")[n % 2]) for n in range(20)],
    ),
    problem(
        "an answer that counting cannot read",
        row(answer="4th"),
        "is not a count",
        row(answer="4"),
        config=COUNT,
    ),
    problem(
        "a fraction where things are counted",
        row(answer="4.5"),
        "is not a count",
        row(answer="four"),
        config=COUNT,
    ),
    problem(
        "a range where things are counted",
        row(answer="4-5"),
        "is not a count",
        row(answer="4.0"),
        config=COUNT,
    ),
]

CHOICES = [
    problem(
        "gold among no choices",
        pick("cone"),
        "is none of the 2 choices",
        pick("cube"),
        config=CHOICE,
    ),
    problem(
        "a letter beyond the choices",
        pick("(C)"),
        "is none of the 2 choices",
        pick("(B)"),
        config=CHOICE,
    ),
    problem(
        "an index as the gold",
        pick("1"),
        "is none of the 2 choices",
        pick("1", ["3", "1"]),
        config=CHOICE,
    ),
    problem(
        "a letter with the text of another option",
        pick("(A) cube"),
        "is none of the 2 choices",
        pick("(A) ball"),
        config=CHOICE,
    ),
    problem(
        "a sentence as the gold",
        pick("It is the ball"),
        "is none of the 2 choices",
        pick("<answer>A</answer>"),
        config=CHOICE,
    ),
    problem(
        "no choices for the reward",
        row(),
        "has no choices, but the reward 'choice'",
        pick("a"),
        config=CHOICE,
    ),
    note(
        "choices in some rows",
        [pick(), row("How many?")],
        "1 row(s) have no choices, and 1 have some",
        [pick(task="Relation"), row("How many?", task="Count")],
    ),
    note("one choice", pick("A", ["ball"]), "it has one option alone", pick("A", ["ball", "cube"])),
    problem(
        "two equal options",
        pick("A", ["ball", "ball", "cube"]),
        "options A and B",
        pick("A", ["ball", "balls", "cube"]),
        config=CHOICE,
    ),
    note(
        "two equal options beside the gold",
        pick("C", ["ball", "ball", "cube"]),
        "it has options with one text",
        pick("C", ["ball", "cone", "cube"]),
    ),
    note(
        "options that differ in case",
        pick("A", ["Ball", "ball", "cube"]),
        "it has options with one text, but for case",
        pick("A", ["(A) ball", "(B) cube"]),
    ),
    note(
        "options that differ in blanks",
        pick("C", ["ball", " ball", "cube"]),
        "it has options with one text",
        pick("C", ["a ball", "ball", "cube"]),
    ),
    note(
        "an option without text",
        pick("A", ["ball", "cube", ""]),
        "it has an option without text",
        pick("A", ["ball", "cube", "0"]),
    ),
    note(
        "an option that was never filled in",
        pick("A", ["ball", "nan"]),
        "it has an option such as 'nan'",
        pick("A", ["ball", "None"]),
    ),
    problem(
        "an option that is null",
        pick("A", ["ball", None]),
        "option 2 of 2 is null",
        pick("A", ["ball", "cube"]),
    ),
    problem(
        "choices as text",
        pick("A", '["ball", "cube"]'),
        "The choices are",
        pick("A", ["ball", "cube"]),
    ),
    note(
        "a gold with two readings",
        pick("A", ["B", "A"]),
        "could be option A or B",
        pick("B", ["A", "B"]),
    ),
    note(
        "options that the prompt does not show",
        pick("B", prompt="Which is red?"),
        "the options are not in its prompt",
        pick("cube", prompt="Which is red?"),
    ),
    note(
        "options that the prompt does not show, and the template does",
        pick("B", prompt="Which is red?"),
        "the options are not in its prompt",
        pick("B", prompt="Which is red?"),
        good_config=asks("{prompt} {choices}"),
    ),
    problem(
        "a class that is not listed",
        row(answer="tulip", choices=["rose", "daisy"]),
        "is none of the 2 choices",
        row(answer="rose", choices=["rose", "daisy"]),
        config=CLASSES,
    ),
    problem(
        "no list of classes",
        row(answer="tulip"),
        "no list of classes",
        row(answer="rose", classes=["rose", "daisy"]),
        config=CLASSES,
    ),
]

BOXES = [
    problem(
        "swapped corners",
        box("[30, 40, 10, 20]"),
        "inverted, flat or outside",
        box(),
        config=GROUND,
    ),
    note(
        "swapped corners for another reward",
        box("[30, 40, 10, 20]"),
        "whose corners are swapped",
        box(),
    ),
    problem(
        "a box of width and height",
        box("[500, 400, 20, 30]"),
        "inverted, flat or outside",
        box("[500, 400, 520, 430]"),
        config=GROUND,
    ),
    note("a box without area", box("[10, 20, 10, 40]"), "or without area", box("[10, 20, 11, 40]")),
    note(
        "fractions where thousandths are declared",
        box("[0.1, 0.2, 0.3, 0.4]"),
        "boxes from 0 to 1 though its coordinates are rel1000",
        box("[0.1, 0.2, 0.3, 0.4]", "rel1"),
        config=GROUND,
    ),
    note(
        "fractions where pixels are declared",
        box("[0.1, 0.2, 0.3, 0.4]", "abs_orig", **SIZE),
        "boxes from 0 to 1",
        box("[64, 96, 192, 192]", "abs_orig", **SIZE),
        config=GROUND,
    ),
    problem(
        "thousandths where pixels are declared",
        box("[700, 500, 900, 999]", "abs_orig", **SIZE),
        "inverted, flat or outside",
        box("[400, 300, 500, 450]", "abs_orig", **SIZE),
        config=GROUND,
    ),
    note(
        "a box outside of the picture",
        box("[600, 20, 700, 40]", "abs_orig", **SIZE),
        "a box outside of 640x480, which abs_orig allows",
        box("[600, 20, 640, 40]", "abs_orig", **SIZE),
    ),
    note(
        "pixels where fractions are declared",
        box("[64, 96, 192, 192]", "rel1"),
        "a box outside of 1x1",
        box("[0, 0, 1, 1]", "rel1"),
    ),
    note(
        "an unknown convention",
        box(coordinates="pixels"),
        "it has the coordinates 'pixels'",
        row(answer="4", coordinates="48.2 N"),
    ),
    problem(
        "no convention",
        row(answer="[10, 20, 30, 40]"),
        "has the coordinates None",
        box(),
        config=GROUND,
    ),
    problem(
        "pixels without a size",
        {key: cell for key, cell in box(coordinates="abs_orig").items() if key != "images"},
        "where one is needed",
        box(coordinates="abs_orig"),
        config=GROUND,
    ),
    problem(
        "two boxes where one is asked for",
        box("[1, 2, 3, 4], [5, 6, 7, 8]"),
        "2 boxes where one is asked for",
        box(),
        config=GROUND,
    ),
    problem(
        "a text where boxes are asked for",
        box("the ball"),
        "is no list of boxes",
        box("No Objects"),
        config=DETECT,
    ),
    note(
        "declared coordinates and no box",
        box("the ball"),
        "its answer is no box",
        box("[[1, 2, 3, 4]]"),
    ),
]

TABLE = [*PICTURES, *QUESTIONS, *ANSWERS, *CHOICES, *BOXES]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same checkpoint is read once."""
    monkeypatch.setattr(prepare, "load_processing", _kept)


@cache
def _kept(path: str, revision: str | None) -> Any:
    return load_processing(path, revision)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    for shade, name in enumerate(("a.png", "b.png", "c.png")):
        (folder / name).write_bytes(png(50 * shade))
    return folder


def check(folder: Path, checkpoint: Path, rows: list[Row], sections: dict[str, Any]) -> Row:
    """The report of `gpg-vl data check`, with its exit code."""
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = {
        "model": {"path": str(checkpoint)},
        "data": {"train": str(folder / "d.jsonl"), **sections.get("data", {})},
        "rewards": {"weights": {"format": 1.0}},
        "output": {"folder": str(folder / "run")},
    }
    merged = {**config, **{name: keys for name, keys in sections.items() if name != "data"}}
    (folder / "c.yaml").write_text(yaml.safe_dump(merged))
    code = main(["data", "check", str(folder / "c.yaml"), "--json", str(folder / "report.json")])
    report: Row = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return {**report, "exit": code}


@pytest.mark.parametrize("planted", TABLE, ids=str)
def test_a_planted_fault_is_named_and_its_good_twin_is_not(
    planted: Planted, tiny_checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = check(folder, tiny_checkpoint, planted.bad, planted.config)
    problems = [one["message"] for one in bad["problems"]]
    said = bad["notes"] if planted.is_note else problems
    assert any(planted.says in one for one in said), (problems, bad["notes"])
    assert bad["exit"] == (0 if planted.is_note else 2), problems
    assert bad["rows"] == len(planted.bad)
    assert ("note: " in capsys.readouterr().out) == bool(bad["notes"])

    config = planted.config if planted.good_config is None else planted.good_config
    good = check(folder, tiny_checkpoint, planted.good, config)
    assert (good["problems"], good["notes"], good["exit"]) == ([], [], 0)


def test_the_table_has_enough_kinds_and_no_kind_twice() -> None:
    kinds = [planted.kind for planted in TABLE]
    assert len(set(kinds)) == len(kinds) >= 40
