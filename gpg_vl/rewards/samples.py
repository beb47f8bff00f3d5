"""Explanations of rewards: verdicts on completions, and example responses.

A reward returns only a number. In addition it may declare a pure function that returns the full `Verdict` on the same
completion and example. `gpg-vl rewards show` and `gpg-vl rewards test` print it, and the report of a run shows it. No number
of a run depends on it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gpg_vl.answers.verdict import Judge, Verdict, judge_response
from gpg_vl.types import Completion, Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An example response for a reward, with the fields of its example that the reward uses.

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


Explain = Callable[[Completion, Example], Verdict]
F = TypeVar("F", bound=Callable[..., object])


def explained(explain: Explain, examples: Sequence[Sample] = ()) -> Callable[[F], F]:
    """Decorator: declare the function `explain` that returns the reward's verdicts, and `examples` to show."""

    def attach(function: F) -> F:
        function.explain = explain  # type: ignore[attr-defined]  # functions carry attributes
        function.examples = tuple(examples)  # type: ignore[attr-defined]  # as above
        return function

    return attach


def by(judge: Judge) -> Explain:
    """An explain function that applies a judge of `gpg_vl.answers` to completions."""
    return lambda completion, example: judge_response(judge, completion.response, example)
