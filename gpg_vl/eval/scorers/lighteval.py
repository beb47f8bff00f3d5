"""Mathematics as lighteval's extractive match reads it: the rule behind the published tables of text mathematics.

Its extraction lives on in the package math_verify, which is used here: the prediction as an expression or LaTeX with boxes
first, the gold as the task says, five decimal places, and the best pair counts. Reasoning is not removed.
"""

from typing import Any

from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

from gpg_vl.answers.verdict import Verdict
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.mathverify import Config, parse_math, same_math
from gpg_vl.eval.task import Doc, Scorer, make_verdict

_PREDICTION: tuple[Config, ...] = (
    ExprExtractionConfig(),
    LatexExtractionConfig(boxed_match_priority=0),
)
LATEX: tuple[Config, ...] = (LatexExtractionConfig(),)
EXPRESSION: tuple[Config, ...] = (ExprExtractionConfig(),)


def lighteval(column: str, gold_configs: tuple[Config, ...]) -> Scorer:
    """The scorer of a benchmark whose gold is in `column`, to be extracted by `gold_configs`.

    A gold in which nothing is found counts as a text, and is compared with the text of what was found in the response. Of a
    percentage the value counts: `198\\%` is not 198.
    """

    def scorer(doc: Doc, response: Response) -> Verdict:
        gold = str(doc.columns[column])
        golds = parse_math(gold, gold_configs) or [gold]
        parsed = [_evaluate_percent(one) for one in parse_math(response.text, _PREDICTION)]
        right = same_math([_evaluate_percent(one) for one in golds], parsed, precision=5)
        return make_verdict(doc, float(right), str(parsed[-1]) if parsed else None)

    return scorer


def _evaluate_percent(parsed: Any) -> Any:
    """A percentage as its value; math_verify would also take the number before the sign."""
    is_percentage = (
        getattr(parsed, "is_Mul", False) and len(parsed.args) == 2 and parsed.args[1] * 100 == 1
    )
    return parsed.doit() if is_percentage else parsed
