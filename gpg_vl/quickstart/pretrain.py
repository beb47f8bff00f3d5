"""How the quickstart's base model was made: supervised, from random weights, on drawn scenes of a seed of their own.

    python -m gpg_vl.quickstart.pretrain --output runs/pretrain

Three kinds of examples in three stages (`STAGES`):

- `describe`: "Describe the image." is answered with every object's row, column, box, colour and shape;
- `answer`: a CV-Bench prompt is answered with the words of the right option;
- `guess`: a CV-Bench prompt is answered with the words of an option drawn at random.

The model first learns to see, then to answer, and is then spoiled: a last stage of careless answers leaves it with its sight
and with the form of an answer, but little better than guessing. That is the base model from which GPG starts, with nothing but
a reward.

The weights in `base/` went through these stages, 2,000 steps in all, in bfloat16. They were made while the drawing of the
scenes was still being tuned (boxes in Relation, places in Distance, the parity rule came in between), so that running the
script again gives a model of the same kind and not the same numbers.
"""

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpg_vl.models import tiny
from gpg_vl.models.encode import Encoder
from gpg_vl.models.layout import pack
from gpg_vl.models.load import Processing, load_model, load_processing
from gpg_vl.models.policy import Policy
from gpg_vl.prompting import PixelLimits, PromptStyle
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
    return (
        scene.question
        + " Select from the following choices.\n"
        + "\n".join(f"({chr(65 + i)}) {o}" for i, o in enumerate(scene.options))
    )


def description(scene: scenes.Scene) -> str:
    """`1 2 red box orange ball; 3 4 teal cube`: row and column from 1, box if there is one, colour, shape."""
    ordered = sorted(scene.things, key=lambda thing: (thing.row, thing.column))
    return "; ".join(
        f"{t.row + 1} {t.column + 1} {t.box + ' box ' if t.box else ''}{t.colour} {t.shape}"
        for t in ordered
    )


def new_checkpoint(folder: Path, seed: int) -> None:
    """A tiny model with random weights and a tokenizer trained on what the scenes say."""
    corpus: list[str] = []
    for number in range(3000):
        scene = scenes.scene(SCENE_SEED, number)
        corpus += [
            question(scene),
            description(scene),
            scene.options[scene.answer],
            DESCRIBE,
            "user\n",
            "assistant\n",
        ]
    tokenizer = tiny.tiny_tokenizer(corpus, VOCABULARY)
    tiny.save_checkpoint(
        tiny.tiny_model(tiny.tiny_config(tokenizer, VOCABULARY), seed),
        tiny.tiny_processor(tokenizer),
        folder,
    )


def example(kind: str, number: int, rng: random.Random) -> Example:
    """Scene `number` as an example of a kind. A scene without objects cannot be described; its question is answered instead."""
    scene = scenes.scene(SCENE_SEED, number)
    if kind == "describe" and scene.things:
        prompt, answer = DESCRIBE, description(scene)
    else:
        prompt, answer = (
            question(scene),
            rng.choice(scene.options) if kind == "guess" else scene.options[scene.answer],
        )
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

    The loss is the policy's own with coefficients that add up to 2: mean per token of descriptions plus that of the rest.
    """
    ids = [
        [
            *processing.tokenizer(e.answer, add_special_tokens=False).input_ids,
            processing.tokens.ends[0],
        ]
        for e in batch
    ]
    long = [e.task == "describe" for e in batch]
    tokens = {
        kind: sum(len(t) for t, is_long in zip(ids, long, strict=True) if is_long == kind)
        for kind in (True, False)
    }
    packed = pack([encoder.encode(e) for e in batch], [[t] for t in ids])
    lengths = torch.tensor(packed.counts)
    output = policy(
        packed, torch.tensor([1 / tokens[kind] for kind in long]).repeat_interleave(lengths)
    )
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
        prompts = [
            encoder.encode(
                Example(
                    id="",
                    images=(scenes.png(scenes.draw(s, SCENE_SEED)),),
                    prompt=question(s),
                    answer="",
                )
            )
            for s in batch
        ]
        packed = pack(prompts, [[] for _ in prompts])
        states_S_H, _ = policy.prefixes(packed)
        last = torch.tensor(packed.prefix_lengths).cumsum(0) - 1
        best = policy.logits(states_S_H[last], temperature=1.0).argmax(dim=-1).tolist()
        for scene, token in zip(batch, best, strict=True):
            right[scene.task].append(
                token
                == processing.tokenizer(
                    scene.options[scene.answer], add_special_tokens=False
                ).input_ids[0]
            )
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
    processing = load_processing(str(start))
    policy = Policy(load_model(str(start)), processing.family, processing.tokens)
    encoder = Encoder(processing=processing, style=PromptStyle(), limits=PixelLimits(), root=None)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    began, step = time.perf_counter(), first_step
    for stage in stages:
        chances: dict[str, list[float]] = {}
        for i in range(stage.steps):
            rng = random.Random(f"{seed} {step}")
            rate = stage.first_rate + (stage.last_rate - stage.first_rate) * i / stage.steps
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step - first_step + 1) / WARMUP_STEPS)
            kinds = rng.choices(list(stage.shares), list(stage.shares.values()), k=BATCH)
            loss, seen = supervised(
                policy,
                processing,
                encoder,
                [example(k, step * BATCH + j, rng) for j, k in enumerate(kinds)],
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            step += 1
            for kind, values in seen.items():
                chances.setdefault(kind, []).extend(values)
            if step % save_every == 0 or i + 1 == stage.steps:
                told = "  ".join(
                    f"{kind} {sum(v) / len(v):.2f}" for kind, v in sorted(chances.items())
                )
                scores = "  ".join(
                    f"{task} {value:.3f}"
                    for task, value in accuracy(policy, processing, encoder).items()
                )
                print(
                    f"{stage.name} step {step}  p(first token): {told}  CV-Bench, greedy: {scores}  "
                    f"{time.perf_counter() - began:.0f} s",
                    flush=True,
                )
                chances = {}
                tiny.save_checkpoint(
                    policy.model, tiny.tiny_processor(processing.tokenizer), output / f"step-{step}"
                )
    return output / f"step-{step}"


def export(checkpoint: Path, folder: Path) -> None:
    """The checkpoint in bfloat16, as it is shipped."""
    processing = load_processing(str(checkpoint))
    model: Any = load_model(str(checkpoint))
    tiny.save_checkpoint(
        model.to(torch.bfloat16), tiny.tiny_processor(processing.tokenizer), folder
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument(
        "--stages", nargs="+", choices=[s.name for s in STAGES], default=[s.name for s in STAGES]
    )
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
