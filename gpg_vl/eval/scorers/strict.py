"""`strict`, the headline scorer of every benchmark: it extracts and judges the answer exactly as the rewards do."""

from gpg_vl.answers import box, choice, classes, count, expression, quantity, short_answer
from gpg_vl.answers.math.rectangles import convert
from gpg_vl.answers.verdict import Judge, Verdict, judge_response
from gpg_vl.errors import UserError
from gpg_vl.eval.coordinates import gold_box, pixels_of
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.task import Doc, Scorer, make_verdict
from gpg_vl.types import Example


def strict(judge: Judge) -> Scorer:
    """A scorer that extracts the answer after the reasoning and scores it with `judge`.

    If the gold answer cannot be read, every answer scores 0; the gold check reports such a doc beforehand.
    """

    def scorer(doc: Doc, response: Response) -> Verdict:
        try:
            return judge_response(
                judge, response.text, doc.example, prefilled_think=response.prefilled_think
            )
        except UserError as error:
            return make_verdict(doc, 0.0, None, note=str(error))

    return scorer


def strict_box(doc: Doc, response: Response) -> Verdict:
    """Scores the only box of the answer, in the declared convention, by the rule of the reward `grounding`.

    The gold is the exact one in pixels. Two boxes, and a box that is inverted, flat or leaves the image, are no answer.
    """
    frame = box.frame_of(doc.example)
    gold = convert(gold_box(doc), pixels_of(doc), frame)

    def judge(answer: str, example: Example) -> Verdict:
        return box.compare_with_gold(answer, gold, frame)

    return strict(judge)(doc, response)


strict_choice = strict(choice.judge)
strict_class = strict(classes.judge)
strict_count = strict(count.judge)
strict_quantity = strict(quantity.judge)
strict_expression = strict(expression.judge)
strict_vqa = strict(short_answer.judge_accuracy)
strict_textvqa = strict(short_answer.judge_textvqa)
strict_relaxed = strict(short_answer.judge_relaxed)
strict_anls = strict(short_answer.judge_anls)


def either(options: Judge, open_answer: Judge) -> Scorer:
    """`strict` for a benchmark that has questions with options and without."""
    with_options, without = strict(options), strict(open_answer)
    return lambda doc, response: (with_options if doc.example.choices else without)(doc, response)
