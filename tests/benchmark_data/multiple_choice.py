"""MMMU and BLINK with their published columns."""

from pathlib import Path

import pyarrow as pa

from benchmark_data.files import image, write_parquet

_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
MMMU = (  # id, question, options, answer, type
    (
        "validation_Accounting_1",
        "<image 1> What is the profit?",
        "['$6', '$7', '$8', '$9']",
        "B",
        "multiple-choice",
    ),
    (
        "validation_Art_Theory_12",
        "Who painted <image 1> and <image 2>?",
        "['Monet', 'Manet']",
        "A",
        "multiple-choice",
    ),
    ("validation_Math_3", "Compute the area in <image 1>.", "[]", "24", "open"),
    (
        "validation_Music_7",
        "Which one? ",
        "['<image 1>', '<image 2>', '<image 3>', 'none', 'all']",
        "E",
        "multiple-choice",
    ),
    ("validation_Physics_2", "Name the law in <image 1>.", "[]", "['Ohm', \"Ohm's law\"]", "open"),
)
BLINK = (  # subtask, images, choices, answer
    ("Counting", 1, ["1", "2", "3", "4"], "(C)"),
    ("Relative_Depth", 1, ["A is closer", "B is closer"], "(A)"),
    ("Jigsaw", 3, ["the second image", "the third image"], "(B)"),
    ("Visual_Similarity", 4, ["the second image", "the third image"], "(A)"),
)


def write(task: str, folder: Path) -> Path:
    return _mmmu(folder) if task == "mmmu" else _blink(folder)


def _mmmu(folder: Path) -> Path:
    rows = []
    for n, (name, question, options, answer, question_type) in enumerate(MMMU):
        shown = [k for k in range(1, 8) if f"<image {k}>" in question + options]
        rows.append(
            {
                "id": name,
                "question": question,
                "options": options,
                "explanation": "",
                **{f"image_{k}": image(10 * n + k) if k in shown else None for k in range(1, 8)},
                "img_type": "['Tables']",
                "answer": answer,
                "topic_difficulty": "Easy",
                "question_type": question_type,
                "subfield": "x",
            }
        )
    types = {f"image_{k}": _STRUCT for k in range(1, 8)}
    write_parquet(folder / "data" / "validation-00000-of-00001.parquet", rows, **types)
    return folder


def _blink(folder: Path) -> Path:
    for n, (name, pictures, choices, answer) in enumerate(BLINK):
        options = "\n".join(
            f"({letter}) {text}" for letter, text in zip("ABCD", choices, strict=False)
        )
        rows = [
            {
                "idx": f"val_{name}_{k}",
                "question": "Which?",
                "sub_task": name,
                **{
                    f"image_{i}": image(10 * n + i + k) if i <= pictures else None
                    for i in range(1, 5)
                },
                "choices": choices,
                "answer": answer,
                "prompt": f"Which? Select from the following options.\n{options}",
                "explanation": "",
            }
            for k in range(1, 3)
        ]
        types = {f"image_{i}": _STRUCT for i in range(1, 5)}
        write_parquet(folder / name / "val-00000-of-00001.parquet", rows, **types)
        write_parquet(
            folder / name / "test-00000-of-00001.parquet",
            [{**rows[0], "answer": "hidden"}],
            **types,
        )
    return folder
