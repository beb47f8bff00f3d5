"""What the quickstart's base model was taught: right answers, apart from what is held out, and none of the later questions."""

import io
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from gpg_vl.quickstart import glyphs, lessons, places, scenes

NUMBER = 1500


@pytest.fixture(scope="module")
def drawn() -> list[lessons.Lesson]:
    return list(lessons.lessons(lessons.SIGHT, lessons.SEED, NUMBER))


def options_of(prompt: str) -> list[str]:
    return re.findall(r"^\([A-D]\) (.+)$", prompt, flags=re.MULTILINE)


def test_a_lesson_is_a_function_of_seed_and_number() -> None:
    sight = lessons.SIGHT
    assert list(lessons.lessons(sight, 5, 8))[5] == lessons.lesson(sight, 5, 5)
    assert lessons.lesson(sight, 5, 5) != lessons.lesson(sight, 7, 5)


def test_the_kinds_come_in_their_shares(drawn: list[lessons.Lesson]) -> None:
    counted = Counter(lesson.kind for lesson in drawn)
    for kind, share in lessons.SIGHT.items():
        assert counted[kind] / NUMBER == pytest.approx(share / 100, abs=0.04)


def test_none_asks_what_is_trained_on_later(drawn: list[lessons.Lesson]) -> None:
    """No question of the four CV-Bench tasks, of the digits, or of two boxes."""
    asked = {lesson.prompt.partition(" Select from")[0] for lesson in drawn}
    later = {scenes.scene(7, i).question for i in range(2000)} | set(places.QUESTIONS.values())
    assert len(later) > 100
    assert not {re.sub(r" Think first.*", "", question) for question in asked} & later
    for word in ("How many", "located", "closer", "plus", "Which digit is this"):
        assert not any(word in question for question in asked), word


def test_the_held_out_pictures_are_not_among_them() -> None:
    """By what they show: the side of every picture of a lesson is that of its seed."""
    import random

    for number in range(200):
        rng = random.Random(number)
        assert scenes.choose_side(lessons.draw_scene(rng, lessons.SEED, boxes=("red",))) == 1
        assert scenes.choose_side(places.places(2, number).scene) == 0
        assert scenes.choose_side(places.places(3, number).scene) == 1


def test_the_answer_is_one_of_the_options_and_its_letter_tells_nothing(
    drawn: list[lessons.Lesson],
) -> None:
    places: Counter[tuple[int, int]] = Counter()
    for lesson in drawn:
        if lesson.kind in ("ask", "option"):
            options = options_of(lesson.prompt)
            assert len(set(options)) == len(options) >= 2
            assert lesson.answer in options
        if lesson.kind == "ask":
            places[len(options), options.index(lesson.answer)] += 1

    for size in (2, 4):
        total = sum(n for (length, _), n in places.items() if length == size)
        for place in range(size):
            share = places[size, place] / total
            assert share == pytest.approx(1 / size, abs=4 * (0.25 / total) ** 0.5)


def test_what_an_option_says_is_what_stands_there(drawn: list[lessons.Lesson]) -> None:
    pictures = Counter()
    for lesson in drawn:
        if lesson.kind == "option":
            options = options_of(lesson.prompt)
            if letter := re.match(r"What is written at \(([A-D])\)", lesson.prompt):
                assert options[ord(letter[1]) - 65] == lesson.answer
            else:
                before = re.match(r"What is written after (\w+)\?", lesson.prompt)
                assert before
                assert options[options.index(before[1]) + 1] == lesson.answer
            pictures[lesson.picture is None] += 1
    assert min(pictures[True], pictures[False]) > 40


def test_the_first_course_is_text_alone() -> None:
    assert {lesson.picture for lesson in lessons.lessons(lessons.WORDS, 5, 200)} == {None}


def test_sums_are_right(drawn: list[lessons.Lesson]) -> None:
    seen = set()
    for lesson in drawn:
        if lesson.kind != "sum":
            continue
        assert lesson.picture is None
        a, b = (int(n) for n in re.findall(r"\d+", lesson.prompt)[:2])
        right = a + b if "+" in lesson.prompt else max(a, b)
        said = re.search(r"<answer> (\d+) </answer>", lesson.answer)
        assert int(said[1] if said else lesson.answer) == right
        assert bool(said) == (lessons.THINK in lesson.prompt)
        seen.add("+" in lesson.prompt)
    assert seen == {True, False}


def test_a_description_names_row_column_box_and_name() -> None:
    things = (
        scenes.Thing("ball", "orange", 3, 2, 20, box="red"),
        scenes.Thing("7", "teal", 0, 0, 20),
    )
    scene = scenes.Scene("", "COCO", 4, 4, things, "", (), 0)
    assert lessons.describe(scene) == "1 1 sign 7; 3 4 red box orange ball"


@pytest.mark.parametrize("digit", range(10))
def test_every_digit_is_drawn_like_no_other(digit: int) -> None:
    """With ink on a plain ground; compared at the size of a cell."""
    import random

    def cell(number: int) -> np.ndarray:
        picture = lessons.draw_large_digit(random.Random("one look"), number)
        return np.asarray(picture.convert("L").resize((28, 28)), dtype=float)

    mine = cell(digit)
    assert np.ptp(mine) > 100
    others = [np.abs(mine - cell(other)).mean() for other in range(10) if other != digit]
    assert min(others) > 5
    assert len(glyphs.STROKES) == 10


def test_a_lesson_with_a_picture_has_one_that_opens(drawn: list[lessons.Lesson]) -> None:
    sizes = set()
    for lesson in drawn[:200]:
        if lesson.picture:
            with Image.open(io.BytesIO(lesson.picture)) as picture:
                sizes.add(picture.size)
                assert picture.mode == "RGB"
    assert len(sizes) >= 5
