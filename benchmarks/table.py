"""The JSON of a comparison as Markdown: `python -m benchmarks.table benchmarks/results/peers_cpu.json`.

Pure: what is printed follows from the file alone.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.meter import Spread, spread

NAMES = {
    "trl": "TRL {trl} `GRPOTrainer`",
    "shared": "gpg_vl",
    "reused": "gpg_vl, prefill reused",
    "one_group": "gpg_vl, one group per pass",
    "naive": "gpg_vl, one row per completion",
    "prefix_grouper": "PrefixGrouper {prefix_grouper}, training only",
}
HEAD = (
    "system",
    "s per step",
    "rollout s",
    "training s",
    "CPU s",
    "peak RSS, GB",
    "vision patches, rollout",
    "vision patches, training",
    "tokens prefilled",
    "tokens decoded",
    "tokens trained",
)
WORK = (
    "rollout_patches",
    "training_patches",
    "prefilled_tokens",
    "decoded_tokens",
    "training_tokens",
)
CAVEATS = """
Seconds are medians over the measured steps [lower and upper quartile]; a step runs from the end of the one before, data loading
included. CPU seconds add up the threads.

Peak RSS is the high-water mark of resident memory over the measured steps, interpreter, libraries and weights included; GB are
10^9 bytes. TRL's is that at the micro-batch at which it is fastest; the search shows the others.

gpg_vl puts both groups into one pass, as a config does by default; with one group per pass it holds less. With
`train.reuse_prefill` training goes on from the prompts of the rollout, whose patches and tokens are then counted under training.
One row per completion and PrefixGrouper are measured with one group per pass.

Patches and tokens are counted by hooks on the vision tower and the text model, padding included, per step.

On a CPU, TRL's head scores every position of a row, prompt included; on a GPU with Triton it scores completions only. So the
factor over TRL is larger here than it would be there; the row with the small vocabulary bounds the effect.

TRL's strongest mode, generation by vLLM, is not measured on a CPU. It shares a prompt in the rollout, not in training.

Our loss is over the ids that can be sampled, TRL's over all; for the comparison of gradients ours is over all, too.

PrefixGrouper has no rollout; its vision, once per picture, and its positions are gpg_vl's, its attention is SDPA.
"""


def pooled(runs: Sequence[Mapping[str, Any]], row: str, system: str) -> list[Mapping[str, Any]]:
    """The measured steps of a system on a case, over all rounds."""
    return [
        step
        for run in runs
        if (run["row"], run["system"]) == (row, system)
        for step in run["steps"]
    ]


def _seconds(found: Spread) -> str:
    return f"{found.median:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _peak(runs: Sequence[Mapping[str, Any]], row: str, system: str) -> int:
    peaks: list[int] = [
        run["rss_peak"] for run in runs if (run["row"], run["system"]) == (row, system)
    ]
    return max(peaks)


def line(
    runs: Sequence[Mapping[str, Any]], row: str, system: str, versions: Mapping[str, str]
) -> list[str]:
    """The cells of one system on one case, as in HEAD."""
    steps = pooled(runs, row, system)
    total, rollout, training = (
        spread([step[kind] for step in steps])
        for kind in ("seconds", "rollout_seconds", "training_seconds")
    )
    work = [f"{median(step['work'][name] for step in steps):,.0f}" for name in WORK]
    seconds = [_seconds(total), f"{rollout.median:.2f}", f"{training.median:.2f}"]
    if system == "prefix_grouper":
        seconds, work = ["-", "-", _seconds(training)], ["-", work[1], "-", "-", work[4]]
    return [
        NAMES[system].format(**versions),
        *seconds,
        f"{median(step['cpu_seconds'] for step in steps):.1f}",
        f"{_peak(runs, row, system) / 1e9:.2f}",
        *work,
    ]


def ratios(runs: Sequence[Mapping[str, Any]], row: str, other: str) -> str:
    """How many times as much `other` takes as gpg_vl, in words."""
    mine, theirs = (pooled(runs, row, system) for system in ("shared", other))

    def times(kind: str) -> str:
        return f"{median(s[kind] for s in theirs) / median(s[kind] for s in mine):.2f}x"

    if other == "prefix_grouper":
        return f"{times('training_seconds')} the training seconds"
    memory = _peak(runs, row, other) / _peak(runs, row, "shared")
    return (
        f"{times('seconds')} the seconds per step (rollout {times('rollout_seconds')}, training "
        f"{times('training_seconds')}), {times('cpu_seconds')} the CPU seconds and {memory:.2f}x the peak memory"
    )


def title(row: Mapping[str, Any]) -> str:
    silent = f", {row['silent_groups']} of them without signal" if row["silent_groups"] else ""
    return (
        f"Row {row['name']}: {row['side']}x{row['side']} pixels ({row['image_tokens']} image tokens), prompt of "
        f"{row['prompt_tokens']} tokens, {row['completion_tokens']} tokens per completion, G = {row['group_size']}, vocabulary "
        f"{row['vocabulary']:,}, {row['prompts_per_step']} prompts per step{silent}"
    )


def section(result: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """One case: title, equality, table, ratios."""
    runs, versions = result["runs"], result["versions"]
    name = row["name"]
    systems = [s for s in NAMES if pooled(runs, name, s)]
    lines = [f"## {title(row)}", ""]
    for one in result["parity"]:
        if one["row"] == name:
            who = NAMES[one["system"]].format(**versions)
            # results from before GRPO was compared too name no algorithm
            algorithm = one.get("algorithm", "gpg")
            lines.append(
                f"- Gradient of {who} ({algorithm}, {one['aggregation']} mean) against TRL's (`{one['trl']}`): relative error "
                f"{one['error']:.1e}, vision tower {one['error_vision']:.1e}."
            )
    lines += ["", *_table(HEAD, [line(runs, name, s, versions) for s in systems]), ""]
    others = [s for s in systems if s != "shared"] if "shared" in systems else []
    lines += [
        f"- {NAMES[s].format(**versions)} takes {ratios(runs, name, s)} of gpg_vl." for s in others
    ]
    numbers = ", ".join(
        f"{NAMES[s].format(**versions)} {len(pooled(runs, name, s))}" for s in systems
    )
    return [*lines, f"- Measured steps: {numbers}.", ""]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(cells) + " |" for cells in lines),
    ]


def sweep(result: Mapping[str, Any]) -> list[str]:
    """The search for TRL's best micro-batch."""
    if result["micro_batch"] is None:  # TRL is not among the systems
        return []
    if not result["sweep"]:
        return [
            f"TRL's micro-batch was given, not searched for: {result['micro_batch']} completions.",
            "",
        ]
    cells = [
        [
            str(run["settings"]["micro_batch"]),
            f"{run['steps'][0]['seconds']:.1f}",
            f"{run['steps'][0]['cpu_seconds']:.1f}",
            f"{run['rss_peak'] / 1e9:.2f}",
        ]
        for run in result["sweep"]
    ]
    head = ("completions per micro-batch", "s per step without sampling", "CPU s", "peak RSS, GB")
    said = (
        f"TRL's best micro-batch on row {result['sweep'][0]['row']} is {result['micro_batch']} completions; it is used "
        "throughout. One step each; sampling does not depend on it and is left out."
    )
    return [said, "", *_table(head, cells), ""]


def render(result: Mapping[str, Any]) -> str:
    """The whole document."""
    machine, settings = result["machine"], result["settings"]
    versions = ", ".join(f"{name} {number}" for name, number in sorted(result["versions"].items()))
    state = [] if result["complete"] else ["**Unfinished: not every run has been made.**", ""]
    made = (
        f"`make bench-peers` on {result['date']}: {machine['processor']}, {machine['threads']} threads, "
        f"{machine['memory_gb']:.0f} GB. {versions}."
    )
    rules = (
        f"Every run is a process of its own, the systems take turns; {settings['warmup']} step(s) of warm-up per process are not "
        "counted. float32, AdamW at 1e-6, temperature 1, forced length, the same questions, pictures and weights, vision and "
        "end tokens suppressed on both sides, rewards 1 on even members and 0 on odd ones, gradient checkpointing "
        f"{'on' if settings['checkpointing'] else 'off'} on both sides (TRL's default is on)."
    )
    lines = ["# One training step, side by side", "", *state, made, "", rules, "", *sweep(result)]
    for row in result["rows"]:
        lines += section(result, row)
    lines += [
        "## How to read it",
        *(f"\n- {' '.join(part.split())}" for part in CAVEATS.split("\n\n")),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m benchmarks.table RESULT.json", file=sys.stderr)
        return 2
    print(render(json.loads(Path(sys.argv[1]).read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
