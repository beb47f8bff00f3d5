"""One rollout and one training step of a model shape, on the device that is there, with everything counted.

Weights and completions are random: what is measured does not depend on what a model says. Used by `benchmarks/growth.py` and
`benchmarks/gpu.py`.
"""

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor

from benchmarks.anchor import Question
from benchmarks.learner import gradient, make_learner
from benchmarks.meter import read_status, reset_peak
from gpg_vl.algorithms.gpg import gpg
from gpg_vl.model import Model, autocast_dtype
from gpg_vl.models.attention import Kernel
from gpg_vl.models.load import Processing
from gpg_vl.models.policy import Policy
from gpg_vl.models.shape import Shape
from gpg_vl.prompting import PixelLimits
from gpg_vl.quickstart import scenes
from gpg_vl.rollout.engine import EngineOptions, RolloutRequest
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.training.flops import Cost, group_cost
from gpg_vl.training.micro_batch import Layout
from gpg_vl.types import Completion, Example, Group, Prompt

if TYPE_CHECKING:  # at run time gpg_vl.models decides when transformers may be imported
    from transformers import PreTrainedModel

Precision = Literal["float32", "bfloat16"]
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
    dtype: Precision = "float32"
    slots: int = 128
    engine: Literal["native", "vllm"] = "native"
    """Who answers."""
    micro_batch: int = 0
    """Completions per forward pass of TRL, whose case this is; 0 is ours."""

    @property
    def side(self) -> int:
        """Pixels along both sides of the picture."""
        return 28 * round(math.sqrt(self.image_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Medians over the measured steps of a case."""

    prefill_seconds: float | None
    """None where a rollout is timed as a whole."""
    decode_seconds: float
    """The rest of the rollout."""
    train_seconds: float
    sync_seconds: float | None
    """Until the engine has the weights of the step; None where it reads the ones that are trained."""
    peak_bytes: int
    """Above what was there before the first step."""
    rollout_patches: int
    """0 where the engine does not count them."""
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
        rollout = (self.prefill_seconds or 0.0) + self.decode_seconds + (self.sync_seconds or 0.0)
        return rollout + self.train_seconds


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
    """A policy and the questions it is asked.

    model: put together here and not loaded, because the weights of a large case are made on its device and stand nowhere.
    folder: its config and tokenizer, for an engine that makes a model of its own.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        processing: Processing,
        case: Case,
        device: torch.device,
        folder: Path | None = None,
    ) -> None:
        self._case, self._device = case, device
        self._shape = processing.family.shape_of(model.config)
        if case.checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(
                case.vision == "trained" or processing.family.part_of(name) == "language"
            )

        # no end token: every answer has its full length
        tokens = replace(processing.tokens, ends=())
        self.policy = Policy(model, processing.family, tokens, kernel=case.kernel).to(device)
        self._model = Model(
            path="" if folder is None else str(folder),
            policy=self.policy,
            processing=replace(processing, tokens=tokens),
            autocast=autocast_dtype(case.dtype),
        )
        self._engine = self._model.engine(
            case.engine,
            options=EngineOptions(prompts_per_batch=8, slots=case.slots),
            awaits_sync=True,
        )
        self._prompts = self._encode(case.groups)
        self._learner = make_learner(
            self._model,
            gpg(age="off"),
            layout=self._layout(shared=case.shared),
            max_new_tokens=case.completion,
        )

    def _encode(self, number: int) -> list[Prompt]:
        asked = questions(self._case, self._model.processing, number)
        examples = [Example(id=q.name, images=(q.png,), prompt=q.text, answer="3") for q in asked]
        encoder = self._model.encoder(limits=PixelLimits(max_pixels=2**22))
        return [encoder.encode(example) for example in examples]

    def _layout(self, *, shared: bool) -> Layout:
        """Passes that hold one group in one piece, or one completion after the other in the naive layout."""
        longest = max(prompt.length for prompt in self._prompts)
        one_group = longest + self._case.group_size * self._case.completion
        limit = self._case.tokens_per_pass or one_group
        return Layout(tokens_per_pass=limit, shared_prefix=shared)

    def sample(self) -> list[tuple[Completion, ...]]:
        """Once per group, or for every answer anew."""
        case = self._case
        sampling = Sampling(
            group_size=case.group_size, temperature=1.0, max_new_tokens=case.completion, seed=0
        )
        if case.shared:
            return self._engine.generate(_requests(self._prompts), sampling)

        # a name of its own for each copy, or the engine would find out that the pictures are the same
        rows = []
        for prompt in self._prompts:
            for member in range(case.group_size):
                keys = tuple(f"{key} {member}" for key in prompt.image_keys)
                rows.append(replace(prompt, image_keys=keys))
        single = self._engine.generate(_requests(rows), replace(sampling, group_size=1))
        flat = [completion for (completion,) in single]
        return [tuple(flat[i : i + case.group_size]) for i in range(0, len(flat), case.group_size)]

    def train(self, answers: Sequence[tuple[Completion, ...]]) -> None:
        report = self._learner.update(self._groups(answers), step=0)
        assert report.applied, "every group of a case carries a signal"

    def gradient_error(self, answers: Sequence[tuple[Completion, ...]]) -> float:
        """Of this case's way of computing the first group against the naive layout, relative, over all trained weights."""
        groups = self._groups(answers[:1])
        ours, naive = self._gradient(groups, shared=True), self._gradient(groups, shared=False)
        difference = sum(_square(ours[name] - naive[name]) for name in naive)
        return float((difference / sum(map(_square, naive.values()))) ** 0.5)

    def _gradient(self, groups: Sequence[Group], *, shared: bool) -> dict[str, Tensor]:
        return gradient(
            self._model,
            gpg(age="off"),
            groups,
            layout=self._layout(shared=shared),
            max_new_tokens=self._case.completion,
        )

    def _groups(self, answers: Sequence[tuple[Completion, ...]]) -> list[Group]:
        rewards = tuple(float(member % 2 == 0) for member in range(self._case.group_size))
        groups = []
        for number, completions in enumerate(answers):
            group = Group(
                example=Example(id=str(number), prompt="", answer=""),
                prompt=self._prompts[number],
                completions=completions,
                rewards=rewards,
            )
            groups.append(group)
        return groups

    def measure(self, *, steps: int, warmup: int) -> Timing:
        case = self._case
        seconds: list[tuple[float, ...]] = []
        before = reset_memory(self._device)
        for step in range(warmup + steps):
            work = self._engine.counters()
            self._engine.sync(self._learner.weights, step)
            answers = self.sample()
            self._engine.rest()
            rollout = _difference(self._engine.counters(), work)

            counted = self.policy.work
            wait(self._device)
            start = time.perf_counter()
            self.train(answers)
            wait(self._device)
            if step >= warmup:
                train = time.perf_counter() - start
                names = ("prefill_seconds", "decode_seconds", "sync_seconds")
                seconds.append((*(rollout.get(name, 0.0) for name in names), train))

        peak = peak_memory(self._device) - before
        trained = self.policy.work
        error = self.gradient_error(answers) if case.shared else None
        columns = [median(column) for column in zip(*seconds, strict=True)]
        cost = cost_of(case, self._shape, self._prompts[0].length)
        return Timing(
            prefill_seconds=columns[0] if "prefill_seconds" in rollout else None,
            decode_seconds=columns[1],
            sync_seconds=columns[2] if "sync_seconds" in rollout else None,
            train_seconds=columns[3],
            peak_bytes=peak,
            rollout_patches=int(rollout.get("vision_patches", 0)),
            prefilled_tokens=int(rollout.get("prefilled_tokens", rollout.get("prompt_tokens", 0))),
            decoded_tokens=int(rollout["decoded_tokens"]),
            trained_patches=trained.vision_patches - counted.vision_patches,
            trained_tokens=trained.tower_tokens - counted.tower_tokens,
            train_operations=case.groups * cost.train,
            total_operations=case.groups * cost.total,
            prompt_tokens=self._prompts[0].length,
            gradient_error=error,
        )


def _requests(prompts: Sequence[Prompt]) -> list[RolloutRequest]:
    return [RolloutRequest(prompt=prompt, draw=number) for number, prompt in enumerate(prompts)]


def _difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}


def _square(x: Tensor) -> float:
    return float(x.double().square().sum())


def cost_of(case: Case, shape: Shape, prompt: int) -> Cost:
    """Of one group of the case, whose prompt has so many tokens. Without what checkpointing computes again."""
    return group_cost(
        shape,
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
