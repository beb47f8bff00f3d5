"""Short answers: the published metrics by hand, and where the rewards differ from them."""

import pytest
from hypothesis import example as example_of
from hypothesis import given
from hypothesis import strategies as st

from gpg_vl.answers.short_answer import (
    YEARS,
    gold_answers,
    match_relaxed,
    normal_form_textvqa,
    normal_form_vqa,
)
from gpg_vl.answers.text.metrics import (
    anls,
    levenshtein,
    normalize_vqa,
    relaxed_accuracy,
    soft_accuracy,
)
from gpg_vl.errors import UserError
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.task import Doc
from gpg_vl.eval.tasks.short_answers import chartqa, docvqa, textvqa, vqav2
from gpg_vl.rewards.builtin import vqa, vqa_anls, vqa_relaxed
from gpg_vl.types import Completion, Example


def completion(text):
    return Completion(
        token_ids=(),
        logprobs=(),
        text=f"<think>hm</think><answer>{text}</answer>",
        finish_reason="stop",
    )


def example(answer, **meta):
    return Example(id="7", prompt="?", answer=answer, meta=meta)


# --- soft VQA accuracy


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Red", "red"),
        (" red\n", "red"),
        ("the red car", "red car"),
        ("A", ""),
        ("an apple, the pear", "apple pear"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("Isnt it", "isn't it"),
        ("red.", "red"),
        ("3.5", "3.5"),
        ("3. 5", "3 5"),
        ("red/blue", "red blue"),  # touches no blank: becomes one
        ("red / blue", "red blue"),  # touches a blank: is deleted
        ("red/blue / green", "redblue green"),  # ... everywhere
        ("1,000", "1000"),  # a comma between digits
        ("1,000 red-blue", "1000 redblue"),  # ... deletes every mark
        ("t-shirt", "t shirt"),
        ("what?", "what"),
        ("(red)", "red"),
        ("", ""),
        ("the", ""),
    ],
)
def test_the_normal_form(text, normal):
    assert normalize_vqa(text) == normal


def test_the_normal_form_of_textvqa():
    assert normalize_vqa("McDonald's", textvqa=True) == "mcdonald 's"
    assert normalize_vqa("McDonald's") == "mcdonald's"
    assert normalize_vqa("1,000?", textvqa=True) == "1000"


@pytest.mark.parametrize(
    ("equal", "expected"),
    [
        (0, 0.0),
        (1, 9 * (1 / 3) / 10),  # nine sets keep the one, one set loses it
        (2, (8 * 2 / 3 + 2 * 1 / 3) / 10),
        (3, (7 * 1 + 3 * 2 / 3) / 10),
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_soft_accuracy_over_ten_answers(equal, expected):
    golds = ["red"] * equal + [f"colour {i}" for i in range(10 - equal)]
    assert soft_accuracy("the RED.", golds) == pytest.approx(expected)
    assert expected == pytest.approx([0.0, 0.3, 0.6, 0.9, 1.0][min(equal, 4)])


@given(
    st.lists(st.sampled_from(["red", "blue", "green"]), min_size=2, max_size=12),
    st.sampled_from(["red", "no"]),
)
def test_soft_accuracy_is_its_definition(golds, candidate):
    sets = [golds[:i] + golds[i + 1 :] for i in range(len(golds))]
    expected = sum(min(1.0, others.count(candidate) / 3) for others in sets) / len(sets)
    assert soft_accuracy(candidate, golds) == pytest.approx(expected)


def test_a_single_gold_answer_is_equality():
    assert soft_accuracy("Two", ["2"]) == 1.0
    assert soft_accuracy("3", ["2"]) == 0.0
    assert soft_accuracy("a", ["the"]) == 1.0  # nothing is left of either
    assert soft_accuracy("a", ["the"], normal_form_vqa) == 0.0


ARTICLES = ("a", "A", "An", "the", "-", ".", "a the", "?!")
BLANK = ("", " ", "\n")


@pytest.mark.parametrize("gold", ARTICLES)
def test_a_gold_answer_of_which_the_normal_form_leaves_nothing_is_compared_as_it_is_written(gold):
    golds = [gold] * 10
    assert normalize_vqa(gold) == ""
    for answer in (gold, gold.upper(), f" {gold} ", f"{gold}."):
        assert vqa(completion(answer), example(gold, answers=golds)) == 1.0
        assert soft_accuracy(answer, golds, normal_form_textvqa) == 1.0
    for other in {*ARTICLES, "red", *BLANK} - {gold, *((gold.swapcase(),) if gold in "aA" else ())}:
        assert vqa(completion(other), example(gold, answers=golds)) == 0.0
        # The published rule compares what is left: nothing with nothing. A blank answer is none there either.
        assert soft_accuracy(other, golds) == float(other in ARTICLES)
    for hollow in ARTICLES:
        assert vqa(completion(hollow), example("red", answers=["red"] * 10)) == 0.0


def test_the_best_answer_of_people_who_disagree_has_full_marks():
    golds = ["red"] * 2 + [f"colour {i}" for i in range(8)]
    assert soft_accuracy("red", golds) == pytest.approx(0.6)
    assert vqa(completion("red"), example("red", answers=golds)) == 1.0
    assert vqa(completion("colour 1"), example("red", answers=golds)) == pytest.approx(0.5)
    assert vqa(completion("black"), example("red", answers=golds)) == 0.0


@pytest.mark.parametrize(
    "text", ["", "a", "the", ".", "red or blue", "red, blue", "redd", "r", "red " * 2000]
)
def test_no_credit(text):
    assert vqa(completion(text), example("red", answers=["red"] * 9 + ["blue"])) == 0.0


def test_answers_may_be_records_and_must_be_texts():
    assert gold_answers(
        example("red", answers=[{"answer": "red", "answer_id": 1}, {"answer": "blue"}])
    ) == (
        "red",
        "blue",
    )
    assert gold_answers(example("<answer>red</answer>")) == ("red",)
    for wrong in ("red", [], [1], [{"text": "red"}], {"a": 1}):
        with pytest.raises(UserError, match="Example '7' has the answers"):
            gold_answers(example("red", answers=wrong))
    with pytest.raises(UserError, match="answers of example '7' are empty"):
        vqa(completion("red"), example("x", answers=["", " "]))


# --- the scorers of the benchmarks: the published metric on the whole response, and on the answer


def judge(scorer, text, golds):
    doc = Doc(doc_id=0, example=example(golds[0], answers=golds))
    return scorer(doc, Response(text=text)).score


def around(alphabet):
    """Texts of these characters with a `b` or a `1` among them, of which every normal form leaves something."""
    return st.builds(
        "".join,
        st.tuples(
            st.text(alphabet, max_size=3), st.sampled_from("b1"), st.text(alphabet, max_size=3)
        ),
    )


TEXTS = around("ab1., %-")
GOLDS = st.lists(around("ab1.,%-"), min_size=1, max_size=10)


def strict_and_official(task, text, golds):
    """What an answer in tags gets by the strict rule, and the same answer alone by the published one."""
    text = " ".join(text.split())
    tagged = f"<think>hm {golds[0]}</think> <answer> {text} </answer>"
    scorers = task.scorers
    return judge(scorers["strict"], tagged, golds), judge(scorers["official"], text, golds)


@pytest.mark.parametrize("task", [vqav2(), textvqa(), docvqa()], ids=lambda task: task.name)
@given(text=TEXTS, golds=GOLDS)
@example_of(text="a b", golds=["b"])
def test_strict_is_the_official_metric_on_the_answer(task, text, golds):
    """Found in tags, an answer scores what it scores alone; the exceptions are where the metric would credit nothing."""
    assert all(map(normalize_vqa, [text, *golds]))
    strict, official = strict_and_official(task, text, golds)
    assert strict == pytest.approx(official)


@given(text=TEXTS, golds=GOLDS)
@example_of(text="1", golds=["1%"])
@example_of(text="b1", golds=["b1."])
def test_strict_credits_what_chartqa_credits(text, golds):
    """It forgives more: a percent sign, commas in a number, a final point (test_relaxed names them)."""
    strict, official = strict_and_official(chartqa(), text, golds)
    assert strict >= official


def test_textvqa_has_its_own_normal_form_under_both_rules():
    golds = ["joe's"] * 10
    for name, text, by_textvqa, by_vqav2 in (("apart", "joe 's", 1, 0), ("comma", "joe's,", 1, 1)):
        for scorer in ("strict", "official"):
            assert judge(textvqa().scorers[scorer], text, golds) == by_textvqa, name
            assert judge(vqav2().scorers[scorer], text, golds) == by_vqav2, name


def test_strict_does_not_divide_by_what_can_be_reached():
    golds = [f"answer {n}" for n in range(10)]
    for task in (textvqa(), vqav2()):
        assert judge(task.scorers["official"], golds[3], golds) == pytest.approx(0.3)
        assert judge(task.scorers["strict"], golds[3], golds) == pytest.approx(0.3)
    assert vqa(completion(golds[3]), example(golds[0], answers=golds)) == 1.0  # the reward does


def test_padding_raises_the_published_anls_only():
    padded = "wrong" + " " * 1000 + "answer"
    assert judge(docvqa().scorers["official"], padded, ["invoice"]) > 0.98
    assert judge(docvqa().scorers["strict"], padded, ["invoice"]) == 0.0


# --- relaxed accuracy


@pytest.mark.parametrize(
    ("candidate", "gold", "published", "ours"),
    [
        ("100", "100", 1.0, True),
        ("105", "100", 1.0, True),
        ("95", "100", 1.0, True),
        ("105.01", "100", 0.0, False),
        ("94.99", "100", 0.0, False),
        ("-100", "100", 0.0, False),
        ("-98", "-100", 1.0, True),
        ("0", "0", 1.0, True),
        ("0.01", "0", 0.0, False),
        ("12%", "12%", 1.0, True),
        ("12", "12%", 0.0, True),
        ("12%", "12", 0.0, True),
        ("0.12", "12%", 1.0, True),
        ("12.5%", "12%", 1.0, True),
        ("1,000", "1000", 0.0, True),
        ("$1,000", "1000", 0.0, True),
        ("1e3", "1000", 1.0, True),
        ("Yes", "yes", 1.0, True),
        ("yes.", "yes", 0.0, True),
        ("yes it is", "yes", 0.0, False),
        ("100 or 200", "100", 0.0, False),
        ("95 to 105", "100", 0.0, False),
        ("100 people", "100", 0.0, False),
        ("", "100", 0.0, False),
        ("nan", "100", 0.0, False),
        ("inf", "100", 0.0, False),
        ("１００", "100", 0.0, False),
        ("1,00", "100", 0.0, False),
        ("9" * 50, "100", 0.0, False),
    ],
)
def test_relaxed(candidate, gold, published, ours):
    assert relaxed_accuracy(candidate, gold) == published
    assert match_relaxed(candidate, gold) is ours
    assert vqa_relaxed(completion(candidate), example(gold)) == float(ours)


@given(st.integers(1, 10**6), st.floats(-0.2, 0.2))
def test_relaxed_is_five_percent_of_the_gold(gold, error):
    candidate = gold * (1 + error)
    if abs(abs(error) - 0.05) > 1e-6 and gold not in YEARS:
        assert match_relaxed(f"{candidate:.9f}", str(gold)) == (abs(error) < 0.05)


# --- ANLS


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("abc", "abc", 0),
        ("ab", "ba", 2),
    ],
)
def test_levenshtein_by_hand(one, other, distance):
    assert levenshtein(one, other) == levenshtein(other, one) == distance


@given(st.text("ab", max_size=6), st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_levenshtein_is_a_distance(one, other, third):
    distance = levenshtein(one, other)
    assert (distance == 0) == (one == other)
    assert abs(len(one) - len(other)) <= distance <= max(len(one), len(other))
    assert distance <= levenshtein(one, third) + levenshtein(third, other)


@pytest.mark.parametrize(
    ("candidate", "golds", "expected"),
    [
        ("grand total", ["Grand Total"], 1.0),
        (" grand \n total ", ["grand total"], 1.0),
        ("grand totals", ["grand total"], 11 / 12),
        ("sitting", ["kitten"], 4 / 7),
        ("abcd", ["abxx"], 0.5),  # not below 0.5
        ("abc", ["axx"], 0.0),
        ("abcd", ["wxyz", "abce", "qq"], 0.75),  # the nearest one
        ("", ["x"], 0.0),
        ("x", [], 0.0),
        ("6", ["5"], 0.0),
    ],
)
def test_anls_by_hand(candidate, golds, expected):
    assert anls(candidate, golds) == pytest.approx(expected)
    if golds and candidate:
        assert vqa_anls(completion(candidate), example("", answers=golds)) == pytest.approx(
            expected
        )


def test_padding_with_blanks_does_not_resemble_an_answer():
    """The published rule divides by the raw length, so blanks make any two texts alike."""
    padded = "wrong" + " " * 1000 + "answer"
    assert anls(padded, ["invoice"], raw_lengths=True) > 0.98
    assert anls(padded, ["invoice"]) == 0.0
    assert anls("sitting", ["kitten"], raw_lengths=True) == anls("sitting", ["kitten"])


@given(st.text(max_size=20), st.text(max_size=20))
def test_anls_is_what_its_shortcut_says(candidate, gold):
    """The difference of the lengths decides early only what the distance would decide as well."""
    one, other = (" ".join(text.lower().split()) for text in (candidate, gold))
    similarity = 1 - levenshtein(one, other) / max(len(one), len(other), 1)
    expected = similarity if one and other and similarity >= 0.5 else 0.0
    assert anls(candidate, [gold]) == pytest.approx(expected)
