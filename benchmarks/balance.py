"""Tokens of the fullest process over the mean, as groups are sampled and as they are dealt for training: counted, not timed.

    python -m benchmarks.balance

Steps are drawn: each process samples as many prompts as it has places until enough groups of the step carry a signal, as in
training. Answers are short and alike, as in the quickstart (60 tokens of prompt, 5 an answer), or long-tailed (600 tokens of
prompt; log-normal, of a mean that varies with the prompt, cut at 700).
"""

import random
from collections.abc import Callable, Sequence
from math import ceil
from statistics import mean

from gpg_vl.console import say
from gpg_vl.training.balance import excess, plan_moves

ANSWERS, STEPS, ROUNDS = 8, 300, 20
CASES = ((2, 4), (2, 16), (4, 4), (8, 4), (8, 16), (16, 4))
"""Processes, and prompts per step of each."""
Draw = Callable[[random.Random], int]


def short(rng: random.Random) -> int:
    """Tokens of a group of the quickstart."""
    return 60 + sum(rng.choice((3, 4, 4, 5)) for _ in range(ANSWERS))


def long_tailed(rng: random.Random) -> int:
    """Tokens of a group of reasoning."""
    level = rng.gauss(5.0, 0.4)
    return 600 + sum(min(700, int(rng.lognormvariate(level, 0.5))) for _ in range(ANSWERS))


def steps(
    draw: Draw, processes: int, places: int, *, signal: float, beta_th: float
) -> list[list[list[int]]]:
    """Tokens of the groups with signal by process, of each step; surplus groups wait for the next, where they were sampled."""
    rng = random.Random(0)
    needed = ceil(beta_th * processes * places - 1e-9)
    surplus: list[list[int]] = [[] for _ in range(processes)]
    found = []
    for _ in range(STEPS):
        valid = [list(of_one) for of_one in surplus]
        for _ in range(ROUNDS):
            for of_one in valid:
                sampled = [draw(rng) for _ in range(places if len(of_one) < places else 0)]
                of_one += [tokens for tokens in sampled if rng.random() < signal]
            if sum(min(len(of_one), places) for of_one in valid) >= needed:
                break
        found.append([of_one[:places] for of_one in valid])
        surplus = [of_one[places:] for of_one in valid]
    return [step for step in found if any(map(any, step))]


def describe(found: Sequence[Sequence[Sequence[int]]]) -> str:
    plans = [plan_moves(step) for step in found]
    before = mean(excess(step, []) for step in found)
    after = mean(excess(step, plan) for step, plan in zip(found, plans, strict=True))
    groups = mean(sum(map(len, step)) for step in found)
    return f"{before:.2f} | {after:.2f} | {mean(map(len, plans)):.1f} of {groups:.0f}"


def main() -> None:
    say("| processes | prompts each | signal | answers | sampled | trained | groups that move |")
    say("|---|---|---|---|---|---|---|")
    for processes, places in CASES:
        for signal in (0.9, 0.5):
            for draw in (short, long_tailed):
                found = steps(draw, processes, places, signal=signal, beta_th=0.4)
                name = draw.__name__.replace("_", "-")
                say(f"| {processes} | {places} | {signal} | {name} | {describe(found)} |")


if __name__ == "__main__":
    main()
