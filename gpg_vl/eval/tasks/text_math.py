r"""Mathematics in words: MATH-500, AIME 2024, AMC 2023, Minerva, OlympiadBench and GSM8K. Text only.

One shape, six data sets; each says which column holds the gold and how. A gold that is a whole solution counts as its
last `\boxed{}`. AIME and AMC are so small (30 and 40 questions, a half-width of 17 and 12 points for one answer each) that
they are measured with `--repeats 8` or more. `lkevinzc/math-eval` has another AMC with 83 questions: do not mix.
"""

from dataclasses import dataclass, replace
from functools import partial

from gpg_vl.answers.extract import last_boxed
from gpg_vl.eval.loading import Entry, loader, tables
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers import gsm8k as gsm8k_rules
from gpg_vl.eval.scorers.lighteval import EXPRESSION, LATEX, lighteval
from gpg_vl.eval.scorers.mathverify import Config
from gpg_vl.eval.scorers.strict import strict_expression
from gpg_vl.eval.statistics import Sample, mean_of
from gpg_vl.eval.task import Doc, Scorer, Task, TaskPrompt

_OFFICIAL = (
    "Solve the following math problem efficiently and clearly.  The last line of your response should be of the following "
    "format: 'Therefore, the final answer is: $\\boxed{ANSWER}$. I hope it is correct' (without quotes) where ANSWER is "
    "just the final number or expression that solves the problem. Think step by step before answering.\n\n{prompt}"
)
PROMPTS = {
    "official": TaskPrompt(template=_OFFICIAL, max_new_tokens=32768),
    "boxed": TaskPrompt(
        template="{prompt}\nPlease reason step by step, and put your final answer within \\boxed{}.",
        max_new_tokens=3000,
    ),
    "plain": TaskPrompt(template="{prompt}", max_new_tokens=3000),
}
_MARKED = 'Let\'s think step by step and output the final answer after "####".'
_LEVELS = ("1", "2", "3", "4", "5")


@dataclass(frozen=True, slots=True)
class _Set:
    """A row of the table: what differs between the data sets."""

    name: str
    hub: str
    split: str
    size: int
    question: str
    """The column of the question."""
    gold: str
    """The column of the gold."""
    configs: tuple[Config, ...]
    """How lighteval extracts the gold."""
    folders: tuple[str, ...] = ("", "data")

    @property
    def required(self) -> tuple[str, ...]:
        """The columns of every row; that of OlympiadBench's gold has two names."""
        return (self.question,) if self.name == "olympiadbench" else (self.question, self.gold)


SETS = {
    one.name: one
    for one in (  # name, where, split, size, columns of question and gold, extraction, folders
        _Set("math500", "HuggingFaceH4/MATH-500", "test", 500, "problem", "solution", LATEX),
        _Set("aime24", "HuggingFaceH4/aime_2024", "train", 30, "problem", "answer", EXPRESSION),
        _Set("amc23", "knoveleng/AMC-23", "train", 40, "problem", "answer", EXPRESSION),
        _Set("minerva", "knoveleng/Minerva-Math", "train", 272, "problem", "solution", LATEX),
        _Set("olympiadbench", "knoveleng/OlympiadBench", "train", 675, "question", "answer", LATEX),
        _Set(
            "gsm8k",
            "openai/gsm8k (MIT)",
            "test",
            1319,
            "question",
            "answer",
            (),
            ("", "main", "data"),
        ),
    )
}
TITLES = {
    "math500": "MATH-500: competition mathematics in five levels",
    "aime24": "AIME 2024: 30 problems with whole numbers from 0 to 999",
    "amc23": "AMC 2023: 40 problems",
    "minerva": "Minerva: quantitative questions of university courses (not lmms-eval's video benchmark of that name)",
    "olympiadbench": "OlympiadBench: problems of olympiads, the English open-ended text-only part",
    "gsm8k": "GSM8K: grade-school word problems",
}


def _task(one: _Set, scorers: dict[str, Scorer]) -> Task:
    files = partial(tables, name=one.name, split=one.split, folders=one.folders)
    return Task(
        name=one.name,
        description=TITLES[one.name],
        source=f"https://huggingface.co/datasets/{one.hub}",
        sizes={one.split: one.size},
        metric="accuracy; with --repeats K avg@K and pass@k",
        blind="0 %: answers are open",
        files=files,
        load=loader(files, partial(_doc, one), required=one.required),
        prompts=PROMPTS,
        default_prompt="official",
        scorers={"strict": strict_expression, **scorers},
        gold_responses=boxed_gold,
        # Where a gold is a word or a list, the published extraction may find nothing in it.
        flawed=tuple(scorers),
    )


def _official(name: str) -> Task:
    one = SETS[name]
    return _task(one, {"official": lighteval(one.gold, one.configs)})


aime24, amc23, minerva, olympiadbench = (
    partial(_official, name) for name in ("aime24", "amc23", "minerva", "olympiadbench")
)


def math500() -> Task:
    """The task, for `python -m gpg_vl.eval math500`; accuracy per level next to the whole."""
    levels = {f"level {level}": mean_of("level", level) for level in _LEVELS}
    return replace(
        _official("math500"),
        aggregates={"micro": Sample.mean, **levels},
        groups=("level",),
        strata=("level",),
    )


def gsm8k() -> Task:
    """The task, for `python -m gpg_vl.eval gsm8k`. Its gold is the number behind `####`."""
    published: dict[str, Scorer] = {
        "official": gsm8k_rules.official,
        "flexible": gsm8k_rules.flexible,
        "lmms": gsm8k_rules.lmms,
    }
    task = _task(SETS["gsm8k"], published)
    return replace(
        task,
        prompts={
            **PROMPTS,
            "official": TaskPrompt(template="{prompt} " + _MARKED, max_new_tokens=1024),
        },
        gold_responses=_gsm8k_golds,
        flawed=(),
    )


def _gsm8k_golds(doc: Doc) -> tuple[Response, ...]:
    return (
        Response(text=f"<answer>{doc.gold}</answer>"),
        Response(text=f"The final answer is {doc.gold}"),
        Response(text=f"<think>It is 7.</think>\n#### {doc.gold}"),
    )


def boxed_gold(doc: Doc) -> tuple[Response, ...]:
    r"""The gold expression in `\boxed{}`, as text mathematics asks for it, and after reasoning."""
    box = rf"\boxed{{{doc.gold}}}"
    return (
        Response(text=f"Therefore, the final answer is: ${box}$. I hope it is correct"),
        Response(text=f"<think>try $7$</think>\n${box}$"),
    )


def _doc(one: _Set, entry: Entry) -> Doc:
    # OlympiadBench's owners call the column of the gold `final_answer`.
    column = "final_answer" if one.gold == "answer" and "final_answer" in entry.row else one.gold
    text = _gold_text(entry, column)
    if one.name == "gsm8k":
        numbers = gsm8k_rules.find_marked(text)
        if not numbers:
            raise entry.wrong(column, 'a solution that ends in "#### " and a number')
        gold = numbers[-1].replace(",", "")
    else:
        gold = (last_boxed(text) if one.gold == "solution" else "") or text.strip()
    return entry.doc(
        prompt=entry.text(one.question), gold=_without_dollars(gold), more={one.gold: text}
    )


def _gold_text(entry: Entry, column: str) -> str:
    """A gold as a text: a number as it is written, the members of a list joined."""
    cell = entry.get(column)
    if isinstance(cell, int | float):
        return f"{cell:g}"
    if isinstance(cell, list) and cell and all(isinstance(one, str) for one in cell):
        return ", ".join(cell)
    return entry.text(column)


def _without_dollars(gold: str) -> str:
    """A gold that is one formula between dollars, without them: they may not stand within a box."""
    inner = gold.strip().removeprefix("$").removesuffix("$")
    return inner.strip() if len(inner) == len(gold.strip()) - 2 and "$" not in inner else gold
