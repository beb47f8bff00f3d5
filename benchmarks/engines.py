"""The native engine and vLLM on this machine: rows per second of an evaluation, answers per CPU second of a rollout.

    .venv-vllm/bin/python -m benchmarks.engines            (make bench-engines; minutes, on a CPU)
    .venv-vllm/bin/python -m benchmarks.engines --quick    to see that it runs

Engines take turns in one process, on the base model of the quickstart and its scenes, so that a busy machine slows all of
them alike; ratios are medians over turns. Every turn of a rollout has new weights, as a step of training has: what an engine
remembers of older ones is worth nothing to it. Writes benchmarks/results/engines_cpu.json and .md.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.step import folder_of_results
from gpg_vl.model import Model
from gpg_vl.quickstart import scenes
from gpg_vl.quickstart.run import write_base
from gpg_vl.rollout.engine import Engine, EngineOptions, RolloutRequest
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.types import Example, Prompt

ENGINES = ("native", "vllm", "vllm, features")
SEED = 77


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked in one turn."""

    name: str
    prompts: int
    group_size: int
    temperature: float
    max_new_tokens: int

    @property
    def answers(self) -> int:
        return self.prompts * self.group_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one turn of an engine took."""

    seconds: float
    cpu_seconds: float
    tokens: int


LOADS = (
    Load(name="evaluation, greedy", prompts=64, group_size=1, temperature=0.0, max_new_tokens=8),
    Load(name="rollout, G = 8", prompts=32, group_size=8, temperature=1.0, max_new_tokens=8),
    Load(name="rollout, G = 32", prompts=8, group_size=32, temperature=1.0, max_new_tokens=32),
)


def make_engines(checkpoint: Path) -> dict[str, tuple[Model, Engine]]:
    """Each with a policy of its own whose vision tower is frozen: features are then good for the whole run."""
    made = {}
    for name in ENGINES:
        kind, _, images = name.partition(", ")
        model = Model.load(checkpoint, device="cpu", prepare=_freeze_vision, vision_cache_mb=256)
        options = EngineOptions(slots=128, images="features" if images else "pixels")
        made[name] = (model, model.engine(kind, options=options))
    return made


def _freeze_vision(model: Any, family: Any) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(family.part_of(name) == "language")


def make_prompts(model: Model, number: int) -> list[Prompt]:
    encoder = model.encoder()
    prompts = []
    for place, row in enumerate(scenes.rows(SEED, number)):
        example = Example(
            id=str(place),
            images=(row["image"]["bytes"],),
            prompt=row["prompt"],
            answer=row["answer"],
            choices=tuple(row["choices"]),
        )
        prompts.append(encoder.encode(example))
    return prompts


def take_turn(
    model: Model, engine: Engine, load: Load, prompts: Sequence[Prompt], number: int
) -> Turn:
    """One evaluation, or one rollout with the weights of step `number`; the sync is not timed."""
    version = 0 if load.temperature == 0 else number
    engine.sync(lambda: iter(model.policy.model.state_dict().items()), version)
    sampling = Sampling(
        group_size=load.group_size,
        temperature=load.temperature,
        max_new_tokens=load.max_new_tokens,
        seed=number,
    )
    requests = [
        RolloutRequest(prompt=prompt, draw=draw)
        for draw, prompt in enumerate(prompts[: load.prompts])
    ]

    start, cpu_start = time.perf_counter(), time.process_time()
    answers = engine.generate(requests, sampling)
    return Turn(
        seconds=time.perf_counter() - start,
        cpu_seconds=time.process_time() - cpu_start,
        tokens=sum(len(answer.token_ids) for group in answers for answer in group),
    )


def measure(checkpoint: Path, loads: Sequence[Load], turns: int) -> list[dict[str, Any]]:
    made = make_engines(checkpoint)
    model, _ = made["native"]
    prompts = make_prompts(model, max(load.prompts for load in loads))
    rows = []
    for load in loads:
        taken: dict[str, list[Turn]] = {name: [] for name in ENGINES}
        for number in range(turns + 1):
            for name in ENGINES:
                turn = take_turn(*made[name], load, prompts, number)
                # the first turn allocates and compiles
                if number:
                    taken[name].append(turn)
        rows += [
            {
                "load": asdict(load),
                "engine": name,
                "answers_per_second": median(load.answers / t.seconds for t in taken[name]),
                "answers_per_cpu_second": median(load.answers / t.cpu_seconds for t in taken[name]),
                "tokens_per_second": median(t.tokens / t.seconds for t in taken[name]),
                "speed_over_native": median(
                    native.seconds / t.seconds
                    for native, t in zip(taken["native"], taken[name], strict=True)
                ),
                "turns": turns,
            }
            for name in ENGINES
        ]
    return rows


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Pure: what is printed follows from the rows alone."""
    lines = [
        "# Engines on a CPU",
        "",
        (
            "The base model of the quickstart (1.25 M parameters, float32, tower frozen), its scenes, two cores. Medians of "
            f"{rows[0]['turns']} turns; engines take turns in one process. Made by `python -m benchmarks.engines`."
        ),
        "",
        "| load | engine | answers per second | answers per CPU second | tokens per second | speed over native |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['load']['name']} | {row['engine']} | {row['answers_per_second']:.0f} | "
            f"{row['answers_per_cpu_second']:.0f} | {row['tokens_per_second']:.0f} | "
            f"{row['speed_over_native']:.2f} |"
        )
    lines += [
        "",
        (
            "A model this small measures what an engine does around the model, not the model: vLLM's scheduling of each step in "
            "Python is most of its time here. It says nothing of a GPU and a model of billions."
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=7, help="measured turns of each engine")
    parser.add_argument("--quick", action="store_true", help="one small turn")
    parser.add_argument("--out", type=Path, default=folder_of_results(), metavar="DIR")
    arguments = parser.parse_args()

    loads: Sequence[Load] = LOADS
    if arguments.quick:
        loads = (Load(name="quick", prompts=2, group_size=2, temperature=1.0, max_new_tokens=2),)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "base"
        write_base(checkpoint)
        rows = measure(checkpoint, loads, 1 if arguments.quick else arguments.turns)

    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {"cores": os.cpu_count(), "torch": torch.__version__, "rows": rows}
    (arguments.out / "engines_cpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.out / "engines_cpu.md").write_text(to_markdown(rows))
    print(to_markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
