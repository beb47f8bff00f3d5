"""Peak memory of a training process compared with what the plan says, for each way to hold a model.

    python -m benchmarks.memory              (make bench-memory; a quarter of an hour on two cores, up to 6 GB)
    python -m benchmarks.memory --quick      to see that it runs, with a tiny model

A random Qwen2-VL of 105 M weights is trained for two steps of two micro-batches by the program itself, each choice in
processes of its own. On a GPU its allocator says how much was held at once. On a CPU it is the high-water mark of resident
memory above what was resident before the model was loaded: a tiny model is trained first, so that libraries and what they
set up are there already, and freed blocks go back to the system at once (`MALLOC`). Writes
benchmarks/results/memory_cpu.json and .md.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from rich.console import Console

from benchmarks.meter import read_status, reset_peak
from benchmarks.step import folder_of_results

MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
"""A block of more than 64 KB is a mapping of its own, which is gone when it is freed."""
LIMIT = 0.15
"""How far the plan may be off."""
ANSWER = " ".join(["The answer is {answer} because the picture shows it."] * 10)


INTRODUCTION = (
    "A random Qwen2-VL of 105 M weights, two micro-batches a step and process, on {device}. MB are 2^20 bytes. "
    "Made by `python -m benchmarks.memory`, which says how it is measured."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A row of the table: settings over those of `write_config`, and by how many processes they run."""

    name: str
    overrides: tuple[str, ...] = ()
    processes: int = 1
    sampled: bool = False
    """Whether answers are sampled, which costs keys, values and perhaps a copy that answers; else the gold ones are learned."""

    @property
    def settings(self) -> tuple[str, ...]:
        return (*(SAMPLED if self.sampled else SUPERVISED), *self.overrides)


CHECKPOINTING = "model.gradient_checkpointing=true"
LORA = "model.lora_rank=16"
FSDP2, ZERO2, ZERO3 = (f"train.sharding={name}" for name in ("fsdp2", "zero2", "zero3"))
NARROW = ("model.dtype=bfloat16", "model.weights=bfloat16", "train.optimizer=adamw_8bit")
SAMPLED = ("rollout.group_size=4", "rollout.max_new_tokens=32")
SUPERVISED = ("algorithm.name=sft", f"algorithm.response={ANSWER}")
CHOICES = (
    Choice(name="none"),
    Choice(name="none, checkpointing", overrides=(CHECKPOINTING,)),
    Choice(name="none, frozen tower", overrides=("model.freeze=[vision, merger]",)),
    Choice(name="none, LoRA", overrides=(LORA,)),
    Choice(name="none, LoRA, checkpointing", overrides=(LORA, CHECKPOINTING)),
    Choice(name="none, bfloat16", overrides=("model.dtype=bfloat16",)),
    Choice(name="none, bfloat16 weights, 8-bit", overrides=NARROW),
    Choice(name="none, two processes", processes=2),
    Choice(name="fsdp2", overrides=(FSDP2,), processes=2),
    Choice(name="fsdp2, checkpointing", overrides=(FSDP2, CHECKPOINTING), processes=2),
    Choice(name="fsdp2, LoRA", overrides=(FSDP2, LORA), processes=2),
    Choice(name="fsdp2, bfloat16 weights, 8-bit", overrides=(FSDP2, *NARROW), processes=2),
    Choice(name="zero2", overrides=(ZERO2,), processes=2),
    Choice(name="zero2, LoRA", overrides=(ZERO2, LORA), processes=2),
    Choice(name="zero3", overrides=(ZERO3,), processes=2),
    Choice(name="zero3, checkpointing", overrides=(ZERO3, CHECKPOINTING), processes=2),
    Choice(name="none, answers sampled", sampled=True),
    Choice(name="fsdp2, answers sampled", overrides=(FSDP2,), processes=2, sampled=True),
)
"""Another way to hold a model is another line here."""


# ---- one choice, in a process of its own


def measure(config_file: Path, overrides: Sequence[str], warm_up: Sequence[str]) -> dict[str, Any]:
    """What this process held at once, and what the plan says of it, in bytes.

    warm_up: overrides for the run that is made before.
    """
    from accelerate import Accelerator

    _train(config_file, [*overrides, *warm_up], Accelerator(cpu=not torch.cuda.is_available()))
    gc.collect()
    return _train(config_file, overrides, Accelerator(cpu=not torch.cuda.is_available()))


def _train(config_file: Path, overrides: Sequence[str], accelerator: Any) -> dict[str, Any]:
    """By the door of an ordinary run. What comes after the last step is left out: a checkpoint has a peak of its own."""
    from gpg_vl.config import load_config
    from gpg_vl.training import loop, run
    from gpg_vl.training.interrupt import StopRequest
    from gpg_vl.training.prepare import prepare

    config = load_config(config_file, overrides)
    prepared = prepare(config, processes=accelerator.num_processes, console=None)
    found: dict[str, Any] = {"plan": dict(prepared.plan.memory_bytes)}
    before = _resident()

    def measured(**parts: Any) -> Any:
        _let_go_of_the_file(parts["learner"])
        _reset()
        found["loaded"] = _resident() - before
        end = loop.train(**parts | {"hooks": replace(parts["hooks"], checkpoint=lambda *_: None)})
        found["peak"] = _peak() - before
        return end

    console = Console(quiet=True)
    stop = StopRequest(announces=False)
    with patch.object(run, "train", measured):
        run.launch(prepared, accelerator, resume=False, console=console, evaluation=None, stop=stop)
    return found


def _let_go_of_the_file(learner: Any) -> None:
    """What was loaded lies in pages of the file, all of which stay while one vector does, when all matrices have been rounded."""
    for parameter in learner._policy.parameters():
        if type(parameter) is torch.nn.Parameter:
            parameter.data = parameter.data.clone()
    gc.collect()


def _resident() -> int:
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return read_status("VmRSS")


def _reset() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return read_status("VmHWM")


# ---- all of them


def write_model(folder: Path, *, tiny: bool) -> Path:
    """A random Qwen2-VL in the ordinary format: 105 M weights, or a tiny one."""
    from gpg_vl.models import tiny as models
    from gpg_vl.quickstart import scenes

    corpus = [row["prompt"] for row in scenes.rows(1, 64)] + [ANSWER] * 64
    tokenizer = models.tiny_tokenizer(corpus, 1024)
    sizes: dict[str, Any] = {}
    if not tiny:
        sizes = {
            "hidden_size": 768,
            "num_hidden_layers": 14,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "intermediate_size": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [8, 12, 12],
            },
        }
    config = models.tiny_config(tokenizer, 8192, **sizes)
    if not tiny:
        vision = config.vision_config
        vision.depth, vision.embed_dim, vision.num_heads, vision.hidden_size = 6, 384, 6, 768
    model = models.tiny_model(config, seed=0)
    models.save_checkpoint(model, models.tiny_processor(tokenizer), folder)
    return folder


def write_config(folder: Path, *, tiny: bool) -> Path:
    """Two micro-batches a step and process, of one group each; see `SUPERVISED` and `SAMPLED`."""
    from gpg_vl.models.load import load_processing
    from gpg_vl.quickstart import scenes

    data = folder / "train.parquet"
    pq.write_table(pa.Table.from_pylist(list(scenes.rows(1, 16))), data)
    (folder / "length.py").write_text(
        "def length(completion, example):\n"
        "    is_gold = completion.text.startswith('<think>')\n"
        "    return 1.0 if is_gold else len(completion.text) % 7 / 7\n"
    )
    model = write_model(folder / "model", tiny=tiny)
    longest = len(load_processing(str(model)).tokenizer(ANSWER.format(answer="(A)")).input_ids)
    tree = {
        "model": {"path": str(model)},
        "data": {
            "train": str(data),
            "columns": {"id": "idx", "prompt": "prompt", "images": "image", "answer": "answer"},
            "min_pixels": 224 * 224,
        },
        "rollout": {"max_new_tokens": longest + 1},
        "rewards": {"weights": {f"{folder / 'length.py'}:length": 1.0}},
        "train": {"prompts_per_step": 2, "steps": 2, "tokens_per_pass": 280},
        "output": {"folder": str(folder / "run"), "checkpoint_every": 0, "samples_every": 0},
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def run_choice(choice: Choice, config: Path, small: Path) -> list[dict[str, Any]]:
    """What each process of it has found. Raises CalledProcessError, with what was said on the terminal."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable]
        if choice.processes > 1:
            words += ["-m", "torch.distributed.run", "--standalone"]
            words += ["--nproc-per-node", str(choice.processes)]
        words += ["-m", "benchmarks.memory", "--found", folder, "--config", str(config)]
        words += ["--warm-up", str(small), f"output.folder={folder}/run"]
        words += [f"train.prompts_per_step={2 * choice.processes}", *choice.settings]
        subprocess.run(words, env={**os.environ, **MALLOC}, check=True)
        return [json.loads(file.read_text()) for file in sorted(Path(folder).glob("*.json"))]


def as_row(choice: Choice, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The largest of its processes."""
    largest = max(found, key=lambda one: one["peak"])
    predicted = sum(largest["plan"].values())
    return {
        **asdict(choice),
        "predicted": predicted,
        "measured": largest["peak"],
        "error": predicted / largest["peak"] - 1,
        "parts": largest["plan"],
    }


def as_table(rows: Sequence[dict[str, Any]], device: str) -> str:
    lines = [
        "# Peak memory of a process, and the plan's prediction",
        "",
        INTRODUCTION.format(device=device),
        "",
        "| choice | processes | measured, MB | predicted, MB | off by |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['name']} | {row['processes']} | {row['measured'] / 2**20:.0f} | "
            f"{row['predicted'] / 2**20:.0f} | {round(100 * row['error']) or 0:+d} % |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="choices; others keep their rows")
    parser.add_argument("--out", type=Path, default=folder_of_results())
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--warm-up", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.found:
        warm_up = [f"model.path={arguments.warm_up}", f"output.folder={arguments.found}/small"]
        found = measure(arguments.config, arguments.overrides, warm_up)
        file = arguments.found / f"{os.environ.get('RANK', '0')}.json"
        file.write_text(json.dumps(found))
        return

    name = f"memory_{'gpu' if torch.cuda.is_available() else 'cpu'}"
    kept = arguments.out / f"{name}.json"
    rows = {row["name"]: row for row in json.loads(kept.read_text())} if kept.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder), tiny=arguments.quick)
        small = write_model(Path(folder) / "small", tiny=True)
        for choice in CHOICES:
            if arguments.only is None or choice.name in arguments.only:
                rows[choice.name] = as_row(choice, run_choice(choice, config, small))
                print(json.dumps(rows[choice.name]), flush=True)

    ordered = [rows[choice.name] for choice in CHOICES if choice.name in rows]
    device = "a GPU" if torch.cuda.is_available() else "a CPU"
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(ordered, indent=2) + "\n")
    kept.with_suffix(".md").write_text(as_table(ordered, device))
    far = [row["name"] for row in ordered if abs(row["error"]) > LIMIT]
    if far and not arguments.quick:
        sys.exit(f"The plan is off by more than {100 * LIMIT:.0f} % for: {'; '.join(far)}.")


if __name__ == "__main__":
    main()
