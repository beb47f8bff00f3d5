"""The metrics of a step: pure functions of what the parts of the loop return.

First counts are made per process (`count_...`) and summed over processes; shares and means are computed
from the sums (`..._metrics`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpg_vl.training.balance import Dealt
from gpg_vl.training.collect import Collection
from gpg_vl.training.state import RunState
from gpg_vl.training.step_totals import UpdateReport, add_to
from gpg_vl.types import Group

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

MOST_OF_FAILURE = 2000
"""Maximum length of the message of a failed reward."""
OF_SOURCE = ("groups", "completions", "reward", "right", "valid", "tokens")
"""What is counted per source, if there are several."""
MOST_TASKS = 32
"""Maximum number of tasks in a step whose rewards are reported separately."""


def count_collection(collection: Collection, *, version: int) -> dict[str, float]:
    """Counts of what one process sampled in a step.

    `version`: the version of the weights that sampled in this step.
    """
    counts = dict.fromkeys(_COUNTS, 0.0)
    for group in collection.seen:
        counts["groups"] += 1
        counts["completions"] += len(group.completions)
        counts["reward"] += sum(group.rewards)
        counts["valid"] += group.is_valid
        counts["all_right"] += group.is_all_right
        counts["all_wrong"] += not group.is_valid and group.right == 0
        counts["right"] += group.right
        counts["cut"] += sum(c.finish_reason == "length" for c in group.completions)
        if group.example.task:
            for kind, value in (("total", sum(group.rewards)), ("answers", len(group.rewards))):
                add_to(counts, f"{kind}_of_task/{group.example.task}", value)
        if group.greedy is not None:
            is_right = next(iter(group.greedy.reward_parts.values())) >= 1.0
            add_to(counts, "greedy", group.greedy.reward)
            add_to(counts, "greedy_right", is_right)
        for name, values in group.reward_parts.items():
            add_to(counts, f"reward/{name}", sum(values))
            add_to(counts, f"scored/{name}", len(values))
        if group.example.source:
            for kind, value in _count_group(group).items():
                add_to(counts, f"{kind}_of_source/{group.example.source}", value)

    counts["carried"] = len(collection.carry)
    for group in collection.used:
        counts["stale"] += any(completion.version < version for completion in group.completions)
    return counts


def _count_group(group: Group) -> dict[str, float]:
    """The counts that a group adds to its source."""
    values = (
        1.0,
        len(group.completions),
        sum(group.rewards),
        group.right,
        group.is_valid,
        sum(len(completion.token_ids) for completion in group.completions),
    )
    return dict(zip(OF_SOURCE, map(float, values), strict=True))


def collection_metrics(
    summed: Mapping[str, float], collection: Collection, *, rounds: int
) -> dict[str, Any]:
    """Shares over all groups sampled in the step, including replaced ones, because the used ones alone would be
    biased.

    summed: `count_collection` summed over all processes. rounds: the maximum over all processes.
    """
    groups, completions = max(summed["groups"], 1), max(summed["completions"], 1)
    by_reward = {}
    for name, value in sorted(summed.items()):
        # with several sources a reward may have scored only the answers of some of them
        if name.startswith("reward/"):
            by_reward[name] = value / summed[f"scored/{name.removeprefix('reward/')}"]

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
        **_first_failure(collection),
        **_greedy_metrics(summed),
        **_solved_rows(collection),
        **by_reward,
        **_by_task(summed),
        **_by_source(summed),
    }


def _first_failure(collection: Collection) -> dict[str, str]:
    """The message of the first failed reward, including its traceback, shortened."""
    if not collection.failures:
        return {}
    return {"reward_failure": str(collection.failures[0])[:MOST_OF_FAILURE]}


def _greedy_metrics(summed: Mapping[str, float]) -> dict[str, float]:
    """The mean reward of the greedy answers; each group has one or none has."""
    if "greedy" not in summed:
        return {}
    groups = summed["groups"]
    return {
        "greedy_reward": summed["greedy"] / groups,
        "greedy_accuracy": summed["greedy_right"] / groups,
    }


def _solved_rows(collection: Collection) -> dict[str, int]:
    """How many rows are no longer drawn after the step, and how many are drawn again; empty in a run that skips none."""
    solved = collection.solved
    return {} if solved is None else {"solved_rows": solved.rows, "solved_rows_again": solved.again}


def _by_task(summed: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The mean reward of each task of the step; empty if rows have no task, or if almost every row has its own."""
    answers = {
        name.removeprefix("answers_of_task/"): number
        for name, number in sorted(summed.items())
        if name.startswith("answers_of_task/") and number
    }
    if not 0 < len(answers) <= MOST_TASKS:
        return {}
    means = {task: summed[f"total_of_task/{task}"] / n for task, n in answers.items()}
    return {"reward_by_task": means}


def deal_metrics(dealt: Dealt) -> dict[str, Any]:
    """How evenly training tokens were distributed over the processes when sampled, and when trained."""
    return {
        "fullest_process_sampled": dealt.before,
        "fullest_process_trained": dealt.after,
        "moved_groups": dealt.moved,
    }


def _by_source(summed: Mapping[str, float]) -> dict[str, float]:
    """Reward, accuracy, share of groups with signal, and answer length in tokens, for each source that was drawn from."""
    prefix = "groups_of_source/"
    metrics = {}
    for source in sorted(n.removeprefix(prefix) for n in summed if n.startswith(prefix)):
        count = {kind: summed[f"{kind}_of_source/{source}"] for kind in OF_SOURCE}
        metrics[f"source/{source}/reward"] = count["reward"] / count["completions"]
        metrics[f"source/{source}/accuracy"] = count["right"] / count["completions"]
        metrics[f"source/{source}/valid_share"] = count["valid"] / count["groups"]
        metrics[f"source/{source}/length"] = count["tokens"] / count["completions"]
    return metrics


def update_metrics(report: UpdateReport, *, group_size: int) -> dict[str, Any]:
    """The metrics of an update."""
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
    """The difference of two readings of an engine's counters."""
    return {f"rollout_{name}": value - before[name] for name, value in now.items()}


def rollout_metrics(summed: Mapping[str, float]) -> dict[str, int]:
    """The counts of `count_rollout` without the seconds."""
    return {name: int(n) for name, n in summed.items() if not name.endswith("_seconds")}


def rollout_seconds(counted: Mapping[str, float]) -> dict[str, float]:
    """The seconds of `count_rollout` of one process, by phase."""
    seconds = {}
    for name, value in counted.items():
        if name.endswith("_seconds"):
            seconds[name.removeprefix("rollout_").removesuffix("_seconds")] = value
    return seconds


def shares_of_step(seconds: Mapping[str, float]) -> dict[str, float]:
    """`data`: the share of a step in which this process waited for prompts, whether it or a worker encoded them."""
    return {"data": seconds["encode"] / seconds["step"]}


def advance(
    state: RunState, collection: Collection, report: UpdateReport, *, completions: float
) -> RunState:
    """The state after a step. `completions`: the number sampled in it, over all processes."""
    return replace(
        state,
        step=state.step + 1,
        position=collection.position,
        carry=collection.carry,
        streaks=collection.solved.streaks if collection.solved else state.streaks,
        skipped_steps=state.skipped_steps + (not report.applied),
        completions=state.completions + int(completions),
    )
