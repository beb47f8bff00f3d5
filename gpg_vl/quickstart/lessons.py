"""The pre-training data of the quickstart's base model: it teaches to see, read, add, and answer in the requested form.

    describe   "Describe the image."            row, column, box, colour and name of every object
    ask        a multiple-choice question       about colours, places, boxes, signs: none of the four CV-Bench tasks
    option     "What is written at (B)?"        the text of that option, or of the next one; half of them without an image
    read       "Which number is this?"          a printed digit that fills the picture
    sum        "What is 3 + 5?"                 text only, directly or with the reasoning that the prompt asks for
    think      what is in the two boxes         the same reasoning, about an image

The first course, `WORDS`, is only text: options and sums. The second, `SIGHT`, has all kinds. None is a question of
the worlds that are trained on later (Count, Relation, Depth and Distance, handwritten digits, rows of two boxes), and none of
their held-out pictures is shown: a picture is on one side or the other by a digest of what it shows
(`scenes.choose_side`). The resulting model can see and answer, but has not learned the tasks.

Lesson `number` of a course and a seed is a pure function of the three.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from gpg_vl.quickstart import scenes
from gpg_vl.quickstart.glyphs import draw_digit

SEED = 5
"""Odd, so that the lessons contain no scene of a held-out set, whose seeds are even."""
THINK = "Think first, in <think> </think> tags, then answer in <answer> </answer> tags."
DESCRIBE = "Describe the image."
WORDS = {"option": 60, "sum": 40}
SIGHT = {"describe": 40, "ask": 28, "option": 10, "read": 8, "sum": 5, "think": 9}
"""Number of lessons of each kind per hundred."""
LARGEST = 9
"""Numbers on signs go from 0 to this."""


class Lesson(NamedTuple):
    """A question, its answer, and its image as PNG; None if it has no image."""

    kind: str
    prompt: str
    answer: str
    picture: bytes | None


def lesson(shares: Mapping[str, int], seed: int, number: int) -> Lesson:
    """Lesson `number` of a course, `WORDS` or `SIGHT`, and of the set `seed`, which is odd."""
    rng = random.Random(f"gpg_vl lessons {seed} {number}")
    kind = rng.choices(list(shares), list(shares.values()))[0]
    return _KINDS[kind](rng, seed, "describe" in shares)


def lessons(shares: Mapping[str, int], seed: int, number: int) -> Iterator[Lesson]:
    """The first `number` of a course."""
    return (lesson(shares, seed, i) for i in range(number))


def with_options(question: str, options: Sequence[str]) -> str:
    """The prompt as CV-Bench writes it."""
    lines = "\n".join(f"({chr(65 + i)}) {option}" for i, option in enumerate(options))
    return f"{question} Select from the following choices.\n{lines}"


def line_of_thought(thought: str, answer: str) -> str:
    """The response that `THINK` asks for."""
    return f"<think> {thought} </think> <answer> {answer} </answer>"


# ---- pictures


def draw_scene(rng: random.Random, seed: int, *, boxes: Sequence[str] = ()) -> scenes.Scene:
    """A scene of one to six objects, some of them signs, on the side of `seed`.

    boxes: colours of boxes, each around one of the things.
    """
    for _ in itertools.count():
        columns, rows = rng.choice(scenes.GRIDS)
        cells = scenes.draw_cells(rng, columns, rows, rng.randint(max(1, len(boxes)), 6))
        things = [_draw_thing(rng, cell) for cell in cells]
        for i, box in enumerate(boxes):
            things[i] = things[i]._replace(box=box)

        candidate = scenes.make_unasked(rng, columns, rows, things)
        if scenes.choose_side(candidate) == seed % 2:
            return candidate
    raise AssertionError("unreachable: attempts do not end")


def _draw_thing(rng: random.Random, cell: tuple[int, int]) -> scenes.Thing:
    """An object of any shape and size used in the worlds; one in four is a sign."""
    if rng.random() < 0.25:
        return draw_sign(rng, rng.randint(0, LARGEST), cell)
    thing = scenes.make_flat(rng, rng.choice(scenes.SHAPES), cell)
    return thing._replace(size=rng.randint(12, 23))


def draw_sign(rng: random.Random, number: int, cell: tuple[int, int]) -> scenes.Thing:
    """A number on a plate."""
    return scenes.make_flat(rng, str(number), cell)._replace(size=rng.randint(19, 23))


def name(thing: scenes.Thing) -> str:
    """`orange ball`, or `sign 7`."""
    if thing.shape in scenes.DIGITS:
        return f"sign {thing.shape}"
    return f"{thing.colour} {thing.shape}"


def describe(scene: scenes.Scene) -> str:
    """`1 2 red box orange ball; 3 4 sign 7`: row and column from 1, box if there is one, and what it is."""
    described = []
    for thing in sorted(scene.things, key=lambda thing: (thing.row, thing.column)):
        box = f"{thing.box} box " if thing.box else ""
        described.append(f"{thing.row + 1} {thing.column + 1} {box}{name(thing)}")
    return "; ".join(described)


def _png(scene: scenes.Scene, seed: int) -> bytes:
    return scenes.png(scenes.draw(scene, seed))


# ---- kinds


def _describe(rng: random.Random, seed: int, pictures: bool) -> Lesson:
    """Any scene, including those of the four tasks: only their contents, not their questions."""
    if rng.random() < 0.5:
        scene = draw_scene(rng, seed, boxes=rng.sample(sorted(scenes.BOXES), rng.randint(0, 3) % 3))
    else:
        scene = _scene_of_a_task(rng, seed)
    return Lesson("describe", DESCRIBE, describe(scene), _png(scene, seed))


def _scene_of_a_task(rng: random.Random, seed: int) -> scenes.Scene:
    while True:
        scene = scenes.scene(seed, rng.randrange(10**9))
        if scene.things:
            return scene


def _option(rng: random.Random, seed: int, pictures: bool) -> Lesson:
    """Options are words of one kind; an image, if any, is unrelated to them."""
    pool = rng.choice(_POOLS)
    options = rng.sample(pool, min(len(pool), rng.choice((2, 4))))
    if rng.random() < 0.5:
        place = rng.randrange(len(options))
        question = f"What is written at ({chr(65 + place)})?"
    else:
        place = rng.randrange(1, len(options))
        question = f"What is written after {options[place - 1]}?"

    shown = pictures and rng.random() < 0.5
    picture = _png(draw_scene(rng, seed), seed) if shown else None
    return Lesson("option", with_options(question, options), options[place], picture)


_POOLS = (
    scenes.SHAPES,
    sorted(scenes.COLOURS),
    ("left", "right"),
    ("above", "below"),
    ("yes", "no"),
    tuple("0123456"),
)
"""The words used as options."""


def _ask(rng: random.Random, seed: int, pictures: bool) -> Lesson:
    boxes = rng.sample(sorted(scenes.BOXES), rng.randint(1, 3))
    while True:
        scene = draw_scene(rng, seed, boxes=boxes)
        ask = rng.choice((_ask_colour, _ask_place, _ask_box, _ask_presence, _ask_sign))
        if asked := ask(rng, scene):
            break
    question, right, wrong = asked
    options = list(wrong)
    options.insert(rng.randint(0, len(wrong)), right)
    return Lesson("ask", with_options(question, options), right, _png(scene, seed))


_Asked = tuple[str, str, list[str]] | None
"""A question, the right option and the wrong ones; None if the scene is not suitable."""


def _ask_colour(rng: random.Random, scene: scenes.Scene) -> _Asked:
    if not (thing := _choose_single(rng, scene)):
        return None
    others = [colour for colour in sorted(scenes.COLOURS) if colour != thing.colour]
    question = f"What colour is the {thing.shape} in the image?"
    return question, thing.colour, rng.sample(others, rng.choice((1, 3)))


def _ask_place(rng: random.Random, scene: scenes.Scene) -> _Asked:
    if not (thing := _choose_single(rng, scene)):
        return None
    axis, at = rng.choice((("row", thing.row + 1), ("column", thing.column + 1)))
    others = [str(place) for place in range(1, 6) if place != at]
    question = f"In which {axis} of the image is the {thing.shape}?"
    return question, str(at), rng.sample(others, rng.choice((1, 3)))


def _ask_box(rng: random.Random, scene: scenes.Scene) -> _Asked:
    thing = rng.choice([thing for thing in scene.things if thing.box])
    if thing.shape in scenes.DIGITS:
        return None
    others = [shape for shape in scenes.SHAPES if shape != thing.shape]
    question = f"Which object is highlighted by the {thing.box} box?"
    return question, thing.shape, rng.sample(others, rng.choice((1, 3)))


def _ask_presence(rng: random.Random, scene: scenes.Scene) -> _Asked:
    there = sorted({thing.shape for thing in scene.things} & set(scenes.SHAPES))
    absent = sorted(set(scenes.SHAPES) - set(there))
    answer = rng.choice(("yes", "no"))
    shapes = there if answer == "yes" else absent
    if not shapes:
        return None
    wrong = "no" if answer == "yes" else "yes"
    return f"Is there a {rng.choice(shapes)} in the image?", answer, [wrong]


def _ask_sign(rng: random.Random, scene: scenes.Scene) -> _Asked:
    signs = [thing.shape for thing in scene.things if thing.shape in scenes.DIGITS]
    if len(signs) != 1:
        return None
    others = [digit for digit in scenes.DIGITS if digit != signs[0]]
    question = "Which number is on the sign in the image?"
    return question, signs[0], rng.sample(others, rng.choice((1, 3)))


def _choose_single(rng: random.Random, scene: scenes.Scene) -> scenes.Thing | None:
    """An object that is the only one of its shape, so that "the ball" is unambiguous."""
    shapes = [thing.shape for thing in scene.things]
    single = [
        thing
        for thing in scene.things
        if shapes.count(thing.shape) == 1 and thing.shape in scenes.SHAPES
    ]
    return rng.choice(single) if single else None


def _read(rng: random.Random, seed: int, pictures: bool) -> Lesson:
    digit = rng.randint(0, 9)
    question = rng.choice(("Which number is this?", "Which digit is written here?"))
    return Lesson("read", question, str(digit), scenes.png(draw_large_digit(rng, digit)))


def draw_large_digit(rng: random.Random, digit: int) -> Image.Image:
    """A printed digit on a plain ground: its size, place, slant, thickness and greys differ."""
    side = scenes.CELL * rng.randint(2, 6)
    height = side * rng.uniform(0.6, 0.9)
    width = height * rng.uniform(0.45, 0.75)
    slant = rng.uniform(-0.15, 0.25)
    dark, light = rng.randint(0, 60), rng.randint(190, 255)
    ground, ink = rng.choice(((dark, light), (light, dark)))

    picture = Image.new("RGB", (side, side), (ground,) * 3)
    draw_digit(
        ImageDraw.Draw(picture),
        digit,
        left=(side - width - slant * height) / 2 + side * rng.uniform(-0.05, 0.05),
        top=(side - height) / 2 + side * rng.uniform(-0.04, 0.04),
        width=width,
        height=height,
        thickness=max(2, round(side * rng.uniform(0.06, 0.16))),
        colour=(ink,) * 3,
        slant=slant,
    )
    return picture


def _sum(rng: random.Random, seed: int, pictures: bool) -> Lesson:
    a, b = rng.randint(0, LARGEST), rng.randint(0, LARGEST)
    if a != b and rng.random() < 0.4:
        question, answer = f"Which is larger, {a} or {b}?", str(max(a, b))
        thought = f"{max(a, b)} is larger than {min(a, b)}."
    else:
        question, answer = f"What is {a} + {b}?", str(a + b)
        thought = f"{a} + {b} = {a + b}."

    if rng.random() < 0.6:
        return Lesson("sum", f"{question} {THINK}", line_of_thought(thought, answer), None)
    return Lesson("sum", question, answer, None)


def _think(rng: random.Random, seed: int, pictures: bool) -> Lesson:
    scene = draw_scene(rng, seed, boxes=("red", "blue"))
    boxed = {thing.box: thing for thing in scene.things if thing.box}
    box = rng.choice(("red", "blue"))
    thought = f"The red box shows {name(boxed['red'])}. The blue box shows {name(boxed['blue'])}."

    # some answers describe everything first; they may be cut off by a tight token limit
    if rng.random() < 0.4:
        thought = f"{describe(scene)}. {thought}"
    question = f"What do the boxes show, and what is in the {box} box? {THINK}"
    return Lesson("think", question, line_of_thought(thought, name(boxed[box])), _png(scene, seed))


_KINDS: dict[str, Callable[[random.Random, int, bool], Lesson]] = {
    "describe": _describe,
    "ask": _ask,
    "option": _option,
    "read": _read,
    "sum": _sum,
    "think": _think,
}
