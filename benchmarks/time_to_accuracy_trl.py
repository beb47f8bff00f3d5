"""TRL's side of `benchmarks.time_to_accuracy`: its own `GRPOTrainer` on the data, rewards and schedule of a config of ours.

    python -m benchmarks.time_to_accuracy_trl --micro-batch 32 model.path=... data.train=... output.folder=...

Leaves OUTPUT/checkpoints/step-N/model every `output.checkpoint_every` steps, and a line in OUTPUT/metrics.jsonl at the end of
every step, as `gpg-vl train` does.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpg_vl.models.torchvision_shim import ensure_torchvision

ensure_torchvision()

from datasets import Dataset  # noqa: E402
from datasets import Image as ImageColumn  # noqa: E402
from transformers import AutoProcessor, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from benchmarks import trl_side  # noqa: E402
from benchmarks.time_to_accuracy import CONFIG  # noqa: E402
from gpg_vl.config import Config, load_config  # noqa: E402
from gpg_vl.models.load import load_processing  # noqa: E402
from gpg_vl.rewards.builtin import choice  # noqa: E402
from gpg_vl.training.data_check import load_data  # noqa: E402
from gpg_vl.training.prepare import make_encoder  # noqa: E402
from gpg_vl.types import Completion, Example  # noqa: E402

LOSS = {"loss_type": "grpo", "beta": 0.0, "scale_rewards": "none", "num_iterations": 1}
"""The mean per answer of -A log pi with A = r - mean(r): that of `age: off`, `beta_th: 0`, `aggregation: sequence`."""


def make_rows(examples: Sequence[Example]) -> Dataset:
    """As users have them: conversations, and pictures as encoded files. `row` says which example it is."""
    rows = {
        "prompt": [[{"role": "user", "content": example.prompt}] for example in examples],
        "image": [{"bytes": example.images[0], "path": None} for example in examples],
        "row": list(range(len(examples))),
    }
    return Dataset.from_dict(rows).cast_column("image", ImageColumn())


def make_reward(examples: Sequence[Example]) -> Callable[..., list[float]]:
    """The reward of the config, on what TRL hands over."""

    def choice_reward(completions: list[Any], row: list[int], **_: Any) -> list[float]:
        rewards = []
        for answer, number in zip(completions, row, strict=True):
            text = answer[0]["content"] if isinstance(answer, list) else answer
            completion = Completion(token_ids=(), logprobs=(), text=text, finish_reason="stop")
            rewards.append(choice(completion, examples[number]))
        return rewards

    return choice_reward


class Recorder(TrainerCallback):
    """A line at the end of every step, and the weights of some."""

    def __init__(self, folder: Path, every: int) -> None:
        self._folder, self._every = folder, every
        folder.mkdir(parents=True, exist_ok=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        if step % self._every == 0:
            target = self._folder / "checkpoints" / f"step-{step:06d}" / "model"
            kwargs["model"].save_pretrained(target)
            kwargs["processing_class"].save_pretrained(target)
        with (self._folder / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps({"step": step, "kind": "train"}) + "\n")


def require_same_prompts(config: Config, trainer: GRPOTrainer, examples: Sequence[Example]) -> None:
    """Both sides must ask the same: the token ids of the prompts of the first step are compared, once it has begun."""
    encoder = make_encoder(config, load_processing(config.model.path))
    score, sample = trainer._generate_and_score_completions, trainer._generate_single_turn
    asked: list[int] = []

    def scoring(inputs: list[dict[str, Any]]) -> Any:
        asked[:] = [row["row"] for row in inputs]
        return score(inputs)

    def sampling(prompt_ids: list[list[int]], *rest: Any) -> Any:
        for number in set(asked):
            ours = encoder.encode(examples[number]).input_ids_T.tolist()
            if prompt_ids[asked.index(number)] != ours:
                raise RuntimeError(f"The prompt of row {number} is not the same on both sides.")
        trainer._generate_single_turn = sample
        trainer._generate_and_score_completions = score
        return sample(prompt_ids, *rest)

    trainer._generate_and_score_completions, trainer._generate_single_turn = scoring, sampling


def make_trainer(config: Config, examples: Sequence[Example], micro_batch: int) -> GRPOTrainer:
    """A trainer of `train.prompts_per_step` groups a step."""
    answers = config.train.prompts_per_step * config.rollout.group_size
    never = load_processing(config.model.path).tokens.never_sampled
    arguments = GRPOConfig(
        output_dir=str(Path(config.output.folder) / "trl"),
        max_steps=config.train.steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=answers // micro_batch,
        steps_per_generation=answers // micro_batch,
        num_generations=config.rollout.group_size,
        max_completion_length=config.rollout.max_new_tokens,
        generation_kwargs={"suppress_tokens": list(never)},
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        **LOSS,
        disable_dropout=True,
        learning_rate=config.train.learning_rate,
        lr_scheduler_type=config.train.schedule,
        warmup_steps=config.train.warmup_steps,
        adam_beta1=config.train.betas[0],
        adam_beta2=config.train.betas[1],
        weight_decay=0.0,
        max_grad_norm=config.train.max_grad_norm,
        gradient_checkpointing=False,
        shuffle_dataset=True,
        dataloader_num_workers=0,
        use_cpu=True,
        bf16=False,
        seed=config.train.seed,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    return GRPOTrainer(
        model=trl_side.load(Path(config.model.path)),
        args=arguments,
        processing_class=AutoProcessor.from_pretrained(
            config.model.path, padding_side="left", trust_remote_code=False
        ),
        reward_funcs=make_reward(examples),
        train_dataset=make_rows(examples),
        callbacks=[Recorder(Path(config.output.folder), config.output.checkpoint_every)],
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="changes of the config")
    parser.add_argument("--micro-batch", type=int, default=32, help="answers per forward pass")
    arguments = parser.parse_args(argv)

    config = load_config(CONFIG, arguments.settings)
    examples = list(load_data(config))
    trainer = make_trainer(config, examples, arguments.micro_batch)
    require_same_prompts(config, trainer, examples)
    trainer.train()
    return 0


if __name__ == "__main__":
    sys.exit(main())
