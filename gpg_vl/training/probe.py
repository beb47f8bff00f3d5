"""Measures in about two seconds how fast a device computes a model, without loading the model.

A small outline of the model (`training.outline`) makes the same calls as training and sampling. The measured times are scaled up
by the operations that the outline leaves out. Not included: reading images, rewards, evaluations, checkpoints.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import ceil

import torch
from torch import Tensor

from gpg_vl.algorithms.linear import Inputs, linear_loss
from gpg_vl.clock import timed
from gpg_vl.models.head import Objective
from gpg_vl.models.layout import Packed
from gpg_vl.models.phases import forward_backward
from gpg_vl.models.requests import Prefill
from gpg_vl.rollout.engine import Engine, EngineOptions, RolloutRequest
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.training.outline import Outline
from gpg_vl.training.sharding.protocol import Sharding
from gpg_vl.training.speed import Pass, Speed, Work

MOST_OPERATIONS = {"cpu": 2.0**32, "cuda": 2.0**41}
"""Maximum operations of a timed call: a tenth of a second or less at 40 billion operations per second."""
CALLS = {"cpu": 4, "cuda": 32}
"""Tokens decoded per row in the probe."""
TRIES = 4
"""Timed calls, each of a different size like the passes of a run, because libraries prepare some kernels for one size
only."""
BUDGET = 0.4
"""On a CPU no further call is timed after these seconds, but at least two are, because the first includes warm-up."""


def measure_speed(outline: Outline, work: Work, sharding: Sharding) -> Speed:
    """Time the outline at the sizes of `work`, or at smaller ones if those would take too long. Random states are not
    changed.

    sharding: a sharding that has wrapped the outline's policy.
    """
    forward = _measure_prefill(outline, work)
    start, decode = _measure_decoding(outline, work) if work.answers else (0.0, 0.0)
    return Speed(
        forward=forward,
        train=_measure_training(outline, work, sharding),
        start=start,
        decode=decode,
        # the gradients come from the training pass
        update=_measure_update(outline, sharding),
    )


def _measure_training(outline: Outline, work: Work, sharding: Sharding) -> float:
    """Operations per second of a micro-batch, forward and backward."""
    most = MOST_OPERATIONS[outline.policy.device.type]
    one = shrink(work.micro_batch, lambda one: outline.cost(one).train, most)
    sharding.start(lambda part: 0.0)

    def backward(loss: Tensor, is_last: bool) -> None:
        # text has no gradient if only the vision tower is trained
        if loss.requires_grad:
            sharding.backward(loss, last=is_last)

    def run(packed: Packed) -> None:
        weight_K = torch.ones(sum(packed.counts), device=outline.policy.device)
        objective = Objective(inputs=Inputs(weight_K=weight_K), token_loss=linear_loss)
        forward_backward(
            outline.policy, packed, objective, backward=backward, autocast=outline.autocasting
        )

    sizes = one.varied(TRIES)
    calls = [partial(run, outline.pack(size, answered=True)) for size in sizes]
    seconds = _time_calls(calls, outline.policy.device)
    return _best_rate((outline.cost(size).train for size in sizes), seconds)


def _measure_prefill(outline: Outline, work: Work) -> float:
    """Operations per second of prefill."""
    most = MOST_OPERATIONS[outline.policy.device.type]
    micro_batch = work.micro_batch
    prompts = Pass(
        groups=work.together,
        members=1,
        prompt=micro_batch.prompt,
        image=micro_batch.image,
        completion=1,
    )
    one = shrink(prompts, lambda one: outline.cost(one).prefill, most)

    def run(packed: Packed) -> None:
        with torch.no_grad(), outline.autocasting():
            outline.policy(Prefill(packed=packed))

    sizes = one.varied(TRIES)
    calls = [partial(run, outline.pack(size, answered=False)) for size in sizes]
    seconds = _time_calls(calls, outline.policy.device)
    return _best_rate((outline.cost(size).prefill for size in sizes), seconds)


def _measure_decoding(outline: Outline, work: Work) -> tuple[float, float]:
    """(start, call) in seconds of the model: see `Speed`."""
    device = outline.policy.device.type
    rows = work.rows
    while rows > 1 and outline.decode_cost(rows, work.context) > MOST_OPERATIONS[device] / 4:
        rows //= 2
    members = min(rows, work.micro_batch.members)
    requests = [
        RolloutRequest(prompt=outline.make_prompt(number, work.context, 0), draw=number)
        for number in range(ceil(rows / members))
    ]
    engine = outline.engine(EngineOptions(slots=rows))

    def answer(tokens: int) -> float:
        sampling = Sampling(group_size=members, temperature=1.0, max_new_tokens=tokens, seed=0)
        return _decode_seconds(engine, requests, sampling)

    # fewer operations of each row, and fewer rows
    factor = outline.decode_cost(work.rows, work.context, whole=True)
    factor /= outline.decode_cost(len(requests) * members, work.context)
    is_slow = answer(2) > BUDGET / 4 and device == "cpu"
    calls, tries = (1, 1) if is_slow else (CALLS[device], 2)

    # the difference removes one-time costs such as recording a CUDA graph
    start, end = (min(answer(tokens) for _ in range(tries)) for tokens in (2, 2 + calls))
    call = (end - start) / calls if end > start else end / (calls + 1)
    return factor * start, factor * call


def _decode_seconds(engine: Engine, requests: list[RolloutRequest], sampling: Sampling) -> float:
    before = engine.counters()["decode_seconds"]
    engine.generate(requests, sampling)
    return engine.counters()["decode_seconds"] - before


def _measure_update(outline: Outline, sharding: Sharding) -> float:
    """Weights clipped and updated per second."""
    trained = sum(p.numel() for p in outline.policy.parameters() if p.requires_grad)

    def run() -> None:
        sharding.clip_and_step(1.0, loss_is_finite=True)

    return _best_rate([float(trained)] * TRIES, _time_calls([run] * TRIES, outline.policy.device))


def shrink(one: Pass, operations: Callable[[Pass], float], most: float) -> Pass:
    """Halve a pass until it takes at most `most` operations, or cannot be halved further."""
    while operations(one) > most and one.halved() != one:
        one = one.halved()
    return one


def _time_calls(calls: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Seconds of each call; on a CPU only of two calls if they are slow."""
    taken: list[float] = []
    for call in calls:
        if len(taken) > 1 and sum(taken) > BUDGET and device.type == "cpu":
            break
        with timed(taken.append, device):
            call()
    return taken


def _best_rate(operations: Iterable[float], seconds: Sequence[float]) -> float:
    """Operations per second of the best call, without the first one, which is the warm-up."""
    rates = [each / max(took, 1e-9) for each, took in zip(operations, seconds, strict=False)]
    return max(rates[1:])
