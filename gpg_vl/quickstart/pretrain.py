"""The script that made the quickstart's base model: supervised training from random weights on the lessons of `lessons.py`.

    python -m gpg_vl.quickstart.pretrain --output runs/quickstart_base

draws the lessons, makes a tokenizer and random weights, runs `gpg-vl train configs/quickstart_base.yaml` on each course in
turn, first on text alone and then on pictures, and writes the last weights in bfloat16 to `base/`, which is what
gpg_vl/quickstart/base/ holds. The same command resumes after a stop or
a kill. Two runs on one machine give the same file: drawing, training and resuming are bit-for-bit reproducible.
"""

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from gpg_vl.console import say
from gpg_vl.errors import RunError
from gpg_vl.models import tiny
from gpg_vl.models.load import load_model, load_processing
from gpg_vl.quickstart import scenes
from gpg_vl.quickstart.lessons import SEED, SIGHT, WORDS, lesson
from gpg_vl.quickstart.run import TEST_SEED

VOCABULARY = 768
CORPUS = 3_000
"""Number of lessons of each course used to train the tokenizer."""
HELD_OUT = 400
"""Number of scenes of the four CV-Bench tasks used for evaluation during pre-training."""
CONFIG = Path(__file__).parents[2] / "configs" / "quickstart_base.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A sequence of lessons and the settings that differ from the config."""

    name: str
    shares: Mapping[str, int]
    lessons: int
    settings: tuple[str, ...] = ()


COURSES = (
    Course(
        name="words",
        shares=WORDS,
        lessons=16_000,
        settings=("train.steps=400", "eval.task=null", "eval.data=null", "eval.every=0"),
    ),
    Course(name="sight", shares=SIGHT, lessons=64_000),
)
_COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("images", pa.list_(pa.binary())),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("task", pa.string()),
    ]
)


def write_lessons(file: Path, course: Course, number: int) -> None:
    """Lessons as rows of a data set, drawn by as many processes as there are cores. An existing file is kept."""
    if file.exists():
        return

    say(f"drawing {number} lessons into {file}")
    partial, row = file.with_suffix(".partial"), functools.partial(_row, course.shares)
    with (
        get_context("spawn").Pool(os.cpu_count()) as pool,
        pq.ParquetWriter(partial, _COLUMNS) as writer,
    ):
        for start in range(0, number, 4096):
            numbers = range(start, min(start + 4096, number))
            rows = pool.map(row, numbers, chunksize=64)
            writer.write_table(pa.Table.from_pylist(rows, _COLUMNS))
    partial.replace(file)


def _row(shares: Mapping[str, int], number: int) -> dict[str, Any]:
    drawn = lesson(shares, SEED, number)
    return {
        "id": str(number),
        "images": [drawn.picture] if drawn.picture else [],
        "prompt": drawn.prompt,
        "answer": drawn.answer,
        "task": drawn.kind,
    }


def write_start(folder: Path, lessons: Sequence[Path], seed: int) -> None:
    """Write a tiny model with random weights, and a tokenizer trained on the texts of the lessons."""
    if (folder / "config.json").exists():
        return

    corpus = ["user\n", "assistant\n"]
    for file in lessons:
        rows = pq.read_table(file, columns=["prompt", "answer"]).slice(0, CORPUS).to_pylist()
        corpus += [text for row in rows for text in (row["prompt"], row["answer"])]

    # include the worlds' questions, so that their words are not split into letters
    for number in range(200):
        scene = scenes.scene(SEED, number)
        corpus += [scene.question, *scene.options]

    tokenizer = tiny.tiny_tokenizer(corpus, VOCABULARY)
    model = tiny.tiny_model(tiny.tiny_config(tokenizer, VOCABULARY), seed)
    tiny.save_checkpoint(model, tiny.tiny_processor(tokenizer), folder)


def export(checkpoint: Path, folder: Path) -> None:
    """The checkpoint in bfloat16, as it is shipped."""
    processor = tiny.tiny_processor(load_processing(str(checkpoint)).tokenizer)
    model: Any = load_model(str(checkpoint))
    tiny.save_checkpoint(model.to(torch.bfloat16), processor, folder)


def pretrain(output: Path, *, seed: int, share: float, settings: Sequence[str]) -> Path:
    """Draw, train, and export; returns the folder of the base model. Resumes an interrupted run.

    share: share of the lessons of each course; below 1 for a quick test.
    """
    output.mkdir(parents=True, exist_ok=True)
    drawn = [output / f"{course.name}.parquet" for course in COURSES]
    for course, file in zip(COURSES, drawn, strict=True):
        write_lessons(file, course, max(1, round(share * course.lessons)))
    write_start(output / "start", drawn, seed)

    held_out = output / "test.parquet"
    if not held_out.exists():
        pq.write_table(pa.Table.from_pylist(list(scenes.rows(TEST_SEED, HELD_OUT))), held_out)

    model = output / "start"
    for course, file in zip(COURSES, drawn, strict=True):
        run = output / f"run_{course.name}"
        _train(
            run,
            f"train.seed={seed}",
            f"model.path={model}",
            f"data.train={file}",
            f"eval.data={held_out}",
            *course.settings,
            *settings,
        )
        model = sorted((run / "checkpoints").glob("step-*"))[-1] / "model"

    export(model, output / "base")
    return output / "base"


def _train(run: Path, *settings: str) -> None:
    command = [sys.executable, "-m", "gpg_vl", "train", str(CONFIG)]
    command += [*settings, f"output.folder={run}"]
    if (run / "metrics.jsonl").exists():
        command.append("--resume")
    if code := subprocess.run(command, check=False).returncode:
        raise RunError(
            f"Training the base model ended with exit code {code}; its message is above. "
            f"Start the same command again to resume from the last checkpoint."
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the lessons that are drawn")
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help="for gpg-vl train")
    arguments = parser.parse_args()

    base = pretrain(
        arguments.output,
        seed=arguments.seed,
        share=arguments.share,
        settings=arguments.settings,
    )
    say(f"the base model: {base}")


if __name__ == "__main__":
    main()
