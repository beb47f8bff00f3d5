"""What is measured of one step, in the same way on both sides: seconds, work and memory.

Work is counted by hooks on the vision tower and on the text model, padding included: what was computed, whoever asked for
it. A pass without gradient belongs to the rollout, one with gradient to the training; under gradient checkpointing the
second forward pass of a layer is not counted, because the towers themselves are entered once.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn

PROC = Path("/proc/self")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Counts of one step."""

    rollout_patches: int = 0
    """Vision patches forwarded without gradient; four make one image token."""
    prefilled_tokens: int = 0
    """Tokens that the text model forwarded without gradient in rows of more than one token."""
    decoded_tokens: int = 0
    """The same in rows of one token."""
    training_patches: int = 0
    training_tokens: int = 0
    """Forwarded with gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One measured step. Seconds run from the end of the step before, so that data loading is in them."""

    seconds: float
    cpu_seconds: float
    """Of all threads of the process: what a busy machine leaves as it is."""
    rollout_seconds: float
    """Pictures into patches, sampling, rewards."""
    work: Work

    @property
    def training_seconds(self) -> float:
        return self.seconds - self.rollout_seconds


@dataclass(slots=True)
class Meter:
    """Counts, times and keeps the steps of one process.

    vision, text: the modules that are hooked. warmup: steps that are not kept; memory's high-water mark is reset after them.
    """

    vision: nn.Module
    text: nn.Module
    warmup: int = 0
    steps: list[Step] = field(default_factory=list)
    rss_before: int = 0
    """Bytes resident when the measured steps began."""
    _counts: dict[str, int] = field(default_factory=dict)
    _rollout: float = 0.0
    _last: float = 0.0
    _last_cpu: float = 0.0
    _seen: int = 0

    def __post_init__(self) -> None:
        self.vision.register_forward_pre_hook(self._saw_patches, with_kwargs=True)
        self.text.register_forward_pre_hook(self._saw_tokens, with_kwargs=True)

    def start(self) -> None:
        """The first step begins now."""
        self._begin()

    def rollout_took(self, seconds: float) -> None:
        self._rollout += seconds

    def step_ended(self) -> None:
        """A step ends now, and the next begins."""
        now, cpu = time.perf_counter(), time.process_time()
        if self._seen >= self.warmup:
            self.steps.append(
                Step(
                    seconds=now - self._last,
                    cpu_seconds=cpu - self._last_cpu,
                    rollout_seconds=self._rollout,
                    work=Work(**self._counts),
                )
            )
        self._seen += 1
        self._begin()

    def _begin(self) -> None:
        if self._seen == self.warmup:
            self.rss_before = reset_peak()
        self._rollout, self._counts = 0.0, {}
        self._last, self._last_cpu = time.perf_counter(), time.process_time()

    def report(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "steps": [
                asdict(step) | {"training_seconds": step.training_seconds} for step in self.steps
            ],
            "rss_before": self.rss_before,
            "rss_peak": read_status("VmHWM"),
        }

    def _saw_patches(
        self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        patches = arguments[0] if arguments else named["hidden_states"]
        self._add(
            "training_patches" if torch.is_grad_enabled() else "rollout_patches", patches.shape[0]
        )

    def _saw_tokens(
        self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        given = named.get("inputs_embeds")
        given = given if given is not None else arguments[0] if arguments else named["input_ids"]
        rows, length = given.shape[:2]
        kind = "prefilled_tokens" if length > 1 else "decoded_tokens"
        self._add("training_tokens" if torch.is_grad_enabled() else kind, rows * length)

    def _add(self, name: str, number: int) -> None:
        self._counts[name] = self._counts.get(name, 0) + number


def read_status(field_name: str) -> int:
    """Bytes of a memory field of this process, such as VmRSS or VmHWM. Linux only."""
    lines = (PROC / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field_name}:"))


def reset_peak() -> int:
    """Set the high-water mark of resident memory (VmHWM) to what is resident now. Returns that number of bytes."""
    (PROC / "clear_refs").write_text("5")
    return read_status("VmRSS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median and quartiles of some numbers."""

    median: float
    low: float
    high: float
    number: int


def spread(numbers: Sequence[float]) -> Spread:
    """Quartiles by linear interpolation between the values (of one number: that number)."""
    if not numbers:
        raise ValueError("There is no step to take a median of; measure at least one.")
    low, _, high = (
        quantiles(numbers, n=4, method="inclusive") if len(numbers) > 1 else (numbers[0],) * 3
    )
    return Spread(median=median(numbers), low=low, high=high, number=len(numbers))
