"""Bias and noise of each algorithm's gradient at fixed weights: one step, sampled again and again.

    gpg-vl quickstart --prepare-only --folder FOLDER
    python -m benchmarks.estimators --base FOLDER            (ten minutes of one core, 5 GB)
    python -m benchmarks.estimators --base FOLDER --quick    (four samples)

The quickstart's base model answers the same 32 questions 8 times each, from other random numbers in every sample; each algorithm
gets the same answers and rewards and computes its gradient of that step, whole and unclipped. Old log-probs are those of the
weights, so ratios are 1, and no divergence from a reference is added.

- noise: the root of the gradient's summed variance over the length of its mean. At 1 a single step is as much noise as signal.
- cosine: of the mean gradient with that of RLOO, which is the gradient of the expected reward without bias. Estimated from
  products of different samples, so noise does not lower it, and it may exceed 1 by chance.

Intervals are 95 %, over samples. Writes OUT/estimators.json and .md.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.comparison_results import Interval
from benchmarks.comparison_settings import GPG
from benchmarks.learner import gradient
from benchmarks.step import folder_of_results
from gpg_vl.algorithms import algorithms
from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.config import load_config
from gpg_vl.model import Model
from gpg_vl.models.load import load_processing
from gpg_vl.rewards.builtin import choice
from gpg_vl.rollout.engine import EngineOptions, RolloutRequest
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.training.data_check import load_data
from gpg_vl.training.micro_batch import Layout
from gpg_vl.training.prepare import make_encoder
from gpg_vl.types import Completion, Example, GreedyAnswer, Group, Prompt

PROMPTS, MEMBERS = 32, 8
RESAMPLES = 2_000
TOKENS_PER_PASS = 8_192
CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
UNBIASED = "rloo"


def _gpg(**changes: Any) -> Algorithm:
    keys = {key: value for key, value in GPG.items() if key not in ("name", "beta_th")}
    return algorithms.get("gpg")(**keys | changes)


def make_algorithms() -> dict[str, Algorithm]:
    """Those whose gradients differ where the ratio is 1. GSPO's and CISPO's are then those of their advantages."""
    return {
        "rloo": algorithms.get("rloo")(),
        "gpg": _gpg(),
        "gpg, age off": _gpg(age="off"),
        "gpg, f_norm group_std": _gpg(f_norm="group_std"),
        "gpg, f_norm batch_std": _gpg(f_norm="batch_std"),
        "gpg, aggregation token": _gpg(aggregation="token"),
        "reinforce": algorithms.get("reinforce")(),
        "reinforce_pp": algorithms.get("reinforce_pp")(),
        "remax": algorithms.get("remax")(),
        "opo": algorithms.get("opo")(),
    }


# ---- samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The questions of the step."""

    examples: Sequence[Example]
    prompts: Sequence[Prompt]


def read_step(base: Path) -> tuple[Model, Step]:
    """The first questions of the quickstart's rows."""
    changes = [f"model.path={base / 'base'}", f"data.train={base / 'train.parquet'}"]
    config = load_config(CONFIG, changes)
    processing = load_processing(config.model.path)
    model = Model.load(config.model.path, device="cpu", processing=processing)
    rows = load_data(config)
    examples = [rows[number] for number in range(PROMPTS)]
    encoder = make_encoder(config, processing)
    return model, Step(examples=examples, prompts=[encoder.encode(e) for e in examples])


def sample(model: Model, step: Step, number: int) -> list[Group]:
    """The groups of sample `number`, with rewards, and greedy answers for those that compare with one."""
    engine = model.engine(options=EngineOptions(prompts_per_batch=PROMPTS))
    sampling = Sampling(
        group_size=MEMBERS, temperature=1.0, max_new_tokens=6, seed=number, with_greedy=True
    )
    requests = [RolloutRequest(prompt=p, draw=draw) for draw, p in enumerate(step.prompts)]
    answers = engine.generate(requests, sampling)

    groups = []
    for example, prompt, (*members, greedy) in zip(
        step.examples, step.prompts, answers, strict=True
    ):
        rewards = tuple(_reward(one, example) for one in members)
        groups.append(
            Group(
                example=example,
                prompt=prompt,
                completions=tuple(members),
                rewards=rewards,
                reward_parts={"choice": rewards},
                greedy=GreedyAnswer(
                    completion=replace(greedy, logprobs=()), reward=_reward(greedy, example)
                ),
            )
        )
    return groups


def _reward(completion: Completion, example: Example) -> float:
    return float(choice(completion, example))


def gradients(
    model: Model, step: Step, chosen: Mapping[str, Algorithm], samples: int
) -> dict[str, Tensor]:
    """[samples, weights] of each algorithm."""
    weights = sum(p.numel() for p in model.policy.model.parameters())
    rows = {name: torch.empty(samples, weights) for name in chosen}
    for number in range(samples):
        groups = sample(model, step, number)
        for name, algorithm in chosen.items():
            given = groups
            if "greedy_reward" not in algorithm.needs:
                given = [replace(group, greedy=None) for group in groups]
            found = gradient(
                model,
                algorithm,
                given,
                layout=Layout(tokens_per_pass=TOKENS_PER_PASS, shared_prefix=True),
                max_new_tokens=6,
            )
            torch.cat([found[key].flatten() for key in sorted(found)], out=rows[name][number])
        print(f"sample {number + 1} of {samples}", flush=True)
    return rows


# ---- statistics


def products(first: Tensor, second: Tensor) -> np.ndarray:
    """[K, K] inner products, in float64."""
    return (first.double() @ second.double().T).numpy()


def weights_of(samples: int) -> Iterator[np.ndarray]:
    """How often each sample counts: once each, and then as drawn anew with replacement."""
    rng = np.random.default_rng(0)
    yield np.ones(samples)
    for _ in range(RESAMPLES):
        yield rng.multinomial(samples, [1 / samples] * samples).astype(float)


def cross(grams_K_K: np.ndarray, counts_K: np.ndarray) -> float:
    """Mean product of two different samples: that of the expected gradients, without bias. nan if there are no two."""
    pairs_K_K = np.outer(counts_K, counts_K)
    np.fill_diagonal(pairs_K_K, 0.0)
    total = pairs_K_K.sum()
    return float((pairs_K_K * grams_K_K).sum() / total) if total else float("nan")


def noise_of(own_K_K: np.ndarray, counts_K: np.ndarray) -> float:
    """Root of the summed variance over the length of the mean; infinite if no mean stands out."""
    length = cross(own_K_K, counts_K)
    second = float(counts_K @ np.diag(own_K_K) / counts_K.sum())
    return float(np.sqrt(max(second - length, 0.0) / length)) if length > 0 else float("inf")


def cosine_of(
    own_K_K: np.ndarray, both_K_K: np.ndarray, other_K_K: np.ndarray, counts_K: np.ndarray
) -> float:
    """Of the means of two estimators; nan if a mean does not stand out."""
    lengths = cross(own_K_K, counts_K) * cross(other_K_K, counts_K)
    return cross(both_K_K, counts_K) / float(np.sqrt(lengths)) if lengths > 0 else float("nan")


def estimate(values: Sequence[float]) -> Interval:
    """The first value is that of the samples as they are, the others those of samples drawn anew."""
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return Interval(value=values[0], low=float(low), high=float(high))


def summarise(found: Mapping[str, Tensor]) -> dict[str, dict[str, Interval]]:
    """{algorithm: {noise, cosine}}."""
    other = found[UNBIASED]
    other_K_K, counts = products(other, other), list(weights_of(len(other)))
    result = {}
    for name, own in found.items():
        own_K_K, both_K_K = products(own, own), products(own, other)
        result[name] = {
            "noise": estimate([noise_of(own_K_K, c) for c in counts]),
            "cosine": estimate([cosine_of(own_K_K, both_K_K, other_K_K, c) for c in counts]),
        }
    return result


def render(found: Mapping[str, Mapping[str, Interval]], samples: int) -> str:
    said = (
        f"`python -m benchmarks.estimators`, which says how: {samples} samples of one step of {PROMPTS} questions with {MEMBERS} "
        f"answers each, at the weights of the quickstart's base model."
    )
    head = "| algorithm | noise over signal of a step | cosine with the unbiased gradient |"
    lines = [
        "# Bias and noise of each algorithm's gradient",
        "",
        said,
        "",
        head,
        "| --- | --- | --- |",
    ]
    for name, one in found.items():
        cosine = "1 by definition" if name == UNBIASED else f"{one['cosine']:.2f}"
        lines.append(f"| {name} | {one['noise']:.2f} | {cosine} |")
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="base model and pictures")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="four samples")
    parser.add_argument("--out", type=Path, default=folder_of_results())
    arguments = parser.parse_args(argv)
    samples = 4 if arguments.quick else arguments.samples

    model, step = read_step(arguments.base)
    found = summarise(gradients(model, step, make_algorithms(), samples))
    arguments.out.mkdir(parents=True, exist_ok=True)
    plain = {
        name: {key: asdict(value) for key, value in one.items()} for name, one in found.items()
    }
    (arguments.out / "estimators.json").write_text(json.dumps(plain, indent=1) + "\n")
    (arguments.out / "estimators.md").write_text(render(found, samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
