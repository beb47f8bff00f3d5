"""The reward for answers with only one right wording, such as descriptions and worked solutions to train on."""

from gpg_vl.answers.box_text import answer_as_stated
from gpg_vl.answers.verdict import Verdict
from gpg_vl.rewards import gold_form
from gpg_vl.rewards.samples import Sample, explained
from gpg_vl.types import Completion, Example

EXAMPLES = (
    Sample(response="2 3 orange ball", answer="2 3 orange ball"),
    Sample(response=" 2 3 orange ball\n", answer="2 3 orange ball"),
    Sample(response="2 3 Orange ball", answer="2 3 orange ball"),
    Sample(response="<answer>2 3 orange ball</answer>", answer="2 3 orange ball"),
)


def _stated(example: Example) -> str:
    """The gold answer as a response that is trained on has it."""
    return answer_as_stated(example, whole=True)


def verdict(completion: Completion, example: Example) -> Verdict:
    """How `verbatim` reads a completion."""
    text, gold = completion.response.strip(), _stated(example).strip()
    return Verdict(
        score=float(text == gold),
        parsed=text or None,
        gold=gold,
        note="the whole response",
    )


@explained(verdict, EXAMPLES)
@gold_form(_stated)
def verbatim(completion: Completion, example: Example) -> float:
    """1.0 if the whole response equals the gold answer exactly, except for blanks around it, else 0.0.

    Reasoning, tags and other spellings are wrong unless the gold answer has them too.
    """
    return verdict(completion, example).score
