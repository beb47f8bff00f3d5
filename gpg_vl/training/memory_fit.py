"""Finds which settings of a run fit a device, from the plan's memory estimates."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from pydantic import ValidationError
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table

from gpg_vl.config import Config
from gpg_vl.console import fit_tables, plain, prose

USABLE = 0.9
"""Usable share of a device's memory; the rest is for the CUDA context, kernels and fragmentation."""
PANEL_FRAME = 4
"""Columns of a panel's borders and padding."""
LORA_RANK = 16
"""The rank of the choices with adapters, for a config without adapters."""
NUMBERS = (
    ("float32", "float32", "adamw"),
    ("bfloat16", "float32", "adamw"),
    ("bfloat16", "bfloat16", "adamw_8bit"),
)
"""Combinations of forward dtype, weight dtype and optimizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The settings that determine how much memory a process takes.

    Example: `Choice(sharding="none", dtype="bfloat16", weights="float32", optimizer="adamw", lora_rank=0, checkpointing=True)`
    """

    sharding: str
    dtype: str
    weights: str
    optimizer: str
    lora_rank: int
    checkpointing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The memory need of a choice."""

    choice: Choice
    needed: float
    """Bytes per process."""
    fits: bool
    is_chosen: bool
    """True for the config's own choice."""


def chosen(config: Config) -> Choice:
    return Choice(
        sharding=config.train.sharding,
        dtype=config.model.dtype,
        weights=config.model.weights,
        optimizer=config.train.optimizer,
        lora_rank=config.model.lora_rank,
        checkpointing=config.model.gradient_checkpointing,
    )


def choices(config: Config, shardings: Sequence[str]) -> Iterator[tuple[Choice, Config]]:
    """All choices that the rest of the config allows, each with its config."""
    own = (config.model.dtype, config.model.weights, config.train.optimizer)
    ranks = (0, config.model.lora_rank or LORA_RANK)
    for numbers, rank, checkpointing, sharding in product(
        dict.fromkeys((*NUMBERS, own)), ranks, (False, True), shardings
    ):
        dtype, weights, optimizer = numbers

        # adapters are so small that their precision does not matter
        if rank and numbers != own and weights != "float32":
            continue
        model = {"dtype": dtype, "weights": weights, "lora_rank": rank}
        model |= {"gradient_checkpointing": checkpointing}
        train = {"optimizer": optimizer, "sharding": sharding}
        changed = config.model_copy(
            update={
                "model": config.model.model_copy(update=model),
                "train": config.train.model_copy(update=train),
            }
        )
        if _is_allowed(changed):
            yield chosen(changed), changed


def _is_allowed(config: Config) -> bool:
    """Whether the combination of keys is allowed."""
    try:
        Config.model_validate(config.model_dump())
    except ValidationError:
        return False
    return True


def fit_choices(
    config: Config,
    estimate: Callable[[Config], Mapping[str, float]],
    device_bytes: float,
    shardings: Sequence[str] = ("none",),
) -> tuple[Fit, ...]:
    """The memory need of each choice on a device with `device_bytes` bytes.

    estimate: function from a config to bytes per process by use. shardings: the shardings to try.
    """
    fits = []
    for choice, changed in choices(config, shardings):
        needed = sum(estimate(changed).values())
        fits.append(
            Fit(
                choice=choice,
                needed=needed,
                fits=needed <= USABLE * device_bytes,
                is_chosen=choice == chosen(config),
            )
        )
    return tuple(fits)


KEYS = {
    "sharding": "train.sharding",
    "dtype": "model.dtype",
    "weights": "model.weights",
    "optimizer": "train.optimizer",
    "lora_rank": "model.lora_rank",
    "checkpointing": "model.gradient_checkpointing",
}
"""The config key of each field of a choice."""
MOST_ADVISED = 3
"""Maximum number of suggestions that are printed; the table has all choices."""


def advise(fits: Sequence[Fit], device_bytes: float) -> str:
    """Whether the config's own choice fits the device, and which changes would make it fit, the smallest first."""
    own = next(fit for fit in fits if fit.is_chosen)
    usable = (
        f"{own.needed / 2**30:.1f} GB of the {USABLE * device_bytes / 2**30:.1f} that can be used"
    )
    if own.fits:
        return f"This config takes {usable}: it fits."

    changes = [(_changes(own.choice, fit.choice), fit.needed) for fit in fits if fit.fits]
    changes.sort(key=lambda one: (len(one[0]), one[1]))
    if not changes:
        return (
            f"This config takes {usable}: too much, as does every choice above. Lower train.tokens_per_pass, "
            f"rollout.slots or data.max_pixels, or use more devices (--devices)."
        )
    ways = "\n".join(
        f"  {' '.join(words)}   ({needed / 2**30:.1f} GB)"
        for words, needed in changes[:MOST_ADVISED]
    )
    return f"This config takes {usable}: too much. These changes would make it fit, the smallest first:\n{ways}"


def _changes(own: Choice, other: Choice) -> list[str]:
    """The command line overrides that lead from one choice to another."""
    return [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for field, key in KEYS.items()
        if (value := getattr(other, field)) != getattr(own, field)
    ]


def describe_little_memory(needed: float, available: float) -> str:
    """The warning if the processes of a run need more memory than a machine without a GPU has; else ""."""
    if needed <= available:
        return ""
    return (
        f"the run needs about {needed / 2**30:.1f} GiB of memory, and {available / 2**30:.1f} are available: the system "
        f"would kill it, or swap. --device-gb {available / 2**30:.0f} shows which settings take less"
    )


def render_fits(
    fits: tuple[Fit, ...], device_bytes: float, console: Console, devices: int = 1
) -> None:
    """Print a table with a row for each way to train and a column for each sharding; the config's own choice is marked."""
    names = list(dict.fromkeys(fit.choice.sharding for fit in fits))
    said = (
        f"estimates for a device of {device_bytes / 2**30:.0f} GB, of which "
        f"{USABLE * device_bytes / 2**30:.0f} can be used"
    )
    if devices > 1:
        said = f"{said}; {devices} of them, train.sharding {' | '.join(names)}"

    tables = fit_tables(console, names, partial(_fits_table, fits), frame=PANEL_FRAME)
    console.print(
        Panel(
            Group(prose(said), *tables),
            title="what fits, GB per GPU",
            title_align="left",
            expand=False,
        )
    )
    if any(fit.is_chosen for fit in fits):
        console.print(plain(advise(fits, device_bytes)), soft_wrap=True)


def _fits_table(fits: Sequence[Fit], names: Sequence[str], brief: bool) -> Table:
    """The table of the choices with these shardings, one per column. brief: short words and narrow columns."""
    rows: dict[Choice, dict[str, Fit]] = {}
    for fit in fits:
        if fit.choice.sharding in names:
            rows.setdefault(replace(fit.choice, sharding=""), {})[fit.choice.sharding] = fit

    heads = ("dtype", "weights", "optimizer", "LoRA", "checkpointing", *names, "")
    own = "*" if brief else "this config"
    is_marked = any(fit.is_chosen for row in rows.values() for fit in row.values())
    caption = "*: this config" if brief and is_marked else None
    table = Table(box=None, pad_edge=False, collapse_padding=brief, caption=caption)
    table.caption_justify = "left"
    for head in heads:
        table.add_column(head, no_wrap=True)
    for choice, row in rows.items():
        table.add_row(
            choice.dtype,
            choice.weights,
            choice.optimizer,
            f"rank {choice.lora_rank}" if choice.lora_rank else "no",
            "yes" if choice.checkpointing else "no",
            *(_cell(row.get(name), brief=brief) for name in names),
            own if any(fit.is_chosen for fit in row.values()) else "",
        )
    return table


def _cell(fit: Fit | None, *, brief: bool) -> str:
    if fit is None:
        return "-"
    too_large = "no" if brief else "too large"
    return f"{fit.needed / 2**30:.1f} {'fits' if fit.fits else too_large}"
