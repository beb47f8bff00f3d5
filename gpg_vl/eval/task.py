"""The definition of an eval task. A new benchmark is a module that builds a `Task`; a new rule is an entry of its
`scorers`.

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
    """One row of a benchmark: an example, and further information for the evaluation.

    Example: `Doc(doc_id=0, example=Example(id="0", images=(b"...",), prompt="How many organs are in the image? Select
    ...", answer="(C)", choices=("3", "2", "1", "0"), task="Count", meta={"type": "2D", ...}))`
    """

    doc_id: int
    """The row's number in the benchmark's own order, from 0. It joins predictions to docs."""
    example: Example
    """The question. Images are encoded files, or paths below `root`."""
    root: Path | None = None
    """The folder that image paths are relative to and may not leave."""
    problem: str | None = None
    """Why the doc cannot be evaluated, such as an unreadable image size; it then counts as an error row."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Scorers that do not accept the doc's own gold answer, with their result. The doc scores 0 only under these."""

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
    """The verdict of a scorer on a response to the doc; the score is 0 if no answer could be read."""
    return Verdict(
        score=0.0 if parsed is None and score == score else score,
        parsed=parsed,
        gold=doc.gold,
        note=note,
        parts=parts or {},
    )


class Loader(Protocol):
    """Reads a benchmark from local files. Raises UserError.

    `images`: with False no image is decoded or stored. `root`: the folder that image paths are relative to; None is
    the folder of the table that names them.
    """

    def __call__(
        self, path: Path, *, images: bool = True, root: Path | None = None
    ) -> list[Doc]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPrompt:
    """A published prompt style. Fields as in a run's `prompt` section.

    Example: `TaskPrompt(template="{prompt}\\nAnswer with a letter.", max_new_tokens=16)`
    """

    template: str
    """The user's turn: `{prompt}` is the doc's own prompt, `{question}` its column of that name, `{choices}` the option
    texts in a row, `{options}` one lettered line each, `{letters}` their letters, `{instruction}` the column that says how to
    answer a question of its kind."""
    system: str | None = DEFAULT_STYLE.system
    """A system turn before the question; None leaves it to the checkpoint's chat template."""
    chat: prompting.Chat = DEFAULT_STYLE.chat
    """`template`: the checkpoint's chat template. `plain`: the bare text. `auto`: the chat template if there is one,
    else the bare text."""
    prefill: str = DEFAULT_STYLE.prefill
    """Text with which the prompt already begins the answer, such as `<think>`."""
    max_new_tokens: int
    """The published token limit of the style; a smaller one cuts answers off."""
    coordinates: str | None = None
    """The convention that the prompt itself prescribes for boxes, whatever the model was trained on."""

    @property
    def style(self) -> prompting.PromptStyle:
        """The prompt style without the token limit and coordinates."""
        return prompting.PromptStyle(
            template=self.template, system=self.system, chat=self.chat, prefill=self.prefill
        )


def one_of_options(doc: Doc) -> float:
    """The score of a blind guess: 1 / number of options, or 0 for an open answer."""
    return 1 / len(doc.example.choices) if doc.example.choices else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A benchmark. `gpg_vl.eval.tasks.cvbench` is the one to copy."""

    name: str
    version: str = "1"
    """Increased whenever scores of the same responses could change."""
    description: str
    """One line for `--list`."""
    source: str
    """Where the data is published, and its licence."""
    sizes: Mapping[str, int]
    """Docs of each published split, the usual one first; a note says if a loaded set has another size."""
    metric: str
    """The meaning of the headline score, for `--list`."""
    blind: str
    """The score of a blind guess, for `--list`."""

    files: Callable[[Path], Sequence[Path]]
    """The tables that `load` would read, in order (their digests go into the results). Raises UserError."""
    load: Loader
    prompts: Mapping[str, TaskPrompt]
    default_prompt: str

    scorers: Mapping[str, Scorer]
    """Scorers by name; `strict` is required."""
    default_scorers: tuple[str, ...] = ("strict", "official")
    gold_responses: Callable[[Doc], Sequence[Response]]
    """Right answers in several forms. `strict` must give each of them full marks; every other scorer must do so for at
    least one."""
    full_marks: Callable[[Doc], float] = lambda doc: 1.0
    """The score of a right answer: 1, or less where annotators disagree and the metric says so."""
    published_golds: Callable[[Doc], Sequence[Response]] = lambda doc: ()
    """Right answers that only published rules can read, such as another notation; used only for their ceilings."""
    flawed: Collection[str] = ()
    """Scorers whose published rule refuses some right answers. The scores of right answers are printed, and such a refusal
    is not an error."""
    boxes: bool = False
    """Answers are boxes: docs get the column `coordinates`, the convention that they are written in."""
    needs_mask: Collection[str] = ()
    """Scorers of segmentations; they are taken by default only if the predictions have masks."""
    gold_label: Callable[[Doc], str] | None = None
    """The value of `Verdict.parsed` for a right answer, if there are only few different answers (option letters), to count
    them."""
    chance: Callable[[Doc], float] = one_of_options
    """Expected score of a blind guess."""
    right_from: float = 1.0
    """The score from which a row counts as right, in pass@k and McNemar's test."""

    aggregates: Mapping[str, Aggregate] = field(default_factory=lambda: {"micro": Sample.mean})
    """Aggregates by name, in the order of the printed table; the first is the headline."""
    groups: tuple[str, ...] = ()
    """Columns by which aggregates select docs."""
    strata: tuple[str, ...] = ()
    """Columns that `--limit` keeps in proportion."""
    resample_within: tuple[str, ...] = ()
    """Columns within whose values the bootstrap resamples, so that every aggregate exists in every resample."""
    cluster: str | None = None
    """The column whose equal values the bootstrap resamples together, such as the image of several questions."""


THINK = (
    "\nOutput the thinking process in <think> </think> and final answer in <answer> </answer> tags."
)
"""The text that the prompt styles called `think` add to a question."""


def stratum(doc: Doc, columns: Sequence[str]) -> tuple[str, ...]:
    """The doc's values in these columns."""
    return tuple(str(doc.columns[column]) for column in columns)


def pick(task: Task, kind: str, name: str, known: Mapping[str, T]) -> T:
    """`known[name]`, or a UserError that lists what the task has."""
    if name not in known:
        raise UserError(
            f"The task {task.name} has no {kind} called {name!r}. {did_you_mean(name, list(known))}"
        )
    return known[name]


def pick_scorers(task: Task, names: Sequence[str]) -> dict[str, Scorer]:
    """The task's scorers of these names, in this order, once each; `all` is every one. Raises UserError."""
    wanted = [one for name in names for one in (task.scorers if name == "all" else (name,))]
    return {name: pick(task, "scorer", name, task.scorers) for name in wanted}
