"""Drawn scenes: CV-Bench's schema, right answers, balance, and nothing in the text that tells the answer."""

import hashlib
import io
import json
import math
from collections import Counter, defaultdict

import pytest
from PIL import Image

from gpg_vl.eval.tasks.cvbench import DRAWN
from gpg_vl.quickstart import scenes

COLUMNS = {
    "idx",
    "type",
    "task",
    "image",
    "question",
    "choices",
    "answer",
    "prompt",
    "filename",
    "source",
    "source_dataset",
    "source_filename",
    "target_class",
    "target_size",
    "bbox",
}


@pytest.fixture(scope="module")
def drawn() -> list[scenes.Scene]:
    return [scenes.scene(21, i) for i in range(4000)]


def test_rows_have_the_published_columns_and_prompt() -> None:
    row = next(iter(scenes.rows(1, 1)))
    assert set(row) == COLUMNS
    letters = "\n".join(f"({chr(65 + i)}) {text}" for i, text in enumerate(row["choices"]))
    assert row["prompt"] == f"{row['question']} Select from the following choices.\n{letters}"
    assert Image.open(io.BytesIO(row["image"]["bytes"])).mode == "RGB"
    assert row["answer"] in ("(A)", "(B)", "(C)", "(D)")


def test_a_row_names_the_drawing_as_its_source_and_is_otherwise_what_it_was() -> None:
    """The digest is of rows that had CV-Bench's sources: no picture and no question has moved."""
    digest, named = hashlib.sha256(), Counter()
    for row in scenes.rows(1_000_000, 100):
        named[row["task"], row.pop("source")] += 1
        picture = row.pop("image")
        digest.update(Image.open(io.BytesIO(picture["bytes"])).tobytes())
        digest.update(json.dumps([picture["path"], row], sort_keys=True).encode())

    before = "6dd027be5735216093328659f16da3452420f98afb10af7f3a036da1b5311b72"
    assert digest.hexdigest() == before
    assert {source for _, source in named} == set(DRAWN)
    assert set(scenes.REPORTED_AS.items()) == {(real, drawn) for drawn, real in DRAWN.items()}
    assert set(named.values()) == {12, 13, 25}


def pictures(seed: int) -> set[tuple[object, ...]]:
    return {
        (s.source, s.columns, s.rows, frozenset(s.things))
        for s in (scenes.scene(seed, i) for i in range(3000))
    }


def test_a_row_is_a_function_of_seed_and_number_and_seeds_of_other_parity_share_no_picture() -> (
    None
):
    assert list(scenes.rows(1, 8))[5] == next(iter(scenes.rows(1, 1, start=5)))
    assert len(pictures(1)) > 2500
    assert not pictures(1) & pictures(2)
    assert pictures(1) & pictures(3), (
        "without the rule the simplest scenes do meet, so the test above can fail"
    )


def place(thing: scenes.Thing) -> tuple[int, int]:
    return thing.column, thing.row


def test_the_answers_are_right(drawn: list[scenes.Scene]) -> None:
    """Recomputed from what is drawn, by the words of the question."""
    for s in drawn:
        said = s.options[s.answer]
        by_box = {t.box: t for t in s.things if t.box}
        if s.task == "Count":
            noun = s.question.removeprefix("How many ").removesuffix(" are in the image?")
            shape = {"crosses": "cross"}.get(noun, noun[:-1])
            assert int(said) == sum(t.shape == shape for t in s.things)
        elif s.task == "Relation":
            (x1, y1), (x2, y2) = place(by_box["red"]), place(by_box["blue"])
            assert {"left": x1 < x2, "right": x1 > x2, "above": y1 < y2, "below": y1 > y2}[said]
        elif s.task == "Depth":
            assert said == max((by_box["red"], by_box["blue"]), key=lambda t: t.row).shape
        else:
            a = place(by_box["red"])
            assert (
                said
                == min(
                    (by_box["blue"], by_box["green"]), key=lambda t: math.dist(a, place(t))
                ).shape
            )


def test_what_the_question_names_stands_once_in_the_scene(drawn: list[scenes.Scene]) -> None:
    for s in drawn:
        shapes = Counter(t.shape for t in s.things)
        assert all(shapes[t.shape] == 1 for t in s.things if t.box)
        assert len({place(t) for t in s.things}) == len(s.things)
        assert len(set(s.options)) == len(s.options)


def test_tasks_sources_and_letters_are_balanced(drawn: list[scenes.Scene]) -> None:
    assert set(Counter(s.task for s in drawn).values()) == {1000}
    for task, options in (("Count", 4), ("Relation", 2), ("Depth", 2), ("Distance", 2)):
        letters = Counter(s.answer for s in drawn if s.task == task)
        assert set(letters.values()) == {1000 // options}
        assert len({s.source for s in drawn if s.task == task}) == (
            2 if options == 4 or task == "Relation" else 1
        )


def test_variety(drawn: list[scenes.Scene]) -> None:
    things = [t for s in drawn for t in s.things]
    assert {t.shape for t in things} == set(scenes.SHAPES)
    assert {t.colour for t in things} == set(scenes.COLOURS)
    assert len({t.size for t in things}) > 6
    assert {(s.columns, s.rows) for s in drawn} == set(scenes.GRIDS)
    assert any(
        len(s.things) > sum(t.box is not None for t in s.things) for s in drawn if s.task == "Depth"
    ), "there are distractors"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_text_only_model_is_at_chance(drawn: list[scenes.Scene]) -> None:
    """A classifier over words, word pairs with each option, the option's rank and letter, trained on 3,000 prompts, does not
    beat chance on 1,000 others by more than two and a half standard errors in any task."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    def options(s: scenes.Scene) -> list[str]:
        ranks = sorted(s.options)
        words = s.question.replace("?", "").replace("(", "").replace(")", "").split()
        return [
            " ".join(
                [
                    f"letter{i}",
                    f"rank{ranks.index(o)}",
                    f"text{o}",
                    f"n{len(s.options)}",
                    *(f"{w}_{o}" for w in words),
                    *(f"{other}_{o}_{i}" for other in s.options),
                ]
            )
            for i, o in enumerate(s.options)
        ]

    vectorize = HashingVectorizer(n_features=2**14, token_pattern=r"\S+").transform
    train, test = drawn[:3000], drawn[3000:]
    model = LogisticRegression(max_iter=300, C=0.3)
    model.fit(
        vectorize([text for s in train for text in options(s)]),
        [i == s.answer for s in train for i in range(len(s.options))],
    )
    right = defaultdict(list)
    for s in test:
        scores = model.decision_function(vectorize(options(s)))
        right[s.task].append(int(scores.argmax()) == s.answer)
    for task, values in right.items():
        chance = 0.25 if task == "Count" else 0.5
        error = (chance * (1 - chance) / len(values)) ** 0.5
        assert sum(values) / len(values) < chance + 2.5 * error, task


def test_the_letter_that_was_right_before_tells_nothing(drawn: list[scenes.Scene]) -> None:
    """The most frequent option text of each question and option set is right no more often than chance on other scenes."""
    train, test = drawn[:3000], drawn[3000:]
    seen = defaultdict(Counter)
    for s in train:
        seen[s.task, tuple(sorted(s.options))][s.options[s.answer]] += 1
    for task, chance in (("Count", 0.25), ("Relation", 0.5), ("Depth", 0.5), ("Distance", 0.5)):
        rows = [s for s in test if s.task == task]
        hits = sum(
            seen[task, tuple(sorted(s.options))].most_common(1)[0][0] == s.options[s.answer]
            for s in rows
            if seen[task, tuple(sorted(s.options))]
        )
        assert hits / len(rows) < chance + 2.5 * (chance * (1 - chance) / len(rows)) ** 0.5
