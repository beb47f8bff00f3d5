"""How seconds and memory of a step grow with the group and with the image, with and without sharing.

    python -m benchmarks.growth               (make growth; about ten minutes on two cores)

Every point is a process of its own on a small random Qwen2-VL. Writes benchmarks/results/growth.json and benchmarks/growth.png:
points are measured; lines are the cost model, put through the first point of the shared computation.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from benchmarks.step import Bench, Case, as_row, device_here, folder_of_results

BASE = Case(group_size=8, image_tokens=256, text_tokens=40, completion=32)
GROUPS = (2, 4, 8, 16, 32)
IMAGES = (64, 256, 1024)
QUICK_GROUPS, QUICK_IMAGES = (2, 4), (64, 144)


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
    """Two columns (group size, image tokens), two lines of panels (seconds, memory)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(10, 7), sharex="col", constrained_layout=True)
    axes = {"group_size": "answers per prompt (G)", "image_tokens": "image tokens"}
    for column, (axis, label) in enumerate(axes.items()):
        other = "image_tokens" if axis == "group_size" else "group_size"
        fixed = _most_common([row["case"][other] for row in rows])
        for shared, colour, name in (
            (True, "tab:blue", "once per group"),
            (False, "tab:red", "for every answer"),
        ):
            chosen = sorted(
                (r for r in rows if r["case"][other] == fixed and r["case"]["shared"] == shared),
                key=lambda r: r["case"][axis],
            )
            x = [r["case"][axis] for r in chosen]
            base = min(
                (r for r in rows if r["case"][other] == fixed and r["case"]["shared"]),
                key=lambda r: r["case"][axis],
            )
            rate = base["timing"]["seconds"] / base["timing"]["total_operations"]
            top, bottom = panels[0, column], panels[1, column]
            top.plot(
                x,
                [r["timing"]["seconds"] for r in chosen],
                "o",
                color=colour,
                label=f"{name}, measured",
            )
            model = [rate * r["timing"]["total_operations"] for r in chosen]
            top.plot(x, model, "-", color=colour, alpha=0.5, label=f"{name}, cost model")
            bottom.plot(
                x,
                [r["timing"]["peak_bytes"] / 2**20 for r in chosen],
                "o-",
                color=colour,
                label=name,
            )
        panels[1, column].set_xlabel(
            f"{label}   ({other.replace('_', ' ')} {fixed}, {BASE.completion} tokens per answer)"
        )
        for panel in panels[:, column]:
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("seconds per step")
    panels[1, 0].set_ylabel("memory of a step, MiB")
    panels[0, 0].legend(fontsize=8)
    figure.suptitle("Rollout and training step, image and prompt once per group or once per answer")
    figure.savefig(file, dpi=110)


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
