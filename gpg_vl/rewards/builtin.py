"""The built-in rewards that judge an answer. Each returns the score of a judge in `gpg_vl.answers`."""

from gpg_vl.answers import (
    box,
    boxes,
    classes,
    count,
    expression,
    quantity,
    short_answer,
)
from gpg_vl.answers import (
    choice as choices,
)
from gpg_vl.answers.verdict import judge_response
from gpg_vl.rewards.samples import Sample, by, explained
from gpg_vl.types import Completion, Example

_SIDES = ("left", "right", "red, to the left")
_CHOICE = (
    Sample(response="<think>it is near</think><answer>(B)</answer>", answer="(B)", choices=_SIDES),
    Sample(response="The answer is right.", answer="(B)", choices=_SIDES),
    Sample(response="<answer>B. right</answer>", answer="right", choices=_SIDES),
    Sample(response="**Answer**: (B)", answer="(B)", choices=_SIDES),
    Sample(response="<answer>(A) or (B)</answer>", answer="(B)", choices=_SIDES),
    Sample(response="<answer>a</answer>", answer="(A)", choices=_SIDES),
    Sample(response="<think>so (B)</think><answer></answer>", answer="(B)", choices=_SIDES),
)


@explained(by(choices.judge), _CHOICE)
def choice(completion: Completion, example: Example) -> float:
    """1.0 if the completion names the right option, else 0.0. Needs `example.choices`."""
    return judge_response(choices.judge, completion.response, example).score


_FLOWERS = ("rose", "desert-rose", "tulip", "daisy")
_CLASSES = (
    Sample(response="<think>petals</think><answer>Rose.</answer>", answer="rose", choices=_FLOWERS),
    Sample(response="<answer>desert rose</answer>", answer="desert-rose", choices=_FLOWERS),
    Sample(response="<answer>a tulip</answer>", answer="tulip", choices=_FLOWERS),
    Sample(response="<answer>desert rose</answer>", answer="rose", choices=_FLOWERS),
    Sample(response="<answer>rose, tulip, daisy</answer>", answer="rose", choices=_FLOWERS),
    Sample(response="<answer></answer>", answer="rose", choices=_FLOWERS),
)


@explained(by(classes.judge), _CLASSES)
def classification(completion: Completion, example: Example) -> float:
    """1.0 if the answer names the right class, and no other, else 0.0.

    Needs the list of all classes, as `choices` or in the column `classes` of the data. The answer is the name of a class,
    or a text at most twice as long that names one class. A part of a name, a list of classes and "not a rose" name no class.
    A name inside a longer name ("rose" in "desert rose") does not count.
    """
    return judge_response(classes.judge, completion.response, example).score


_COUNT = (
    Sample(response="<think>3 red, 1 blue</think><answer>4</answer>", answer="4"),
    Sample(response="<answer>There are four items.</answer>", answer="4"),
    Sample(response="<answer> 4.0 </answer>", answer="4"),
    Sample(response="<answer>4 or 5</answer>", answer="4"),
    Sample(response="<answer>14</answer>", answer="4"),
    Sample(response="<think>there are 4</think><answer></answer>", answer="4"),
)


@explained(by(count.judge), _COUNT)
def counting(completion: Completion, example: Example) -> float:
    """1.0 if the answer states the gold number, and no other, else 0.0.

    `4`, `4.0`, `four`, `1,234`, `4个` and "There are 4 items." state one number, and "There are no items." states 0; "4 or 5",
    "3 red and 1 blue", "-4", "4.5", "not 4" and "2+2" score 0.0. Digits of other scripts are not read.
    """
    return judge_response(count.judge, completion.response, example).score


_GEOMETRY = (
    Sample(response="<think>so 145</think><answer>145</answer>", answer="<answer> 145° </answer>"),
    Sample(response="<answer>2\\sqrt{15} meters</answer>", answer="2√{15}米"),
    Sample(response="<answer>The angle is 145 degrees.</answer>", answer="145°"),
    Sample(response="<answer>5 m</answer>", answer="5cm"),
    Sample(response="<answer>8</answer>", answer="8√{3}"),
    Sample(response="<think>first 145, then 40</think><answer>40</answer>", answer="145°"),
    Sample(response="<answer>40 or 145</answer>", answer="145°"),
)


@explained(by(quantity.judge), _GEOMETRY)
def geometry(completion: Completion, example: Example) -> float:
    """1.0 if the answer is the gold quantity, else 0.0.

    Expressions are compared by value: `2√{3}` is `2\\sqrt{3}` and `\\frac{6}{\\sqrt{3}}`. The unit may be left out. A unit
    other than that of the gold answer is wrong, as is any word that is not a unit; units are not converted. In a sentence the
    only expression counts. Two numbers are wrong unless the gold answer has two: for `60°或120°` both must be stated.
    """
    return judge_response(quantity.judge, completion.response, example).score


_MATH = (
    Sample(
        response=r"<think>so</think>The answer is $\boxed{\dfrac{1}{2}}$.", answer=r"\frac{1}{2}"
    ),
    Sample(response="<answer>0.5</answer>", answer=r"\frac{1}{2}"),
    Sample(response=r"<answer>$y = (x+1)^2$</answer>", answer="x^2+2x+1"),
    Sample(response=r"<answer>-6 and 6</answer>", answer=r"\{6,-6\}"),
    Sample(response=r"<answer>[1,2)</answer>", answer="(1,2]"),
    Sample(response="<think>so</think>48 + 24 = 72\n#### 72", answer="72"),
    Sample(response="<answer>1, 2, 3</answer>", answer="3"),
    Sample(response=r"<answer>9^{9^{9}}</answer>", answer="3"),
)


@explained(by(expression.judge), _MATH)
def math(completion: Completion, example: Example) -> float:
    """1.0 if the answer is mathematically the gold answer, else 0.0.

    Numbers, fractions, roots, expressions with letters, sets, tuples, intervals, equations and matrices are compared as
    math-verify does: `1/2` is `0.5`, `(x+1)^2` is `x^2+2x+1`, `\\{6,-6\\}` has no order, `x=5` is `5`. A
    list does not equal its last member. A decimal must agree with an irrational or periodic gold answer to six places and a
    relative 2e-6. A unit after a number is ignored: `11 cm` is `11`, but `3 xy` is not `3`.
    """
    return judge_response(expression.judge, completion.response, example).score


_META = {"coordinates": "rel1000"}
_BOX = "(100,200),(300,400)"
_BOXES = tuple(
    Sample(response=f"<answer>{answer}</answer>", answer=_BOX, meta=_META)
    for answer in (
        "(100,200),(300,400)",
        "[110, 200, 300, 400]",
        '[{"bbox_2d": [100, 200, 300, 300], "label": "cup"}]',
        "(600,600),(700,700)",
        "(300,400),(100,200)",
        "(100,200),(9000,9000)",
        "(100,200),(300,400) or (1,1),(5,5)",
    )
)


@explained(by(box.judge), _BOXES)
def grounding(completion: Completion, example: Example) -> float:
    """The IoU of the stated box with the gold box, 0.0 if no box, or more than one, can be read.

    Needs `example.meta["coordinates"]`, one of rel1000, rel1, abs_resized, abs_orig; for the last two also the size of
    the image in pixels as [width, height], in `input_size` or `image_size`. The gold answer must have the form and the
    coordinates that the prompt asks the model to use.
    """
    return judge_response(box.judge, completion.response, example).score


@explained(by(box.judge_hit), _BOXES)
def grounding_hit(completion: Completion, example: Example) -> float:
    """1.0 if the stated box has an IoU of at least 0.5 with the gold box, else 0.0. Needs what `grounding` needs."""
    return judge_response(box.judge_hit, completion.response, example).score


@explained(by(box.judge_giou), _BOXES)
def grounding_giou(completion: Completion, example: Example) -> float:
    """(1 + generalised IoU) / 2 of the stated box with the gold box, 0.0 if no box, or more than one, can be read.

    Unlike `grounding`, it gives boxes that miss the gold box different scores, by their distance. The price is that any box
    scores something, and the whole image at least 0.5. Use it if a model rarely hits at first. Needs what `grounding` needs.
    """
    return judge_response(box.judge_giou, completion.response, example).score


_ONE = "{'Position': [0, 0, 100, 100], 'Confidence': 1.0}"
_TWO = f"[{_ONE}, {{'Position': [500, 500, 600, 600], 'Confidence': 1}}]"
_DETECTION = (
    Sample(response=f"<answer>{_TWO}</answer>", answer=_TWO, meta=_META),
    Sample(response=f"<answer>[{_ONE}]</answer>", answer=_TWO, meta=_META),
    Sample(response=f"<answer>[{_ONE}, {_ONE}]</answer>", answer=_TWO, meta=_META),
    Sample(response="<answer>No Objects</answer>", answer=_TWO, meta=_META),
    Sample(response="<answer>No Objects</answer>", answer="No Objects", meta=_META),
)


@explained(by(boxes.judge), _DETECTION)
def detection(completion: Completion, example: Example) -> float:
    """Sum of confidence times IoU of the matched boxes, divided by the number of gold boxes plus the confidence of
    unmatched boxes.

    Boxes are matched one to one with gold boxes where their IoU is at least 0.5, so that the total is greatest. The
    score is `sum(confidence * IoU) / (gold boxes + sum of the confidence of unmatched boxes)`: 1.0 if every gold
    box is found exactly with confidence 1 and there are no other boxes. An extra box costs its confidence; a box without a
    confidence counts with 1. `No Objects`, or `[]`, scores 1.0 if there is no gold box. A text with a box that is inverted or
    outside the image scores 0.0. Needs what `grounding` needs.
    """
    return judge_response(boxes.judge, completion.response, example).score


_TEN = {"answers": ["red"] * 6 + ["dark red"] * 4}
_VQA = (
    Sample(response="<think>hm</think><answer>Red.</answer>", answer="red", meta=_TEN),
    Sample(response="<answer>the dark red</answer>", answer="red", meta=_TEN),
    Sample(response="<answer>red or dark red</answer>", answer="red", meta=_TEN),
    Sample(response="<answer>the</answer>", answer="red", meta=_TEN),
)
_RELAXED = (
    Sample(response="<answer>102</answer>", answer="100"),
    Sample(response="<answer>1,020</answer>", answer="1000"),
    Sample(response="<answer>12</answer>", answer="12%"),
    Sample(response="<answer>106</answer>", answer="100"),
    Sample(response="<answer>2008</answer>", answer="2010"),
    Sample(response="<answer>95 to 105</answer>", answer="100"),
)
_ANLS = (
    Sample(response="<answer>Grand  Total</answer>", answer="grand total"),
    Sample(response="<answer>grand totals</answer>", answer="grand total"),
    Sample(response="<answer>the grand total is the sum of all</answer>", answer="grand total"),
)


@explained(by(short_answer.judge_soft), _VQA)
def vqa(completion: Completion, example: Example) -> float:
    """Soft VQA accuracy of the answer, divided by the highest accuracy that an accepted answer can get.

    Without the division, no answer to a question on which ten people gave ten answers could get full marks, and its group's
    rewards would differ less than those of an easy question. The evaluation does not divide. The accepted answers are in the
    column `answers`; without it the gold answer is the only one.
    """
    return judge_response(short_answer.judge_soft, completion.response, example).score


@explained(by(short_answer.judge_relaxed), _RELAXED)
def vqa_relaxed(completion: Completion, example: Example) -> float:
    """1.0 if the answer is a number within 5 % of the gold number, or equals the gold text ignoring case; else 0.0.

    The published rule reads `12%` as 0.12 and cannot read `$` or `1,234`, so "12" for "12%" is wrong. Here they are read, and a
    percent sign may be left out. If the gold answer is a year it must be matched exactly. A range or a list is not a number.
    """
    return judge_response(short_answer.judge_relaxed, completion.response, example).score


@explained(by(short_answer.judge_anls), _ANLS)
def vqa_anls(completion: Completion, example: Example) -> float:
    """Normalised Levenshtein similarity to the nearest accepted answer; 0.0 below 0.5.

    The published rule divides by the length including all blanks, so a text padded with blanks is similar to any answer;
    here several blanks in a row count as one.
    """
    return judge_response(short_answer.judge_anls, completion.response, example).score
