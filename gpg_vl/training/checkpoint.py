"""Checkpoints that are complete or absent, and from which a run goes on bit for bit.

    checkpoints/step-000040/
        model/              weights (safetensors), config, tokenizer, processor: an ordinary checkpoint, adapters merged in
        adapter/            adapters if there are any, as peft writes and reads them
        state.json          step, data position, counters
        rank-0.pt           per process: random states and surplus groups
        ...                 what the sharding writes: optimizer.pt, or parts/

Everything is written into a hidden folder beside it, flushed to the disk and then renamed: a killed process leaves a
hidden folder that no resume looks at. Files are read with `weights_only=True`: a checkpoint cannot run code.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from gpg_vl.activity import MeetingBrokenError
from gpg_vl.errors import RunError, UserError
from gpg_vl.model import Model
from gpg_vl.models.adapter_folder import FOLDER, save_adapters
from gpg_vl.models.save import save_model, save_processing
from gpg_vl.training.rank_state import (
    deal_carry,
    dump_rank_state,
    reseed,
    restore_carry,
    restore_random_states,
)
from gpg_vl.training.ranks import wait_for_all
from gpg_vl.training.sharding.protocol import Sharding
from gpg_vl.training.source import PromptSource
from gpg_vl.training.state import RunState
from gpg_vl.types import Example, Group

PREFIX = "step-"
_COUNTERS = ("step", "position", "skipped_steps", "completions")


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, or None."""
    found = sorted(p for p in folder.glob(f"{PREFIX}*") if (p / "state.json").is_file())
    return found[-1] if found else None


def digest_data(examples: Sequence[Example]) -> str:
    """What the order of a run refers to: ids, prompts and answers of the examples. 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.id, example.prompt, example.answer)).encode())
    return digest.hexdigest()[:16]


class Checkpoints:
    """The checkpoints of one run. All processes call its methods together.

    folder: where they are; each is a folder of its own in there.
    keep: older checkpoints are deleted once so many newer ones are complete.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        model: Model,
        sharding: Sharding,
        source: PromptSource,
        accelerator: Accelerator,
    ) -> None:
        self._folder = folder
        self._keep = keep
        self._model = model
        self._sharding = sharding
        self._source = source
        self._accelerator = accelerator
        self._digest = digest_data(source.examples)

    def save(self, state: RunState) -> Path:
        """Write a checkpoint of the run after `state.step` steps and delete all but the newest.

        Returns its folder. Raises RunError.
        """
        final = self._folder / f"{PREFIX}{state.step:06d}"
        hidden = self._folder / f".{final.name}.partial"
        wait, main = partial(wait_for_all, self._accelerator), self._accelerator.is_main_process
        try:
            if main:
                shutil.rmtree(hidden, ignore_errors=True)
                hidden.mkdir(parents=True)
            wait()
            own = hidden / _rank_file(self._accelerator.process_index)
            torch.save(dump_rank_state(state.carry), own)
            self._save_model(hidden / "model")
            self._save_adapters(hidden / FOLDER)
            self._sharding.save(hidden)
            wait()

            if main:
                self._write_counters(hidden / "state.json", state)
                _flush(hidden)
                shutil.rmtree(final, ignore_errors=True)
                hidden.rename(final)
                _flush_folder(self._folder)
                for old in sorted(self._folder.glob(f"{PREFIX}*"))[: -self._keep]:
                    shutil.rmtree(old)
        except MeetingBrokenError:  # the disk is not to blame
            raise
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # a full disk, as torch and safetensors put it
            shutil.rmtree(hidden, ignore_errors=True)
            raise RunError(
                f"The checkpoint {final} could not be written: {error}. The last complete one is "
                f"{latest(self._folder) or 'none'}; make room and go on with --resume."
            ) from error
        wait()
        return final

    def restore(self, checkpoint: Path) -> RunState:
        """Put a checkpoint into model, optimizer and random states.

        Raises UserError if it cannot be read, or is of other data or of another number of processes.
        """
        try:
            counters = json.loads((checkpoint / "state.json").read_text())
            self._refuse_others(checkpoint, counters)
            self._sharding.load(checkpoint)
            state = RunState(**{name: counters[name] for name in _COUNTERS})
            carry = self._restore_rank(checkpoint, counters["processes"], state)
        except UserError:
            raise
        except Exception as error:
            if not _is_unreadable(error):
                raise
            raise UserError(
                f"The checkpoint {checkpoint} cannot be read: {type(error).__name__}: {error}. Delete this folder; "
                f"--resume then goes on from the one before it."
            ) from error
        return replace(state, carry=carry)

    def _restore_rank(self, checkpoint: Path, processes: int, state: RunState) -> tuple[Group, ...]:
        """Random states of this process, and its surplus groups; dealt anew if other processes have written them."""
        here, index = self._accelerator.num_processes, self._accelerator.process_index
        numbers = [index] if processes == here else range(processes)
        saved = [
            torch.load(checkpoint / _rank_file(number), weights_only=True) for number in numbers
        ]

        if processes == here:
            restore_random_states(saved[0])
            rows = saved[0]["carry"]
        else:
            reseed(seed=self._source.seed, step=state.step, rank=index)
            rows = deal_carry([one["carry"] for one in saved], processes=here)[index]
        return restore_carry(rows, self._source, default_version=state.step - 1)

    def _save_model(self, folder: Path) -> None:
        """An ordinary checkpoint that `from_pretrained` and other engines load; adapters are merged in."""
        weights = self._sharding.full_weights()
        if not self._accelerator.is_main_process:
            for _ in weights:
                pass
            return
        save_model(self._model.policy.model, weights, folder)
        save_processing(self._model.processing, self._source.encoder.limits, folder)

    def _save_adapters(self, folder: Path) -> None:
        """A folder that peft loads onto the model that the run began with."""
        weights = self._sharding.full_adapters()
        if weights and self._accelerator.is_main_process:
            model = self._model
            save_adapters(
                model.policy.model, weights, folder, base=model.path, revision=model.revision
            )

    def _write_counters(self, file: Path, state: RunState) -> None:
        counters: dict[str, Any] = {name: getattr(state, name) for name in _COUNTERS}
        counters |= {
            "processes": self._accelerator.num_processes,
            "sharding": self._sharding.name,
            "data": self._digest,
        }
        file.write_text(json.dumps(counters, indent=2) + "\n")

    def _refuse_others(self, checkpoint: Path, counters: dict[str, Any]) -> None:
        if counters["data"] != self._digest:
            raise UserError(
                f"The data is not what the run in {checkpoint} was started with: other rows, answers or prompts. Its "
                f"order would mean other examples now. Put the old file back, or start a new run."
            )
        # earlier versions wrote no name, and had one sharding
        written_by, sharding = counters.get("sharding", "none"), self._sharding.name
        if written_by != sharding:
            raise UserError(
                f"The checkpoint {checkpoint} was written under train.sharding {written_by}; this run has {sharding}, which "
                f"reads only its own. Resume with train.sharding={written_by}, or start a new run from "
                f"{checkpoint / 'model'}, an ordinary model."
            )
        here = self._accelerator.num_processes
        if counters["processes"] != here and not self._sharding.any_processes:
            raise UserError(
                f"The checkpoint {checkpoint} was written by {counters['processes']} process(es); this run has {here}. "
                f"Start as many as then."
            )


def _rank_file(process: int) -> str:
    return f"rank-{process}.pt"


def _is_unreadable(error: Exception) -> bool:
    """Whether a file is to blame; torch.load says `UnpicklingError` of one that is none."""
    kinds = (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError)
    return isinstance(error, kinds) or type(error).__name__ == "UnpicklingError"


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
