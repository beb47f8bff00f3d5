"""Evaluation beside transformers' own `generate`: rows per CPU second, from encoded pictures to texts, greedy.

    python -m benchmarks.evaluation                  (minutes, on a CPU)
    python -m benchmarks.evaluation --quick          to see that it runs

Ours is what an evaluation asks (`gpg_vl.eval.generate.engine_responder`). The other side does what its documentation shows: one
call of the checkpoint's processor per batch, padded on the left, one of `generate`, one of `batch_decode`. Both get the same PNG
files, batch size and longest answer; greedy answers are compared. Where there are several answers to a picture, they are sampled,
and the other side asks for `num_return_sequences`. They take turns in one process, so that a busy machine slows both
alike; a ratio is the median over turns. Writes benchmarks/results/evaluation_cpu.json and .md; with --load, what the files say
of the other loads stays.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from benchmarks import anchor
from benchmarks.step import folder_of_results
from gpg_vl.eval.generate import engine_responder, eval_options
from gpg_vl.eval.predictions import Failed
from gpg_vl.eval.settings import EvalSettings
from gpg_vl.model import Model
from gpg_vl.models.torchvision_shim import ensure_torchvision
from gpg_vl.prompting import PixelLimits, PromptStyle
from gpg_vl.quickstart import scenes
from gpg_vl.quickstart.lessons import DESCRIBE
from gpg_vl.quickstart.run import write_base
from gpg_vl.types import Example, Message

SEED = 77
LIMITS = PixelLimits(min_pixels=56 * 56, max_pixels=28 * 28 * 256)
"""Of both sides: those of the anchor's processor."""

Answer = Callable[[Sequence[Example]], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked in one turn.

    Example: `Load(name="quickstart", rows=128, max_new_tokens=8)`
    """

    name: str
    rows: int
    max_new_tokens: int
    batch_size: int = 16
    answers: int = 1
    """To each row; several are sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Rows per CPU second of both sides in one turn, and how many answers differ."""

    ours: float
    theirs: float
    differ: int
    """Of greedy answers."""

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


LOADS = (
    Load(name="quickstart", rows=128, max_new_tokens=8),
    Load(name="short", rows=16, max_new_tokens=8),
    Load(name="describe", rows=128, max_new_tokens=96),
    Load(name="eight", rows=8, max_new_tokens=8, batch_size=8, answers=8),
)
WORDS = {
    "quickstart": "the quickstart's base model (1.25 M weights) and its scenes, answers that end by themselves",
    "short": "the anchor of `make bench-peers` (45 M weights), pictures of 448x448, 305 tokens of prompt",
    "describe": "the quickstart's base model is asked to describe each scene: answers of unequal length, up to sixty tokens",
    "eight": "as short, but with eight sampled answers to each picture",
}


def make_examples(load: Load) -> list[Example]:
    """Rows as an evaluation renders them, each with a picture of its own."""
    if load.name in ("quickstart", "describe"):
        rows = scenes.rows(SEED, load.rows)
        given = [(row["image"]["bytes"], row["prompt"]) for row in rows]
        if load.name == "describe":
            given = [(png, DESCRIBE) for png, _ in given]
    else:
        given = [(q.png, q.text) for q in anchor.questions(anchor.ANCHOR, load.rows)]
    return [
        Example(id=str(n), images=(png,), prompt=(_user(text),), answer="")
        for n, (png, text) in enumerate(given)
    ]


def _user(text: str) -> Message:
    return Message(role="user", content=f"<image>{text}")


def our_side(checkpoint: Path, load: Load) -> Answer:
    model = Model.load(checkpoint, device="cpu")
    settings = EvalSettings(
        task="bench",
        prompt="bench",
        style=PromptStyle(),
        max_new_tokens=load.max_new_tokens,
        batch_size=load.batch_size,
        repeats=load.answers,
        temperature=1.0 if load.answers > 1 else 0.0,
        limits=LIMITS,
    )
    engine = model.engine(options=eval_options(settings))
    respond = engine_responder(engine, model.processing, settings)

    def answer(examples: Sequence[Example]) -> list[str]:
        texts = []
        for answers in respond(examples):
            assert not isinstance(answers, Failed), answers
            texts += [answer.text for answer in answers]
        return texts

    return answer


def their_side(checkpoint: Path, load: Load) -> Answer:
    ensure_torchvision()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor: Any = AutoProcessor.from_pretrained(checkpoint)
    size = {"shortest_edge": LIMITS.min_pixels, "longest_edge": LIMITS.max_pixels}

    def answer(examples: Sequence[Example]) -> list[str]:
        texts: list[str] = []
        for batch in _batches(examples, load.batch_size):
            pictures = [_open(example) for example in batch]
            inputs = processor(
                images=pictures,
                text=[_render(processor, example) for example in batch],
                size=size,
                padding=True,
                padding_side="left",
                return_tensors="pt",
            )
            tokens = model.generate(
                **inputs,
                do_sample=load.answers > 1,
                num_return_sequences=load.answers,
                max_new_tokens=load.max_new_tokens,
            )
            new = tokens[:, inputs["input_ids"].shape[1] :]
            texts += processor.batch_decode(new, skip_special_tokens=True)
        return texts

    return answer


def _open(example: Example) -> Image.Image:
    (png,) = example.images
    assert isinstance(png, bytes)
    return Image.open(io.BytesIO(png)).convert("RGB")


def _render(processor: Any, example: Example) -> str:
    message = example.prompt[0]
    assert isinstance(message, Message)
    text = message.content.removeprefix("<image>")
    content = [{"type": "image"}, {"type": "text", "text": text}]
    turns = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def _batches(examples: Sequence[Example], size: int) -> Iterable[Sequence[Example]]:
    return (examples[start : start + size] for start in range(0, len(examples), size))


def measure(checkpoint: Path, load: Load, turns: int) -> list[Turn]:
    """The sides change places from turn to turn. The first turn allocates, and is not kept."""
    sides = {"ours": our_side(checkpoint, load), "theirs": their_side(checkpoint, load)}
    examples = make_examples(load)
    measured = []
    for number in range(turns + 1):
        rates: dict[str, float] = {}
        said: dict[str, list[str]] = {}
        for name in sorted(sides, reverse=bool(number % 2)):
            start = time.process_time()
            said[name] = sides[name](examples)
            rates[name] = load.rows / (time.process_time() - start)
        pairs = zip(said["ours"], said["theirs"], strict=True)
        differ = sum(a != b for a, b in pairs) if load.answers == 1 else 0
        measured.append(Turn(**rates, differ=differ))
    return measured[1:]


def as_row(load: Load, turns: Sequence[Turn]) -> dict[str, Any]:
    return {
        "load": asdict(load),
        "ours": median(turn.ours for turn in turns),
        "theirs": median(turn.theirs for turn in turns),
        "ratio": median(turn.ratio for turn in turns),
        "lowest": min(turn.ratio for turn in turns),
        "highest": max(turn.ratio for turn in turns),
        "differ": max(turn.differ for turn in turns),
        "turns": len(turns),
    }


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Pure: what is printed follows from the rows alone."""
    lines = [
        "# Evaluation beside `generate`",
        "",
        (
            "Rows per CPU second, greedy, float32, from PNG files to texts; ratios are medians over paired turns (lowest to "
            "highest). The machine was busy with other work, which slows CPU seconds too: ratios mean something, rows per "
            "second little. Made by `python -m benchmarks.evaluation`."
        ),
        "",
        "| load | rows | answers each | longest answer | gpg_vl | generate | ratio | turns | answers that differ |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        load = row["load"]
        cells = [
            load["name"],
            load["rows"],
            load["answers"],
            load["max_new_tokens"],
            f"{row['ours']:.2f}",
            f"{row['theirs']:.2f}",
            f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})",
            row["turns"],
            row["differ"] if load["answers"] == 1 else "sampled",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", *(f"- **{row['load']['name']}**: {WORDS[row['load']['name']]}." for row in rows)]
    return "\n".join(lines) + "\n"


def make_checkpoint(load: Load, folder: Path) -> Path:
    if load.name in ("short", "eight"):
        return anchor.checkpoint(folder, anchor.ANCHOR.vocabulary)
    write_base(folder / "base")
    return folder / "base"


def _read_others(folder: Path, load: str) -> list[dict[str, Any]]:
    """What was measured of other loads before."""
    file = folder / "evaluation_cpu.json"
    if not file.is_file():
        return []
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return [row for row in rows if row["load"]["name"] != load]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=7, help="measured turns of each side")
    parser.add_argument("--load", choices=[load.name for load in LOADS], help="this one alone")
    parser.add_argument("--quick", action="store_true", help="one small turn")
    parser.add_argument("--out", type=Path, default=folder_of_results(), metavar="DIR")
    arguments = parser.parse_args()

    loads: Sequence[Load] = [load for load in LOADS if arguments.load in (None, load.name)]
    if arguments.quick:
        loads = (Load(name="quickstart", rows=4, max_new_tokens=2, batch_size=2),)
    rows = _read_others(arguments.out, arguments.load) if arguments.load else []
    with tempfile.TemporaryDirectory() as folder:
        for load in loads:
            place = Path(folder) / load.name
            place.mkdir()
            checkpoint = make_checkpoint(load, place)
            turns = measure(checkpoint, load, 1 if arguments.quick else arguments.turns)
            rows.append(as_row(load, turns))

    names = [load.name for load in LOADS]
    rows.sort(key=lambda row: names.index(row["load"]["name"]))
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {"cores": os.cpu_count(), "torch": torch.__version__, "rows": rows}
    (arguments.out / "evaluation_cpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.out / "evaluation_cpu.md").write_text(to_markdown(rows))
    print(to_markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
