"""The paper's comparison in one program: every algorithm on the same base model, rows, rewards and number of sampled answers.

    python -m benchmarks.comparison --plan            which runs there are, how many are done, and how long the rest takes
    python -m benchmarks.comparison --minutes 60      make runs for an hour; the same command goes on where it ended
    python -m benchmarks.comparison --jobs 2          two at a time, each on one core
    python -m benchmarks.comparison --quick           one seed of two settings on few answers, in minutes
    python -m benchmarks.comparison --table           the tables again, from what was measured

Every run is `gpg-vl train` on one thread, at a constant learning rate, until 25,600 answers were sampled, and `python -m
gpg_vl.eval` on all held-out rows. On the way 200 of them are evaluated every 20 steps. CPU seconds are those of the steps alone.
What is compared, and in which order, is in benchmarks/comparison_settings.py.

Writes benchmarks/results/comparison.json and .md after every run.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import yaml

from benchmarks.comparison_results import (
    Outcome,
    best_rates,
    read_outcomes,
    render,
    write_outcomes,
)
from benchmarks.comparison_settings import (
    BUDGET,
    DIGITS,
    PER_STEP,
    SCENES,
    SIX,
    Run,
    Setting,
    Task,
    plan,
)
from benchmarks.cpu_seconds import Metered, run_metered
from benchmarks.step import folder_of_results

ROOT = Path(__file__).parent.parent
CURVE_EVERY = 20
CURVE_ROWS = 200
MINUTES = 2.5
"""Of a run on one core, until some were measured."""


# ---- the data


def make_data(folder: Path, seed: int) -> dict[str, Path]:
    """{task: rows} of a seed, and the base model under `base`. What is there is kept."""
    scenes = folder / "data" / f"scenes-{seed}"
    if not (scenes / "test.parquet").exists():
        words = ["--prepare-only", "--seed", str(seed), "--folder", str(scenes)]
        _call(["-m", "gpg_vl", "quickstart", *words])

    made = {"base": scenes / "base", SCENES.name: scenes}
    for name, shots in ((DIGITS.name, ()), ("digits, 4 per digit", ("--shots", "4"))):
        made[name] = folder / "data" / name.replace(", ", "-").replace(" ", "_")
        if not made[name].exists():
            words = ["--prompt", "plain", "--scale", "21", *shots, "--out", str(made[name])]
            _call([str(ROOT / "data_recipes" / "digits.py"), *words])
    return made


def files(task: Task, data: Path) -> tuple[Path, Path]:
    """(rows that are trained on, rows that are held out)."""
    if task is SCENES:
        return data / "train.parquet", data / "test.parquet"
    return data / "train", data


def _call(words: Sequence[str]) -> None:
    print("$ python", *words, flush=True)
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


# ---- one run


def write_config(run: Run, data: dict[str, Path], folder: Path, budget: int) -> Path:
    """The config of a run: that of its task, with another algorithm and what all runs share."""
    train, held_out = files(run.task, data[run.task.name])
    tree = yaml.safe_load((ROOT / "configs" / run.task.config).read_text())
    tree["model"]["path"] = str(data["base"])
    tree["data"]["train"] = str(train)
    tree["algorithm"] = dict(run.setting.algorithm)
    tree["rollout"] |= {"group_size": run.setting.group_size}
    tree["train"] |= {
        "seed": run.seed,
        "learning_rate": run.rate,
        "schedule": "constant",
        "steps": budget // PER_STEP,
        "prompts_per_step": PER_STEP // run.setting.group_size,
    }
    tree["eval"] = {
        "task": run.task.evaluation,
        "data": str(held_out),
        "every": CURVE_EVERY,
        "limit": CURVE_ROWS,
        "at_start": True,
    }
    tree["output"] = {"folder": str(folder / "run"), "checkpoint_every": 0, "samples_every": 0}
    folder.mkdir(parents=True)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def answers_until(rows: Sequence[dict[str, Any]], setting: Setting) -> list[int]:
    """Sampled answers after each row of a run's metrics, those beside the groups included."""
    counts, count = [], 0
    for row in rows:
        if row["kind"] == "train":
            count += row["groups_seen"] * (setting.group_size + setting.extra_answers)
        counts.append(count)
    return counts


def budget_reached(setting: Setting, budget: int) -> Callable[[Sequence[str]], bool]:
    """Whether the lines of metrics.jsonl tell of so many sampled answers that the run may end."""

    def reached(lines: Sequence[str]) -> bool:
        rows = [json.loads(line) for line in lines]
        return setting.samples and bool(rows) and answers_until(rows, setting)[-1] >= budget

    return reached


def make_run(run: Run, folder: Path, budget: int) -> Outcome:
    """Train and evaluate. The folder is emptied before, and what is large in it is deleted afterwards."""
    data = make_data(folder, run.seed)
    at = folder / "runs" / "-".join(run.key).replace(", ", "-").replace(" ", "_")
    shutil.rmtree(at, ignore_errors=True)
    config = write_config(run, data, at, budget)

    words = [sys.executable, "-m", "gpg_vl", "train", str(config)]
    metrics = at / "run" / "metrics.jsonl"
    metered = run_metered(
        words, metrics, log=at / "log", enough=budget_reached(run.setting, budget)
    )

    model = sorted((at / "run" / "checkpoints").glob("step-*"))[-1] / "model"
    _, held_out = files(run.task, data[run.task.name])
    words = ["-m", "gpg_vl.eval", run.task.evaluation, "--model", str(model), "--scorer", "strict"]
    words += ["--data", str(held_out), "--batch-size", "64", *run.task.options]
    _call([*words, "--output", str(at / "eval")])
    outcome = read_outcome(run, metrics, metered, at / "eval")
    shutil.rmtree(at / "run" / "checkpoints")
    return outcome


def read_outcome(run: Run, metrics: Path, metered: Metered, evaluation: Path) -> Outcome:
    """What is kept of a run."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    answers = answers_until(rows, run.setting)
    seconds, curve = 0.0, []
    for number, row in enumerate(rows):
        if row["kind"] == "train" and number:
            seconds += metered.marks[number] - metered.marks[number - 1]
        if row["kind"] == "eval":
            curve.append((answers[number], round(seconds, 1), 100 * row["micro"]))

    file = next(evaluation.glob("samples_*.jsonl"))
    scored = [json.loads(line) for line in file.read_text().splitlines()]
    right = "".join(str(int(row["scores"]["strict"]["score"] == 1)) for row in scored)
    return Outcome(
        right=right,
        curve=tuple(curve),
        steps=sum(row["kind"] == "train" for row in rows),
        answers=answers[-1],
        cpu_seconds=round(seconds, 1),
        peak_mb=round(metered.peak_bytes / 1e6),
        minutes=round(metered.seconds / 60, 2),
    )


# ---- all of them


Kept = dict[tuple[str, str, str, str], Outcome]


def missing(kept: Kept, wanted: Sequence[Run] | None = None) -> Iterator[Run]:
    """The runs that are still to be made, each once: of the whole study where none are named."""
    seen = set(kept)
    for run in plan(best_rates(kept)) if wanted is None else wanted:
        if run.key not in seen:
            seen.add(run.key)
            yield run


def quick() -> list[Run]:
    """Does everything run?"""
    settings = (SIX[0], SIX[1])
    return [Run(stage="quick", task=SCENES, setting=s, rate=3e-4, seed=0) for s in settings]


def tell_plan(kept: Kept) -> str:
    """How many runs there are, and how long the rest takes."""
    runs = list(missing(kept))
    each = [outcome.minutes for outcome in kept.values()]
    minutes = sum(each) / len(each) if each else MINUTES
    stages: dict[str, int] = {}
    for run in runs:
        name = f"{run.stage}, {run.task.name}"
        stages[name] = stages.get(name, 0) + 1
    lines = [f"  {number:4} {name}" for name, number in stages.items()]
    left = (
        f"{len(kept)} runs are done, {len(runs)} are left: {minutes:.1f} minutes of one core each, "
        f"{len(runs) * minutes / 60:.1f} hours of one core."
    )
    return "\n".join([left, *lines])


def work(runs: Callable[[], Iterator[Run]], kept: Kept, arguments: argparse.Namespace) -> None:
    """Make runs until there are none left or the time is over; what was begun is brought to its end."""
    ends = time.monotonic() + 60 * arguments.minutes
    going: dict[Future[Outcome], Run] = {}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        while True:
            busy = {run.key for run in going.values()}
            todo = (run for run in runs() if run.key not in busy)
            while len(going) < arguments.jobs and time.monotonic() < ends:
                if (run := next(todo, None)) is None:
                    break
                budget = PER_STEP * 4 if arguments.quick else BUDGET
                going[pool.submit(make_run, run, arguments.folder, budget)] = run
            if not going:
                return

            done, _ = wait(going, return_when=FIRST_COMPLETED)
            for future in done:
                run, outcome = going.pop(future), future.result()
                kept[run.key] = outcome
                print(f"{' | '.join(run.key)}: {outcome.accuracy:.1f} %", flush=True)
                write_outcomes(kept, arguments.out)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", action="store_true", help="make no run")
    parser.add_argument("--table", action="store_true", help="make no run, write the tables")
    parser.add_argument("--quick", action="store_true", help="two runs of four steps")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--folder", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--out", type=Path, help="default: benchmarks/results")
    arguments = parser.parse_args(argv)
    if arguments.out is None:
        arguments.out = arguments.folder if arguments.quick else folder_of_results()

    kept = read_outcomes(arguments.out)
    if arguments.plan:
        print(tell_plan(kept))
        return 0
    if not arguments.table:
        make_data(arguments.folder, 0)
        for seed in range(1, 8) if not arguments.quick else ():
            make_data(arguments.folder, seed)
        work(lambda: missing(kept, quick() if arguments.quick else None), kept, arguments)
    (arguments.out / "comparison.md").write_text(render(kept))
    return 0


if __name__ == "__main__":
    sys.exit(main())
