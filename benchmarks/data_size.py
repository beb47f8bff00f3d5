"""Does a run's memory grow with its data? `python -m benchmarks.data_size --rows 1000 100000`, Linux.

Draws rows with a picture of about 100 kB each, in one of the kinds of files that are read, and runs each part in a process of
its own: the check of a set that nobody has checked, the start of a run on a set that was checked, the reading of single rows in
random order, and `gpg-vl train` for two steps, on one process and on two (its start included). Prints seconds and the peak of
resident memory of the largest process, as lines of a table.
"""

import argparse
import base64
import io
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from benchmarks.cpu_seconds import run_metered
from benchmarks.meter import read_status
from gpg_vl.config import Config, load_config
from gpg_vl.console import say

SIDE = 183
"""Of a picture in pixels: noise of that size takes 100 kB."""
GROUP = 200
"""Rows of a row group."""
DRAWN = 200
"""Rows that are read in random order."""
VOCABULARY = 384


def write_parquet(folder: Path, rows: int) -> Path:
    """One file whose cells are the pictures."""
    file = folder / "train.parquet"
    schema = pa.schema({"prompt": pa.string(), "answer": pa.string(), "image": pa.binary()})
    with pq.ParquetWriter(file, schema, compression="none") as writer:
        for start in range(0, rows, GROUP):
            part = [
                _row(n) | {"image": _picture(n)} for n in range(start, min(start + GROUP, rows))
            ]
            writer.write_table(pa.Table.from_pylist(part, schema=schema))
    return file


def write_lines(folder: Path, rows: int) -> Path:
    """One JSONL file with the pictures in base64."""
    file = folder / "train.jsonl"
    with file.open("w") as stream:
        for number in range(rows):
            encoded = base64.b64encode(_picture(number)).decode()
            row = _row(number) | {"image": f"data:image/png;base64,{encoded}"}
            stream.write(json.dumps(row) + "\n")
    return file


def write_files(folder: Path, rows: int) -> Path:
    """One JSONL file, and a file for each picture."""
    with (folder / "train.jsonl").open("w") as stream:
        for number in range(rows):
            name = f"images/{number // 1000}/{number}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(_picture(number))
            stream.write(json.dumps(_row(number) | {"image": name}) + "\n")
    return folder / "train.jsonl"


def write_saved(folder: Path, rows: int) -> Path:
    """What `datasets.save_to_disk` writes."""
    import datasets

    def generate() -> Iterator[dict[str, Any]]:
        yield from (_row(number) | {"image": _picture(number)} for number in range(rows))

    made = datasets.Dataset.from_generator(generate, cache_dir=str(folder / "cache"))
    made.save_to_disk(str(folder / "saved"))
    return folder / "saved"


KINDS: dict[str, Callable[[Path, int], Path]] = {
    "parquet": write_parquet,
    "jsonl": write_lines,
    "files": write_files,
    "saved": write_saved,
}


def _row(number: int) -> dict[str, Any]:
    return {"prompt": f"Which number does picture {number} have?", "answer": str(number)}


def _picture(number: int) -> bytes:
    noise = random.Random(number).randbytes(3 * SIDE * SIDE)
    stream = io.BytesIO()
    Image.frombytes("RGB", (SIDE, SIDE), noise).save(stream, "PNG", compress_level=0)
    return stream.getvalue()


def write_config(folder: Path, source: Path) -> Path:
    """A run on the rows, with a tiny checkpoint."""
    from gpg_vl.models import tiny

    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        tokenizer = tiny.tiny_tokenizer(["Which number does the picture have?"], VOCABULARY)
        config = tiny.tiny_config(tokenizer, VOCABULARY)
        processor = tiny.tiny_processor(tokenizer)
        tiny.save_checkpoint(tiny.tiny_model(config, seed=0), processor, checkpoint)
    tree = {
        "model": {"path": str(checkpoint)},
        "data": {"train": str(source)},
        "rollout": {"group_size": 4, "max_new_tokens": 8},
        "rewards": {"weights": {"verbatim": 1.0}},
        "algorithm": {"beta_th": 0},
        "train": {"steps": 2, "prompts_per_step": 8},
        "output": {"folder": str(folder / "run")},
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def check_or_start(config: Config) -> None:
    """All that a run does with its data before weights are loaded. The second time the set is a checked one."""
    from gpg_vl.training.prepare import prepare

    prepare(config, processes=1, console=None)


def read_rows(config: Config) -> None:
    """`DRAWN` rows in random order."""
    from gpg_vl.training.data_check import load_data

    examples = load_data(config)
    for number in random.Random(0).choices(range(len(examples)), k=DRAWN):
        assert examples[number].answer == str(number), examples[number].place


PARTS: dict[str, Callable[[Config], None]] = {
    "the check": check_or_start,
    "the start of a checked set": check_or_start,
    f"{DRAWN} rows in random order": read_rows,
}


def measure(part: str, config: Path) -> tuple[float, float]:
    """(seconds without imports, bytes at the peak) of a part, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.data_size", "--measure", part, str(config)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak = json.loads(result.stdout.splitlines()[-1])
    return seconds, peak


def train(config: Path, processes: int) -> tuple[float, float]:
    """(seconds, bytes of the largest process at its peak) of a whole run."""
    words = [
        "-m",
        "gpg_vl",
        "train",
        str(config),
        f"output.folder={config.parent / str(processes)}",
    ]
    if processes > 1:
        words = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
            *words,
        ]
    started = time.perf_counter()
    metered = run_metered(
        [sys.executable, *words], config.parent / "none", log=config.with_suffix(".log")
    )
    return time.perf_counter() - started, metered.largest_bytes


def _measure_here(part: str, file: Path) -> None:
    import_module("gpg_vl.training.prepare")  # its seconds are those of any program
    config = load_config(file, [])
    started = time.perf_counter()
    PARTS[part](config)
    seconds = time.perf_counter() - started
    say(json.dumps([seconds, read_status("VmHWM")]))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--measure", nargs=2, metavar=("PART", "CONFIG"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        _measure_here(arguments.measure[0], Path(arguments.measure[1]))
        return 0

    say("| kind | rows | part | seconds | peak, MB |\n|---|---|---|---|---|")
    for kind in arguments.kinds:
        for rows in arguments.rows:
            with tempfile.TemporaryDirectory() as scratch:
                config = write_config(Path(scratch), KINDS[kind](Path(scratch), rows))
                for part in PARTS:
                    seconds, peak = measure(part, config)
                    say(f"| {kind} | {rows:,} | {part} | {seconds:.1f} | {peak / 1e6:.0f} |")
                for processes in (1, 2):
                    seconds, peak = train(config, processes)
                    part = f"two steps, {processes} process{'es' * (processes > 1)}"
                    say(f"| {kind} | {rows:,} | {part} | {seconds:.1f} | {peak / 1e6:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
