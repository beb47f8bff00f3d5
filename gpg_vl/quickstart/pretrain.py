"""How the quickstart's base model was made: supervised, from random weights, on drawn scenes of a
seed of their own.

    python -m gpg_vl.quickstart.pretrain --output runs/pretrain

Three kinds of examples in three stages (`STAGES`):

- `describe`: "Describe the image." is answered with every object's row, column, box, colour and
  shape;
- `answer`: a CV-Bench prompt is answered with the words of the right option;
- `guess`: a CV-Bench prompt is answered with the words of an option drawn at random.

The model first learns to see, then to answer, and is then spoiled: a last stage of careless answers
leaves it with its sight and with the form of an answer, but little better than guessing. That is
the base model from which GPG starts, with nothing but a reward.

The weights in `base/` went through these stages, 2,000 steps in all, in bfloat16. They were made
while the drawing of the scenes was still being tuned (boxes in Relation, places in Distance, the
parity rule came in between), so that running the script again gives a model of the same kind and
not the same numbers.
"""

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpg_vl.algorithms.gpg import Inputs, gpg
from gpg_vl.console import say
from gpg_vl.model import Model
from gpg_vl.models import tiny
from gpg_vl.models.encode import Encoder
from gpg_vl.models.head import Objective
from gpg_vl.models.layout import pack
from gpg_vl.models.load import Processing, load_model, load_processing
from gpg_vl.models.policy import Policy
from gpg_vl.models.requests import Predict, Prefill, Score
from gpg_vl.quickstart import scenes
from gpg_vl.types import Example

SCENE_SEED = 5
"""Odd, so that no scene of the held-out set is among them."""
VOCABULARY = 512
DESCRIBE = "Describe the image."
BATCH = 64
WARMUP_STEPS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stretch of training. The learning rate goes from `first_rate` to `last_rate` on a line."""

    name: str
    steps: int
    first_rate: float
    last_rate: float
    shares: dict[str, float]
    """Of each kind of example in a batch."""


STAGES = (
    Stage(
        name="see",
        steps=1000,
        first_rate=1.5e-3,
        last_rate=1.3e-3,
        shares={"describe": 0.6, "answer": 0.4},
    ),
    Stage(
        name="answer",
        steps=700,
        first_rate=1e-3,
        last_rate=3e-4,
        shares={"describe": 0.1, "answer": 0.9},
    ),
    Stage(
        name="guess",
        steps=300,
        first_rate=3e-4,
        last_rate=3e-4,
        shares={"describe": 0.3, "guess": 0.7},
    ),
)


def question(scene: scenes.Scene) -> str:
    """The prompt as CV-Bench writes it; see `scenes.rows`."""
    options = "\n".join(f"({chr(65 + i)}) {option}" for i, option in enumerate(scene.options))
    return f"{scene.question} Select from the following choices.\n{options}"


def description(scene: scenes.Scene) -> str:
    """`1 2 red box orange ball; 3 4 teal cube`: row and column from 1, box if there is one, colour,
    shape.
    """
    described = []
    for thing in sorted(scene.things, key=lambda thing: (thing.row, thing.column)):
        box = f"{thing.box} box " if thing.box else ""
        described.append(f"{thing.row + 1} {thing.column + 1} {box}{thing.colour} {thing.shape}")
    return "; ".join(described)


def new_checkpoint(folder: Path, seed: int) -> None:
    """A tiny model with random weights and a tokenizer trained on what the scenes say."""
    corpus: list[str] = []
    for number in range(3000):
        scene = scenes.scene(SCENE_SEED, number)
        corpus += [question(scene), description(scene), scene.options[scene.answer]]
        corpus += [DESCRIBE, "user\n", "assistant\n"]

    tokenizer = tiny.tiny_tokenizer(corpus, VOCABULARY)
    model = tiny.tiny_model(tiny.tiny_config(tokenizer, VOCABULARY), seed)
    tiny.save_checkpoint(model, tiny.tiny_processor(tokenizer), folder)


def example(kind: str, number: int, rng: random.Random) -> Example:
    """Scene `number` as an example of a kind.

    A scene without objects cannot be described; its question is answered instead.
    """
    scene = scenes.scene(SCENE_SEED, number)
    prompt, answer = question(scene), scene.options[scene.answer]
    if kind == "describe" and scene.things:
        prompt, answer = DESCRIBE, description(scene)
    elif kind == "guess":
        answer = rng.choice(scene.options)

    return Example(
        id=str(number),
        images=(scenes.png(scenes.draw(scene, SCENE_SEED)),),
        prompt=prompt,
        answer=answer,
        task=kind,
    )


def supervised(
    policy: Policy, processing: Processing, encoder: Encoder, batch: Sequence[Example]
) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """The loss of a batch, and the probability of the first token of each answer, by kind.

    The loss is the policy's own with coefficients that add up to 2: mean per token of descriptions
    plus that of the rest.
    """
    answers = []
    tokens = {"describe": 0, "other": 0}
    kinds = ["describe" if e.task == "describe" else "other" for e in batch]
    for e, kind in zip(batch, kinds, strict=True):
        ids = processing.tokenizer(e.answer, add_special_tokens=False).input_ids
        answers.append([*ids, processing.tokens.ends[0]])
        tokens[kind] += len(answers[-1])

    prompts = [encoder.encode(e) for e in batch]
    packed = pack(prompts, [[answer] for answer in answers])
    lengths = torch.tensor(packed.counts)
    weight_K = torch.tensor([1 / tokens[kind] for kind in kinds]).repeat_interleave(lengths)
    objective = Objective(inputs=Inputs(weight_K), token_loss=gpg().token_loss)
    output = policy(Score(packed=packed, objective=objective))

    firsts = (lengths.cumsum(0) - lengths).tolist()
    chances: dict[str, list[float]] = {}
    for e, first in zip(batch, firsts, strict=True):
        chances.setdefault(e.task, []).append(output.logp_K[first].exp().item())
    return output.loss, chances


@torch.no_grad()
def accuracy(
    policy: Policy, processing: Processing, encoder: Encoder, number: int = 400
) -> dict[str, float]:
    """Share of held-out questions whose likeliest first token is the answer's, per task."""
    right: dict[str, list[bool]] = {task: [] for task in scenes.TASKS}
    for start in range(10**8, 10**8 + number, 100):
        batch = [scenes.scene(SCENE_SEED, i) for i in range(start, start + 100)]
        prompts = []
        for scene in batch:
            picture = scenes.png(scenes.draw(scene, SCENE_SEED))
            asked = Example(id="", images=(picture,), prompt=question(scene), answer="")
            prompts.append(encoder.encode(asked))

        packed = pack(prompts, [[] for _ in prompts])
        states_S_H = policy(Prefill(packed=packed)).states_S_H
        last = torch.tensor(packed.prefix_lengths).cumsum(0) - 1
        logits_B_V = policy(Predict(hidden_B_H=states_S_H[last], temperature=1.0))
        best = logits_B_V.argmax(dim=-1).tolist()

        for scene, token in zip(batch, best, strict=True):
            answer = scene.options[scene.answer]
            ids = processing.tokenizer(answer, add_special_tokens=False).input_ids
            right[scene.task].append(token == ids[0])
    return {task: sum(values) / len(values) for task, values in right.items()}


def pretrain(
    output: Path,
    *,
    seed: int,
    stages: Sequence[Stage],
    start: Path | None,
    first_step: int,
    save_every: int,
) -> Path:
    """Train through `stages` and write checkpoints to `output`/step-N; returns the last.

    start: a checkpoint to begin with instead of random weights; `first_step` is its step.
    """
    if start is None:
        start = output / "step-0"
        new_checkpoint(start, seed)

    model = Model.load(start, device="cpu")
    processing, policy, encoder = model.processing, model.policy, model.encoder()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    began, step = time.perf_counter(), first_step

    for stage in stages:
        chances: dict[str, list[float]] = {}
        for i in range(stage.steps):
            rate = stage.first_rate + (stage.last_rate - stage.first_rate) * i / stage.steps
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step - first_step + 1) / WARMUP_STEPS)

            batch = _draw_batch(stage, step, seed)
            loss, of_batch = supervised(policy, processing, encoder, batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            step += 1
            for kind, values in of_batch.items():
                chances.setdefault(kind, []).extend(values)

            if step % save_every == 0 or i + 1 == stage.steps:
                scores = accuracy(policy, processing, encoder)
                seconds = time.perf_counter() - began
                say(_describe_progress(stage, step, chances, scores, seconds))
                chances = {}
                processor = tiny.tiny_processor(processing.tokenizer)
                tiny.save_checkpoint(policy.model, processor, output / f"step-{step}")
    return output / f"step-{step}"


def _draw_batch(stage: Stage, step: int, seed: int) -> list[Example]:
    """A pure function of its arguments, so that a run from a checkpoint goes on as it would have."""
    rng = random.Random(f"{seed} {step}")
    kinds = rng.choices(list(stage.shares), list(stage.shares.values()), k=BATCH)
    return [example(kind, step * BATCH + place, rng) for place, kind in enumerate(kinds)]


def _describe_progress(
    stage: Stage,
    step: int,
    chances: dict[str, list[float]],
    scores: dict[str, float],
    seconds: float,
) -> str:
    means = "  ".join(f"{kind} {sum(v) / len(v):.2f}" for kind, v in sorted(chances.items()))
    shares = "  ".join(f"{task} {value:.3f}" for task, value in scores.items())
    return (
        f"{stage.name} step {step}  p(first token): {means}  CV-Bench, greedy: {shares}  "
        f"{seconds:.0f} s"
    )


def export(checkpoint: Path, folder: Path) -> None:
    """The checkpoint in bfloat16, as it is shipped."""
    processor = tiny.tiny_processor(load_processing(str(checkpoint)).tokenizer)
    model: Any = load_model(str(checkpoint))
    tiny.save_checkpoint(model.to(torch.bfloat16), processor, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=100)
    names = [stage.name for stage in STAGES]
    parser.add_argument("--stages", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--start",
        type=Path,
        metavar="CHECKPOINT",
        help="begin with this one, at the first of --stages",
    )
    parser.add_argument(
        "--export", type=Path, metavar="FOLDER", help="write the last checkpoint there in bfloat16"
    )
    arguments = parser.parse_args()

    stages = [stage for stage in STAGES if stage.name in arguments.stages]
    first_step = sum(stage.steps for stage in STAGES[: STAGES.index(stages[0])])
    last = pretrain(
        arguments.output,
        seed=arguments.seed,
        stages=stages,
        start=arguments.start,
        first_step=first_step,
        save_every=arguments.save_every,
    )

    if arguments.export:
        export(last, arguments.export)


if __name__ == "__main__":
    main()
