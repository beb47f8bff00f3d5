"""Reads evaluations/ of a run: the policy's answer to each held-out row, and which rows were learnt or lost."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpg_vl.report.groups import spread
from gpg_vl.report.json_lines import Row, get, number, read_rows

MOST_ROWS = 200_000
"""Maximum number of rows of an evaluation that are compared."""
MOST_SHOWN = 12
"""Rows shown of each kind: learnt, lost, right twice, wrong twice."""
LONGEST_KEPT = 8_000
"""Characters of an answer that are kept."""

_FILE = re.compile(r"step-([0-9]{1,15})\.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One held-out row, answered once.

    Example: `Outcome(doc_id="7", right=True, score=1.0, response="(B)", parsed="B", note="")`
    """

    doc_id: str
    right: bool
    score: int | float | None
    response: str
    parsed: str | None
    note: str
    blank_right: bool | None
    """Whether it was also right with a blank image; None if that was not evaluated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The question of a held-out row.

    Example: `Question(doc_id="7", task="Count", question="How many ...", gold="(B)", images=("7-0.png",))`
    """

    doc_id: str
    task: str
    question: str
    gold: str
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """Two evaluations of the same rows, before and after.

    Example: `Changed(before=0, after=300, learnt=(...), counts={"learnt": 61, "lost": 12, ...}, ...)`
    """

    before: int
    """The step of the earlier evaluation."""
    after: int
    counts: Mapping[str, int]
    """Of rows, by `learnt`, `lost`, `right`, `wrong`."""
    shown: Mapping[str, tuple[tuple[Question, Outcome, Outcome], ...]]
    """Some rows of each kind."""
    alone: int
    """Rows that only one of the two evaluations has."""
    cut: int
    """How many rows of an evaluation were read, if one of them has more; else 0."""


def evaluation_files(folder: Path) -> dict[int, Path]:
    """The files of `evaluations` by step, in order. {} without any."""
    if not folder.is_dir():
        return {}
    found = {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := _FILE.fullmatch(path.name)) and path.is_file() and not path.is_symlink()
    }
    return dict(sorted(found.items()))


def compare(before: tuple[int, Path], after: tuple[int, Path]) -> Changed:
    """The rows of two evaluations side by side. Raises OSError."""
    # first read only whether each row was right; texts are read in a second pass
    was, cut_before = _outcomes(before[1])
    now, cut_after = _outcomes(after[1])
    kinds: dict[str, list[str]] = {"learnt": [], "lost": [], "right": [], "wrong": []}
    for doc_id, right in now.items():
        if doc_id in was:
            kinds[_kind(was[doc_id], right)].append(doc_id)

    chosen = {kind: spread(ids, MOST_SHOWN) for kind, ids in kinds.items()}
    wanted = {doc_id for ids in chosen.values() for doc_id in ids}
    old, new = _texts(before[1], wanted), _texts(after[1], wanted)
    return Changed(
        before=before[0],
        after=after[0],
        counts={kind: len(ids) for kind, ids in kinds.items()},
        shown={
            kind: tuple((new[one][0], old[one][1], new[one][1]) for one in ids)
            for kind, ids in chosen.items()
        },
        alone=len(was.keys() ^ now.keys()),
        cut=MOST_ROWS if cut_before or cut_after else 0,
    )


def _kind(was: bool, now: bool) -> str:
    if was == now:
        return "right" if now else "wrong"
    return "learnt" if now else "lost"


def _outcomes(file: Path) -> tuple[dict[str, bool], bool]:
    """Whether each row was right, and whether there are more rows than that."""
    right: dict[str, bool] = {}
    for row in read_rows(file):
        if row is None or "doc_id" not in row:
            continue
        if len(right) == MOST_ROWS:
            return right, True
        right[str(row["doc_id"])] = row.get("right") is True
    return right, False


def _texts(file: Path, wanted: Collection[str]) -> dict[str, tuple[Question, Outcome]]:
    found: dict[str, tuple[Question, Outcome]] = {}
    for row in read_rows(file):
        if len(found) == len(wanted):
            break
        if row is not None and (doc_id := str(row.get("doc_id"))) in wanted:
            found[doc_id] = (_question(doc_id, row), _outcome(doc_id, row))
    return found


def _question(doc_id: str, row: Row) -> Question:
    images = row.get("images")
    return Question(
        doc_id=doc_id,
        task=get(row, "task", str) or "",
        question=get(row, "question", str) or "",
        gold=get(row, "gold", str) or "",
        images=tuple(one for one in images if isinstance(one, str))
        if isinstance(images, list)
        else (),
    )


def _outcome(doc_id: str, row: Row) -> Outcome:
    blank: Any = row.get("blank_right")
    return Outcome(
        doc_id=doc_id,
        right=row.get("right") is True,
        score=number(row.get("score")),
        response=(get(row, "response", str) or "")[:LONGEST_KEPT],
        parsed=get(row, "parsed", str),
        note=get(row, "note", str) or "",
        blank_right=blank if isinstance(blank, bool) else None,
    )
