"""From what a device was measured at to the seconds of a step: sums that can be checked by hand.

What is measured, and on what, is in `training.probe`.
"""

from dataclasses import dataclass, replace
from math import ceil, isqrt


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Groups that are alike and go through the model together.

    Example: `Pass(groups=4, members=8, prompt=120, image=40, completion=64)`
    """

    groups: int
    members: int
    """Answers of each group."""
    prompt: int
    """Tokens, those of its image included."""
    image: int
    completion: int

    def halved(self) -> "Pass":
        """The next smaller one: fewer groups, then fewer answers, then shorter ones. Itself if there is none."""
        if self.groups > 1:
            return replace(self, groups=self.groups // 2)
        if self.members > 1:
            return replace(self, members=self.members // 2)
        return replace(
            self,
            prompt=max(1, self.prompt // 2),
            image=self.image // 2,
            completion=max(1, self.completion // 2),
        )

    def varied(self, number: int) -> "list[Pass]":
        """So many passes from this one on, each with a few more tokens and an image with one row more than the one before."""
        row = isqrt(self.image)
        return [
            replace(self, prompt=self.prompt + n * (row + 1), image=self.image + n * row)
            for n in range(number)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a process computes in a step.

    Example: `Work(prefill=2e12, train=9e13, samples=True, answers=64, rows=64, longest=512, context=400, together=8,
    micro_batch=Pass(groups=1, members=8, prompt=120, image=40, completion=512), trained=2 * 10**9)`
    """

    prefill: float
    """Operations before the first token of an answer."""
    train: float
    samples: bool
    """Whether answers are sampled at all, here or by another engine."""
    answers: int
    """That are sampled here; 0 where another engine does."""
    rows: int
    """Answers that are decoded together."""
    longest: int
    """Tokens of an answer."""
    context: int
    """Tokens that one of them attends to, halfway."""
    together: int
    """Prompts that are computed together before decoding."""
    micro_batch: Pass
    trained: int
    """Numbers that the optimizer moves on this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What was measured of a device, for the whole model."""

    forward: float
    """Operations in a second, of prompts alone."""
    train: float
    """The same of a micro-batch forward and backward."""
    start: float
    """Seconds from prompts that are computed to the second token of an answer in every row."""
    decode: float
    """Seconds for one more token of every row."""
    update: float
    """Numbers that the optimizer moves in a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeconds:
    """Seconds of a step, as far as they are spent in the model."""

    answers: float
    train: float

    @property
    def total(self) -> float:
        return self.answers + self.train


def estimate_seconds(work: Work, speed: Speed) -> StepSeconds:
    """Operations over operations in a second, and calls times the seconds of a call."""
    starts, calls = count_decoding(work.answers, work.longest, work.rows)
    return StepSeconds(
        answers=work.prefill / speed.forward + starts * speed.start + calls * speed.decode,
        train=work.train / speed.train + work.trained / speed.update,
    )


def count_decoding(answers: int, longest: int, rows: int) -> tuple[int, int]:
    """(starts, calls): how often all rows are filled, and how often all of them are decoded after that.

    Of an answer the prompt gives the first token, and the second is a part of the start.
    """
    starts = ceil(answers / rows)
    return starts, max(0, ceil(answers * (longest - 1) / rows) - starts)
