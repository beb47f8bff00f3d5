"""MathVista, MathVerse and Geometry3K with their published columns."""

from pathlib import Path

import pyarrow as pa

from benchmark_data.files import image, write_parquet

MATHVISTA = (  # question type, answer type, choices, answer, precision, task
    ("multi_choice", "text", ["3/11", "8/11", "6/11"], "8/11", None, "textbook question answering"),
    ("free_form", "integer", None, "14", None, "figure question answering"),
    ("free_form", "float", None, "1.2", 1.0, "geometry problem solving"),
    ("free_form", "list", None, "[2007, 2008]", None, "math word problem"),
    ("free_form", "float", None, "0.25", 2.0, "visual question answering"),
)
VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")


def write(task: str, folder: Path) -> Path:
    rows, split, types = {
        "mathvista": _mathvista,
        "mathverse": _mathverse,
        "geometry3k": _geometry3k,
    }[task]()
    write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", rows, **types)
    return folder


def _mathvista():
    rows = [
        {
            "pid": str(n + 1),
            "question": "What is it?",
            "image": f"images/{n + 1}.jpg",
            "decoded_image": image(n),
            "choices": choices,
            "unit": None,
            "precision": precision,
            "answer": answer,
            "question_type": question_type,
            "answer_type": answer_type,
            "metadata": {"task": task, "source": "x", "skills": ["arithmetic reasoning"]},
            "query": f"Hint: Please answer.\nQuestion: What is it ({n})?",
        }
        for n, (question_type, answer_type, choices, answer, precision, task) in enumerate(
            MATHVISTA
        )
    ]
    return rows, "testmini", {"choices": pa.list_(pa.string())}


def _mathverse():
    told = "Find the angle.\nChoices:\nA:20°\nB:40°\nC:70°\nD:110°"
    rows = [
        {
            "sample_index": str(n),
            "problem_index": str(n // 5),
            "problem_version": version,
            "question": "" if version == "Vision Only" else told,
            "image": image(n),
            "answer": "B" if n < 5 else "5",
            "question_type": "multi-choice" if n < 5 else "free-form",
            "metadata": {"subject": "Plane Geometry"},
            "query_wo": f"Please directly answer the question.\n{told}",
            "query_cot": f"Please first conduct reasoning.\n{told}",
            "question_for_eval": told if n < 5 else "Find x.",
        }
        for n, version in enumerate(VERSIONS * 2)
    ]
    return rows, "testmini", {}


def _geometry3k():
    golds = ("48", "2 \\sqrt { 221 }", "\\frac { 25 } { 2 } \\pi", "12.5")
    rows = [
        {"images": [image(n)], "problem": f"<image>Find $x$ ({n}).", "answer": gold, "id": n}
        for n, gold in enumerate(golds)
    ]
    return rows, "test", {}
