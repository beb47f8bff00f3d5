"""Computes the seconds of a step from the measured speed of a device, with formulas that can be checked by hand.

The measurement is in `training.probe`.
"""

from dataclasses import dataclass, replace
from math import ceil, isqrt


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Equal groups that are computed together.

    Example: `Pass(groups=4, members=8, prompt=120, image=40, completion=64)`
    """

    groups: int
    members: int
    """Answers of each group."""
    prompt: int
    """Tokens of the prompt, including those of its image."""
    image: int
    completion: int

    def halved(self) -> "Pass":
        """The next smaller pass: fewer groups, then fewer answers, then shorter ones. Itself if there is none."""
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
        """`number` passes starting with this one, each with a few more tokens and one more image row than the previous
        one."""
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
    """Answers sampled by the policy itself; 0 if another engine samples."""
    rows: int
    """Answers that are decoded together."""
    longest: int
    """Tokens of an answer."""
    context: int
    """Tokens that an answer attends to halfway through."""
    together: int
    """Prompts that are computed together before decoding."""
    micro_batch: Pass
    trained: int
    """Weights that the optimizer updates on this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The measured speed of a device, scaled to the whole model."""

    forward: float
    """Operations per second of prefill."""
    train: float
    """Operations per second of a micro-batch, forward and backward."""
    start: float
    """Seconds from the computed prompts to the second token in every row."""
    decode: float
    """Seconds for one more token in every row."""
    update: float
    """Weights that the optimizer updates per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeconds:
    """Seconds of a step that are spent in the model."""

    answers: float
    train: float

    @property
    def total(self) -> float:
        return self.answers + self.train


def estimate_seconds(work: Work, speed: Speed) -> StepSeconds:
    """Operations divided by operations per second, plus calls times seconds per call."""
    starts, calls = count_decoding(work.answers, work.longest, work.rows)
    return StepSeconds(
        answers=work.prefill / speed.forward + starts * speed.start + calls * speed.decode,
        train=work.train / speed.train + work.trained / speed.update,
    )


def count_decoding(answers: int, longest: int, rows: int) -> tuple[int, int]:
    """(starts, calls): how often all rows are filled, and how many decoding calls follow.

    The first token of an answer comes from the prompt, and the second is part of the start.
    """
    starts = ceil(answers / rows)
    return starts, max(0, ceil(answers * (longest - 1) / rows) - starts)
