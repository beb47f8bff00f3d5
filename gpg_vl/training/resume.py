"""Finds where a run resumes: its newest checkpoint, after checking that it is complete and belongs to this run."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from gpg_vl.activity import doing
from gpg_vl.errors import RunError, UserError
from gpg_vl.models.run_checkpoints import STATE, latest, step_of
from gpg_vl.training.checkpoint import ROWS, digest_together
from gpg_vl.training.collectives import gather, on_main
from gpg_vl.training.folder import CHECKPOINTS, METRICS
from gpg_vl.training.identity import Identity, list_changed_rewards, refuse_other_identity
from gpg_vl.training.manifest import (
    FILE,
    Manifest,
    digest_file,
    find_damaged,
    find_missing,
    read_manifest,
    refuse_damage,
)
from gpg_vl.training.row_digests import RowDigests, refuse_other_rows
from gpg_vl.training.state import SavedState, read_state
from gpg_vl.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a run resumes.

    Example: `Start(checkpoint=Path("runs/a/checkpoints/step-000040"), metrics_bytes=21734)`
    """

    checkpoint: Path | None
    """None: at the beginning, because there is no complete checkpoint."""
    metrics_bytes: int
    """The number of bytes of metrics.jsonl that belong to finished steps."""


def find_start(
    folder: Path,
    identity: Identity | None,
    examples: Sequence[Example],
    accelerator: Accelerator,
    console: Console,
) -> Start:
    """The newest complete checkpoint of a run folder. All processes call it together, before weights are loaded.

    identity: the identity of the run to resume; needed on the main process. Raises UserError, on all processes, unless the
    checkpoint is complete, belongs to this run, and matches its metrics.jsonl.
    """
    starts: list[tuple[Start, Manifest | None]] = []

    def look() -> None:
        assert identity is not None
        starts.append(_check_folder(folder, identity, examples, console))

    on_main(accelerator, look)
    found: tuple[Start, Manifest | None] = gather(accelerator, starts[0] if starts else None)[0]
    start, manifest = found
    if start.checkpoint is not None and manifest is not None:
        with doing("the check of the checkpoint"):
            sizes = {name: entry.bytes for name, entry in manifest.files.items()}
            files = digest_together(accelerator, start.checkpoint, sizes)
        refuse_damage(start.checkpoint, find_damaged(manifest, files))
    return start


def cut_metrics(file: Path, start: Start) -> int:
    """Drop the rows of metrics.jsonl that will be computed again, and an incomplete last line. Returns the number of
    dropped rows.

    Raises RunError if the file cannot be written.
    """
    if not file.exists():
        return 0
    partial = file.with_suffix(".partial")
    try:
        content = file.read_bytes()
        kept, dropped = content[: start.metrics_bytes], content[start.metrics_bytes :]
        partial.write_bytes(kept)
        partial.replace(file)
    except OSError as error:
        raise RunError(
            f"{file} cannot be written: {error}. Free disk space and resume with --resume."
        ) from error
    return len(dropped.splitlines())


def digest_data(examples: Sequence[Example]) -> str:
    """The data digest of checkpoints without a manifest: over ids, prompts and answers, in 16 digits."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.id, example.prompt, example.answer)).encode())
    return digest.hexdigest()[:16]


def _check_folder(
    folder: Path, identity: Identity, examples: Sequence[Example], console: Console
) -> tuple[Start, Manifest | None]:
    """All checks that need not read every byte of the checkpoint."""
    checkpoint, metrics = latest(folder / CHECKPOINTS), folder / METRICS
    if checkpoint is None:
        return Start(checkpoint=None, metrics_bytes=0), None

    saved = _read_state(checkpoint)
    _refuse_other_step(checkpoint, saved, identity.steps)
    if not (checkpoint / FILE).exists() and saved.data is not None:
        _accept_without_manifest(checkpoint, saved, examples, console)
        kept = _find_end(metrics, saved.state.step)
        return Start(checkpoint=checkpoint, metrics_bytes=kept), None

    manifest = read_manifest(checkpoint)
    refuse_damage(checkpoint, find_missing(checkpoint, manifest))
    refuse_other_identity(manifest.run, identity, checkpoint)
    if manifest.run["data"] != identity.rows.whole:
        _refuse_data(checkpoint, manifest, identity)
    for name in list_changed_rewards(manifest.run, identity):
        _say(console, f"the code of the reward {name} has changed since the run was started")
    kept = _check_metrics(metrics, manifest, saved.state.step, console)
    return Start(checkpoint=checkpoint, metrics_bytes=kept), manifest


def _read_state(checkpoint: Path) -> SavedState:
    try:
        return read_state(checkpoint / STATE)
    except (OSError, ValueError, RecursionError) as error:
        refuse_damage(checkpoint, [f"{STATE} cannot be read ({error})"])
        raise


def _refuse_other_step(checkpoint: Path, saved: SavedState, steps: int) -> None:
    step = saved.state.step
    if step != step_of(checkpoint):
        refuse_damage(checkpoint, [f"{STATE} is of step {step}"])
    if step > steps:
        raise UserError(
            f"The run in {checkpoint} has done {step} steps already, but is configured for {steps} (train.steps, "
            f"train.epochs). Resume with {step} or more, or start a new run in another output.folder."
        )


def _accept_without_manifest(
    checkpoint: Path, saved: SavedState, examples: Sequence[Example], console: Console
) -> None:
    """Resume a run of an earlier version: check what its checkpoints allow, and report what cannot be checked."""
    if saved.data != digest_data(examples):
        raise UserError(
            f"The data is not what the run in {checkpoint} was started with: other rows, answers or prompts. Its order "
            f"would now select other examples. Restore the old file, or start a new run in another output.folder."
        )
    _say(
        console,
        f"{checkpoint} was written by an earlier version, without a {FILE}: whether its files and the images of the data "
        f"have changed cannot be checked. The next checkpoint will have one",
    )


def _refuse_data(checkpoint: Path, manifest: Manifest, identity: Identity) -> None:
    try:
        rows = RowDigests.from_bytes((checkpoint / ROWS).read_bytes())
    except OSError as error:
        refuse_damage(checkpoint, [f"{ROWS} cannot be read ({error})"])
        raise
    if rows.whole != manifest.run["data"]:
        refuse_damage(checkpoint, [f"{ROWS} has changed since it was written"])
    refuse_other_rows(rows, identity.rows, checkpoint)


def _check_metrics(metrics: Path, manifest: Manifest, step: int, console: Console) -> int:
    """Bytes of metrics.jsonl that belong to the checkpoint. Raises UserError if they have changed."""
    expected = manifest.metrics
    if expected.bytes and not metrics.exists():
        _say(console, f"{metrics} does not exist any more: a new one begins with step {step + 1}")
        return 0
    if not metrics.exists() or digest_file(metrics, length=expected.bytes) == expected:
        return expected.bytes

    lines = metrics.read_bytes()[: expected.bytes].splitlines()
    broken = [number for number, line in enumerate(lines, 1) if _step_in(line) is None]
    where = f"line {broken[0]} is not a row of it" if broken else "rows are missing or have changed"
    _refuse_metrics(metrics, step, where)
    raise AssertionError


def _find_end(metrics: Path, step: int) -> int:
    """The same for a run without manifests: the end of the last row of a step up to `step`."""
    kept = end = 0
    broken: int | None = None
    lines = metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else []
    for number, line in enumerate(lines, 1):
        end += len(line)
        of = _step_in(line) if line.endswith(b"\n") else None
        if of is None:
            broken = broken or number
        elif of <= step:
            kept = end
            if broken:
                _refuse_metrics(metrics, step, f"line {broken} is not a row of it")
    return kept


def _step_in(line: bytes) -> int | None:
    """The step of a row of metrics; None if it is no row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return step if isinstance(step, int) else None


def _refuse_metrics(metrics: Path, step: int, where: str) -> None:
    raise UserError(
        f"{metrics} is not what the run has written up to step {step}: {where}. Restore it from a copy, or move it away: "
        f"--resume then continues without the rows up to step {step}."
    )


def _say(console: Console, message: str) -> None:
    console.print(message, soft_wrap=True)
