"""Writes and restores checkpoints. They are complete or absent, and a run resumes from them bit for bit.

    checkpoints/step-000040/
        manifest.json       size and digest of every other file, and everything else the run depends on
        model/              weights (safetensors), config, tokenizer, processor: an ordinary checkpoint, adapters merged in
        adapter/            adapters if there are any, as peft writes and reads them
        state.json          step, data position, counters
        data.digests        the digest of each row of the data
        weights/            the trained weights in their own dtype, if `model/` is rounded
        rank-0.pt           per process: random states and surplus groups
        ...                 files of the sharding: optimizer.pt and critic.pt, or parts/

    checkpoints/best        a link to the best checkpoint by `output.keep_best`

Everything is written to a hidden folder next to it, digested, flushed to the disk and then renamed. A killed process leaves
only a hidden folder, which a resume ignores. Files are read with `weights_only=True`, so a checkpoint cannot run code.
"""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from gpg_vl.errors import RunError, UserError
from gpg_vl.model import Model
from gpg_vl.models.adapter_folder import FOLDER, save_adapters
from gpg_vl.models.run_checkpoints import MODEL, PREFIX, STATE, by_step, latest
from gpg_vl.models.save import follow_umask, save_model, save_processing
from gpg_vl.training.collectives import gather, wait_for_all
from gpg_vl.training.finite_weights import check_finite
from gpg_vl.training.identity import Identity
from gpg_vl.training.manifest import (
    Entry,
    Manifest,
    digest_file,
    list_files,
    share_of,
    write_manifest,
)
from gpg_vl.training.model_card import FILE as CARD
from gpg_vl.training.prompt_source import PromptSource
from gpg_vl.training.rank_state import (
    deal_carry,
    dump_rank_state,
    read_rank_state,
    reseed,
    restore_carry,
    restore_random_states,
)
from gpg_vl.training.sharding.protocol import Sharding
from gpg_vl.training.state import RunState, SavedState, dump_state, read_state
from gpg_vl.types import Group

ROWS, BEST = "data.digests", "best"

log = logging.getLogger("gpg_vl.run")


LITTLE_ROOM = 1 << 20
"""A disk with fewer free bytes counts as full: files are written in blocks, and a last small one may still fit."""


class Checkpoints:
    """The checkpoints of one run. All processes call its methods together.

    folder: the folder that contains them, one subfolder each.
    metrics: metrics.jsonl of the run.
    keep: how many of the newest checkpoints are kept; the best one is kept too.
    identity: everything the run depends on; needed on the main process.
    export: dtype of all weights in `model/`; None: their own dtype.
    card: a function from the number of steps to the text of the model card; None writes none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        metrics: Path,
        keep: int,
        identity: Identity | None,
        model: Model,
        sharding: Sharding,
        source: PromptSource,
        accelerator: Accelerator,
        export: torch.dtype | None = None,
        card: Callable[[int], str] | None = None,
    ) -> None:
        assert identity is not None or not accelerator.is_main_process
        self._folder = folder
        self._metrics = metrics
        self._keep = keep
        self._identity = identity
        self._model = model
        self._sharding = sharding
        self._source = source
        self._accelerator = accelerator
        self._export = export
        self._card = card

    def save(self, state: RunState) -> Path:
        """Write a checkpoint of the run after `state.step` steps and delete all but the newest and the best.

        Returns its folder. Raises RunError; NonFiniteWeightsError if weights are NaN or infinite.
        """
        final = self._folder / _name(state.step)
        hidden = self._folder / f".{final.name}.partial"
        wait, main = partial(wait_for_all, self._accelerator), self._accelerator.is_main_process

        try:
            if main:
                shutil.rmtree(hidden, ignore_errors=True)
                hidden.mkdir(parents=True)
            wait()
            self._write(hidden, state)
            wait()

            if main:
                follow_umask(hidden)
            files = _digest_all(self._accelerator, hidden)
            if main:
                self._write_manifest(hidden, files)
                _flush(hidden)
                _put_in_place(hidden, final)

                # delete older checkpoints only after the new one is complete
                best = self._folder / _name(state.best.step) if state.best else None
                for old in by_step(self._folder)[: -self._keep]:
                    if old != best:
                        shutil.rmtree(old)
                _link_best(self._folder, best)
        except (
            RunError
        ):  # non-finite weights, or another process has ended: not an error of the disk
            if main:
                shutil.rmtree(hidden, ignore_errors=True)
            raise
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # torch and safetensors raise these for a full disk
            why = _describe_refusal(error, self._folder)
            shutil.rmtree(hidden, ignore_errors=True)
            raise RunError(
                f"The checkpoint {final} could not be written: {why}. The last complete one is "
                f"{latest(self._folder) or 'none'}; free disk space and resume with --resume."
            ) from error
        wait()
        return final

    def restore(self, checkpoint: Path) -> RunState:
        """Load a checkpoint into model, optimizer and random states.

        Raises UserError if it cannot be read, or if it was written under another sharding or number of processes.
        """
        try:
            saved = read_state(checkpoint / STATE)
            self._refuse_others(checkpoint, saved)
            self._sharding.load(checkpoint)
            carry = self._restore_rank(checkpoint, saved)
        except (UserError, RunError):  # already explained, or another process has ended
            raise
        except Exception as error:
            if not _is_unreadable(error):
                raise
            raise UserError(
                f"The checkpoint {checkpoint} cannot be read: {type(error).__name__}: {error}. Delete this folder; "
                f"--resume then takes the one before it."
            ) from error
        return replace(saved.state, carry=carry)

    # ---- what is written

    def _write(self, hidden: Path, state: RunState) -> None:
        own = hidden / _rank_file(self._accelerator.process_index)
        torch.save(dump_rank_state(state.carry), own)
        self._save_model(hidden / MODEL, state.step)
        self._save_adapters(hidden / FOLDER)
        self._sharding.save(hidden)

        if self._accelerator.is_main_process:
            assert self._identity is not None
            processes, sharding = self._accelerator.num_processes, self._sharding.name
            text = dump_state(state, processes=processes, sharding=sharding)
            (hidden / STATE).write_text(text, encoding="utf-8")
            (hidden / ROWS).write_bytes(self._identity.rows.to_bytes())

    def _save_model(self, folder: Path, step: int) -> None:
        """An ordinary checkpoint that `from_pretrained` and other engines load; adapters are merged in."""
        weights = check_finite(self._sharding.full_weights(), step)
        if not self._accelerator.is_main_process:
            for _ in weights:
                pass
            return
        save_model(self._model.policy.model, weights, folder, self._export)
        save_processing(self._model.processing, self._source.encoder.limits, folder)
        if self._card is not None:
            (folder / CARD).write_text(self._card(step), encoding="utf-8")

    def _save_adapters(self, folder: Path) -> None:
        """Save adapters in a folder that peft loads onto the original model."""
        weights = self._sharding.full_adapters()
        if weights and self._accelerator.is_main_process:
            model = self._model
            save_adapters(
                model.policy.model, weights, folder, base=model.path, revision=model.revision
            )

    def _write_manifest(self, hidden: Path, files: dict[str, Entry]) -> None:
        assert self._identity is not None
        has_rows = self._metrics.exists()
        metrics = digest_file(self._metrics if has_rows else Path(os.devnull))
        manifest = Manifest(files=files, metrics=metrics, run=self._identity.to_json())
        write_manifest(hidden, manifest)

    # ---- what is read

    def _restore_rank(self, checkpoint: Path, saved: SavedState) -> tuple[Group, ...]:
        """Restore this process's random states and return its surplus groups; they are distributed again if the number of
        processes has changed."""
        here, index = self._accelerator.num_processes, self._accelerator.process_index
        numbers = [index] if saved.processes == here else range(saved.processes)
        ranks = [read_rank_state(checkpoint / _rank_file(number)) for number in numbers]

        if saved.processes == here:
            restore_random_states(ranks[0])
            rows = ranks[0]["carry"]
        else:
            reseed(seed=self._source.seed, step=saved.state.step, rank=index)
            rows = deal_carry([one["carry"] for one in ranks], processes=here)[index]
        return restore_carry(rows, self._source, default_version=saved.state.step - 1)

    def _refuse_others(self, checkpoint: Path, saved: SavedState) -> None:
        if saved.sharding != self._sharding.name:
            raise UserError(
                f"The checkpoint {checkpoint} was written under train.sharding {saved.sharding}; this run has "
                f"{self._sharding.name}, which reads only its own checkpoints. Resume with "
                f"train.sharding={saved.sharding}, or start a new run from {checkpoint / MODEL}, an ordinary model."
            )
        here = self._accelerator.num_processes
        if saved.processes != here and not self._sharding.any_processes:
            raise UserError(
                f"The checkpoint {checkpoint} was written by {saved.processes} process(es); this run has {here}. Start "
                f"the same number."
            )


def digest_together(
    accelerator: Accelerator, folder: Path, sizes: dict[str, int]
) -> dict[str, Entry | None]:
    """Size and digest of the named files, on all processes; None for a file that cannot be read.

    The processes of the first node share the work, because on a network file system other nodes may see a file only later.
    """
    index = accelerator.process_index
    is_near = gather(accelerator, index == accelerator.local_process_index)
    near = [rank for rank, here in enumerate(is_near) if here]

    found: dict[str, Entry | None] = {}
    if index in near:
        for name in share_of(sizes, index=near.index(index), number=len(near)):
            try:
                found[name] = digest_file(folder / name)
            except OSError:
                found[name] = None
    return {name: entry for share in gather(accelerator, found) for name, entry in share.items()}


def _describe_refusal(error: Exception, folder: Path) -> str:
    """Why a file could not be written. Called before the partial checkpoint is removed, while the disk is still full.

    The messages of torch and safetensors do not say what the operating system has refused.
    """
    if isinstance(error, OSError) or shutil.disk_usage(folder).free > LITTLE_ROOM:
        return str(error)
    return f"no space left on device ({error})"


def _digest_all(accelerator: Accelerator, folder: Path) -> dict[str, Entry]:
    """Size and digest of every file that was written. Raises OSError."""
    own_sizes: dict[str, int] = {}
    if accelerator.is_main_process:
        own_sizes = {name: (folder / name).stat().st_size for name in list_files(folder)}

    digested: dict[str, Entry] = {}
    sizes = gather(accelerator, own_sizes)[0]
    for name, entry in digest_together(accelerator, folder, sizes).items():
        if entry is None:
            raise OSError(f"{name} was written and cannot be read")
        digested[name] = entry
    return digested


def _name(step: int) -> str:
    """The folder name of a checkpoint."""
    return f"{PREFIX}{step:06d}"


def _link_best(folder: Path, best: Path | None) -> None:
    """Make `best` a relative link to a checkpoint, which stays valid when the run folder is moved; None removes it.

    The link is only for people and programs that want a path; a resume reads state.json. So a file system without links does not
    end a run.
    """
    link, new = folder / BEST, folder / f".{BEST}.partial"
    if best is None or not best.is_dir():
        if link.is_symlink():
            link.unlink()
        return
    try:
        new.unlink(missing_ok=True)
        new.symlink_to(best.name, target_is_directory=True)
        new.replace(link)
    except OSError as error:
        log.warning("%s cannot be a link to %s: %s", link, best.name, error)


def _rank_file(process: int) -> str:
    return f"rank-{process}.pt"


def _is_unreadable(error: Exception) -> bool:
    """Whether the error comes from an unreadable file."""
    return isinstance(error, OSError | ValueError | KeyError | RuntimeError | SafetensorError)


def _put_in_place(hidden: Path, final: Path) -> None:
    """Rename the new folder into place. An old folder of that name is removed only afterwards."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    hidden.rename(final)
    _flush_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


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
