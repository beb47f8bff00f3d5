"""The disk space of a run: the size of its checkpoints, how many exist at once, and the free space."""

import shutil
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from gpg_vl.config import Config, OutputConfig
from gpg_vl.models.adapters import adapted_weights, plain_weights
from gpg_vl.models.families import Family
from gpg_vl.models.weight_precision import is_matrix
from gpg_vl.training.memory import Sizes, moment_bytes, size, weight_memory, widths
from gpg_vl.training.meta_model import make_meta_model
from gpg_vl.training.sharding import shardings


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The disk space of a run's checkpoints.

    Example: `Disk(folder=Path("runs/a"), checkpoint=27e9, at_once=3, free=120e9)`
    """

    folder: Path
    """Where they are written."""
    checkpoint: float
    """Bytes of one checkpoint."""
    at_once: int
    """Maximum number that exist at the same time: those that are kept, and one that is written before an older one is
    deleted."""
    free: float
    """Free bytes there before the run."""

    @property
    def needed(self) -> float:
        return self.at_once * self.checkpoint

    @property
    def fits(self) -> bool:
        return self.needed <= self.free


def plan_disk(config: Config, family: Family, sizes: Sizes, steps: int) -> Disk:
    """Compute the disk space. sizes: those of the trained model."""
    folder = Path(config.output.folder)
    model = _model_bytes(config, family)
    return Disk(
        folder=folder,
        checkpoint=model + _training_bytes(config, sizes),
        at_once=count_at_once(steps, config.output),
        free=float(shutil.disk_usage(_first_that_exists(folder)).free),
    )


def count_at_once(steps: int, output: OutputConfig) -> int:
    """Maximum number of checkpoints that exist at the same time in a run of `steps` steps, which always writes one at its
    end."""
    best = 1 if output.keep_best else 0
    written = ceil(steps / output.checkpoint_every) if output.checkpoint_every else 1
    return min(written, output.keep_checkpoints + 1) + best


def _model_bytes(config: Config, family: Family) -> float:
    """Bytes of `model/`: each weight in its own dtype, merged weights in the dtype of the sum."""
    model, held = make_meta_model(config, family), widths(config)
    tied, adapted = set(model.all_tied_weights_keys), adapted_weights(model)

    exported = 2.0 if config.output.weights == "bfloat16" else None
    total = 0.0
    for name, weight in plain_weights(model).items():
        if name in tied:
            continue
        width = held.trained if weight.requires_grad else held.frozen
        if name in adapted or not is_matrix(weight):
            width = 4.0
        total += weight.numel() * (exported or width)
    return total


def _training_bytes(config: Config, sizes: Sizes) -> float:
    """Bytes of moments and adapters, and of trained weights if the sharding writes its own copy in addition to `model/`."""
    held = replace(sizes, widths=widths(config))
    total = moment_bytes(held)
    spreads = getattr(shardings.get(config.train.sharding), "memory", None) is not None
    if spreads or config.model.lora_rank:
        total += 4.0 * sizes.trained
    elif config.output.weights == "bfloat16":
        total += weight_memory(held)["weights"]
    return total


def describe_little_disk(disk: Disk) -> str:
    """The warning if the checkpoints of a run will not fit; "" if they will."""
    if disk.fits:
        return ""
    return (
        f"the checkpoints will not fit: {disk.at_once} of them at a time take {size(disk.needed)} "
        f"({size(disk.checkpoint)} each), and {size(disk.free)} are free in {disk.folder}. A run that cannot write one stops. "
        f"Free disk space, choose another output.folder, or lower output.keep_checkpoints"
    )


def _first_that_exists(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
