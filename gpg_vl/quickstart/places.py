"""A world that takes more than one step: two boxes are found, and the numbers of their rows added or compared.

Each picture has a thing in a red box, one in a blue box, and up to three others. `Add` asks for the sum of the two rows,
counted from the top, `Compare` for the larger one, and the prompt asks for a line of thought before the answer. Without the
picture the most that can be had is the most frequent answer: 23 % of Add, 43 % of Compare.

Row `number` of a seed is a pure function of the two; pictures of even and of odd seeds are never the same
(`scenes.choose_side`).
"""

import itertools
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from gpg_vl.quickstart import scenes
from gpg_vl.quickstart.lessons import THINK, describe, line_of_thought
from gpg_vl.quickstart.scenes import Scene, Thing

TASKS = ("Add", "Compare")
QUESTIONS = {
    "Add": "What is the row of the red box plus the row of the blue box?",
    "Compare": "Which is larger, the row of the red box or the row of the blue box?",
}
OTHERS = 3


class Places(NamedTuple):
    """What is drawn, what is asked, and the two boxed things."""

    task: str
    scene: Scene
    red: Thing
    blue: Thing

    @property
    def rows(self) -> tuple[int, int]:
        """Of the red and of the blue box, from 1."""
        return self.red.row + 1, self.blue.row + 1

    @property
    def answer(self) -> int:
        return sum(self.rows) if self.task == "Add" else max(self.rows)


def places(seed: int, number: int) -> Places:
    """Picture and question `number` of the split `seed`. The tasks take turns."""
    task = TASKS[number % len(TASKS)]
    for attempt in itertools.count():
        rng = random.Random(f"gpg_vl places {seed} {number} {attempt}")
        scene, red, blue = _draw_scene(rng)
        if (task == "Add" or red.row != blue.row) and scenes.choose_side(scene) == seed % 2:
            return Places(task, scene, red, blue)
    raise AssertionError("unreachable: attempts do not end")


def _draw_scene(rng: random.Random) -> tuple[Scene, Thing, Thing]:
    columns, rows = rng.choice(scenes.GRIDS)
    cells = scenes.draw_cells(rng, columns, rows, 2 + rng.randint(0, OTHERS))
    things = [scenes.make_flat(rng, rng.choice(scenes.SHAPES), cell) for cell in cells]
    red, blue = things[0]._replace(box="red"), things[1]._replace(box="blue")
    return scenes.make_unasked(rng, columns, rows, [red, blue, *things[2:]]), red, blue


def worked_answer(drawn: Places) -> str:
    """A response that says where both boxes are, works the answer out and gives it: what supervised examples look like."""
    seen = describe(drawn.scene._replace(things=(drawn.red, drawn.blue)))
    a, b = drawn.rows
    worked = {
        "Add": f"{a} + {b} = {drawn.answer}.",
        "Compare": f"{drawn.answer} is larger than {min(a, b)}.",
    }
    return line_of_thought(f"{seen}. {worked[drawn.task]}", str(drawn.answer))


def rows(seed: int, number: int, start: int = 0) -> Iterator[dict[str, Any]]:
    """`number` rows of the split `seed`, from row `start` on."""
    for i in range(start, start + number):
        drawn = places(seed, i)
        yield {
            "id": f"{seed}-{i}",
            "image": scenes.png(scenes.draw(drawn.scene, seed)),
            "prompt": f"{QUESTIONS[drawn.task]} {THINK}",
            "answer": str(drawn.answer),
            "task": drawn.task,
            "worked": worked_answer(drawn),
        }
