"""What happened in a step, as numbers: pure functions of what the parts of the loop return.

Counts of one process come first (`count_...`), so that they can be summed over processes; shares
and means are made of the sums (`..._metrics`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpg_vl.training.collect import Collection
from gpg_vl.training.state import RunState
from gpg_vl.training.totals import UpdateReport

_COUNTS = (
    "groups",
    "completions",
    "reward",
    "valid",
    "all_right",
    "all_wrong",
    "right",
    "cut",
    "carried",
    "stale",
)

MOST_TASKS = 32
"""Tasks of a step whose rewards are told apart."""


def count_collection(collection: Collection, *, version: int) -> dict[str, float]:
    """What one process has seen in a step.

    `version`: that of the weights which sampled in this step.
    """
    counts = dict.fromkeys(_COUNTS, 0.0)
    for group in collection.seen:
        right = sum(reward >= 1.0 for reward in next(iter(group.reward_parts.values())))
        counts["groups"] += 1
        counts["completions"] += len(group.completions)
        counts["reward"] += sum(group.rewards)
        counts["valid"] += group.is_valid
        counts["all_right"] += not group.is_valid and right == len(group.rewards)
        counts["all_wrong"] += not group.is_valid and right == 0
        counts["right"] += right
        counts["cut"] += sum(c.finish_reason == "length" for c in group.completions)
        if group.example.task:
            for kind, value in (("total", sum(group.rewards)), ("answers", len(group.rewards))):
                key = f"{kind}_of_task/{group.example.task}"
                counts[key] = counts.get(key, 0.0) + value
        for name, values in group.reward_parts.items():
            counts[f"reward/{name}"] = counts.get(f"reward/{name}", 0.0) + sum(values)

    counts["carried"] = len(collection.carry)
    for group in collection.used:
        counts["stale"] += any(completion.version < version for completion in group.completions)
    return counts


def collection_metrics(
    summed: Mapping[str, float], collection: Collection, *, rounds: int
) -> dict[str, Any]:
    """Shares over all groups sampled in the step, before any was replaced: the used ones would be
    biased.

    summed: `count_collection` over all processes. rounds: the most of any process.
    """
    groups, completions = max(summed["groups"], 1), max(summed["completions"], 1)
    by_reward = {}
    for name, value in sorted(summed.items()):
        if name.startswith("reward/"):
            by_reward[name] = value / completions

    return {
        "reward": summed["reward"] / completions,
        "accuracy": summed["right"] / completions,
        "valid_share": summed["valid"] / groups,
        "all_right_share": summed["all_right"] / groups,
        "all_wrong_share": summed["all_wrong"] / groups,
        "truncated_share": summed["cut"] / completions,
        "groups_seen": int(summed["groups"]),
        "carried_groups": int(summed["carried"]),
        "stale_groups": int(summed["stale"]),
        "rounds": rounds,
        "resample_cap_hit": int(collection.cap_hit),
        "reward_failures": len(collection.failures),
        **by_reward,
        **_by_task(summed),
    }


def _by_task(summed: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The mean reward of each task of the step; nothing for rows without a task, or with hardly two of the same."""
    answers = {
        name.removeprefix("answers_of_task/"): number
        for name, number in sorted(summed.items())
        if name.startswith("answers_of_task/") and number
    }
    if not 0 < len(answers) <= MOST_TASKS:
        return {}
    means = {task: summed[f"total_of_task/{task}"] / n for task, n in answers.items()}
    return {"reward_by_task": means}


def update_metrics(report: UpdateReport, *, group_size: int) -> dict[str, Any]:
    """What was trained, and what it did."""
    counts = report.counts
    return {
        **report.metrics,
        "valid_used": counts.valid_groups,
        "length_all": counts.tokens / max(counts.completions, 1),
        "length_valid": counts.valid_tokens / max(counts.valid_groups * group_size, 1),
        "step_skipped": int(not report.applied),
        "loss": report.loss,
        "grad_norm": report.grad_norm,
        "entropy": report.entropy,
        "logp_gap_mean": report.logp_gap_mean,
        "logp_gap_max": report.logp_gap_max,
        "logp_gap_stale_mean": report.logp_gap_stale_mean,
        "logp_gap_stale_max": report.logp_gap_stale_max,
        "passes": report.micro_batches,
        "trained_tokens": report.trained_tokens,
        "trained_vision_patches": report.vision_patches,
    }


def count_rollout(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """What an engine has computed between two readings of its counters."""
    return {f"rollout_{name}": value - before[name] for name, value in now.items()}


def rollout_metrics(summed: Mapping[str, float]) -> dict[str, int]:
    """The counts of `count_rollout`; seconds stand apart."""
    return {name: int(n) for name, n in summed.items() if not name.endswith("_seconds")}


def rollout_seconds(counted: Mapping[str, float]) -> dict[str, float]:
    """The seconds of `count_rollout`, of one process, by what took them."""
    seconds = {}
    for name, value in counted.items():
        if name.endswith("_seconds"):
            seconds[name.removeprefix("rollout_").removesuffix("_seconds")] = value
    return seconds


def advance(
    state: RunState, collection: Collection, report: UpdateReport, *, completions: float
) -> RunState:
    """The state after a step. `completions`: those sampled in it, over all processes."""
    return replace(
        state,
        step=state.step + 1,
        position=collection.position,
        carry=collection.carry,
        skipped_steps=state.skipped_steps + (not report.applied),
        completions=state.completions + int(completions),
    )
