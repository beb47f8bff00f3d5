"""A world that takes more than one step: two signs are read, and their numbers added or compared.

Each picture has a sign in a red box, one in a blue box, and up to three other things, which may be signs too. `Add` asks
for the sum, `Compare` for the larger number, and the prompt asks for a line of thought before the answer. Numbers and
places are drawn independently of the text, so the most that can be had without the picture is the most frequent answer:
10 % of Add, 20 % of Compare.

Row `number` of a seed is a pure function of the two; pictures of even and of odd seeds are never the same
(`scenes.choose_side`).
"""

import itertools
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from gpg_vl.quickstart import scenes
from gpg_vl.quickstart.lessons import LARGEST, THINK, draw_sign, line_of_thought
from gpg_vl.quickstart.scenes import Scene, Thing

TASKS = ("Add", "Compare")
QUESTIONS = {
    "Add": "What is the number in the red box plus the number in the blue box?",
    "Compare": "Which number is larger, the one in the red box or the one in the blue box?",
}
OTHERS = 3


class Signs(NamedTuple):
    """What is drawn, what is asked, and the two numbers."""

    task: str
    scene: Scene
    red: int
    blue: int

    @property
    def answer(self) -> int:
        return self.red + self.blue if self.task == "Add" else max(self.red, self.blue)


def signs(seed: int, number: int) -> Signs:
    """Picture and question `number` of the split `seed`. The tasks take turns."""
    task = TASKS[number % len(TASKS)]
    for attempt in itertools.count():
        rng = random.Random(f"gpg_vl signs {seed} {number} {attempt}")
        red, blue = rng.randint(0, LARGEST), rng.randint(0, LARGEST)
        scene = _draw_scene(rng, red, blue)
        if (task == "Add" or red != blue) and scenes.choose_side(scene) == seed % 2:
            return Signs(task, scene, red, blue)
    raise AssertionError("unreachable: attempts do not end")


def _draw_scene(rng: random.Random, red: int, blue: int) -> Scene:
    columns, rows = rng.choice(scenes.GRIDS)
    first, second, *rest = scenes.draw_cells(rng, columns, rows, 2 + rng.randint(0, OTHERS))
    things = [
        draw_sign(rng, red, first)._replace(box="red"),
        draw_sign(rng, blue, second)._replace(box="blue"),
        *(_draw_other(rng, cell) for cell in rest),
    ]
    return scenes.make_unasked(rng, columns, rows, things)


def _draw_other(rng: random.Random, cell: tuple[int, int]) -> Thing:
    """A sign outside of the boxes, which does not count, or any other thing."""
    if rng.random() < 0.5:
        return draw_sign(rng, rng.randint(0, LARGEST), cell)
    return scenes.make_flat(rng, rng.choice(scenes.SHAPES), cell)


def worked_answer(drawn: Signs) -> str:
    """A response that reads both signs, works the answer out and gives it: what supervised examples look like."""
    read = f"The red box shows sign {drawn.red}. The blue box shows sign {drawn.blue}."
    if drawn.task == "Add":
        worked = f"{drawn.red} + {drawn.blue} = {drawn.answer}."
    else:
        worked = f"{drawn.answer} is larger than {min(drawn.red, drawn.blue)}."
    return line_of_thought(f"{read} {worked}", str(drawn.answer))


def rows(seed: int, number: int, start: int = 0) -> Iterator[dict[str, Any]]:
    """`number` rows of the split `seed`, from row `start` on."""
    for i in range(start, start + number):
        drawn = signs(seed, i)
        yield {
            "id": f"{seed}-{i}",
            "image": scenes.png(scenes.draw(drawn.scene, seed)),
            "prompt": f"{QUESTIONS[drawn.task]} {THINK}",
            "answer": str(drawn.answer),
            "task": drawn.task,
            "worked": worked_answer(drawn),
        }
