"""Drawn scenes for the four CV-Bench tasks, written as rows of CV-Bench's own schema.

Every scene is a pure function of (split seed, row number), and a row can be drawn again alone. A
split with an even seed and one with an odd seed share no scene: the parity of a digest of what is
drawn decides which of the two may hold it, so that even the simplest scenes cannot turn up on both
sides. Answers are drawn *after* the options and independently of the text, so only the
picture determines them: the option letter, the option's rank and the words of the question are all
uninformative by construction (`tests/test_scenes.py` trains a text-only baseline to prove it).

What a picture looks like: cells of 28 pixels (one visual token of Qwen2-VL each), at most one
object per cell, objects of varied shape, colour and size with a little jitter. The background fades
from top to bottom and from left to right, as daylight does, so that a place in the picture can be
told from its shade. Depth and Distance scenes stand on a floor: nearer objects are lower and
larger.
"""

import hashlib
import io
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from PIL import Image, ImageChops, ImageDraw

from gpg_vl.quickstart.glyphs import draw_sign

CELL = 28
SUPERSAMPLE = 3
SHAPES = ("ball", "cube", "cone", "star", "ring", "cross")
DIGITS = tuple("0123456789")
"""The shapes of signs: the digit on the sign is its shape."""
COLOURS = {
    "orange": (238, 140, 40),
    "yellow": (240, 214, 60),
    "purple": (132, 70, 170),
    "teal": (40, 150, 150),
    "pink": (240, 140, 180),
    "brown": (130, 84, 50),
    "white": (250, 250, 250),
    "black": (30, 30, 36),
}
BOXES = {"red": (225, 20, 30), "blue": (30, 60, 230), "green": (20, 170, 50)}
TASKS = ("Count", "Relation", "Depth", "Distance")
SOURCES = {
    "Count": ("ADE20K", "COCO"),
    "Relation": ("ADE20K", "COCO"),
    "Depth": ("Omni3D",),
    "Distance": ("Omni3D",),
}
PALETTES = {  # two day times: (top left, change downwards, change to the right)
    "ADE20K": ((196, 206, 222), (-60, -40, -80), (34, -34, 0)),
    "COCO": ((120, 128, 150), (50, 30, -30), (60, -10, -50)),
    "Omni3D": ((176, 196, 226), (-60, -64, -110), (44, -30, -8)),
}
REPORTED_AS = {"ADE20K": "drawn 2D bright", "COCO": "drawn 2D dark", "Omni3D": "drawn 3D"}
"""The column `source` of a row: no picture here is one of CV-Bench's. `Scene.source` chooses the
palette and the side."""
GRIDS = ((4, 4), (5, 4), (4, 5))  # columns, rows


class Thing(NamedTuple):
    """One object: shape and colour by name, its cell, its width in pixels, and the colour of the
    box around it.
    """

    shape: str
    colour: str
    column: int
    row: int
    size: int
    box: str | None = None


class Scene(NamedTuple):
    """A drawn scene and its question. `options[answer]` is the right option."""

    task: str
    source: str
    columns: int
    rows: int
    things: tuple[Thing, ...]
    question: str
    options: tuple[str, ...]
    answer: int


def make_unasked(rng: random.Random, columns: int, rows: int, things: Sequence[Thing]) -> Scene:
    """A scene of these objects without a question, on a random background."""
    return Scene(
        task="",
        source=rng.choice(sorted(PALETTES)),
        columns=columns,
        rows=rows,
        things=tuple(things),
        question="",
        options=(),
        answer=0,
    )


_Question = tuple[list[Thing], str, list[str]]
"""The objects, the question, and the options, with the right one at the requested position."""


def draw_cells(rng: random.Random, columns: int, rows: int, number: int) -> list[tuple[int, int]]:
    return rng.sample([(c, r) for c in range(columns) for r in range(rows)], number)


def make_flat(rng: random.Random, shape: str, cell: tuple[int, int]) -> Thing:
    return Thing(shape, rng.choice(sorted(COLOURS)), *cell, size=rng.randint(17, 23))


def _make_standing(
    rng: random.Random, shape: str, cell: tuple[int, int], rows: int, box: str | None = None
) -> Thing:
    """An object on the floor: one row nearer is larger."""
    size = round(13 + 10 * cell[1] / (rows - 1)) + rng.randint(-1, 1)
    return Thing(shape, rng.choice(sorted(COLOURS)), *cell, size=size, box=box)


def _make_distractors(
    rng: random.Random,
    things: list[Thing],
    banned: set[str],
    columns: int,
    rows: int,
    most: int,
    make: Callable[[random.Random, str, tuple[int, int]], Thing],
) -> list[Thing]:
    used = {(thing.column, thing.row) for thing in things}
    free = [(c, r) for c in range(columns) for r in range(rows) if (c, r) not in used]
    shapes = [shape for shape in SHAPES if shape not in banned]
    cells = rng.sample(free, rng.randint(0, min(most, len(free))))
    return [make(rng, rng.choice(shapes), cell) for cell in cells]


def _ask_count(rng: random.Random, columns: int, rows: int, letter: int) -> _Question:
    lowest = rng.randint(0, 2)
    numbers = list(range(lowest, lowest + 4))
    number = rng.choice(numbers)
    shape = rng.choice(SHAPES)
    things = [make_flat(rng, shape, cell) for cell in draw_cells(rng, columns, rows, number)]
    things += _make_distractors(rng, things, {shape}, columns, rows, 2, make_flat)

    # shuffled, because in ascending order the letters would reveal small and large numbers
    options = rng.sample([other for other in numbers if other != number], 3)
    options.insert(letter, number)
    noun = {"cross": "crosses"}.get(shape, shape + "s")
    return things, f"How many {noun} are in the image?", [str(option) for option in options]


def _ask_relation(rng: random.Random, columns: int, rows: int, letter: int) -> _Question:
    axis = rng.randrange(2)
    words = (("left", "right"), ("above", "below"))[axis]
    first, second = rng.sample(SHAPES, 2)

    # the answer must be clear: at least two cells apart, and more than in the other direction
    while True:
        cells = draw_cells(rng, columns, rows, 2)
        gap = cells[0][axis] - cells[1][axis]
        if abs(gap) >= 2 and abs(gap) > abs(cells[0][1 - axis] - cells[1][1 - axis]):
            break
    things = [
        make_flat(rng, first, cells[0])._replace(box="red"),
        make_flat(rng, second, cells[1])._replace(box="blue"),
    ]
    things += _make_distractors(rng, things, {first, second}, columns, rows, 3, make_flat)

    right = words[0] if gap < 0 else words[1]
    options = [word for word in words if word != right]
    options.insert(letter, right)
    question = (
        f"Considering the relative positions of the {first} (annotated by the red box) and the {second} (annotated by "
        f"the blue box) in the image provided, where is the {first} located with respect to the {second}?"
    )
    return things, question, options


def _ask_depth(rng: random.Random, columns: int, rows: int, letter: int) -> _Question:
    first, second = rng.sample(SHAPES, 2)
    make = partial(_make_standing, rows=rows)
    while True:
        cells = draw_cells(rng, columns, rows, 2)
        gap = cells[0][1] - cells[1][1]
        if abs(gap) >= 2:
            break
    things = [make(rng, first, cells[0], box="red"), make(rng, second, cells[1], box="blue")]
    things += _make_distractors(rng, things, {first, second}, columns, rows, 3, make)

    near, far = (first, second) if gap > 0 else (second, first)
    options = [far]
    options.insert(letter, near)
    question = (
        f"Which object is closer to the camera taking this photo, the {first} (highlighted by a red box) "
        f"or the {second} (highlighted by a blue box)?"
    )
    return things, question, options


def _ask_distance(rng: random.Random, columns: int, rows: int, letter: int) -> _Question:
    anchor, first, second = rng.sample(SHAPES, 3)
    make = partial(_make_standing, rows=rows)

    # the anchor stands in front, one of the others beside or right behind it, the other far back
    while True:
        a, b, c = draw_cells(rng, columns, rows, 3)
        to_first, to_second = (abs(x[0] - a[0]) + abs(x[1] - a[1]) for x in (b, c))
        far = c if to_first < to_second else b
        if a[1] == rows - 1 and min(to_first, to_second) == 1 and a[1] - far[1] >= 2:
            break
    things = [
        make(rng, anchor, a, box="red"),
        make(rng, first, b, box="blue"),
        make(rng, second, c, box="green"),
    ]
    things += _make_distractors(rng, things, {anchor, first, second}, columns, rows, 2, make)

    right, wrong = (first, second) if to_first < to_second else (second, first)
    options = [wrong]
    options.insert(letter, right)
    question = (
        f"Estimate the real-world distances between objects in this image. Which object is closer to the {anchor} "
        f"(highlighted by a red box), the {first} (highlighted by a blue box) or the {second} "
        f"(highlighted by a green box)?"
    )
    return things, question, options


_QUESTIONS = {
    "Count": _ask_count,
    "Relation": _ask_relation,
    "Depth": _ask_depth,
    "Distance": _ask_distance,
}


def scene(seed: int, number: int) -> Scene:
    """Scene `number` of the split `seed`.

    Tasks, sources and right letters take turns, so every split is balanced.
    """
    task = TASKS[number % 4]
    turn = number // 4
    sources = SOURCES[task]
    letter = (turn // len(sources)) % (4 if task == "Count" else 2)

    for attempt in itertools.count():
        rng = random.Random(f"gpg_vl scenes {seed} {number} {attempt}")
        columns, rows = rng.choice(GRIDS)
        things, question, options = _QUESTIONS[task](rng, columns, rows, letter)
        candidate = Scene(
            task=task,
            source=sources[turn % len(sources)],
            columns=columns,
            rows=rows,
            things=tuple(things),
            question=question,
            options=tuple(options),
            answer=letter,
        )

        # each picture belongs to one side, so that training never shows one of the held-out scenes
        if choose_side(candidate) == seed % 2:
            return candidate
    raise AssertionError("unreachable: attempts do not end")


def choose_side(scene: Scene) -> int:
    """0 or 1 by what the picture shows, whatever is asked about it."""
    picture = (scene.source, scene.columns, scene.rows, sorted(map(repr, scene.things)))
    return hashlib.sha256(repr(picture).encode()).digest()[0] % 2


def _make_polygon(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    if shape == "cone":
        return [(x, y - r), (x + r, y + r), (x - r, y + r)]
    if shape == "star":
        return [
            (x, y - r),
            (x + r * 0.35, y - r * 0.35),
            (x + r, y),
            (x + r * 0.35, y + r * 0.35),
            (x, y + r),
            (x - r * 0.35, y + r * 0.35),
            (x - r, y),
            (x - r * 0.35, y - r * 0.35),
        ]
    t = r * 0.34
    return [
        (x - t, y - r),
        (x + t, y - r),
        (x + t, y - t),
        (x + r, y - t),
        (x + r, y + t),
        (x + t, y + t),
        (x + t, y + r),
        (x - t, y + r),
        (x - t, y + t),
        (x - r, y + t),
        (x - r, y - t),
        (x - t, y - t),
    ]


def _draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, jitter: tuple[int, int]) -> None:
    k = SUPERSAMPLE
    x = (thing.column + 0.5) * CELL * k + jitter[0] * k
    y = (thing.row + 0.5) * CELL * k + jitter[1] * k
    r = thing.size * k / 2
    colour = COLOURS[thing.colour]
    outline = tuple(round(c * 0.45) for c in colour)

    if thing.shape in DIGITS:
        draw_sign(draw, int(thing.shape), x, y, size=thing.size, scale=k, colour=colour)
    elif thing.shape == "ball":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline=outline, width=k)
    elif thing.shape == "ring":
        draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=round(r * 0.42))
    elif thing.shape == "cube":
        r *= 0.9
        draw.rectangle((x - r, y - r, x + r, y + r), fill=colour, outline=outline, width=k)
    else:
        draw.polygon(_make_polygon(thing.shape, x, y, r), fill=colour, outline=outline, width=k)

    if thing.box:
        left, top = (thing.column * CELL + 1) * k, (thing.row * CELL + 1) * k
        side = (CELL - 2) * k - 1
        draw.rectangle((left, top, left + side, top + side), outline=BOXES[thing.box], width=2 * k)


def draw(scene: Scene, seed: int = 0) -> Image.Image:
    """The picture of a scene: RGB, 28 pixels per cell.

    `seed` moves the objects by at most two pixels.
    """
    rng = random.Random(f"{seed} {scene.things}")
    width, height = scene.columns * CELL, scene.rows * CELL
    k = SUPERSAMPLE
    background = _draw_background(scene.source, width, height)
    canvas = background.resize((width * k, height * k), Image.Resampling.BILINEAR)

    # each object stays in its cell, which is one visual token
    pencil = ImageDraw.Draw(canvas)
    for thing in scene.things:
        room = max(0, (CELL - 6 - thing.size) // 2)
        reach = min(2, room)
        _draw_thing(pencil, thing, (rng.randint(-reach, reach), rng.randint(-reach, reach)))
    return canvas.resize((width, height), Image.Resampling.BOX)


def _draw_background(source: str, width: int, height: int) -> Image.Image:
    base, down, right = PALETTES[source]
    shade = Image.linear_gradient("L").resize((width, height))
    across = Image.linear_gradient("L").rotate(90).resize((width, height))

    bands = []
    for i in range(3):
        vertical = shade.point([max(0, min(255, base[i] + down[i] * v // 255)) for v in range(256)])
        sideways = across.point([128 + right[i] * v // 255 for v in range(256)])
        bands.append(ImageChops.add(vertical, sideways, scale=1, offset=-128))
    return Image.merge("RGB", bands)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def rows(seed: int, number: int, start: int = 0) -> Iterator[dict[str, Any]]:
    """`number` rows of the split `seed` in CV-Bench's columns (spec: `nyu-visionx/CV-Bench`)."""
    for i in range(start, start + number):
        s = scene(seed, i)
        options = "\n".join(f"({chr(65 + j)}) {text}" for j, text in enumerate(s.options))
        prompt = f"{s.question} Select from the following choices.\n{options}"
        kind = "2D" if s.task in ("Count", "Relation") else "3D"
        name = f"img/{kind}/{s.task.lower()}/drawn_{seed}_{i}.png"
        yield {
            "idx": i,
            "type": kind,
            "task": s.task,
            "image": {"bytes": png(draw(s, seed)), "path": name},
            "question": s.question,
            "choices": list(s.options),
            "answer": f"({chr(65 + s.answer)})",
            "prompt": prompt,
            "filename": name,
            "source": REPORTED_AS[s.source],
            "source_dataset": "drawn scenes",
            "source_filename": f"drawn_{seed}_{i}",
            "target_class": None,
            "target_size": None,
            "bbox": None,
        }
