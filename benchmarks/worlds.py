"""SFT, GPG, and GPG after SFT, on the quickstart's base model and its three worlds: what each gives, and where it gives nothing.

    python -m benchmarks.worlds                         all of it: hours on two cores
    python -m benchmarks.worlds --only digits           one world
    python -m benchmarks.worlds --jobs 2                two arms at a time, each with half of the cores
    python -m benchmarks.worlds --again                 also what worlds.json has already

Every arm is a chain of `gpg-vl train` with the configs of configs/, each with the seed of the arm, followed by
`python -m gpg_vl.eval` on pictures that no arm was trained on; the base is evaluated once. The commands are printed as they
are run, and a stopped run is resumed by the same command. A cell of the table is the mean of the seeds and, in brackets, the
lowest and the highest end of their 95 % intervals.

Writes benchmarks/results/worlds.json and .md.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.step import folder_of_results

ROOT = Path(__file__).parent.parent
SHOTS = (16, 64, 256)
"""Supervised examples of the scenes, all four tasks together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A run of `gpg-vl train` that resumes from the one before it in its arm."""

    config: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A way to train: stretches one after the other. None at all is the base."""

    name: str
    stretches: tuple[Stretch, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is asked, how it is evaluated, and the arms that are compared."""

    name: str
    task: str
    data: str
    options: tuple[str, ...]
    shown: tuple[str, ...]
    """Aggregates of the evaluation, by their names in results.json."""
    arms: tuple[Arm, ...]


def scenes_world() -> World:
    gpg = Stretch(config="quickstart.yaml", settings=("eval.every=0", "eval.blank_image=false"))
    arms = [Arm(name="base"), Arm(name="GPG", stretches=(gpg,))]
    for shots in SHOTS:
        sft = Stretch(
            config="quickstart_sft.yaml", settings=(f"data.limit={shots}", "data.train={words}")
        )
        arms += [
            Arm(name=f"SFT on {shots}", stretches=(sft,)),
            Arm(name=f"SFT on {shots}, then GPG", stretches=(sft, gpg)),
        ]
    return World(
        name="scenes",
        task="cvbench",
        data="{quickstart}/test.parquet",
        options=("--prompt", "plain", "--max-new-tokens", "6"),
        shown=("official", "Count", "Relation", "Depth", "Distance"),
        arms=tuple(arms),
    )


def digits_world() -> World:
    few, every = "data.train={digits_4shot}/train", "data.train={digits}/train"
    sft = Stretch(config="digits_sft.yaml", settings=(few,))
    gpg_few = Stretch(config="digits.yaml", settings=(few,))
    gpg_every = Stretch(config="digits.yaml", settings=(every,))
    sft_every = Stretch(
        config="digits_sft.yaml", settings=(every, "train.steps=300", "train.prompts_per_step=32")
    )
    return World(
        name="digits",
        task="digits",
        data="{digits}",
        options=("--max-new-tokens", "2"),
        shown=("micro",),
        arms=(
            Arm(name="base"),
            Arm(name="SFT, 4 per digit", stretches=(sft,)),
            Arm(name="GPG, 4 per digit", stretches=(gpg_few,)),
            Arm(name="SFT, then GPG, 4 per digit", stretches=(sft, gpg_few)),
            Arm(name="SFT, all digits", stretches=(sft_every,)),
            Arm(name="GPG, all digits", stretches=(gpg_every,)),
            Arm(name="SFT on 4 per digit, then GPG on all", stretches=(sft, gpg_every)),
        ),
    )


def places_world() -> World:
    gpg = Stretch(
        config="places.yaml", settings=("data.train={places}/train", "eval.data={places}")
    )
    arms = [Arm(name="base"), Arm(name="GPG", stretches=(gpg,))]
    for shots in (64, 256):
        sft = Stretch(
            config="places_sft.yaml",
            settings=("data.train={places_worked}/train", f"data.limit={shots}"),
        )
        arms += [
            Arm(name=f"SFT on {shots}", stretches=(sft,)),
            Arm(name=f"SFT on {shots}, then GPG", stretches=(sft, gpg)),
        ]
    return World(
        name="places",
        task="places",
        data="{places}",
        options=(),
        shown=("micro", "Add", "Compare"),
        arms=tuple(arms),
    )


WORLDS = {"scenes": scenes_world, "digits": digits_world, "places": places_world}
"""Another world is another line here."""


# ---- what is run


def make_data(folder: Path) -> dict[str, Path]:
    """The base model and every data set, by the names that stand in braces above. What is there is kept."""
    recipes = {
        "digits": ("digits.py", "--prompt", "plain", "--scale", "21"),
        "digits_4shot": ("digits.py", "--prompt", "plain", "--scale", "21", "--shots", "4"),
        "words": ("scenes.py", "--seed", "2", "--rows", "256", "--answers", "words"),
        "places": ("places.py", "--seed", "1", "--rows", "8000", "--test-rows", "600"),
        "places_worked": ("places.py", "--seed", "2", "--rows", "256", "--answers", "worked"),
    }
    made = {name: folder / "data" / name for name in recipes}
    for name, (recipe, *options) in recipes.items():
        if not made[name].exists():
            recipe = str(ROOT / "data_recipes" / recipe)
            _run([recipe, *options, "--out", str(made[name])])

    made["words"] = made["words"] / "train"
    for seed in range(3):
        quickstart = folder / "data" / f"quickstart_{seed}"
        made[f"quickstart_{seed}"] = quickstart
        if not (quickstart / "test.parquet").exists():
            words = ["--prepare-only", "--seed", str(seed), "--folder", str(quickstart)]
            _run(["-m", "gpg_vl", "quickstart", *words])
    return made


def run_arm(world: World, arm: Arm, seed: int, places: dict[str, Path], folder: Path) -> Path:
    """Train and evaluate one arm with one seed; returns the results. What is there is kept."""
    names = {**places, "quickstart": places[f"quickstart_{seed}"]}
    at = folder / world.name / arm.name.replace(", ", "-").replace(" ", "_") / f"seed-{seed}"
    results = at / "eval" / "results.json"
    if results.exists():
        return results

    model = names["quickstart"] / "base"
    for number, stretch in enumerate(arm.stretches):
        run = at / f"{number}-{Path(stretch.config).stem}"
        own = [setting.format_map(names) for setting in stretch.settings]
        if stretch.config == "quickstart.yaml":
            train, test = (names["quickstart"] / f"{part}.parquet" for part in ("train", "test"))
            own = [f"data.train={train}", f"eval.data={test}", *own]
        words = ["-m", "gpg_vl", "train", str(ROOT / "configs" / stretch.config)]
        words += [f"train.seed={seed}", f"model.path={model}", f"output.folder={run}", *own]
        _run([*words, "--resume"] if (run / "metrics.jsonl").exists() else words)
        model = sorted((run / "checkpoints").glob("step-*"))[-1] / "model"

    words = ["-m", "gpg_vl.eval", world.task, "--model", str(model), "--scorer", "strict"]
    words += ["--data", world.data.format_map(names), "--batch-size", "64", *world.options]
    _run([*words, "--output", str(results.parent)])
    return results


def _run(words: Sequence[str]) -> None:
    print("$ python", *words, flush=True)
    subprocess.run([sys.executable, *words], check=True)


# ---- what came out


def read(world: World, arm: Arm, results: Path) -> dict[str, Any]:
    """{aggregate: [value, low, high]} in per cent, and what the last steps of training looked like."""
    tree = json.loads(results.read_text())["results"][world.task]
    found: dict[str, Any] = {
        name: [100 * x for x in (tree[f"acc_{name},strict"], *tree[f"acc_{name}_ci95,strict"])]
        for name in world.shown
    }
    last = sorted(results.parent.parent.glob("*/metrics.jsonl"))[-1:] if arm.stretches else []
    for file in last:
        steps = [json.loads(line) for line in file.read_text().splitlines()]
        steps = [step for step in steps if step["kind"] == "train"]
        for place, part in (("first", steps[:10]), ("last", steps[-10:])):
            found[place] = {
                key: sum(step[key] for step in part) / len(part)
                for key in sorted(steps[0])
                if (key.startswith("reward") and isinstance(steps[0][key], float))
                or key in ("length_all", "truncated_share")
            }  # fmt: skip
    return found


Found = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""World -> arm -> seed -> what `read` returns."""


def table(world: World, found: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """A row for each arm, a column for each aggregate: mean of the seeds, ends of their intervals."""
    lines = [f"| {world.name} | seeds | " + " | ".join(world.shown) + " |"]
    lines.append("|" + " --- |" * (len(world.shown) + 2))
    for arm in (arm.name for arm in world.arms if arm.name in found):
        cells = []
        for name in world.shown:
            values, lows, highs = zip(*(seed[name] for seed in found[arm].values()), strict=True)
            mean = sum(values) / len(values)
            cells.append(f"{mean:.1f} [{min(lows):.1f}, {max(highs):.1f}]")
        lines.append(f"| {arm} | {len(found[arm])} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def read_results() -> Found:
    """What earlier runs have found."""
    kept = folder_of_results() / "worlds.json"
    return json.loads(kept.read_text()) if kept.exists() else {}


def write_results(found: Found) -> None:
    folder = folder_of_results()
    (folder / "worlds.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    lines = [
        "# SFT, GPG, and GPG after SFT on three worlds",
        "",
        (
            "Strict accuracy in % on held-out pictures. Each cell is the mean of the seeds and, in brackets, the lowest and "
            "the highest end of their 95 % intervals. Made by `python -m benchmarks.worlds`, which says how."
        ),
        "",
    ]
    for name in WORLDS:
        lines += table(WORLDS[name](), found.get(name, {}))
    (folder / "worlds.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="only those; the others are kept")
    parser.add_argument("--seeds", nargs="+", type=int, choices=range(3), default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="arms at a time")
    parser.add_argument("--again", action="store_true", help="also what worlds.json has already")
    parser.add_argument("--folder", type=Path, default=Path("runs/worlds"))
    arguments = parser.parse_args()

    found = read_results()
    todo = [
        (world, arm, seed)
        for world in (WORLDS[name]() for name in arguments.only)
        for seed in arguments.seeds
        for arm in world.arms
        if not arguments.arms or arm.name in arguments.arms
        if arguments.again or str(seed) not in found.get(world.name, {}).get(arm.name, {})
        if arm.stretches or seed == 0
    ]
    places = make_data(arguments.folder)

    # the runs read how many threads they may take from the environment
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // arguments.jobs))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = {
            pool.submit(run_arm, world, arm, seed, places, arguments.folder): (world, arm, seed)
            for world, arm, seed in todo
        }
        for run in as_completed(runs):
            world, arm, seed = runs[run]
            of_arm = found.setdefault(world.name, {}).setdefault(arm.name, {})
            of_arm[str(seed)] = read(world, arm, run.result())
            write_results(found)


if __name__ == "__main__":
    main()
