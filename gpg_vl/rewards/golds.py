"""Whether the rewards of a run can read a gold answer at all: what `gpg-vl data check` says before any gold proof."""

from collections.abc import Callable, Iterable, Mapping

from gpg_vl.answers.box import gold_box
from gpg_vl.answers.boxes import gold_boxes
from gpg_vl.answers.classes import gold_class
from gpg_vl.answers.count import gold_count
from gpg_vl.answers.options import gold_index
from gpg_vl.types import Example

READERS: Mapping[str, Callable[[Example], object]] = {
    "choice": gold_index,
    "classification": gold_class,
    "counting": gold_count,
    "detection": gold_boxes,
    "grounding": gold_box,
    "grounding_giou": gold_box,
    "grounding_hit": gold_box,
}
"""By reward: what reads its gold answers. Each raises UserError that names the example. The other rewards read any text, or
take long over it.
"""


def read_golds(rewards: Iterable[str]) -> Callable[[Example], None]:
    """Reads the gold answer of an example for each of these rewards that has a reader of its own; raises the first UserError."""
    readers = list(dict.fromkeys(READERS[name] for name in rewards if name in READERS))

    def read(example: Example) -> None:
        for reader in readers:
            reader(example)

    return read
