"""Mathematics as lighteval's extractive match reads it: the rule behind the published tables of text mathematics.

Its extraction lives on in the package math_verify, which is used here: the prediction as an expression or LaTeX with boxes
first, the gold as the task says, five decimal places, and the best pair counts. Reasoning is not removed.
"""

from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.mathverify import Config, parsed_math, same_math
from gpg_vl.eval.task import Doc, Score, Scorer

_PREDICTION: tuple[Config, ...] = (
    ExprExtractionConfig(),
    LatexExtractionConfig(boxed_match_priority=0),
)
LATEX: tuple[Config, ...] = (LatexExtractionConfig(),)
EXPRESSION: tuple[Config, ...] = (ExprExtractionConfig(),)


def lighteval(column: str, gold_configs: tuple[Config, ...]) -> Scorer:
    """The scorer of a benchmark whose gold is in `column`, to be extracted by `gold_configs`."""

    def scorer(doc: Doc, response: Response) -> Score:
        parsed = parsed_math(response.text, _PREDICTION)
        right = same_math(parsed_math(str(doc.columns[column]), gold_configs), parsed, precision=5)
        return Score(
            score=float(right), answered=bool(parsed), parsed=str(parsed[-1]) if parsed else None
        )

    return scorer
