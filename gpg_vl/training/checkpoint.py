"""Checkpoints that are complete or absent, and from which a run goes on bit for bit.

    checkpoints/step-000040/
        model/              weights (safetensors), config, tokenizer, processor: an ordinary checkpoint, adapters merged in
        adapters.safetensors  the adapters alone, if there are any
        optimizer.pt        AdamW's moments
        state.json          step, data position, counters
        rank-0.pt           per process: random states and surplus groups

Everything is written into a hidden folder beside it, flushed to the disk and then renamed: a killed process leaves a
hidden folder that no resume looks at. Files are read with `weights_only=True`: a checkpoint cannot run code.
"""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from gpg_vl.errors import RunError, UserError
from gpg_vl.models.adapters import adapter_state, has_adapters, load_adapter_state, merged_state
from gpg_vl.models.load import Processing, load_model, quiet
from gpg_vl.types import Completion, Example, Group

PREFIX = "step-"


@dataclass(slots=True, kw_only=True)
class RunState:
    """What a run knows besides weights and optimizer."""

    step: int = 0
    """Optimizer steps done (skipped ones included)."""
    position: int = 0
    """Examples drawn from the data order, over all ranks."""
    skipped_steps: int = 0
    completions: int = 0
    carry: list[Group] = field(default_factory=list)
    """This rank's surplus valid groups, first in line for the next step."""


def data_digest(examples: Sequence[Example]) -> str:
    """What the order of a run refers to: ids, prompts and answers of the examples. 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.id, example.prompt, example.answer)).encode())
    return digest.hexdigest()[:16]


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, or None."""
    found = sorted(p for p in folder.glob(f"{PREFIX}*") if (p / "state.json").is_file())
    return found[-1] if found else None


def save(
    folder: Path,
    *,
    state: RunState,
    model: nn.Module,
    processing: Processing,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    keep: int,
    data: str,
) -> Path:
    """Write a checkpoint of the run after `state.step` steps and delete all but the newest `keep`. Raises RunError.

    data: digest of the examples; see `data_digest`.
    """
    final = folder / f"{PREFIX}{state.step:06d}"
    hidden = folder / f".{final.name}.partial"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(hidden, ignore_errors=True)
            hidden.mkdir(parents=True)
        accelerator.wait_for_everyone()
        torch.save(_rank_state(state), hidden / f"rank-{accelerator.process_index}.pt")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            save_model(model, processing, hidden / "model")
            if has_adapters(model):
                save_file(adapter_state(model), hidden / "adapters.safetensors")
            torch.save(optimizer.state_dict(), hidden / "optimizer.pt")
            counters = {
                "step": state.step,
                "position": state.position,
                "skipped_steps": state.skipped_steps,
                "completions": state.completions,
                "processes": accelerator.num_processes,
                "data": data,
            }
            (hidden / "state.json").write_text(json.dumps(counters, indent=2) + "\n")
            _flush(hidden)
            shutil.rmtree(final, ignore_errors=True)
            hidden.rename(final)
            _flush_folder(folder)
            for old in sorted(folder.glob(f"{PREFIX}*"))[:-keep]:
                shutil.rmtree(old)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # a full disk, as torch and safetensors put it
        shutil.rmtree(hidden, ignore_errors=True)
        raise RunError(
            f"The checkpoint {final} could not be written: {error}. The last complete one is {latest(folder) or 'none'}; make "
            f"room and go on with --resume."
        ) from error
    accelerator.wait_for_everyone()
    return final


def save_model(model: Any, processing: Processing, folder: Path) -> None:
    """An ordinary checkpoint that `from_pretrained` and other engines load; adapters are merged in."""
    with quiet():
        model.save_pretrained(folder, state_dict=merged_state(model))
    processing.tokenizer.save_pretrained(folder)
    if processing.image_processor is not None:
        processing.image_processor.save_pretrained(folder)


def restore(
    checkpoint: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    data: str,
    group_of: Callable[[int], Group],
) -> RunState:
    """Put a checkpoint into model, optimizer and random states.

    Surplus groups are stored without prompts and examples: `group_of(draw)` gives the group of a draw without completions.
    Raises UserError if the checkpoint cannot be read or is of another number of processes.
    """
    try:
        counters = json.loads((checkpoint / "state.json").read_text())
        if counters["data"] != data:
            raise UserError(
                f"The data is not what the run in {checkpoint} was started with: other rows, answers or prompts. Its order "
                f"would mean other examples now. Put the old file back, or start a new run."
            )
        if counters["processes"] != accelerator.num_processes:
            raise UserError(
                f"The checkpoint {checkpoint} was written by {counters['processes']} process(es); this run has "
                f"{accelerator.num_processes}. Start as many as then."
            )
        if has_adapters(model):
            load_adapter_state(model, checkpoint / "adapters.safetensors")
        else:
            _load_weights(model, checkpoint / "model")
        optimizer.load_state_dict(
            torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu")
        )
        mine = torch.load(checkpoint / f"rank-{accelerator.process_index}.pt", weights_only=True)
    except UserError:
        raise
    except Exception as error:
        unreadable = isinstance(
            error, OSError | ValueError | KeyError | RuntimeError | EOFError | SafetensorError
        )
        if (
            not unreadable and type(error).__name__ != "UnpicklingError"
        ):  # what torch.load says of a file that is none
            raise
        raise UserError(
            f"The checkpoint {checkpoint} cannot be read: {type(error).__name__}: {error}. Delete this folder; --resume then "
            f"goes on from the one before it."
        ) from error
    torch.set_rng_state(mine["torch"])
    if torch.cuda.is_available() and "cuda" in mine:
        torch.cuda.set_rng_state(mine["cuda"])
    random.setstate(_tuples(mine["python"]))
    np.random.set_state(_tuples(mine["numpy"]))
    return RunState(
        step=counters["step"],
        position=counters["position"],
        skipped_steps=counters["skipped_steps"],
        completions=counters["completions"],
        carry=_revived(mine["carry"], group_of),
    )


def _revived(saved: Sequence[dict[str, Any]], group_of: Callable[[int], Group]) -> list[Group]:
    """Surplus groups from their saved form."""
    groups = []
    for row in saved:
        completions = tuple(
            Completion(
                token_ids=tuple(c["token_ids"]),
                logprobs=tuple(c["logprobs"]),
                text=c["text"],
                finish_reason=c["finish_reason"],
                prefill=c["prefill"],
            )
            for c in row["completions"]
        )
        empty: Group = group_of(row["draw"])
        groups.append(
            Group(
                example=empty.example,
                prompt=empty.prompt,
                completions=completions,
                rewards=tuple(row["rewards"]),
                reward_parts={k: tuple(v) for k, v in row["reward_parts"].items()},
                draw=row["draw"],
            )
        )
    return groups


def _rank_state(state: RunState) -> dict[str, Any]:
    carry = [
        {
            "draw": g.draw,
            "rewards": list(g.rewards),
            "reward_parts": {k: list(v) for k, v in g.reward_parts.items()},
            "completions": [
                {
                    "token_ids": list(c.token_ids),
                    "logprobs": list(c.logprobs),
                    "text": c.text,
                    "finish_reason": c.finish_reason,
                    "prefill": c.prefill,
                }
                for c in g.completions
            ],
        }
        for g in state.carry
    ]
    name, keys, *rest = np.random.get_state(legacy=True)
    saved = {
        "torch": torch.get_rng_state(),
        "python": _lists(random.getstate()),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "carry": carry,
    }
    return saved | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _load_weights(model: nn.Module, folder: Path) -> None:
    with quiet():
        saved = (
            load_model(str(folder)).state_dict()
        )  # save_pretrained renames weights; from_pretrained knows how to name them back
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(saved[name])


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
