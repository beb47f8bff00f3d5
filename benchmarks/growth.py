"""How seconds and memory of a step grow with the group and with the image, with and without sharing.

    python -m benchmarks.growth               (make growth; about ten minutes on two cores)

Every point is a process of its own on a small random Qwen2-VL. Writes benchmarks/results/growth.json and benchmarks/growth.png:
points are measured, and above them stands the ratio of the two of a case.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.progress import track

from benchmarks.step import Bench, Case, as_row, device_here, folder_of_results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASE = Case(group_size=8, image_tokens=256, text_tokens=40, completion=32)
GROUPS = (2, 4, 8, 16, 32)
IMAGES = (64, 256, 1024)
QUICK_GROUPS, QUICK_IMAGES = (2, 4), (64, 144)
AXES = {"group_size": "answers per prompt", "image_tokens": "image tokens"}
WAYS = ((True, "tab:blue", "once per group"), (False, "tab:red", "for every answer"))


class Quantity(NamedTuple):
    """What is measured of a step: its key in a row, the unit of its number, and its names."""

    key: str
    unit: float
    label: str
    noun: str


QUANTITIES = (
    Quantity("seconds", 1, "seconds per step", "time"),
    Quantity("peak_bytes", 2**20, "memory of a step, MiB", "memory"),
)


def cases(groups: tuple[int, ...], images: tuple[int, ...]) -> list[Case]:
    """Each group size with the base image, each image with the base group, both ways."""
    middle = (
        min(groups, key=lambda g: abs(g - BASE.group_size)),
        min(images, key=lambda i: abs(i - BASE.image_tokens)),
    )
    points = dict.fromkeys([*((g, middle[1]) for g in groups), *((middle[0], i) for i in images)])
    return [
        replace(BASE, group_size=g, image_tokens=i, shared=shared)
        for g, i in points
        for shared in (True, False)
    ]


def measure(case: Case, *, steps: int, warmup: int) -> dict[str, Any]:
    from gpg_vl.models import tiny
    from gpg_vl.models.load import load_model, load_processing, quiet

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder)
        tokenizer = tiny.tiny_tokenizer(["How many balls are there?"], 512)
        config = tiny.tiny_config(
            tokenizer,
            8192,
            hidden_size=256,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=704,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [8, 12, 12],
            },
        )
        (
            config.vision_config.depth,
            config.vision_config.embed_dim,
            config.vision_config.num_heads,
        ) = 4, 128, 4
        tiny.save_checkpoint(tiny.tiny_model(config, seed=0), tiny.tiny_processor(tokenizer), path)
        bench = Bench(load_model(str(path)), load_processing(str(path)), case, device_here())
    return as_row(case, bench.measure(steps=steps, warmup=warmup))


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Panels of measured points with their ratio: seconds and memory over groups and images."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(10, 7.4), sharex="col", layout="constrained")
    for column, (axis, other) in enumerate((tuple(AXES), tuple(reversed(AXES)))):
        fixed = _most_common([row["case"][other] for row in rows])
        chosen = [row for row in rows if row["case"][other] == fixed]
        for line, quantity in enumerate(QUANTITIES):
            _draw_panel(panels[line, column], chosen, axis, quantity)
        panels[1, column].set_xlabel(
            f"{AXES[axis]}   ({fixed} {AXES[other]}, {BASE.completion} tokens per answer)"
        )

    for line, quantity in enumerate(QUANTITIES):
        panels[line, 0].set_ylabel(quantity.label)
    panels[0, 0].legend(fontsize=9)
    figure.suptitle(
        "A step with image and prompt computed once per group, or for every answer.\n"
        "Above the points: how many times more the second takes",
        fontsize=11,
    )
    figure.savefig(file, dpi=110)


def _draw_panel(panel: "Axes", rows: list[dict[str, Any]], axis: str, quantity: Quantity) -> None:
    """One quantity over one axis, both ways, on logarithmic scales with plain numbers."""
    points: dict[bool, dict[int, float]] = {}
    for shared, colour, name in WAYS:
        of_way = [row for row in rows if row["case"]["shared"] == shared]
        points[shared] = {
            row["case"][axis]: row["timing"][quantity.key] / quantity.unit for row in of_way
        }
        places = sorted(points[shared])
        panel.plot(
            places, [points[shared][x] for x in places], "o-", color=colour, lw=1, label=name
        )

    ours, naive = points[True], points[False]
    ratios = {x: naive[x] / ours[x] for x in sorted(ours)}
    for x, ratio in ratios.items():
        panel.annotate(
            f"{ratio:.1f}x",
            (x, max(ours[x], naive[x])),
            fontsize=9,
            xytext=(-4, 6),
            textcoords="offset points",
            ha="right",
            va="bottom",
        )

    last, ratio = list(ratios.items())[-1]
    panel.set_title(f"{last:,} {AXES[axis]}: {ratio:.1f} times less {quantity.noun}", fontsize=10)
    _scale(panel, list(ratios), [*ours.values(), *naive.values()])


def _scale(panel: "Axes", x: list[int], y: list[float]) -> None:
    """Logarithmic axes in plain numbers: the lower one is marked where something was measured."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xlim(min(x) / 1.5, max(x) * 1.3)
    panel.set_ylim(min(y) / 1.25, max(y) * 1.4)
    marks = [n * 10**e for e in range(6) for n in (1, 2, 3, 5)]
    for one, places in ((panel.xaxis, x), (panel.yaxis, marks)):
        one.set_major_locator(FixedLocator(places))
        one.set_minor_locator(NullLocator())
        one.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    panel.grid(alpha=0.3)


def _most_common(values: list[int]) -> int:
    return max(sorted(set(values)), key=values.count)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=folder_of_results(),
        metavar="DIR",
        help="where growth.json goes",
    )
    parser.add_argument(
        "--picture", type=Path, default=Path(__file__).parent / "growth.png", metavar="FILE"
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small groups and images, one step each: to see that it runs",
    )
    parser.add_argument("--draw", action="store_true", help="only draw what growth.json holds")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(
            json.dumps(measure(Case(**json.loads(arguments.case)), steps=arguments.steps, warmup=1))
        )
        return 0
    file = arguments.out / "growth.json"
    if not arguments.draw:
        chosen = cases(QUICK_GROUPS, QUICK_IMAGES) if arguments.quick else cases(GROUPS, IMAGES)
        rows = [
            _in_a_process(case, 1 if arguments.quick else arguments.steps)
            for case in track(chosen, "measuring")
        ]
        arguments.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows, indent=1) + "\n")
    draw(json.loads(file.read_text()), arguments.picture)
    print(f"wrote {file} and {arguments.picture}")
    return 0


def _in_a_process(case: Case, steps: int) -> dict[str, Any]:
    from dataclasses import asdict

    command = [
        sys.executable,
        "-m",
        "benchmarks.growth",
        "--steps",
        str(steps),
        "--case",
        json.dumps(asdict(case)),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )
    if done.returncode:
        raise SystemExit(f"{case} failed:\n{done.stderr}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


if __name__ == "__main__":
    sys.exit(main())
