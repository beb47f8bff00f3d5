"""Which settings of a run fit a device, by the memory that the plan estimates for each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from gpg_vl.config import Config

USABLE = 0.9
"""Of a device: the rest goes to the CUDA context, to kernels, and to gaps between tensors."""
LORA_RANK = 16
"""Of the choices with adapters, for a config that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Settings that decide how much memory a process takes.

    Example: `Choice(sharding="none", dtype="bfloat16", lora_rank=0, checkpointing=True)`
    """

    sharding: str
    dtype: str
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
        lora_rank=config.model.lora_rank,
        checkpointing=config.model.gradient_checkpointing,
    )


def choices(config: Config, shardings: Sequence[str]) -> Iterator[tuple[Choice, Config]]:
    """Every choice that the rest of the config allows, and the config with it."""
    on_frozen = set(config.model.lora_on) & set(config.model.freeze)
    ranks = [0] if on_frozen else [0, config.model.lora_rank or LORA_RANK]
    for dtype, rank, checkpointing, sharding in product(
        ("float32", "bfloat16"), ranks, (False, True), shardings
    ):
        # kept prompts are activations, which checkpointing gives up, and graphs of whole weights
        if config.train.reuse_prefill and (checkpointing or sharding != "none"):
            continue
        model = {"dtype": dtype, "lora_rank": rank, "gradient_checkpointing": checkpointing}
        changed = config.model_copy(
            update={
                "model": config.model.model_copy(update=model),
                "train": config.train.model_copy(update={"sharding": sharding}),
            }
        )
        yield chosen(changed), changed


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
    table = Table("dtype", "LoRA", "checkpointing", *heads, "", box=None)
    for choice, row in rows.items():
        table.add_row(
            choice.dtype,
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
    console.print(Panel(table, title=title, title_align="left", expand=False))


def _cell(fit: Fit | None) -> str:
    if fit is None:
        return "-"
    return f"{fit.needed / 2**30:.1f} {'fits' if fit.fits else 'too large'}"
