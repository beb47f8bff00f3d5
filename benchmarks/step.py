"""One rollout and one training step of a model shape, on the device that is there, with everything counted.

Weights and completions are random: what is measured does not depend on what a model says. Used by `benchmarks/growth.py` and
`benchmarks/gpu.py`.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from accelerate import Accelerator
from PIL import Image

from benchmarks.anchor import Question
from benchmarks.meter import read_status, reset_peak
from gpg_vl.models.attention import Kernel
from gpg_vl.models.cost import Cost, group_cost, shape_of
from gpg_vl.models.encode import Encoder
from gpg_vl.models.load import Processing
from gpg_vl.models.policy import Policy
from gpg_vl.prompting import PixelLimits, PromptStyle
from gpg_vl.quickstart import scenes
from gpg_vl.rollout.engine import Sampling
from gpg_vl.rollout.native import NativeEngine
from gpg_vl.training.batch import Objective, make_passes
from gpg_vl.training.optimizer import make_adamw
from gpg_vl.training.step import accumulate, global_counts, update
from gpg_vl.types import Completion, Example, Group, Prompt

WORDS = "How many balls are there in the picture, and which of them is nearest to the wall?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is computed.

    Example: `Case(group_size=8, image_tokens=256, text_tokens=100, completion=64)`: two groups of eight answers of 64 tokens
    to a picture of 448x448 pixels and 100 tokens of text, image and prompt once.
    """

    group_size: int
    image_tokens: int
    """A square number: the picture is square."""
    text_tokens: int
    """Of the prompt, at least."""
    completion: int
    groups: int = 2
    shared: bool = True
    kernel: Kernel = "split"
    tokens_per_pass: int = 0
    """As in the config; 0 puts one group into each pass."""
    checkpointing: bool = False
    vision: Literal["trained", "frozen"] = "trained"
    dtype: Literal["float32", "bfloat16"] = "float32"
    slots: int = 128
    micro_batch: int = 0
    """Completions per forward pass of TRL, whose case this is; 0 is ours."""

    @property
    def side(self) -> int:
        """Pixels along both sides of the picture."""
        return 28 * round(self.image_tokens**0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Medians over the measured steps of a case."""

    prefill_seconds: float | None
    """None where a rollout is timed as a whole."""
    decode_seconds: float
    """The rest of the rollout."""
    train_seconds: float
    peak_bytes: int
    """Above what was there before the first step."""
    rollout_patches: int
    prefilled_tokens: int
    decoded_tokens: int
    trained_patches: int
    trained_tokens: int
    train_operations: float
    """Of the cost model, with image and prompt once if the case shares them. What is recomputed is not counted twice."""
    total_operations: float
    prompt_tokens: int
    gradient_error: float | None
    """Relative difference of the gradient to that of the naive layout on the same answers; None for the naive layout."""

    @property
    def seconds(self) -> float:
        return (self.prefill_seconds or 0.0) + self.decode_seconds + self.train_seconds


def questions(case: Case, processing: Processing, number: int) -> list[Question]:
    """Pictures of noise, each with the same text of at least the case's length."""
    text = WORDS
    while len(processing.tokenizer(text).input_ids) < case.text_tokens:
        text += " " + WORDS
    return [Question(name=str(i), text=text, png=_noise(case.side, seed=i)) for i in range(number)]


def _noise(side: int, *, seed: int) -> bytes:
    grey = Image.frombytes("L", (side, side), random.Random(seed).randbytes(side * side))
    return scenes.png(grey.convert("RGB"))


class Bench:
    """A policy and the questions it is asked."""

    def __init__(
        self, model: torch.nn.Module, processing: Processing, case: Case, device: torch.device
    ) -> None:
        tokens = replace(processing.tokens, ends=())  # every answer has its full length
        self._case, self._device = case, device
        self._config = model.config
        if case.checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(
                case.vision == "trained" or processing.family.part_of(name) == "language"
            )
        self.policy = Policy(model, processing.family, tokens, kernel=case.kernel).to(device)
        autocast = torch.bfloat16 if case.dtype == "bfloat16" else None
        self._autocast = autocast
        self._engine = NativeEngine(
            self.policy,
            replace(processing, tokens=tokens),
            prompts_per_batch=8,
            slots=case.slots,
            autocast=autocast,
        )
        self._optimizer = make_adamw(model, betas=(0.9, 0.999), weight_decay=0.0)
        for group in self._optimizer.param_groups:
            group["lr"] = 1e-6
        self._accelerator = Accelerator(
            cpu=device.type == "cpu", mixed_precision="bf16" if autocast else "no"
        )
        self._wrapped = self._accelerator.prepare(self.policy)
        limits = PixelLimits(max_pixels=2**22)
        self._encoder = Encoder(
            processing=processing, style=PromptStyle(), limits=limits, root=None
        )

    def prompts(self, number: int) -> list[Prompt]:
        asked = questions(self._case, self._encoder.processing, number)
        examples = [Example(id=q.name, images=(q.png,), prompt=q.text, answer="3") for q in asked]
        return [self._encoder.encode(example) for example in examples]

    def sample(self, prompts: Sequence[Prompt]) -> list[tuple[Completion, ...]]:
        """Once per group, or for every answer anew."""
        case = self._case
        sampling = Sampling(
            group_size=case.group_size, temperature=1.0, max_new_tokens=case.completion, seed=0
        )
        if case.shared:
            return self._engine.generate(prompts, sampling, range(len(prompts)))
        # a name of its own for each copy, or the engine would find out that the pictures are the same
        rows = [
            replace(p, image_keys=tuple(f"{key} {member}" for key in p.image_keys))
            for p in prompts
            for member in range(case.group_size)
        ]
        flat = [
            c
            for (c,) in self._engine.generate(
                rows, replace(sampling, group_size=1), range(len(rows))
            )
        ]
        return [tuple(flat[i : i + case.group_size]) for i in range(0, len(flat), case.group_size)]

    def train(self, prompts: Sequence[Prompt], answers: Sequence[tuple[Completion, ...]]) -> None:
        case = self._case
        groups = self._groups(prompts, answers)
        counts, deviation = global_counts(self._accelerator, groups)
        update(
            self._wrapped,
            self._optimizer,
            self._accelerator,
            groups,
            counts=counts,
            batch_std=deviation,
            objective=self._objective(),
            tokens_per_pass=case.tokens_per_pass or self._one_group(prompts),
            shared_prefix=case.shared,
            max_grad_norm=1.0,
        )

    def gradient_error(
        self, prompts: Sequence[Prompt], answers: Sequence[tuple[Completion, ...]]
    ) -> float:
        """Of this case's way of computing the first group against the naive layout, relative, over all trained weights."""
        groups = self._groups(prompts[:1], answers[:1])
        counts, deviation = global_counts(self._accelerator, groups)
        gradients = []
        for shared in (self._case.shared, False):
            self._optimizer.zero_grad(set_to_none=True)
            passes = make_passes(
                groups,
                objective=self._objective(),
                counts=counts,
                batch_std=deviation,
                tokens_per_pass=self._case.tokens_per_pass or self._one_group(prompts),
                shared_prefix=shared,
            )
            accumulate(self._wrapped, self._accelerator, passes)
            gradients.append(
                [p.grad.clone() for p in self.policy.parameters() if p.grad is not None]
            )
        self._optimizer.zero_grad(set_to_none=True)
        difference = sum(
            float((a - b).double().square().sum()) for a, b in zip(*gradients, strict=True)
        )
        return float(
            (difference / sum(float(b.double().square().sum()) for b in gradients[1])) ** 0.5
        )

    def _groups(
        self, prompts: Sequence[Prompt], answers: Sequence[tuple[Completion, ...]]
    ) -> list[Group]:
        return [
            Group(
                example=Example(id=str(i), prompt="", answer=""),
                prompt=prompt,
                completions=completions,
                rewards=tuple(float(member % 2 == 0) for member in range(self._case.group_size)),
            )
            for i, (prompt, completions) in enumerate(zip(prompts, answers, strict=True))
        ]

    def _objective(self) -> Objective:
        return Objective(
            f_norm="one", age="off", aggregation="token", max_new_tokens=self._case.completion
        )

    def _one_group(self, prompts: Sequence[Prompt]) -> int:
        """Tokens that hold one group in one piece, or one completion after the other in the naive layout."""
        return max(p.length for p in prompts) + self._case.group_size * self._case.completion

    def measure(self, *, steps: int, warmup: int) -> Timing:
        case = self._case
        prompts = self.prompts(case.groups)
        seconds: list[tuple[float, float, float]] = []
        before = reset_memory(self._device)
        for step in range(warmup + steps):
            work = replace(self._engine.work)
            answers = self.sample(prompts)
            rollout = self._engine.work
            counted = replace(self.policy.work)
            wait(self._device)
            start = time.perf_counter()
            self.train(prompts, answers)
            wait(self._device)
            if step >= warmup:
                prefill, decode = (
                    getattr(rollout, f) - getattr(work, f)
                    for f in ("prefill_seconds", "decode_seconds")
                )
                seconds.append((prefill, decode, time.perf_counter() - start))
        peak = peak_memory(self._device) - before
        trained = replace(self.policy.work)
        error = self.gradient_error(prompts, answers) if case.shared else None
        columns = [median(column) for column in zip(*seconds, strict=True)]
        cost = cost_of(case, self._config, prompts[0].length)
        return Timing(
            prefill_seconds=columns[0],
            decode_seconds=columns[1],
            train_seconds=columns[2],
            peak_bytes=peak,
            rollout_patches=rollout.vision_patches - work.vision_patches,
            prefilled_tokens=rollout.prefilled_tokens - work.prefilled_tokens,
            decoded_tokens=rollout.decoded_tokens - work.decoded_tokens,
            trained_patches=trained.vision_patches - counted.vision_patches,
            trained_tokens=trained.tower_tokens - counted.tower_tokens,
            train_operations=case.groups * cost.train,
            total_operations=case.groups * cost.total,
            prompt_tokens=prompts[0].length,
            gradient_error=error,
        )


def cost_of(case: Case, config: Any, prompt: int) -> Cost:
    """Of one group of the case, whose prompt has so many tokens. Without what checkpointing computes again."""
    return group_cost(
        shape_of(config, has_vision=True),
        prompt=prompt,
        image_tokens=case.image_tokens,
        completion=case.completion,
        group_size=case.group_size,
        shared=case.shared,
        recompute=False,
        vision=case.vision,
    )


def wait(device: torch.device) -> None:
    """Until the device has computed what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_memory(device: torch.device) -> int:
    """Begin to watch for the peak. Returns the bytes that are in use now."""
    if device.type != "cuda":
        return reset_peak()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_memory(device: torch.device) -> int:
    """Most bytes in use since `reset_memory`."""
    return read_status("VmHWM") if device.type != "cuda" else torch.cuda.max_memory_allocated()


def as_row(case: Case, timing: Timing) -> dict[str, Any]:
    """Both as JSON values."""
    return {"case": asdict(case), "timing": asdict(timing) | {"seconds": timing.seconds}}


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def folder_of_results() -> Path:
    return Path(__file__).parent / "results"
