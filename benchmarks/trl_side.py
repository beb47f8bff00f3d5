"""The peer: TRL's own GRPOTrainer, unchanged, with the settings under which its gradient is that of GPG.

beta 0, no scaling of rewards, one iteration per batch, temperature 1, AdamW. It runs its own `train()`: data loader, chat
template, image processor, generation, rewards, shuffling, micro-batches, loss, optimizer. Around it are a clock and counters.
Only for gradient parity and for the sweep over micro-batches is its sampling replaced, by completions that are given to it;
for the parity of GRPO its old log-probs too, and the weights of its reference model.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gpg_vl.models.torchvision_shim import ensure_torchvision

ensure_torchvision()

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from datasets import Image as ImageColumn  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.utils.rnn import pad_sequence  # noqa: E402
from transformers import (  # noqa: E402
    AutoProcessor,
    PrinterCallback,
    Qwen2VLForConditionalGeneration,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from benchmarks.anchor import GivenStep, Question, Row, completions  # noqa: E402
from benchmarks.learner import LEARNING_RATE, MAX_GRAD_NORM  # noqa: E402
from benchmarks.losses import TRL_GPG  # noqa: E402
from benchmarks.meter import Meter  # noqa: E402
from benchmarks.ours import forbidden  # noqa: E402
from benchmarks.step import Case, Timing, cost_of, peak_memory, questions, reset_memory, wait  # noqa: E402
from gpg_vl.models.load import load_processing, quiet  # noqa: E402

Completions = Callable[[int], Sequence[Sequence[Sequence[int]]]]
"""Number of the step -> token ids of its completions, by prompt and member."""


def load(checkpoint: Path) -> Qwen2VLForConditionalGeneration:
    """As TRL's users load a model."""
    with quiet():
        return Qwen2VLForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
        )


def make_trainer(
    model: Qwen2VLForConditionalGeneration,
    checkpoint: Path,
    row: Row,
    asked: Sequence[Question],
    rewards: Callable[[int], Sequence[float]],
    *,
    micro_batch: int,
    steps: int,
    output: str,
    loss: Mapping[str, Any] = TRL_GPG,
    checkpointing: bool = False,
    bf16: bool = False,
    max_grad_norm: float = MAX_GRAD_NORM,
    callbacks: Sequence[TrainerCallback] = (),
) -> GRPOTrainer:
    """A trainer over the questions in their order. `rewards` gives the rewards of the group of prompt 0, 1, ...

    checkpoint: where the processor is read from. loss: settings of TRL's config. bf16: autocast, the weights stay as they are.
    """
    if row.completions % micro_batch:
        raise ValueError(
            f"{row.completions} completions a step cannot be cut into micro-batches of {micro_batch}."
        )
    processor = AutoProcessor.from_pretrained(
        checkpoint, padding_side="left", trust_remote_code=False
    )
    settings = GRPOConfig(
        output_dir=output,
        max_steps=steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=row.completions // micro_batch,
        steps_per_generation=row.completions // micro_batch,
        num_generations=row.group_size,
        max_completion_length=row.completion_tokens,
        generation_kwargs={
            "min_new_tokens": row.completion_tokens,
            "suppress_tokens": list(forbidden(load_processing(str(checkpoint)).tokens)),
        },
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        **loss,
        disable_dropout=True,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=max_grad_norm,
        gradient_checkpointing=checkpointing,
        shuffle_dataset=False,
        dataloader_num_workers=0,
        use_cpu=model.device.type == "cpu",
        bf16=bf16,
        seed=0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=model,
        args=settings,
        processing_class=processor,
        reward_funcs=_Rewards(rewards, row),
        train_dataset=_dataset(asked),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class _Rewards:
    """TRL's reward function: prompts come in order, each with its G completions one behind the other."""

    __name__ = "pattern"

    def __init__(self, rewards: Callable[[int], Sequence[float]], row: Row) -> None:
        self._rewards = rewards
        self._group_size = row.group_size
        self._prompt = 0

    def __call__(self, completions: list[Any], **_: Any) -> list[float]:
        groups = len(completions) // self._group_size
        values = [float(r) for g in range(groups) for r in self._rewards(self._prompt + g)]
        self._prompt += groups
        return values


def _dataset(asked: Sequence[Question]) -> Dataset:
    """As users have it: conversations, and pictures as encoded files that are decoded when a row is read."""
    rows = {
        "prompt": [[{"role": "user", "content": q.text}] for q in asked],
        "image": [{"bytes": q.png, "path": None} for q in asked],
    }
    return Dataset.from_dict(rows).cast_column("image", ImageColumn())


def give(
    trainer: GRPOTrainer, given: Completions, seen: list[dict[str, Any]] | None = None
) -> None:
    """Replace sampling by given completions; `seen` collects what the model would have been asked."""
    steps = iter(range(trainer.args.max_steps))

    def instead(
        prompt_ids: list[list[int]], images: object, fields: dict[str, Any], *_: object
    ) -> tuple[list[list[int]], None]:
        if seen is not None:
            seen.append({"prompt_ids": prompt_ids, **fields})
        return [list(tokens) for group in given(next(steps)) for tokens in group], None

    trainer._generate_single_turn = instead


def give_old_logps(
    trainer: GRPOTrainer, old_logps_P_G_T: Sequence[Sequence[Sequence[float]]]
) -> None:
    """Replace the log-probs that TRL keeps of the weights that sampled, which it does where it trains on them repeatedly."""
    generate_and_score = trainer._generate_and_score_completions

    def instead(inputs: list[dict[str, Any]]) -> dict[str, Any]:
        scored: dict[str, Any] = generate_and_score(inputs)
        rows = [torch.tensor(logps) for group in old_logps_P_G_T for logps in group]
        lengths = torch.tensor([len(row) for row in rows])
        assert scored["completion_mask"].sum(dim=1).equal(lengths), "TRL has other completions"

        theirs = scored["old_per_token_logps"]
        scored["old_per_token_logps"] = pad_sequence(rows, batch_first=True).to(theirs)
        return scored

    trainer._generate_and_score_completions = instead


class _StepEnds(TrainerCallback):
    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wait(kwargs["model"].device)
        self._meter.step_ended()


def run(
    checkpoint: Path,
    row: Row,
    asked: Sequence[Question],
    *,
    steps: int,
    warmup: int,
    micro_batch: int,
    checkpointing: bool,
    given: bool = False,
    bf16: bool = False,
    model: Qwen2VLForConditionalGeneration | None = None,
) -> Meter:
    """Measure `steps` steps of `trainer.train()` after `warmup`, of `model` or of the one in `checkpoint`."""
    with tempfile.TemporaryDirectory() as output:
        trainer = make_trainer(
            load(checkpoint) if model is None else model,
            checkpoint,
            row,
            asked,
            row.rewards,
            micro_batch=micro_batch,
            steps=warmup + steps,
            output=output,
            checkpointing=checkpointing,
            bf16=bf16,
        )
        meter = Meter(trainer.model.model.visual, trainer.model.model.language_model, warmup=warmup)
        trainer.add_callback(_StepEnds(meter))
        if given:
            give(trainer, lambda step: completions(row, step))
        rollout = trainer._generate_and_score_completions

        def timed(inputs: list[dict[str, Any]]) -> dict[str, Any]:
            start = time.perf_counter()
            scored: dict[str, Any] = rollout(inputs)
            wait(trainer.model.device)
            meter.rollout_took(time.perf_counter() - start)
            lengths = scored["completion_mask"].sum(dim=1)
            assert bool((lengths == row.completion_tokens).all()), "a completion ended early"
            return scored

        trainer._generate_and_score_completions = timed
        meter.start()
        trainer.train()
    return meter


def timing(
    model: Qwen2VLForConditionalGeneration,
    checkpoint: Path,
    case: Case,
    *,
    steps: int,
    warmup: int,
) -> Timing:
    """A case of the grid. The rollout is timed as a whole; memory is that above the model's own, as in `Bench.measure`."""
    model.model.visual.requires_grad_(case.vision == "trained")
    row = Row(
        name="grid",
        side=case.side,
        vocabulary=model.config.get_text_config().vocab_size,
        completion_tokens=case.completion,
        group_size=case.group_size,
        prompts_per_step=case.groups,
    )
    processing = load_processing(str(checkpoint))
    before = reset_memory(model.device)
    meter = run(
        checkpoint,
        row,
        questions(case, processing, case.groups * (warmup + steps)),
        steps=steps,
        warmup=warmup,
        micro_batch=case.micro_batch,
        checkpointing=case.checkpointing,
        bf16=case.dtype == "bfloat16",
        model=model,
    )
    peak = peak_memory(model.device) - before
    work = meter.steps[-1].work
    prompt = work.prefilled_tokens // row.completions
    cost = cost_of(case, processing.family.shape_of(model.config), prompt)
    return Timing(
        prefill_seconds=None,
        decode_seconds=median(step.rollout_seconds for step in meter.steps),
        sync_seconds=None,
        train_seconds=median(step.training_seconds for step in meter.steps),
        peak_bytes=peak,
        rollout_patches=work.rollout_patches,
        prefilled_tokens=work.prefilled_tokens,
        decoded_tokens=row.completions * row.completion_tokens,
        trained_patches=work.training_patches,
        trained_tokens=work.training_tokens,
        train_operations=case.groups * cost.train,
        total_operations=case.groups * cost.total,
        prompt_tokens=prompt,
        gradient_error=None,
    )


class _KeepGradient(TrainerCallback):
    def __init__(self) -> None:
        self.gradient: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gradient = {
            name: p.grad.clone()
            for name, p in kwargs["model"].named_parameters()
            if p.grad is not None
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedStep:
    """What TRL made of a step that was given to it."""

    gradient: dict[str, Tensor]
    """Unclipped, by the weight's name."""
    asked: dict[str, Any]
    """The prompts and patches that it made of the questions."""
    logged: dict[str, float]
    """Its own metrics, such as the clipped share."""


def gradient(
    checkpoint: Path,
    row: Row,
    asked: Sequence[Question],
    given: GivenStep,
    loss: Mapping[str, Any],
    *,
    micro_batch: int,
    prepare_reference: Callable[[torch.nn.Module], None] | None = None,
) -> TrainedStep:
    """TRL's gradient of a step on given completions, the moment before its optimizer uses it.

    prepare_reference: changes the weights of its reference model, which are those of the checkpoint.
    """
    keep = _KeepGradient()
    seen: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as output:
        trainer = make_trainer(
            load(checkpoint),
            checkpoint,
            row,
            asked,
            lambda prompt: given.rewards_P_G[prompt],
            micro_batch=micro_batch,
            steps=1,
            output=output,
            loss=loss,
            max_grad_norm=0.0,  # none, in transformers
            callbacks=[keep],
        )
        give(trainer, lambda _: given.tokens_P_G_T, seen)
        if given.old_logps_P_G_T:
            give_old_logps(trainer, given.old_logps_P_G_T)
        if prepare_reference is not None:
            prepare_reference(trainer.ref_model)
        trainer.train()
    logged = trainer.state.log_history[-1]
    return TrainedStep(gradient=keep.gradient, asked=seen[0], logged=logged)
