"""Starts a run from its config: the shared implementation of `gpg-vl train` and `gpg_vl.train`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from gpg_vl.config import Config, make_config
from gpg_vl.console import make_console
from gpg_vl.models.run_checkpoints import latest
from gpg_vl.rewards.gold_readings import render_golds
from gpg_vl.training.collectives import once_per_node, wait_for_all
from gpg_vl.training.estimate import with_seconds
from gpg_vl.training.evaluation import make_evaluation
from gpg_vl.training.folder import CHECKPOINTS, METRICS
from gpg_vl.training.interrupt import StopRequest
from gpg_vl.training.launcher import make_accelerator, memory_of_device
from gpg_vl.training.memory_fit import render_fits
from gpg_vl.training.plan_table import render_plan
from gpg_vl.training.prepare import prepare
from gpg_vl.training.rank_consistency import agree_on_the_hub, refuse_other_settings
from gpg_vl.training.run import launch
from gpg_vl.training.training_sets import training_sets
from gpg_vl.training.watchdog import keep_watch


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """The options of a start that are not in the config.

    Example: `Ask(dry_run=True, device_gb=80, devices=8)`
    """

    dry_run: bool = False
    """Check everything and print the plan; load no weights."""
    resume: bool = False
    """Resume from the newest complete checkpoint of the run folder."""
    device_gb: float | None = None
    """Memory in GB of the GPU for the plan; None: that of this machine's GPU."""
    devices: int | None = None
    """Number of such GPUs; None: the number of this run's processes."""
    recheck: bool = False
    """Check every row again even if the same data was checked before."""


def start(config: Config, accelerator: Accelerator, ask: Ask) -> int:
    """Check, plan and train. Every process of the launch calls it.

    Returns 0, or the exit code of the signal that interrupted the run. Raises UserError or RunError.
    """
    refuse_other_settings(accelerator, config)
    agree_on_the_hub(
        accelerator,
        model=config.model.path,
        data=[one.config.data.only for one in training_sets(config)],
    )

    # check everything that needs no weights, and plan
    console, is_main = make_console(), accelerator.is_main_process
    shown = console if is_main else None
    once = partial(once_per_node, accelerator)
    device_bytes = memory_of_device() if ask.device_gb is None else ask.device_gb * 2**30
    prepared = prepare(
        config,
        processes=accelerator.num_processes,
        console=shown,
        once_per_node=once,
        device_bytes=device_bytes,
        devices=ask.devices,
        recheck=ask.recheck,
    )

    evaluation = make_evaluation(config, prepared.processing, once, console=shown)
    if is_main:
        for one in prepared.sets:
            one.report.render(console)
            render_golds(one.config.rewards.weights, one.report.golds, console)
        plan = with_seconds(prepared, accelerator.device)
        render_plan(plan, config, console)
        if device_bytes:
            devices = ask.devices or accelerator.num_processes
            render_fits(prepared.plan.fits, device_bytes, console, devices)

    stop = StopRequest(announces=is_main)
    finished = ask.dry_run or launch(
        prepared,
        accelerator,
        resume=ask.resume,
        console=console,
        evaluation=evaluation,
        stop=stop,
    )
    if is_main and not ask.dry_run:
        console.print(f"run folder: {config.output.folder}", soft_wrap=True)

    # a process that leaves early would break off the last word of another
    wait_for_all(accelerator)
    accelerator.end_training()
    return 0 if finished else stop.exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that has ended, and its outputs.

    Example: `run = gpg_vl.train("my.yaml"); model = gpg_vl.Model.load(run.model)`
    """

    folder: Path
    """The run folder, `output.folder` of its config."""
    finished: bool
    """False if it was interrupted; `train(..., resume=True)` resumes it."""

    @property
    def model(self) -> Path | None:
        """The model folder of the newest complete checkpoint, in the Hugging Face format; None if there is none."""
        checkpoint = latest(self.folder / CHECKPOINTS)
        return checkpoint / "model" if checkpoint else None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl: one per step, of kind "train", and one per evaluation, of kind "eval"."""
        lines = (self.folder / METRICS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def train(
    config: Config | Path | str | Mapping[str, Any], *, resume: bool = False, **overrides: Any
) -> Run:
    """Train as `gpg-vl train` does, in this process.

    config: the path of a YAML file, sections as nested dictionaries, or a loaded config.
    resume: resume from the newest complete checkpoint of the run folder.
    overrides: changed keys by section, `train={"steps": 5}`, or dotted keys, `**{"train.steps": 5}`.

    Rewards run in other processes, so your own reward must be in a file: `my_rewards.py:exact`. Ctrl-C finishes the step and
    writes a checkpoint. Returns the run. Raises UserError for mistakes in config, data or rewards, RunError for a run that had to
    stop.

    Example: `run = gpg_vl.train("my.yaml", train={"steps": 5}, output={"folder": "runs/try"})`
    """
    resolved = make_config(config, overrides)

    # restore the setting for deterministic algorithms, because this process belongs to the caller
    were_deterministic = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        accelerator = make_accelerator(resolved)
        with keep_watch(accelerator, minutes=resolved.train.max_wait_minutes):
            code = start(resolved, accelerator, Ask(resume=resume))
    finally:
        torch.use_deterministic_algorithms(were_deterministic, warn_only=warned_only)
    return Run(folder=Path(resolved.output.folder), finished=code == 0)
