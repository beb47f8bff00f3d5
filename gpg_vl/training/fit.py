"""Which settings of a run fit a device, by the memory that the plan estimates for each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from pydantic import ValidationError
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from gpg_vl.config import Config
from gpg_vl.console import plain

USABLE = 0.9
"""Of a device: the rest goes to the CUDA context, to kernels, and to gaps between tensors."""
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


def render_fits(
    fits: tuple[Fit, ...], device_bytes: float, console: Console, devices: int = 1
) -> None:
    """Print a row for each way to train and a column for each sharding, the config's own choice marked."""
    names = list(dict.fromkeys(fit.choice.sharding for fit in fits))
    rows: dict[Choice, dict[str, Fit]] = {}
    for fit in fits:
        rows.setdefault(replace(fit.choice, sharding=""), {})[fit.choice.sharding] = fit

    heads = [f"{name}, GB per GPU" if name == names[0] else name for name in names]
    table = Table("dtype", "weights", "optimizer", "LoRA", "checkpointing", *heads, "", box=None)
    for choice, row in rows.items():
        table.add_row(
            choice.dtype,
            choice.weights,
            choice.optimizer,
            f"rank {choice.lora_rank}" if choice.lora_rank else "no",
            "yes" if choice.checkpointing else "no",
            *(_cell(row.get(name)) for name in names),
            "this config" if any(fit.is_chosen for fit in row.values()) else "",
        )
    title = (
        f"estimates for a device of {device_bytes / 2**30:.0f} GB, of which "
        f"{USABLE * device_bytes / 2**30:.0f} can be used"
    )
    if devices > 1:
        title = f"{title}; {devices} of them, train.sharding {' | '.join(names)}"
    console.print(Panel(table, title=plain(title), title_align="left", expand=False))


def _cell(fit: Fit | None) -> str:
    if fit is None:
        return "-"
    return f"{fit.needed / 2**30:.1f} {'fits' if fit.fits else 'too large'}"
