"""Writes the outputs of a run: metrics.jsonl, samples/, trackers."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save
from torch import Tensor

from gpg_vl.errors import RunError
from gpg_vl.rewards.reasons import Reasons
from gpg_vl.training.evaluation_files import Evaluated, write_evaluation
from gpg_vl.training.samples import PictureSource, dump_groups, write
from gpg_vl.training.trackers import show_samples
from gpg_vl.types import Group

log = logging.getLogger("gpg_vl.run")

SAMPLED_GROUPS = 4
"""Groups written per dump."""

_PROMPT_TENSORS = (
    "input_ids_T",
    "positions_3_T",
    "image_mask_T",
    "pixel_values_N",
    "grid_thw_I_3",
)


class Record:
    """Writes metrics and samples of a run, on the main process only.

    Metric rows are `{"step": n, "kind": "train" | "eval", ..., "seconds": {...}, "share_of_step": {...}}`;
    only these two depend on the clock, so two runs can be compared bit for bit without them.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        pictures: PictureSource,
        explain: Callable[[Sequence[Group]], list[Reasons]],
    ) -> None:
        """`explain`: returns for each group the reasons of rewards that cannot be explained later."""
        self._folder = folder
        self._accelerator = accelerator
        self._pictures = pictures
        self._explain = explain
        self._main = accelerator.is_main_process

    def metrics(
        self,
        step: int,
        kind: str,
        values: Mapping[str, Any],
        seconds: Mapping[str, float],
        shares: Mapping[str, float] | None = None,
    ) -> None:
        """Append one row and send its numbers to the trackers.

        shares: shares of the step's seconds by phase. Raises RunError if the disk is full.
        """
        clocks = {"seconds": seconds, "share_of_step": shares or {}}
        if self._main:
            row = {"step": step, "kind": kind, **values}
            for clock, measured in clocks.items():
                if measured:
                    row[clock] = {name: round(value, 4) for name, value in measured.items()}
            self._append(self._folder / "metrics.jsonl", json.dumps(row, allow_nan=False) + "\n")
            log.info("step %d: %s %s", step, kind, _headline(values))

        if self._accelerator.trackers:
            numbers: dict[str, float] = {}
            for name, value in values.items():
                if isinstance(value, int | float):
                    numbers[f"{kind}/{name}"] = value
            for clock, measured in clocks.items():
                for name, value in measured.items():
                    numbers[f"{kind}/{clock}_{name}"] = value
            self._accelerator.log(numbers, step=step)

    def samples(self, step: int, groups: Sequence[Group]) -> None:
        """Dump the first groups of a step: prompt, images as files, completions, rewards and their reasons."""
        if not self._main or not groups:
            return
        groups = groups[:SAMPLED_GROUPS]
        folder = _make_folder(self._folder / "samples" / f"step-{step:06d}")
        dump_groups(folder, groups, self._pictures, self._explain(groups))
        show_samples(self._accelerator.trackers, step, groups, self._pictures)

    def evaluation(self, step: int, found: Evaluated) -> None:
        """Save the answer to each held-out row. Raises RunError if the disk is full."""
        if self._main:
            write_evaluation(self._folder, step, found)

    def broken(self, step: int, groups: Sequence[Group]) -> Path:
        """Save all groups of this process from a failed update, including tensors.

        Returns the folder.
        """
        name = f"step-{step:06d}-process-{self._accelerator.process_index}"
        folder = _make_folder(self._folder / "broken" / name)
        dump_groups(folder, groups, self._pictures)

        tensors: dict[str, Tensor] = {}
        for number, group in enumerate(groups):
            for name in _PROMPT_TENSORS:
                value = getattr(group.prompt, name)
                if value is not None:
                    tensors[f"{number}.{name}"] = value.contiguous()
            for member, completion in enumerate(group.completions):
                tensors[f"{number}.{member}.token_ids"] = torch.tensor(completion.token_ids)
                tensors[f"{number}.{member}.logprobs"] = torch.tensor(completion.logprobs)
        write(folder / "tensors.safetensors", save(tensors))
        return folder

    def flush(self) -> None:
        """Flush metrics.jsonl to the disk, so that it always has at least the steps of a checkpoint."""
        file = self._folder / "metrics.jsonl"
        if self._main and file.exists():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())

    def _append(self, file: Path, line: str) -> None:
        try:
            with file.open("a", encoding="utf-8") as out:
                out.write(line)
        except OSError as error:
            raise RunError(
                f"{file} cannot be written: {error}. Free disk space and resume from the last checkpoint with --resume."
            ) from error


def _headline(values: Mapping[str, Any]) -> str:
    """The first numbers of a row, for the log."""
    numbers = [(name, one) for name, one in values.items() if isinstance(one, int | float)]
    return "  ".join(f"{name} {one:.4g}" for name, one in numbers[:5])


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"The folder {folder} cannot be made: {error}. Free disk space or choose another output.folder."
        ) from error
    return folder
