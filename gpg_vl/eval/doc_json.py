"""A doc as a JSON object and back, so that a log or a samples file can be scored again without the benchmark."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpg_vl.errors import UserError
from gpg_vl.eval.predictions import json_rows
from gpg_vl.eval.task import Doc
from gpg_vl.types import Example


def doc_record(doc: Doc) -> dict[str, Any]:
    """Everything that a scorer may look at; the images stay out."""
    return {
        "prompt": doc.example.prompt,
        "choices": None if doc.example.choices is None else list(doc.example.choices),
        "kind": doc.example.task,
        "gold": doc.gold,
        "columns": dict(doc.columns),
        "problem": doc.problem,
    }


def doc_from_record(doc_id: int, record: Mapping[str, Any]) -> Doc:
    """The doc that `doc_record` wrote, without images. Raises KeyError or TypeError for anything else."""
    choices = record["choices"]
    example = Example(
        id=str(doc_id),
        prompt=record["prompt"],
        answer=record["gold"],
        choices=None if choices is None else tuple(choices),
        task=record["kind"],
        meta=record["columns"],
    )
    return Doc(doc_id=doc_id, example=example, problem=record.get("problem"))


def read_docs(file: Path) -> list[Doc]:
    """The docs that the rows of a log or a samples file carry, by doc_id; the last row of a doc counts.

    Raises UserError if a row carries none.
    """
    docs: dict[int, Doc] = {}
    for line, row in json_rows(file, torn_end=False):
        try:
            doc = doc_from_record(row["doc_id"], row["doc"])
        except (KeyError, TypeError):
            raise UserError(
                f"{file}, line {line}: the row does not carry its question. Only a predictions.jsonl or samples file "
                "of this program does; for another file name the benchmark's data with --data PATH."
            ) from None
        docs[doc.doc_id] = doc
    if not docs:
        raise UserError(f"{file} has no rows. Give a file with one line per answer.")
    return [docs[doc_id] for doc_id in sorted(docs)]
