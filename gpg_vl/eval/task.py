"""What an eval task is. A new benchmark is one module that builds a `Task`; a new rule is one entry of its `scorers`.

A task is data and pure functions: how rows are read, how they are asked, how an answer is scored, how scores become
numbers. Generating, resuming, statistics and printing are the same for all of them and are in the runner.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gpg_vl import prompting
from gpg_vl.answers.verdict import Verdict
from gpg_vl.errors import UserError
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.statistics import Aggregate, Sample
from gpg_vl.prompting import DEFAULT_STYLE
from gpg_vl.registry import did_you_mean
from gpg_vl.types import Example

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Doc:
    """One row of a benchmark: an example, and what an evaluation has to know besides.

    Example: `Doc(doc_id=0, example=Example(id="0", images=(b"...",), prompt="How many organs are in the image? Select
    ...", answer="(C)", choices=("3", "2", "1", "0"), task="Count", meta={"type": "2D", ...}))`
    """

    doc_id: int
    """The row's number in the benchmark's own order, from 0. It joins predictions to docs."""
    example: Example
    """What is asked. Images are encoded files, or paths below `root`."""
    root: Path | None = None
    """The folder that image paths start from and may not leave."""
    problem: str | None = None
    """Why the doc can neither be asked nor scored, such as an image without a size; it is then an error row."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Scorers that do not accept the doc's own gold answer, and how that came out. It scores 0 under these alone."""

    @property
    def gold(self) -> str:
        """The right answer, as the benchmark writes it."""
        return self.example.answer

    @property
    def columns(self) -> Mapping[str, Any]:
        """Every other column of the row (JSON values, never image bytes), unknown ones included."""
        return self.example.meta


Scorer = Callable[[Doc, Response], Verdict]
"""A pure function of one doc and one response.

Its verdict has no `parsed` if no answer could be read: such a row scores 0 and stays in the denominator. A score of NaN says
that a published rule leaves the row out of its denominator; `strict` never does.
"""


def make_verdict(
    doc: Doc,
    score: float,
    parsed: str | None,
    *,
    note: str = "",
    parts: Mapping[str, float] | None = None,
) -> Verdict:
    """The verdict of a scorer on a response to the doc; 0 whatever the score where nothing could be read."""
    return Verdict(
        score=0.0 if parsed is None and score == score else score,
        parsed=parsed,
        gold=doc.gold,
        note=note,
        parts=parts or {},
    )


class Loader(Protocol):
    """Reads a benchmark from local files. Raises UserError.

    `images`: with False no image is decoded and none is kept. `root`: the folder that image paths start from; None is
    the folder of the table that names them.
    """

    def __call__(
        self, path: Path, *, images: bool = True, root: Path | None = None
    ) -> list[Doc]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPrompt:
    """A published way of asking. The fields mean what they mean in a run's `prompt` section.

    Example: `TaskPrompt(template="{prompt}\\nAnswer with a letter.", max_new_tokens=16)`
    """

    template: str
    """The user's turn: `{prompt}` is the doc's own prompt, `{question}` its column of that name, `{choices}` the option
    texts in a row, `{options}` one lettered line each, `{letters}` their letters, `{instruction}` the column that says how to
    answer a question of its kind."""
    system: str | None = DEFAULT_STYLE.system
    """A system turn in front; None leaves it to the checkpoint's chat template."""
    chat: prompting.Chat = DEFAULT_STYLE.chat
    """`template`: the checkpoint's chat template. `plain`: the bare text. `auto`: whichever is there."""
    prefill: str = DEFAULT_STYLE.prefill
    """Text that already begins the answer, such as `<think>`."""
    max_new_tokens: int
    """The limit that the style was published with; a shorter one cuts answers off."""
    coordinates: str | None = None
    """The convention that the prompt itself prescribes for boxes, whatever the model was trained on."""

    @property
    def style(self) -> prompting.PromptStyle:
        """How it makes text of an example, without the limits that come with it."""
        return prompting.PromptStyle(
            template=self.template, system=self.system, chat=self.chat, prefill=self.prefill
        )


def one_of_options(doc: Doc) -> float:
    """What a blind guess scores: one out of the options, 0 where the answer is open."""
    return 1 / len(doc.example.choices) if doc.example.choices else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A benchmark. `gpg_vl.eval.tasks.cvbench` is the one to copy."""

    name: str
    version: str = "1"
    """Raised whenever a score could change for the same responses."""
    description: str
    """One line for `--list`."""
    source: str
    """Where the data is published, and under which licence."""
    sizes: Mapping[str, int]
    """Docs of each published split, the usual one first; a loaded set of another size is named as such."""
    metric: str
    """What the headline measures, for `--list`."""
    blind: str
    """What a blind guess scores, for `--list`."""

    files: Callable[[Path], Sequence[Path]]
    """The tables that `load` would read, in order (their digests go into the results). Raises UserError."""
    load: Loader
    prompts: Mapping[str, TaskPrompt]
    default_prompt: str

    scorers: Mapping[str, Scorer]
    """By name; `strict` must be among them."""
    default_scorers: tuple[str, ...] = ("strict", "official")
    gold_responses: Callable[[Doc], Sequence[Response]]
    """Ways to write the right answer. `strict` must give each of them full marks, every other scorer at least one."""
    full_marks: Callable[[Doc], float] = lambda doc: 1.0
    """The score of a right answer: 1, or less where annotators disagree and the metric says so."""
    published_golds: Callable[[Doc], Sequence[Response]] = lambda doc: ()
    """What only published rules read as the right answer, such as another notation: counts for their ceilings alone."""
    flawed: Collection[str] = ()
    """Scorers that by their published rule refuse some right answers. What right answers get under each scorer is printed,
    and such a refusal stops nothing."""
    boxes: bool = False
    """Answers are boxes: docs get the column `coordinates`, the convention that they are written in."""
    needs_mask: Collection[str] = ()
    """Scorers of segmentations; they are taken by default only if the predictions have masks."""
    gold_label: Callable[[Doc], str] | None = None
    """What `Verdict.parsed` is for a right answer, where there are few enough answers to count (option letters)."""
    chance: Callable[[Doc], float] = one_of_options
    """Expected score of a blind guess."""
    right_from: float = 1.0
    """The score from which a row counts as right, in pass@k and McNemar's test."""

    aggregates: Mapping[str, Aggregate] = field(default_factory=lambda: {"micro": Sample.mean})
    """By name, in the order of the printed table; the first is the headline."""
    groups: tuple[str, ...] = ()
    """Columns that the aggregates choose docs by."""
    strata: tuple[str, ...] = ()
    """Columns that `--limit` keeps in proportion."""
    resample_within: tuple[str, ...] = ()
    """Columns within whose values the bootstrap draws, so that every aggregate exists in every resample."""
    cluster: str | None = None
    """The column whose equal values the bootstrap draws together, such as the image of several questions."""


THINK = (
    "\nOutput the thinking process in <think> </think> and final answer in <answer> </answer> tags."
)
"""What the prompt styles called `think` add to a question."""


def stratum(doc: Doc, columns: Sequence[str]) -> tuple[str, ...]:
    """The doc's values in these columns."""
    return tuple(str(doc.columns[column]) for column in columns)


def pick(task: Task, kind: str, name: str, known: Mapping[str, T]) -> T:
    """`known[name]`, or a UserError that says what the task has instead."""
    if name not in known:
        raise UserError(
            f"The task {task.name} has no {kind} called {name!r}. {did_you_mean(name, list(known))}"
        )
    return known[name]


def pick_scorers(task: Task, names: Sequence[str]) -> dict[str, Scorer]:
    """The task's scorers of these names, in this order, once each; `all` is every one. Raises UserError."""
    wanted = [one for name in names for one in (task.scorers if name == "all" else (name,))]
    return {name: pick(task, "scorer", name, task.scorers) for name in wanted}
