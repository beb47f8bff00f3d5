"""Supervised fine-tuning: the mean over all tokens of the step, whatever a reward says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import Lengths, Rows, logp_of, made_steps, make_batch

from gpg_vl.algorithms.sft import sft


@settings(max_examples=40, deadline=None, derandomize=True)
@given(made_steps(st.sampled_from([0.0, 1.0]), shortest=0))
def test_the_loss_is_the_mean_of_minus_log_pi(step: tuple[Rows, Lengths]) -> None:
    tokens = sum(map(sum, step[1]))
    logp_K = logp_of(step[1])
    algorithm = sft()
    credit = algorithm.credit(make_batch(*step))
    assert credit.inputs.weight_K.tolist() == pytest.approx([1 / max(1, tokens)] * tokens, rel=1e-6)
    assert credit.trained_P_G.tolist() == [[n > 0 for n in sizes] for sizes in step[1]]
    if tokens:
        loss = algorithm.token_loss(logp_K, credit.inputs).sum()
        assert loss.item() == pytest.approx(-sum(logp_K.tolist()) / tokens, rel=1e-6)
        (slope,) = torch.autograd.grad(loss, logp_K)
        assert slope.tolist() == pytest.approx([-1 / tokens] * tokens, rel=1e-6)


def test_the_denominator_is_that_of_all_processes() -> None:
    """Ten tokens in the step, three of them here."""
    step = ([[1.0], [1.0]], [[3], [7]])
    credit = sft().credit(make_batch([[1.0]], [[3]], step=step))
    assert credit.inputs.weight_K.tolist() == pytest.approx([0.1] * 3, rel=1e-6)


def test_nothing_is_sampled_and_nothing_is_needed() -> None:
    algorithm = sft(response="<answer>{answer}</answer>")
    assert not algorithm.samples
    assert algorithm.response == "<answer>{answer}</answer>"
    assert sft().response == "{answer}"
    assert algorithm.needs == frozenset()
    assert algorithm.credit(make_batch([[1.0]], [[3]])).metrics == {"alpha": None}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(made_steps(st.sampled_from([0.0, 1.0]), shortest=1))
def test_by_sequence_a_short_answer_counts_as_much_as_a_long_one(
    step: tuple[Rows, Lengths],
) -> None:
    algorithm = sft(aggregation="sequence")
    inputs = algorithm.credit(make_batch(*step)).inputs
    logp_K = logp_of(step[1])
    loss = algorithm.token_loss(logp_K, inputs).sum().item()

    means, start = [], 0
    for length in (length for lengths in step[1] for length in lengths):
        means.append(sum(logp_K[start : start + length].tolist()) / length)
        start += length
    assert loss == pytest.approx(-sum(means) / len(means), rel=1e-5)
