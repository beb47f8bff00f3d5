"""The state of each process in a checkpoint: its random states and its surplus groups, as plain numbers and texts."""

import random
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpg_vl.training.prompt_source import PromptSource
from gpg_vl.training.tensor_file import DamagedFileError, load_tensors
from gpg_vl.types import Completion, GreedyAnswer, Group


def dump_rank_state(carry: Sequence[Group]) -> dict[str, Any]:
    """The random states of this process and its surplus groups, without prompts and examples."""
    name, keys, *rest = np.random.get_state(legacy=True)
    saved = {
        "torch": torch.get_rng_state(),
        "python": _to_lists(random.getstate()),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "carry": [_dump_group(group) for group in carry],
    }
    if torch.cuda.is_available():
        saved["cuda"] = torch.cuda.get_rng_state()
    return saved


def read_rank_state(file: Path) -> dict[str, Any]:
    """Read what `dump_rank_state` has written. Raises DamagedFileError."""
    saved = load_tensors(file)
    states = {"torch", "python", "numpy"}
    if not isinstance(saved, dict) or not states | {"carry"} <= saved.keys():
        raise DamagedFileError(f"{file.name} holds no random states and surplus groups")
    if not isinstance(saved["carry"], list) or not all(map(_is_group, saved["carry"])):
        raise DamagedFileError(f"{file.name} holds surplus groups that are not whole")
    return saved


def restore_random_states(saved: Mapping[str, Any]) -> None:
    """Restore the random states of this process. Raises DamagedFileError if they are invalid."""
    try:
        torch.set_rng_state(saved["torch"])
        if torch.cuda.is_available() and "cuda" in saved:
            torch.cuda.set_rng_state(saved["cuda"])
        random.setstate(_to_tuples(saved["python"]))
        np.random.set_state(_to_tuples(saved["numpy"]))
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise DamagedFileError(f"its random states are none: {error}") from error


def reseed(*, seed: int, step: int, rank: int) -> None:
    """Seed the random states of a process that has no saved ones, because the number of processes has changed."""
    own = np.random.SeedSequence((seed, step, rank))
    for_torch, for_python, for_numpy = (int(word) for word in own.generate_state(3))
    torch.manual_seed(for_torch)
    random.seed(for_python)
    np.random.seed(for_numpy)


def deal_carry(
    rows: Sequence[Sequence[Mapping[str, Any]]], *, processes: int
) -> list[list[Mapping[str, Any]]]:
    """Distribute all surplus groups over another number of processes: in the order of the data, one to each in turn."""
    everybodys = sorted((row for of_one in rows for row in of_one), key=itemgetter("draw"))
    return [everybodys[process::processes] for process in range(processes)]


def restore_carry(
    rows: Sequence[Mapping[str, Any]], source: PromptSource, *, default_version: int
) -> tuple[Group, ...]:
    """Restore surplus groups, which are encoded again.

    default_version: the version for completions that were saved without one.
    """
    return tuple(_restore_group(row, source, default_version) for row in rows)


def _dump_group(group: Group) -> dict[str, Any]:
    row = {
        "draw": group.draw,
        "rewards": list(group.rewards),
        "reward_parts": {name: list(values) for name, values in group.reward_parts.items()},
        "old_logps": [list(values) for values in group.old_logps],
        "completions": [_dump_completion(completion) for completion in group.completions],
    }
    if group.greedy is not None:
        row["greedy"] = {
            "completion": _dump_completion(group.greedy.completion),
            "reward": group.greedy.reward,
            "reward_parts": dict(group.greedy.reward_parts),
        }
    return row


def _dump_completion(completion: Completion) -> dict[str, Any]:
    return {
        "token_ids": list(completion.token_ids),
        "logprobs": list(completion.logprobs),
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prefill": completion.prefill,
        "version": completion.version,
    }


_GROUP = {"draw": int, "rewards": list, "reward_parts": dict, "completions": list}
_COMPLETION = {"token_ids": list, "logprobs": list, "text": str, "finish_reason": str}
_COMPLETION |= {"prefill": str}
_GREEDY = {"completion": dict, "reward": float, "reward_parts": dict}


def _is_group(row: Any) -> bool:
    """Whether a saved group has all fields of a group, and as many completions as rewards."""
    if not _has(row, _GROUP) or len(row["completions"]) != len(row["rewards"]):
        return False
    answers = [*row["completions"]]
    if "greedy" in row:
        if not _has(row["greedy"], _GREEDY):
            return False
        answers.append(row["greedy"]["completion"])
    return all(_has(answer, _COMPLETION) for answer in answers)


def _has(row: Any, kinds: Mapping[str, type]) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(k), t) for k, t in kinds.items())


def _restore_group(row: Mapping[str, Any], source: PromptSource, default_version: int) -> Group:
    drawn = source.group_at(row["draw"])
    completions = [_restore_completion(saved, default_version) for saved in row["completions"]]
    greedy = None
    if "greedy" in row:
        saved = row["greedy"]
        greedy = GreedyAnswer(
            completion=_restore_completion(saved["completion"], default_version),
            reward=saved["reward"],
            reward_parts=saved["reward_parts"],
        )
    return Group(
        example=drawn.example,
        prompt=drawn.prompt,
        completions=tuple(completions),
        rewards=tuple(row["rewards"]),
        reward_parts={name: tuple(values) for name, values in row["reward_parts"].items()},
        draw=row["draw"],
        old_logps=tuple(tuple(values) for values in row.get("old_logps", ())),
        greedy=greedy,
    )


def _restore_completion(saved: Mapping[str, Any], default_version: int) -> Completion:
    return Completion(
        token_ids=tuple(saved["token_ids"]),
        logprobs=tuple(saved["logprobs"]),
        text=saved["text"],
        finish_reason=saved["finish_reason"],
        prefill=saved["prefill"],
        version=saved.get("version", default_version),
    )


def _to_lists(value: Any) -> Any:
    return [_to_lists(v) for v in value] if isinstance(value, tuple) else value


def _to_tuples(value: Any) -> Any:
    return tuple(_to_tuples(v) for v in value) if isinstance(value, list) else value
