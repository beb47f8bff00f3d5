"""How long scoring a prediction file of CV-Bench's size takes, with every scorer and 1,000 bootstrap draws.

    python eval/scoring_speed.py [--rows 2638]

Writes drawn questions and answers of many shapes into a temporary folder and times the program that a user runs on them.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARES = (
    ("2D", "Count", "ADE20K"),
    ("2D", "Relation", "COCO"),
    ("3D", "Depth", "Omni3D"),
    ("3D", "Distance", "Omni3D"),
)
THINGS = [
    f"{a} {b}" for a in ("red", "old", "small", "tall") for b in ("chair", "desk", "lamp", "car", "person", "box")
]
PROSE = "In the image I can see the {a} and the {b}, and a table stands behind them. "


def rows(number: int, seed: int = 0) -> tuple[list[dict], list[dict]]:
    """Questions in CV-Bench's columns, and one answer to each."""
    draw = random.Random(seed)
    questions, answers = [], []
    for doc_id in range(number):
        kind, task, source = SHARES[doc_id * len(SHARES) // number]
        options = draw.sample(range(20), 5) if task == "Count" else draw.sample(THINGS, 2)
        choices = [f"{option} {doc_id % 50}" if task != "Count" else str(option) for option in options]
        gold = draw.randrange(len(choices))
        letters = "ABCDEF"
        listed = "\n".join(f"({letter}) {text}" for letter, text in zip(letters, choices, strict=False))
        questions.append(
            {
                "type": kind,
                "task": task,
                "source": source,
                "choices": choices,
                "answer": f"({letters[gold]})",
                "question": "Which one?",
                "prompt": f"Which one? Select from the following choices.\n{listed}",
                "filename": f"img/{doc_id}.png",
            }
        )
        answers.append({"doc_id": doc_id, "response": _answer(draw, choices, letters[draw.randrange(len(choices))])})
    return questions, answers


def _answer(draw: random.Random, choices: list[str], letter: str) -> str:
    text = choices["ABCDEF".index(letter)]
    told = PROSE.format(a=choices[0], b=choices[1]) * draw.randrange(1, 12)
    return draw.choice(
        (
            f"({letter})",
            f"<think>{told}</think><answer>({letter})</answer>",
            f"<think>{told}</think>\n<answer>{text}</answer>",
            f"{told}The answer is {text}.",
            f"{told}So the answer is \\boxed{{{letter}}}.",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2638)
    number = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in zip(("test.jsonl", "answers.jsonl"), rows(number), strict=True):
            (Path(folder) / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        command = [sys.executable, "-m", "gpg_vl.eval", "cvbench", "--data", f"{folder}/test.jsonl", "--scorer", "all"]
        start = time.perf_counter()
        subprocess.run([*command, "--predictions", f"{folder}/answers.jsonl", "--output", f"{folder}/out"], check=True)
        print(f"{number} rows, every scorer, 1000 draws: {time.perf_counter() - start:.1f} seconds")


if __name__ == "__main__":
    main()
