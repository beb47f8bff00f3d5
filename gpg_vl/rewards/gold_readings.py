"""How rewards read the gold answers: whether they can read all of them, and a few to look at.

The gold check compares each gold answer with itself, so it does not notice, for example, class
numbers where class names were meant. A person sees that at once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from gpg_vl.answers.box import gold_box
from gpg_vl.answers.boxes import gold_boxes
from gpg_vl.answers.classes import gold_class
from gpg_vl.answers.count import gold_count
from gpg_vl.answers.options import gold_index
from gpg_vl.console import plain
from gpg_vl.errors import cut
from gpg_vl.rewards import QUICK
from gpg_vl.rewards.scoring import load
from gpg_vl.types import Completion, Example

_WIDTH = 60
READERS: Mapping[str, Callable[[Example], object]] = {
    "choice": gold_index,
    "classification": gold_class,
    "counting": gold_count,
    "detection": gold_boxes,
    "grounding": gold_box,
    "grounding_giou": gold_box,
    "grounding_hit": gold_box,
}
"""By reward: the function that reads its gold answers. It raises a UserError that names the example if it cannot read one.
Other rewards accept any text, or need long to read it."""


def read_gold_of(rewards: Iterable[str]) -> Callable[[Example], None]:
    """A function that reads the gold answer of an example with every reader of these rewards and raises the first
    UserError."""
    readers = list(dict.fromkeys(READERS[name] for name in rewards if name in READERS))

    def read(example: Example) -> None:
        for reader in readers:
            reader(example)

    return read


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldReading:
    """How rewards read one gold answer.

    Example: `GoldReading(example=..., readings={"counting": "4"})`
    """

    example: Example
    readings: Mapping[str, str]
    """By reward: the gold answer in its verdict, or why it cannot be read."""


def read_golds(names: Iterable[str], examples: Sequence[Example]) -> list[GoldReading]:
    """How rewards read the gold answers, for those rewards that can explain themselves and may run in this process.

    names: names of rewards. A user's own reward is not imported here, because it may run any code.
    """
    judges = {name: load(name).function for name in names if name in QUICK}
    explains = {name: judge.explain for name, judge in judges.items() if hasattr(judge, "explain")}

    read = []
    for example in examples:
        readings = {name: _read_gold(explain, example) for name, explain in explains.items()}
        read.append(GoldReading(example=example, readings=readings))
    return read


def render_golds(names: Iterable[str], examples: Sequence[Example], console: Console) -> None:
    """Print each gold answer next to how the rewards read it."""
    read = read_golds(names, examples)
    if not read:
        return

    table = Table(
        "id", "gold answer", *(f"as {name} reads it" for name in read[0].readings), box=None
    )
    for one in read:
        cells = (one.example.id, one.example.answer, *one.readings.values())
        table.add_row(*(plain(cut(repr(cell)[1:-1], _WIDTH)) for cell in cells))
    console.print(table)


def _read_gold(explain: Any, example: Example) -> str:
    nothing = Completion(text="")
    try:
        return str(explain(nothing, example).gold)
    except ValueError as error:
        return f"cannot be read: {error}"
