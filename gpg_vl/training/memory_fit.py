"""Which settings of a run fit a device, by the memory that the plan estimates for each."""

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
"""Of a device: the rest goes to the CUDA context, to kernels, and to gaps between tensors."""
PANEL_FRAME = 4
"""Columns of a panel's sides, with the space within."""
LORA_RANK = 16
"""Of the choices with adapters, for a config that has none."""
NUMBERS = (
    ("float32", "float32", "adamw"),
    ("bfloat16", "float32", "adamw"),
    ("bfloat16", "bfloat16", "adamw_8bit"),
)
"""Of the forward pass, of what is trained, and the optimizer with its moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Settings that decide how much memory a process takes.

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
    """What a choice takes of a device."""

    choice: Choice
    needed: float
    """Bytes per process."""
    fits: bool
    is_chosen: bool
    """True for what the config says."""


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
    """Every choice that the rest of the config allows, and the config with it."""
    own = (config.model.dtype, config.model.weights, config.train.optimizer)
    ranks = (0, config.model.lora_rank or LORA_RANK)
    for numbers, rank, checkpointing, sharding in product(
        dict.fromkeys((*NUMBERS, own)), ranks, (False, True), shardings
    ):
        dtype, weights, optimizer = numbers

        # adapters are too few for their bits to matter
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
    """Whether its keys go together."""
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
    """What each choice takes of a device of so many bytes.

    estimate: bytes per process of a config, by what takes them. shardings: those that are offered.
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
"""Of a choice, by its fields."""
MOST_ADVISED = 3
"""Ways to make a run fit that are written out; the table has them all."""


def advise(fits: Sequence[Fit], device_bytes: float) -> str:
    """Whether the config's own choice fits the device, and which switches would make it fit: those that change least first."""
    own = next(fit for fit in fits if fit.is_chosen)
    usable = (
        f"{own.needed / 2**30:.1f} GB of the {USABLE * device_bytes / 2**30:.1f} that can be used"
    )
    if own.fits:
        return f"This config takes {usable}: there is room for it."

    changes = [(_changes(own.choice, fit.choice), fit.needed) for fit in fits if fit.fits]
    changes.sort(key=lambda one: (len(one[0]), one[1]))
    if not changes:
        return (
            f"This config takes {usable}: too much, and so does every choice above. Lower train.tokens_per_pass, rollout.slots "
            f"or data.max_pixels, or spread it over more devices (--devices)."
        )
    ways = "\n".join(
        f"  {' '.join(words)}   ({needed / 2**30:.1f} GB)"
        for words, needed in changes[:MOST_ADVISED]
    )
    return f"This config takes {usable}: too much. These would make room, the smallest change first:\n{ways}"


def _changes(own: Choice, other: Choice) -> list[str]:
    """What to write on the command line to get from one choice to another."""
    return [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for field, key in KEYS.items()
        if (value := getattr(other, field)) != getattr(own, field)
    ]


def describe_little_memory(needed: float, available: float) -> str:
    """What to say where the processes of a run need more memory than a machine without a GPU has; "" where they do not."""
    if needed <= available:
        return ""
    return (
        f"the run needs about {needed / 2**30:.1f} GiB of memory, and {available / 2**30:.1f} are available: it would be "
        f"ended by the system, or swap. --device-gb {available / 2**30:.0f} shows which settings take less"
    )


def render_fits(
    fits: tuple[Fit, ...], device_bytes: float, console: Console, devices: int = 1
) -> None:
    """Print a row for each way to train and a column for each sharding, the config's own choice marked."""
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
    """The choices with these shardings, one to a column. brief: words are short, and columns close together."""
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
