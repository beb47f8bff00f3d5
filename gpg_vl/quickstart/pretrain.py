"""How the quickstart's base model was made: supervised, from random weights, on drawn scenes of a seed of their own.

    python -m gpg_vl.quickstart.pretrain --output runs/pretrain

Three kinds of examples:

- `describe`: "Describe the image." is answered with every object's row, column, box, colour and shape;
- skills: the four things that CV-Bench asks for, in short questions without options, answered rightly;
- `guess`: CV-Bench's own prompts, answered with one of the options *at random*.

So the base model sees, and knows what an answer to CV-Bench looks like, but answers it by guessing: it has never been told
that these prompts ask for what it can see. That is what GPG teaches it, by reward alone. The weights in `base/` are the
checkpoint of the last step, in bfloat16.
"""

import argparse
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from gpg_vl.data import scenes
from gpg_vl.models import tiny
from gpg_vl.models.encode import Encoder, PixelLimits, PromptStyle
from gpg_vl.models.layout import pack
from gpg_vl.models.load import Processing, load_model, load_processing
from gpg_vl.models.policy import Policy
from gpg_vl.types import Example, Prompt

SCENE_SEED = 5
"""Odd, so that no scene of the held-out set is among them."""
VOCABULARY = 512
DESCRIBE = "Describe the image."
STEPS = 1600
PEAK_RATE = 1.5e-3
BATCH = 64
SHARES = {"describe": 0.3, "Count": 0.12, "Relation": 0.15, "Depth": 0.12, "Distance": 0.16, "guess": 0.15}
"""Of each kind in a batch; the skills go by the names of their tasks."""
SKILLS = {"Relation": "where is the red box with respect to the blue box?", "Depth": "Which box is closer to the camera?",
          "Distance": "Which object is closer to the red box?"}


def question(scene: scenes.Scene) -> str:
    """The prompt as CV-Bench writes it; see `scenes.rows`."""
    return scene.question + " Select from the following choices.\n" + "\n".join(f"({chr(65 + i)}) {o}" for i, o in enumerate(scene.options))


def description(scene: scenes.Scene) -> str:
    """`1 2 red box orange ball; 3 4 teal cube`: row and column from 1, box if there is one, colour, shape."""
    ordered = sorted(scene.things, key=lambda thing: (thing.row, thing.column))
    return "; ".join(f"{t.row + 1} {t.column + 1} {t.box + ' box ' if t.box else ''}{t.colour} {t.shape}" for t in ordered)


def new_checkpoint(folder: Path, seed: int) -> None:
    """A tiny model with random weights and a tokenizer trained on what the scenes say."""
    corpus: list[str] = []
    for number in range(3000):
        scene = scenes.scene(SCENE_SEED, number)
        corpus += [question(scene), description(scene), scene.options[scene.answer], DESCRIBE, *SKILLS.values(), "user\n", "assistant\n"]
    tokenizer = tiny.tiny_tokenizer(corpus, VOCABULARY)
    tiny.save_checkpoint(tiny.tiny_model(tiny.tiny_config(tokenizer, VOCABULARY), seed), tiny.tiny_processor(tokenizer), folder)


def example(kind: str, number: int, rng: random.Random) -> Example:
    """An example of a kind, of the first scene from `number` on that has what the kind needs."""
    while kind in scenes.TASKS and scenes.TASKS[number % 4] != kind:
        number += 1
    scene = scenes.scene(SCENE_SEED, number)
    if kind == "guess":
        prompt, answer = question(scene), rng.choice(scene.options)
    elif kind == "describe" and scene.things:
        prompt, answer = DESCRIBE, description(scene)
    else:
        prompt, answer = SKILLS.get(scene.task, scene.question), scene.options[scene.answer]
    return Example(id=str(number), images=(scenes.png(scenes.draw(scene, SCENE_SEED)),), prompt=prompt, answer=answer, task=kind)


def supervised(policy: Policy, processing: Processing, encoder: Encoder, batch: Sequence[Example]) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """The loss of a batch, and the probability of the first token of each answer, by kind.

    The loss is the policy's own with coefficients that add up to 2: mean per token of descriptions plus that of the rest.
    """
    ids = [[*processing.tokenizer(e.answer, add_special_tokens=False).input_ids, processing.tokens.ends[0]] for e in batch]
    long = [e.task == "describe" for e in batch]
    tokens = {kind: sum(len(t) for t, is_long in zip(ids, long, strict=True) if is_long == kind) for kind in (True, False)}
    rows = pack([encoder.encode(e) for e in batch], [[t] for t in ids], pad=processing.tokens.pad, shared_prefix=True)
    output = policy(rows, torch.tensor([1 / tokens[kind] for kind in long]).repeat_interleave(rows.lengths_PG))
    firsts = (rows.lengths_PG.cumsum(0) - rows.lengths_PG).tolist()
    chances: dict[str, list[float]] = {}
    for e, first in zip(batch, firsts, strict=True):
        chances.setdefault(e.task, []).append(output.logp_K[first].exp().item())
    return output.loss, chances


@torch.no_grad()
def accuracy(policy: Policy, processing: Processing, encoder: Encoder, number: int = 400) -> dict[str, float]:
    """Share of held-out questions whose likeliest first token is the answer's, per task."""
    right: dict[str, list[bool]] = {task: [] for task in scenes.TASKS}
    for start in range(10**8, 10**8 + number, 100):
        batch = [scenes.scene(SCENE_SEED, i) for i in range(start, start + 100)]
        prompts = [encoder.encode(Example(id="", images=(scenes.png(scenes.draw(s, SCENE_SEED)),), prompt=question(s), answer="")) for s in batch]
        rows = pack(prompts, [[()] for _ in prompts], pad=processing.tokens.pad, shared_prefix=True)
        hidden = policy.hidden_states(rows)
        last = (rows.segments_B_S == 0).sum(dim=1) - 1
        best = policy.logits(hidden[torch.arange(len(batch)), last], temperature=1.0).argmax(dim=-1).tolist()
        for scene, token in zip(batch, best, strict=True):
            right[scene.task].append(token == processing.tokenizer(scene.options[scene.answer], add_special_tokens=False).input_ids[0])
    return {task: sum(values) / len(values) for task, values in right.items()}


def pretrain(output: Path, *, seed: int, steps: int, save_every: int) -> None:
    """Train from scratch and write checkpoints to `output`/step-N."""
    new_checkpoint(output / "step-0", seed)
    processing = load_processing(str(output / "step-0"))
    policy = Policy(load_model(str(output / "step-0")), processing.family, processing.tokens)
    encoder = Encoder(processing=processing, style=PromptStyle(), limits=PixelLimits(), root=None)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    rng = random.Random(seed)
    started, chances = time.perf_counter(), {}
    for step in range(steps):
        rate = PEAK_RATE * min(1.0, (step + 1) / 50) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / STEPS)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        kinds = rng.choices(list(SHARES), list(SHARES.values()), k=BATCH)
        loss, seen = supervised(policy, processing, encoder, [example(kind, (step * BATCH + i) * 4, rng) for i, kind in enumerate(kinds)])
        for kind, values in seen.items():
            chances.setdefault(kind, []).extend(values)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % save_every == 0 or step + 1 == steps:
            scores = "  ".join(f"{task} {value:.3f}" for task, value in accuracy(policy, processing, encoder).items())
            told = "  ".join(f"{kind} {sum(v) / len(v):.2f}" for kind, v in sorted(chances.items()))
            print(f"step {step + 1}  loss {loss.item():.3f}  p(answer): {told}  CV-Bench: {scores}  {time.perf_counter() - started:.0f} s", flush=True)
            chances = {}
            tiny.save_checkpoint(policy.model, tiny.tiny_processor(processing.tokenizer), output / f"step-{step + 1}")


def export(checkpoint: Path, folder: Path) -> None:
    """The checkpoint in bfloat16, as it is shipped."""
    processing = load_processing(str(checkpoint))
    tiny.save_checkpoint(load_model(str(checkpoint)).to(torch.bfloat16), tiny.tiny_processor(processing.tokenizer), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the last checkpoint there in bfloat16")
    arguments = parser.parse_args()
    pretrain(arguments.output, seed=arguments.seed, steps=arguments.steps, save_every=arguments.save_every)
    if arguments.export:
        export(arguments.output / f"step-{arguments.steps}", arguments.export)


if __name__ == "__main__":
    main()
