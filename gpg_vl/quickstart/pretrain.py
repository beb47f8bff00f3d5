"""How the quickstart's base model was made: supervised, from random weights, on drawn scenes of a seed of their own.

    python -m gpg_vl.quickstart.pretrain --output runs/pretrain

Most examples teach sight: "Describe the image." is answered with every object's row, column, box, colour and shape. The
rest are CV-Bench questions with the right option's words as the answer; the run stops as soon as these begin to be
answered better than by guessing. What is left to learn is what GPG teaches. The weights in `base/` are the checkpoint of
the last step, in bfloat16.
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
"""No other set of scenes has it."""
VOCABULARY = 512
DESCRIBE = "Describe the image."
STEPS = 1400
DECAY_STEPS = 4000
"""The length of the cosine that the learning rate follows; training stops long before its end."""
PEAK_RATE = 1.5e-3
BATCH = 64
ASKED_SHARE = 0.4


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
        corpus += [question(scene), description(scene), scene.options[scene.answer], DESCRIBE, "user\n", "assistant\n"]
    tokenizer = tiny.tiny_tokenizer(corpus, VOCABULARY)
    tiny.save_checkpoint(tiny.tiny_model(tiny.tiny_config(tokenizer, VOCABULARY), seed), tiny.tiny_processor(tokenizer), folder)


def examples(first: int, number: int, rng: random.Random) -> list[tuple[bool, Example, str]]:
    """(is a CV-Bench question, example, answer) for `number` scenes from `first` on."""
    made = []
    for i in range(first, first + number):
        scene = scenes.scene(SCENE_SEED, i)
        asked = rng.random() < ASKED_SHARE or not scene.things
        answer = scene.options[scene.answer] if asked else description(scene)
        made.append((asked, Example(id=str(i), images=(scenes.png(scenes.draw(scene, SCENE_SEED)),), answer=answer,
                                    prompt=question(scene) if asked else DESCRIBE), answer))
    return made


def supervised_loss(policy: Policy, processing: Processing, prompts: Sequence[Prompt], answers: Sequence[str], asked: Sequence[bool]) -> torch.Tensor:
    """Mean log-loss per token of descriptions plus that of answers: the policy's own loss with coefficients that add up to 1."""
    ids = [[*processing.tokenizer(answer, add_special_tokens=False).input_ids, processing.tokens.ends[0]] for answer in answers]
    tokens = {kind: sum(len(t) for t, a in zip(ids, asked, strict=True) if a == kind) for kind in (True, False)}
    rows = pack(prompts, [[t] for t in ids], pad=processing.tokens.pad, shared_prefix=True)
    weights = torch.tensor([1 / tokens[kind] for kind in asked])
    return policy(rows, weights.repeat_interleave(rows.lengths_PG)).loss


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
    started = time.perf_counter()
    for step in range(steps):
        rate = PEAK_RATE * min(1.0, (step + 1) / 50) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / DECAY_STEPS)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        asked, batch, answers = zip(*examples(step * BATCH, BATCH, rng), strict=True)
        loss = supervised_loss(policy, processing, [encoder.encode(e) for e in batch], answers, asked)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % save_every == 0 or step + 1 == steps:
            scores = "  ".join(f"{task} {value:.3f}" for task, value in accuracy(policy, processing, encoder).items())
            print(f"step {step + 1}  loss {loss.item():.3f}  {scores}  {time.perf_counter() - started:.0f} s", flush=True)
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
