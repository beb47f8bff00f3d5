"""What a run leaves behind: metrics.jsonl, samples/, trackers."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save

from gpg_vl.errors import RunError
from gpg_vl.types import Group

SAMPLED_GROUPS = 4
"""Groups written per dump."""


def truncate_metrics(file: Path, step: int) -> int:
    """Drop the rows after `step` (they will be computed again) and a torn last line. Returns how many rows went."""
    if not file.exists():
        return 0
    kept, dropped = [], 0
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            row = json.loads(line) if line.endswith("\n") else None
        except json.JSONDecodeError:
            row = None
        if row is not None and row["step"] <= step:
            kept.append(line)
        else:
            dropped += 1
    partial = file.with_suffix(".partial")
    _write(partial, "".join(kept).encode())
    partial.replace(file)
    return dropped


class Record:
    """Writes metrics and samples of a run, on the main process only.

    Metric rows are `{"step": n, "kind": "train" | "eval", ..., "seconds": {...}}`; all that depends on the clock stands
    under `seconds`, so that two runs can be compared bit for bit without it.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self._folder = folder
        self._accelerator = accelerator
        self._main = accelerator.is_main_process

    def metrics(
        self, step: int, kind: str, values: Mapping[str, Any], seconds: Mapping[str, float]
    ) -> None:
        """Append one row and send its numbers to the trackers. Raises RunError if the disk is full."""
        if self._main:
            row = {
                "step": step,
                "kind": kind,
                **values,
                "seconds": {k: round(v, 4) for k, v in seconds.items()},
            }
            self._append(self._folder / "metrics.jsonl", json.dumps(row, allow_nan=False) + "\n")
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
        if self._accelerator.trackers:
            self._accelerator.log(
                {
                    f"{kind}/{k}": v
                    for k, v in {
                        **numbers,
                        **{f"seconds_{k}": s for k, s in seconds.items()},
                    }.items()
                },
                step=step,
            )

    def samples(self, step: int, groups: Sequence[Group]) -> None:
        """Dump the first groups of a step: prompt, images as files, completions, rewards."""
        if not self._main or not groups:
            return
        _dump(_made(self._folder / "samples" / f"step-{step:06d}"), groups[:SAMPLED_GROUPS])

    def broken(self, step: int, groups: Sequence[Group]) -> Path:
        """Keep all groups of this process that a failed update was made of, tensors included. Returns the folder."""
        folder = _made(
            self._folder / "broken" / f"step-{step:06d}-process-{self._accelerator.process_index}"
        )
        _dump(folder, groups)
        tensors = {
            f"{number}.{name}": value.contiguous()
            for number, group in enumerate(groups)
            for name in (
                "input_ids_T",
                "positions_3_T",
                "image_mask_T",
                "pixel_values_N",
                "grid_thw_I_3",
            )
            if (value := getattr(group.prompt, name)) is not None
        }
        for number, group in enumerate(groups):
            for member, completion in enumerate(group.completions):
                tensors[f"{number}.{member}.token_ids"] = torch.tensor(completion.token_ids)
                tensors[f"{number}.{member}.logprobs"] = torch.tensor(completion.logprobs)
        _write(folder / "tensors.safetensors", save(tensors))
        return folder

    def _append(self, file: Path, line: str) -> None:
        try:
            with file.open("a", encoding="utf-8") as out:
                out.write(line)
        except OSError as error:
            raise RunError(
                f"{file} cannot be written: {error}. Make room and go on from the last checkpoint with --resume."
            ) from error

    def flush(self) -> None:
        """Bring metrics.jsonl to the disk, so that a checkpoint never knows more steps than it."""
        file = self._folder / "metrics.jsonl"
        if self._main and file.exists():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"The folder {folder} cannot be made: {error}. Make room or choose another output.folder."
        ) from error
    return folder


def _dump(folder: Path, groups: Sequence[Group]) -> None:
    """samples.jsonl, and the images that came as bytes."""
    rows: list[dict[str, Any]] = []
    for group in groups:
        images = []
        for i, image in enumerate(group.example.images):
            if isinstance(image, bytes):
                name = f"{len(rows)}-{i}{_suffix(image)}"
                _write(folder / name, image)
                images.append(name)
            else:
                images.append(image)
        rows.append(
            {
                "id": group.example.id,
                "task": group.example.task,
                "prompt": group.prompt.text,
                "images": images,
                "answer": group.example.answer,
                "choices": group.example.choices,
                "completions": [
                    {
                        "text": c.text,
                        "finish_reason": c.finish_reason,
                        "tokens": len(c.token_ids),
                        "reward": r,
                        **{f"reward/{k}": v[j] for k, v in group.reward_parts.items()},
                    }
                    for j, (c, r) in enumerate(zip(group.completions, group.rewards, strict=True))
                ],
            }
        )
    _write(folder / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def _write(file: Path, data: bytes) -> None:
    try:
        file.write_bytes(data)
    except OSError as error:
        raise RunError(
            f"{file} cannot be written: {error}. Make room and go on from the last checkpoint with --resume."
        ) from error


def _suffix(data: bytes) -> str:
    return (
        ".png"
        if data.startswith(b"\x89PNG")
        else ".jpg"
        if data.startswith(b"\xff\xd8")
        else ".img"
    )
