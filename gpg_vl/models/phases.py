"""Runs one micro-batch forward and backward, in one joined call, or in phases that keep only one chunk's activations at a
time.

In phases the prefixes are computed once, with their graph. Their states and keys are detached: each chunk runs forward and
backward against detached copies, which accumulate gradients like any other input. At the end the accumulated gradients are
propagated through the prefixes once. Every phase is a call of the policy with an ordinary backward, so wrappers see the
gradients of weights as usual. Both ways give the same gradient.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from gpg_vl.models.head import Objective, with_gradient
from gpg_vl.models.layout import Packed
from gpg_vl.models.policy import join_outputs
from gpg_vl.models.requests import Prefill, Prefix, Score, ScoreOutput

Backward = Callable[[Tensor, bool], None]
"""(loss, whether it is the last backward of this micro-batch): adds the gradient of the loss to the weights."""


def forward_backward(
    policy: nn.Module,
    packed: Packed,
    objective: Objective,
    *,
    backward: Backward,
    autocast: Callable[[], AbstractContextManager[object]],
    prefix: Prefix | None = None,
) -> ScoreOutput:
    """Add the gradient of a micro-batch to the weights.

    policy: a `Policy`, wrapped or not.
    autocast: entered around every forward call; backward runs outside it.
    prefix: the prefix of the same prompts from the rollout, with its graph; it can be used once.
    """
    if prefix is None and len(packed.chunks) == 1:
        with autocast():
            output: ScoreOutput = policy(Score(packed=packed, objective=objective))
        backward(output.loss, True)
        return output._replace(loss=output.loss.detach())

    if prefix is None:
        with autocast():
            prefix = policy(Prefill(packed=packed))
    boundary = [x.detach().requires_grad_(x.requires_grad) for x in prefix.tensors]
    collected: list[Tensor | None] = [None] * len(boundary)
    goes_on = any(x.requires_grad for x in boundary)

    outputs: list[ScoreOutput] = []
    at = 0
    for number, chunk in enumerate(packed.chunks):
        part = slice(at, at + len(chunk.targets_K))
        request = Score(
            packed=packed,
            objective=objective.select(part),
            prefix=Prefix.of(boundary),
            chunk=number,
        )
        with autocast():
            output = policy(request)

        is_last = not goes_on and number + 1 == len(packed.chunks)
        backward(output.loss, is_last)
        outputs.append(output._replace(loss=output.loss.detach()))
        collected = [_take_gradient(x, held) for x, held in zip(boundary, collected, strict=True)]
        at = part.stop
        del output, request  # free this chunk before the next one is computed

    if goes_on:
        backward(_continue(prefix.tensors, collected), True)
    return join_outputs(outputs)


def _take_gradient(leaf: Tensor, held: Tensor | None) -> Tensor | None:
    """Add the gradient of a chunk in a boundary tensor to that of the chunks before it.

    In float32 at least: in bfloat16 the sum over many siblings would lose the last of them.
    """
    fresh, leaf.grad = leaf.grad, None
    if fresh is None:
        return held
    if held is None:
        return fresh.to(torch.promote_types(fresh.dtype, torch.float32))
    return held.add_(fresh)


def _continue(tensors: Sequence[Tensor], collected: Sequence[Tensor | None]) -> Tensor:
    """A scalar whose backward propagates the accumulated gradients into the graph of the prefixes."""
    inputs: list[Tensor] = []
    gradients: list[Tensor | None] = []
    for tensor, gradient in zip(tensors, collected, strict=True):
        if tensor.requires_grad:
            inputs.append(tensor)
            gradients.append(None if gradient is None else gradient.to(tensor.dtype))
    return with_gradient(inputs[0].new_zeros((), dtype=torch.float32), inputs, gradients)
