"""The reward for the layout that the prompt asks for: first `<think>`, then `<answer>`, and nothing else."""

from gpg_vl.answers.verdict import Verdict
from gpg_vl.rewards import gold_form
from gpg_vl.rewards.samples import Sample, explained
from gpg_vl.types import Completion, Example

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
EXAMPLES = (
    Sample(response="<think>it is near</think>\n<answer>B</answer>", answer="B"),
    Sample(response="<think></think><answer>wrong, but in place</answer>", answer="B"),
    Sample(response="<answer>B</answer>", answer="B"),
    Sample(response="<think>x</think><answer>B", answer="B"),
    Sample(response="<think>x</think><answer></answer>", answer="B"),
    Sample(response="<think>x</think><answer>A</answer><answer>B</answer>", answer="B"),
)


def verdict(completion: Completion, example: Example) -> Verdict:
    """How `format` reads a completion."""
    laid_out = has_layout(completion.response)
    return Verdict(
        score=float(laid_out),
        parsed="in layout" if laid_out else None,
        gold="1 of each, in order",
        note=", ".join(f"{completion.response.count(tag)} {tag}" for tag in _TAGS),
    )


@explained(verdict, EXAMPLES)
@gold_form("<think></think><answer>any</answer>")
def format(completion: Completion, example: Example) -> float:
    """1.0 if the response is one `<think>...</think>`, then one `<answer>...</answer>` that is not empty, else 0.0.

    Only blanks may be before, between and after the two blocks. The reasoning may be empty. The whole response is
    looked at, so a `<think>` that the prompt had already written counts as the opening tag.

    The original rule, a full match of `<think>.*?</think>\\s*<answer>.*?</answer>` with `.` matching newlines, also
    accepts several thinking or answer blocks, blocks inside blocks, any text between the first block and the last, and
    an empty answer, so a model can get the reward without following the layout. It refuses blanks around the response.
    """
    return float(has_layout(completion.response))


def has_layout(response: str) -> bool:
    """True if the response has the layout that `format` requires. Scans the text once per tag."""
    if any(response.count(tag) != 1 for tag in _TAGS):
        return False
    before, _, rest = response.partition("<think>")
    _, _, rest = rest.partition("</think>")
    between, _, rest = rest.partition("<answer>")
    answer, closed, after = rest.partition("</answer>")
    return (
        bool(closed)
        and not before.strip()
        and not between.strip()
        and bool(answer.strip())
        and not after.strip()
    )
