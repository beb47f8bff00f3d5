"""Classes: one name of a known list, in any spelling, and nothing that merely touches it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpg_vl.answers.classes import classes_of, find_class, gold_class, plain_name
from gpg_vl.errors import UserError
from gpg_vl.rewards.builtin import classification
from gpg_vl.types import Completion, Example

FLOWERS = (
    "pink primrose",
    "rose",
    "desert-rose",
    "lenten rose",
    "marigold",
    "english marigold",
    "tulip",
    "daisy",
)
PETS = ("american_bulldog", "Bengal", "Maine_Coon")
CARS = (
    "2012 BMW 1 Series Convertible",
    "2012 BMW 3 Series Sedan",
    "2000 AM General Hummer SUV",
    "2012 Ford F-150",
)
PLANES = ("707-320", "737-200", "737-300", "A330-200", "MD-80")


def match_class(candidate, gold, classes):
    named = find_class(candidate, classes)
    return named is not None and plain_name(classes[named]) == plain_name(gold)


def completion(text):
    return Completion(token_ids=(), logprobs=(), text=text, finish_reason="stop")


def example(answer, choices=FLOWERS, meta=None):
    return Example(id="7", prompt="Which?", answer=answer, choices=choices, meta=meta or {})


CASES = [
    # the name, in any spelling
    ("rose", FLOWERS, "rose"),
    ("Rose.", FLOWERS, "rose"),
    (" rose\n", FLOWERS, "rose"),
    ("**Rose**", FLOWERS, "rose"),
    ("'rose'", FLOWERS, "rose"),
    ("desert rose", FLOWERS, "desert-rose"),
    ("Desert_Rose", FLOWERS, "desert-rose"),
    ("American Bulldog", PETS, "american_bulldog"),
    ("maine coon", PETS, "Maine_Coon"),
    ("2012 bmw 1 series convertible", CARS, "2012 BMW 1 Series Convertible"),
    ("2012 Ford F150", CARS, "2012 Ford F-150"),
    ("737-200", PLANES, "737-200"),
    ("737 200", PLANES, "737-200"),
    # one name in a short text
    ("a rose", FLOWERS, "rose"),
    ("the rose", FLOWERS, "rose"),
    ("It's a tulip", FLOWERS, "tulip"),
    ("(an) English Marigold", FLOWERS, "english marigold"),
    ("a lenten rose", FLOWERS, "lenten rose"),
    ("Boeing 737-200", PLANES, "737-200"),
    ("Airbus A330-200.", PLANES, "A330-200"),
    # more than twice as long
    ("I think that it is a rose", FLOWERS, None),
    ("it is certainly a rose", FLOWERS, None),
    # several names
    ("rose, tulip, daisy", FLOWERS, None),
    ("rose tulip", FLOWERS, None),
    ("rose or tulip", FLOWERS, None),
    ("marigold tulip", FLOWERS, None),
    ("737-200 737-300", PLANES, None),
    # a part of a name, or a longer word
    ("BMW", CARS, None),
    ("2012", CARS, None),
    ("2012 BMW", CARS, None),
    ("BMW 1 Series Convertible", CARS, None),
    ("7", PLANES, None),
    ("737", PLANES, None),
    ("200", PLANES, None),
    ("roses", FLOWERS, None),
    ("prose", FLOWERS, None),
    ("primrose", FLOWERS, None),
    ("rose-like", FLOWERS, None),
    ("rose's", FLOWERS, None),
    ("bulldog", PETS, None),
    # denied, or nothing
    ("not a rose", FLOWERS, None),
    ("no rose", FLOWERS, None),
    ("isn't rose", FLOWERS, None),
    ("", FLOWERS, None),
    (" . ", FLOWERS, None),
    ("a", FLOWERS, None),
    ("dog", PETS, None),
    # a point between digits is part of the number
    ("model 25", ("model 2.5", "model 25"), "model 25"),
    ("model 2.5", ("model 2.5", "model 25"), "model 2.5"),
    # what looks like the name
    ("rоse", FLOWERS, None),  # Cyrillic о
    ("ro\u200bse", FLOWERS, None),
    ("rose\u0301", FLOWERS, None),
    ("ｒｏｓｅ", FLOWERS, None),
]


@pytest.mark.parametrize(("text", "classes", "name"), CASES)
def test_case(text, classes, name):
    index = find_class(text, classes)
    assert (None if index is None else classes[index]) == name
    for other in classes:
        assert match_class(text, other, classes) == (other == name)


def test_two_classes_of_one_spelling_name_nothing():
    assert find_class("desert rose", ("desert-rose", "Desert Rose", "tulip")) is None
    assert find_class("tulip", ("desert-rose", "Desert Rose", "tulip")) == 2


def test_the_legacy_rule_is_fooled_where_ours_is_not():
    """Substring in either direction, as the published reward has it (blanks and underscores removed, lower case)."""

    def legacy(answer, gold):
        answer, gold = (text.replace(" ", "").replace("_", "").lower() for text in (answer, gold))
        return gold in answer or answer in gold

    for answer, gold, classes in (
        ("", "2012 BMW 1 Series Convertible", CARS),
        ("BMW", "2012 BMW 1 Series Convertible", CARS),
        ("rose, tulip, daisy", "rose", FLOWERS),
        ("7", "737-200", PLANES),
        ("desert rose", "rose", FLOWERS),
    ):
        assert legacy(answer, gold)
        assert not match_class(answer, gold, classes)


names = st.lists(
    st.text("abcdefgh ", min_size=3, max_size=12).filter(lambda s: s.strip()),
    min_size=2,
    max_size=8,
)


@given(names)
def test_every_class_is_found_by_its_name_unless_two_share_it(classes):
    plain = [plain_name(name) for name in classes]
    for index, name in enumerate(classes):
        expected = index if plain.count(plain[index]) == 1 else None
        assert find_class(name, classes) == expected
        assert find_class(f" {name.upper()}. ", classes) == expected


@given(st.text(), names)
def test_any_text_has_a_result(text, classes):
    index = find_class(text, classes)
    assert index is None or plain_name(classes[index])


def test_the_reward():
    assert (
        classification(completion("<think>tulip</think><answer>Rose</answer>"), example("rose"))
        == 1.0
    )
    assert (
        classification(completion("<think>rose</think><answer>tulip</answer>"), example("rose"))
        == 0.0
    )
    assert classification(completion("<answer></answer>"), example("rose")) == 0.0
    assert (
        classification(
            completion("Rose"), example("<answer>rose</answer>", None, {"classes": list(FLOWERS)})
        )
        == 1.0
    )


@pytest.mark.parametrize(
    ("choices", "meta"),
    [
        (None, {}),
        ((), {}),
        (("rose",), {}),
        (None, {"classes": "rose"}),
        (None, {"classes": ["rose", 1]}),
    ],
)
def test_missing_classes_are_explained(choices, meta):
    with pytest.raises(UserError, match=r"Example '7' has .* column `choices` or `classes`"):
        classes_of(example("rose", choices, meta))


@pytest.mark.parametrize(
    ("answer", "choices"), [("orchid", FLOWERS), ("", FLOWERS), ("a b", ("a-b", "a b", "c"))]
)
def test_gold_that_is_not_one_class_is_refused_by_example(answer, choices):
    with pytest.raises(UserError, match=r"of example '7' is the name of (no class|two classes)"):
        gold_class(example(answer, choices))


def test_the_explanation():
    told = classification.explain(
        completion("<answer>an English marigold</answer>"), example("marigold")
    )
    assert (told.score, told.parsed, told.gold) == (0.0, "english marigold", "marigold")
