"""Output about pass rates: the plan of a rating, its progress, and what the rates mean for a run."""

from rich.console import Console
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from gpg_vl.config import Config, SampledConfig
from gpg_vl.console import plain, prose
from gpg_vl.data.pass_rates import BINS, Difficulty, choose_rows, summarise
from gpg_vl.training.rating_store import Rating

LITTLE_SIGNAL = 0.1
"""Share of groups with signal below which a task is hard to learn."""
NEARLY_ALL = 0.9
"""Share of rows from which on the text says "nearly all"."""
BOUNDS = (0.05, 0.95)
"""The suggested bounds for `data.pass_rate`."""


def render_plan(rating: Rating, config: Config, processes: int, console: Console) -> None:
    """Print what will be sampled, before a model is loaded."""
    missing = rating.rows - len(rating.rates)
    lines = {
        "model": config.model.path,
        "data": f"{config.data.only}: {rating.rows} rows, {len(rating.rates)} of them rated",
        "answers": f"{rating.samples} to each of {missing} rows = {missing * rating.samples}, by the engine "
        f"{config.rollout.engine} on {processes} process(es)",
        "sampling": f"temperature {config.rollout.temperature}, at most {config.rollout.max_new_tokens} tokens",
        "rewards": ", ".join(f"{name} x {w:g}" for name, w in config.rewards.weights.items()),
        "file": str(rating.file),
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in lines.items():
        table.add_row(name, prose(value))
    console.print(Panel(table, title="plan", title_align="left"))


def describe_pace(before: int, rated: int, of: int, seconds: float) -> str:
    """The progress of a rating: `before` rows were rated earlier, `rated` in the last `seconds` seconds."""
    left = round(seconds / rated * (of - before - rated))
    return f"rated {before + rated} of {of} rows  {left // 60}:{left % 60:02d} left"


def render_rating(rating: Rating, config: Config, console: Console) -> None:
    """Print the histogram of a complete rating, and what it means for a run of the config."""
    group_size = config.rollout.group_size
    found = summarise(rating.rates.values(), group_size)
    console.print(_draw_histogram(found))
    console.print(plain(describe_rates(found, rating.samples)), soft_wrap=True)
    console.print(plain(describe_groups(found, rating.samples, group_size)), soft_wrap=True)

    low, high = config.data.pass_rate or BOUNDS
    chosen = choose_rows(rating.rates.values(), low, high)
    console.print(
        f"data.pass_rate: [{low:g}, {high:g}] draws {len(chosen.numbers)} of {rating.rows} rows.",
        soft_wrap=True,
    )
    for advice in (advise_on_rates(found), _advise_on_rounds(found, config)):
        if advice:
            console.print(plain(advice, style="yellow"), soft_wrap=True)


def _draw_histogram(found: Difficulty) -> Table:
    most = max(found.bins)
    table = Table("pass rate", "rows", "", box=None)
    for number, rows in enumerate(found.bins):
        bar = ProgressBar(total=most, completed=rows, width=30)
        table.add_row(f"{number / BINS:.1f}-{(number + 1) / BINS:.1f}", str(rows), bar)
    return table


def describe_rates(found: Difficulty, samples: int) -> str:
    """The rows in a sentence."""
    return (
        f"{found.rows} rows, {samples} answers each: {found.mean:.1%} of the answers are right; {found.never} rows "
        f"({found.never / found.rows:.1%}) are never solved, {found.always} ({found.always / found.rows:.1%}) always."
    )


def describe_groups(found: Difficulty, samples: int, group_size: int) -> str:
    """The groups of a training step in a sentence."""
    if samples >= group_size:
        return f"Of groups of {group_size} answers {found.signal:.1%} are expected to carry a signal in the first step."
    return (
        f"Of groups of {group_size} answers at least {found.signal:.1%} are expected to carry a signal in the first step: that "
        f"is the share of groups of {samples}. Rate with -k {group_size} or more for an estimate."
    )


def advise_on_rates(found: Difficulty) -> str:
    """Advice for a task with almost no signal; "" for any other."""
    if found.signal >= LITTLE_SIGNAL:
        return ""
    if found.never >= NEARLY_ALL * found.rows:
        return (
            "Nearly no row is ever solved, so nearly no group carries a signal and a run would learn almost nothing. Read "
            "some answers (gpg-vl try) and check how the reward scores them (gpg-vl rewards test); then train on gold "
            "answers first (algorithm.name: sft), take easier rows or another base model, or sample more answers "
            "(rollout.group_size)."
        )
    if found.always >= NEARLY_ALL * found.rows:
        return (
            "Nearly every row is always solved, so almost nothing is left to learn. Take harder rows, or draw only those "
            "that are not always solved (data.pass_rate)."
        )
    return (
        "Nearly no group carries a signal: the answers to a row get nearly always the same reward. Draw only rows that carry one "
        "(data.pass_rate), raise rollout.temperature, or sample more answers (rollout.group_size)."
    )


def _advise_on_rounds(found: Difficulty, config: Config) -> str:
    """How many rounds of sampling the threshold on groups with signal costs; "" if one round is enough."""
    section = config.algorithm
    if not isinstance(section, SampledConfig) or found.signal >= section.beta_th:
        return ""
    most = section.max_resample_attempts
    rounds = section.beta_th / found.signal if found.signal else most + 1
    said = f"about {rounds:.0f}" if rounds <= most else f"{most}, the most that are allowed,"
    return (
        f"algorithm.beta_th requires a signal in {section.beta_th:.0%} of the groups of a step: in the first steps that "
        f"takes {said} rounds of sampling each."
    )
