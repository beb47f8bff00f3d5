"""How long scoring takes: a prediction file of CV-Bench's size under every scorer, and completions under every reward.

    python eval/scoring_speed.py [--rows 2638]
    python eval/scoring_speed.py --rewards [--completions 10000] [--workers 2]

The first writes drawn questions and answers of many shapes into a temporary folder and times the program that a user runs
on them, with 1,000 bootstrap draws. The second times the reward pool of training on groups of eight drawn completions of 150
to 1,500 characters, of which a quarter is right; the start of its workers is not counted.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.scoring import Item, RewardFailure
from gpg_vl.types import Completion, Example

SHARES = (
    ("2D", "Count", "ADE20K"),
    ("2D", "Relation", "COCO"),
    ("3D", "Depth", "Omni3D"),
    ("3D", "Distance", "Omni3D"),
)
THINGS = [
    f"{a} {b}"
    for a in ("red", "old", "small", "tall")
    for b in ("chair", "desk", "lamp", "car", "person", "box")
]
PROSE = "In the image I can see the {a} and the {b}, and a table stands behind them. "


def rows(number: int, seed: int = 0) -> tuple[list[dict], list[dict]]:
    """Questions in CV-Bench's columns, and one answer to each."""
    draw = random.Random(seed)
    questions, answers = [], []
    for doc_id in range(number):
        kind, task, source = SHARES[doc_id * len(SHARES) // number]
        options = draw.sample(range(20), 5) if task == "Count" else draw.sample(THINGS, 2)
        choices = [
            f"{option} {doc_id % 50}" if task != "Count" else str(option) for option in options
        ]
        gold = draw.randrange(len(choices))
        letters = "ABCDEF"
        listed = "\n".join(
            f"({letter}) {text}" for letter, text in zip(letters, choices, strict=False)
        )
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
        answers.append(
            {
                "doc_id": doc_id,
                "response": _answer(draw, choices, letters[draw.randrange(len(choices))]),
            }
        )
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


GROUP = 8
ASKED: dict[str, Callable[[int], tuple[str, str, dict[str, Any]]]] = {
    "choice": lambda n: (
        "(B)",
        "(A)",
        {"choices": (f"chair {n % 50}", f"desk {n % 50}", f"lamp {n % 50}")},
    ),
    "classification": lambda n: (
        f"type {n % 90}",
        f"type {n % 90 + 1}",
        {"choices": tuple(f"type {i}" for i in range(99))},
    ),
    "counting": lambda n: (str(n % 12), str(n % 12 + 1), {}),
    "detection": lambda n: (f"[[{n % 400},20,500,600]]", "[[5,5,90,90]]", BOXES),
    "format": lambda n: ("x", "y", {}),
    "geometry": lambda n: (f"{n % 170 + 1}°", f"{n % 170 + 2} cm", {}),
    "grounding": lambda n: (f"({n % 400},20),(500,600)", "(5,5),(90,90)", BOXES),
    "grounding_giou": lambda n: (f"({n % 400},20),(500,600)", "(5,5),(90,90)", BOXES),
    "grounding_hit": lambda n: (f"({n % 400},20),(500,600)", "(5,5),(90,90)", BOXES),
    "length": lambda n: ("x", "y", {"meta": {"length_limit": 100, "length_cache": 20}}),
    "math": lambda n: (rf"\frac{{{2 * n + 1}}}{{4}}", rf"\frac{{{2 * n + 3}}}{{4}}", {}),
    "vqa": lambda n: (
        f"red car {n % 99}",
        "blue car",
        {"meta": {"answers": [f"red car {n % 99}"] * 6 + ["car"] * 4}},
    ),
    "vqa_anls": lambda n: (f"grand total {n}", f"net total {n}", {}),
    "vqa_relaxed": lambda n: (str(n + 100), str(2 * n + 300), {}),
}
"""By reward: the gold of the n-th question, a wrong answer, and what else its example has."""
BOXES = {"meta": {"coordinates": "rel1000", "image_size": [640, 480]}}


def completions(gold: str, wrong: str, draw: random.Random) -> tuple[Completion, ...]:
    """A group: reasoning of different lengths, a quarter right, some without tags or boxed instead."""
    texts = []
    for _ in range(GROUP):
        told, answer = (
            PROSE.format(a="chair", b="desk") * draw.randrange(2, 20),
            draw.choice((gold, wrong, wrong, wrong)),
        )
        texts.append(
            draw.choice(
                (
                    f"<think>{told}</think><answer>{answer}</answer>",
                    f"<think>{told}</think>\n<answer>\n{answer}\n</answer>",
                    f"{told}\nThe answer is {answer}.",
                    f"<think>{told}</think> \\boxed{{{answer}}}",
                )
            )
        )
    return tuple(
        Completion(
            token_ids=(1,) * (len(text) // 4),
            logprobs=(0.0,) * (len(text) // 4),
            text=text,
            finish_reason="stop",
        )
        for text in texts
    )


def time_rewards(number: int, workers: int) -> None:
    """Print the seconds that the pool takes for so many completions, reward by reward."""
    print(f"{number} completions, {workers} workers")
    for name, ask in ASKED.items():
        draw, items = random.Random(0), []
        for n in range(number // GROUP):
            gold, wrong, more = ask(n)
            items.append(
                Item(
                    Example(id=str(n), prompt="?", answer=gold, **more),
                    completions(gold, wrong, draw),
                )
            )
        with RewardPool({name: 1.0}, workers=workers) as pool:
            pool.evaluate(items[: 8 * workers])  # every worker has loaded the reward
            start = time.perf_counter()
            outcomes = pool.evaluate(items)
            seconds = time.perf_counter() - start
        failed = [outcome for outcome in outcomes if isinstance(outcome, RewardFailure)]
        if failed:
            raise SystemExit(f"{name}: {failed[0]}")
        mean = sum(sum(outcome[name]) for outcome in outcomes) / (len(items) * GROUP)
        print(f"{name:15} {seconds:5.2f} seconds   mean {mean:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2638)
    parser.add_argument("--rewards", action="store_true", help="time the rewards instead")
    parser.add_argument("--completions", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.rewards:
        time_rewards(arguments.completions, arguments.workers)
        return
    number = arguments.rows
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in zip(("test.jsonl", "answers.jsonl"), rows(number), strict=True):
            (Path(folder) / name).write_text(
                "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
            )
        command = [
            sys.executable,
            "-m",
            "gpg_vl.eval",
            "cvbench",
            "--data",
            f"{folder}/test.jsonl",
            "--scorer",
            "all",
        ]
        start = time.perf_counter()
        subprocess.run(
            [*command, "--predictions", f"{folder}/answers.jsonl", "--output", f"{folder}/out"],
            check=True,
        )
        print(f"{number} rows, every scorer, 1000 draws: {time.perf_counter() - start:.1f} seconds")


if __name__ == "__main__":
    main()
