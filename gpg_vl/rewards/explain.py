"""Why a completion got what it got, in words: what `gpg-vl rewards show` and `gpg-vl rewards test` print.

A reward returns a number and nothing else. Beside it may stand a pure function that says, for the same completion and
example, which piece of the response was taken as the answer, what was read in it, and what the gold answer reads as. It
is never called in training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gpg_vl.rewards.parse import Extracted, extract_answer
from gpg_vl.types import Completion, Example

FLAGS = ("unclosed_think", "truncated", "several")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """How a reward read one completion.

    Example: `Explanation(candidate="about 4", step="answer", parsed="4", gold="4")`
    """

    candidate: str | None
    """The piece of the response that counts as the answer; None: unanswered."""
    step: str
    """How it was found: `answer`, `boxed`, `phrase`, `text`, `none`, or `whole` for a reward of the whole response."""
    parsed: str | None
    """What the candidate was read as, in one spelling; None: it could not be read."""
    gold: str
    """What the gold answer was read as."""
    note: str = ""
    """What else is worth knowing, such as "2 boxes where one is asked for"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A response to show a reward by, with the parts of its example that the reward looks at.

    Example: `Sample(response="<answer>four</answer>", answer="4")`
    """

    response: str
    answer: str
    choices: tuple[str, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0
    """The number of sampled tokens, for rewards that count them."""

    def example(self) -> Example:
        return Example(
            id="sample", prompt="?", answer=self.answer, choices=self.choices, meta=self.meta
        )

    def completion(self) -> Completion:
        return Completion(
            token_ids=(0,) * self.tokens,
            logprobs=(0.0,) * self.tokens,
            text=self.response,
            finish_reason="stop",
        )


Explain = Callable[[Completion, Example], Explanation]
F = TypeVar("F", bound=Callable[..., object])


def explained(explain: Explain, examples: Sequence[Sample] = ()) -> Callable[[F], F]:
    """Decorator: the reward is explained by `explain` and shown by `examples`."""

    def attach(function: F) -> F:
        function.explain = explain  # type: ignore[attr-defined]  # functions carry attributes
        function.examples = tuple(examples)  # type: ignore[attr-defined]  # as above
        return function

    return attach


def explanation(
    completion: Completion, read: Callable[[str], str | None], gold: str, note: str = ""
) -> Explanation:
    """The explanation of a reward that takes the answer by `extract_answer` and reads it by `read`."""
    extracted = extract_answer(completion.response)
    return Explanation(
        candidate=extracted.candidate,
        step=extracted.step,
        parsed=None if extracted.candidate is None else read(extracted.candidate),
        gold=gold,
        note="; ".join(filter(None, (note, flags(extracted)))),
    )


def flags(extracted: Extracted) -> str:
    """What was odd about the layout of a response: `truncated, several`."""
    return ", ".join(flag for flag in FLAGS if getattr(extracted, flag))
