"""`gpg-vl quickstart`: runs the real program on a small model, from an empty folder to a result table, offline.

Each stage is a command that a user can type: `python -m gpg_vl.eval cvbench`, `gpg-vl train
configs/quickstart.yaml`. They run as separate processes on the files that `prepare` writes.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from gpg_vl.console import fit_tables, plain, progress, say
from gpg_vl.errors import RunError, UserError
from gpg_vl.quickstart import scenes

TEST_SEED = 1_000_000
"""Seed of the held-out scenes: even. Training scenes have 1,000,001 + twice the run's seed,
pre-training's 5: odd, so that neither shares a scene with the held-out ones."""
SCENES_PER_SECOND = 200
"""Approximate speed of one core, for the progress message."""
SHOWN = ("official", "Count", "Relation", "Depth", "Distance")


def prepare(
    folder: Path, seed: int, *, train_rows: int, test_rows: int, console: Console | None = None
) -> Path:
    """Write base/ (checkpoint), train.parquet and test.parquet into `folder`.

    Existing files are kept. console: shows the progress.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "base" / "config.json").exists():
            with progress(console, "writing the tiny base model"):
                write_base(folder / "base")
        _write_scenes(folder / "train.parquet", TEST_SEED + 1 + 2 * seed, train_rows, console)
        _write_scenes(folder / "test.parquet", TEST_SEED, test_rows, console)
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be written: {error}. Choose another one with --folder."
        ) from None
    return folder


def _write_scenes(file: Path, seed: int, number: int, console: Console | None) -> None:
    if file.exists():
        return

    seconds = round(number / SCENES_PER_SECOND)
    usual = f", usually {seconds} seconds" if seconds else ""
    what = f"drawing {number} scenes for {file.name}{usual}"
    drawn = []
    with progress(console, what, number) as advance:
        for row in scenes.rows(seed, number):
            drawn.append(row)
            advance()

    partial = file.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(drawn), partial)
    partial.replace(file)


def write_base(folder: Path) -> None:
    """The base model as an ordinary float32 checkpoint, from the half-precision weights that come
    with the package.
    """
    from gpg_vl.models.load import load_model, load_processing
    from gpg_vl.models.tiny import save_checkpoint, tiny_processor

    shipped = Path(__file__).parent / "base"
    processing = load_processing(str(shipped))

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_checkpoint(load_model(str(shipped)), tiny_processor(processing.tokenizer), partial)
    partial.rename(folder)


def quickstart(
    folder: Path,
    seed: int,
    config: Path,
    console: Console,
    *,
    started: float,
    train_rows: int,
    test_rows: int,
) -> int:
    """Prepare, evaluate, train, evaluate, and print both. Returns the exit code.

    started: seconds since the epoch from which the time in the last line counts.
    """
    if (folder / "run" / "metrics.jsonl").exists():
        raise UserError(
            f"The folder {folder} already holds a quickstart. Delete it, or choose another one with --folder."
        )

    sizes = f"{train_rows} training scenes and {test_rows} held-out scenes"
    _say(console, "1/4", f"writing a tiny Qwen2-VL, {sizes} into {folder}")
    prepare(folder, seed, train_rows=train_rows, test_rows=test_rows, console=console)

    _say(console, "2/4", "evaluating the base model")
    base_answers = folder / "eval-base" / "predictions.jsonl"
    _evaluate(folder, folder / "base", "eval-base")

    _say(console, "3/4", "training it with GPG")
    _train(folder, config, seed)

    _say(console, "4/4", "evaluating the trained model on the same held-out scenes")
    trained = sorted((folder / "run" / "checkpoints").glob("step-*"))[-1] / "model"
    _evaluate(folder, trained, "eval-trained", "--compare", str(base_answers))

    before = json.loads((folder / "eval-base" / "results.json").read_text())
    after = json.loads((folder / "eval-trained" / "results.json").read_text())
    for table in fit_tables(
        console, ("base", "trained", "difference"), partial(summary_table, before, after)
    ):
        console.print(table)
    console.print(what_next(folder / "run", trained), soft_wrap=True)

    # the last line is for scripts, so nothing may follow it
    line = last_line(before, after, time.time() - started, folder / "run")
    console.print(line, soft_wrap=True)
    return 0


def _evaluate(folder: Path, model: Path, output: str, *options: str) -> None:
    command = [sys.executable, "-m", "gpg_vl.eval", "cvbench"]
    command += ["--data", str(folder / "test.parquet"), "--prompt", "plain", "--scorer", "strict"]
    command += ["--max-new-tokens", "6", "--batch-size", "64"]
    command += ["--model", str(model), "--output", str(folder / output)]
    _run([*command, *options])


def _train(folder: Path, config: Path, seed: int) -> None:
    command = [sys.executable, "-m", "gpg_vl", "train", str(config)]
    settings = [
        f"train.seed={seed}",
        f"model.path={folder / 'base'}",
        f"data.train={folder / 'train.parquet'}",
        f"eval.data={folder / 'test.parquet'}",
        f"output.folder={folder / 'run'}",
    ]
    _run([*command, *settings])


def summary_table(
    before: dict[str, Any], after: dict[str, Any], columns: Sequence[str], brief: bool
) -> Table:
    """Base, trained and their paired difference with 95% intervals, and chance, in per cent.

    brief: half of an interval's width in the place of its bounds.
    """
    base, trained = before["results"]["cvbench"], after["results"]["cvbench"]
    differences = after["comparison"]["strict"]
    table = Table(
        title=f"drawn scenes, scored as CV-Bench, strict, {trained['n']} held-out rows, "
        "accuracy in % with 95% intervals",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for name in ("", *columns, "chance"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)

    for name in SHOWN:
        value, interval = f"acc_{name},strict", f"acc_{name}_ci95,strict"
        gain = differences[f"diff_{name}"]
        cells = {
            "base": _format_share(base[value], base[interval], brief),
            "trained": _format_share(trained[value], trained[interval], brief),
            "difference": _format_share(gain["value"], gain["ci95"], brief, sign="+"),
        }
        chance = f"{100 * trained[f'chance_{name}']:.1f}"
        table.add_row(name, *(cells[column] for column in columns), chance)
    return table


def what_next(run: Path, trained: Path) -> str:
    """The text about the files of the run and the next commands, for new users."""
    program = _program()
    return (
        f"run folder: {run}\n"
        f"  all of it on one page, for a browser: {run / 'report.html'}\n"
        f"  its answers, with rewards, as training went on: {run / 'samples'}\n"
        f"  every step in numbers: {run / 'metrics.jsonl'}; the settings, each key of them: {run / 'config.yaml'}\n"
        f"  the trained model, an ordinary Hugging Face folder: {trained}\n"
        "next: write a config for your own data, look at it, and try it without training:\n"
        f"  {program} init DATA --out my.yaml\n"
        f"  {program} train my.yaml --dry-run      ({program} config explains every key)"
    )


def _program() -> str:
    """The command that starts this program, wherever it is installed."""
    if shutil.which("gpg-vl"):
        return "gpg-vl"
    beside = Path(sys.executable).with_name("gpg-vl")
    if not beside.is_file():
        return "python -m gpg_vl"
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)


def last_line(before: dict[str, Any], after: dict[str, Any], seconds: float, run: Path) -> str:
    """The machine-readable end: official strict accuracy in per cent, the gain with its interval,
    and the time.
    """
    base, trained = (tree["results"]["cvbench"]["acc_official,strict"] for tree in (before, after))
    gain = after["comparison"]["strict"]["diff_official"]
    low, high = gain["ci95"]
    return (
        f"quickstart: base {100 * base:.1f} trained {100 * trained:.1f} gain {100 * gain['value']:.1f} "
        f"[{100 * low:.1f}, {100 * high:.1f}] "
        f"seconds {seconds:.0f} run {run}"
    )


def _format_share(value: float, interval: Sequence[float], brief: bool, sign: str = "") -> str:
    """`24.0 [21.6, 26.4]` or, in brief, `24.0 ± 2.4`, in per cent."""
    low, high = (100 * bound for bound in interval)
    if brief:
        return f"{100 * value:{sign}.1f} ± {(high - low) / 2:.1f}"
    return f"{100 * value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _say(console: Console, step: str, text: str) -> None:
    console.print(plain(step, "bold"), plain(text))


def _run(command: Sequence[str]) -> None:
    words = ["python" if word == sys.executable else word for word in command]
    say("$ " + " ".join(words))

    code = subprocess.run(command, check=False).returncode
    if code:
        raise RunError(
            f"The command above ended with exit code {code}. Its message says why; the quickstart stops here."
        )
