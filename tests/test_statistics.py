"""Uncertainty: the bootstrap against slow or exact ones, and McNemar's test against counting every outcome."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpg_vl.eval.statistics import (
    Sample,
    bootstrap,
    bootstrap_difference,
    mcnemar,
    mean_of,
    pass_at,
    point,
    resample,
)

MEAN = Sample.mean
rows = st.lists(
    st.tuples(st.sampled_from("xyz"), st.sampled_from("pq"), st.floats(0, 1)),
    min_size=1,
    max_size=25,
)


def columns_of(strata_N, groups_N=None):
    return {"stratum": np.array(list(strata_N)), "group": np.array(list(groups_N or strata_N))}


@given(st.lists(st.sampled_from("xyz"), min_size=1, max_size=30), st.integers(0, 5))
def test_a_resample_draws_as_many_docs_of_each_stratum_as_there_are(strata_N, seed):
    weights_R_N = resample(strata_N, draws=50, seed=seed)
    assert weights_R_N.shape == (50, len(strata_N))
    assert (weights_R_N >= 0).all()
    assert (weights_R_N == np.round(weights_R_N)).all()
    for stratum in set(strata_N):
        members = [i for i, name in enumerate(strata_N) if name == stratum]
        assert (weights_R_N[:, members].sum(axis=1) == len(members)).all()


def test_every_doc_of_a_stratum_is_drawn_equally_often():
    weights_R_N = resample(["a"] * 3 + ["b"] * 5, draws=20_000, seed=0)
    # A doc's count has mean 1 and variance (n - 1)/n < 1: 0.03 is four standard errors of 20,000 draws.
    np.testing.assert_allclose(weights_R_N.mean(axis=0), 1.0, atol=0.03)
    assert (weights_R_N.max(axis=0) >= 3).all()


def test_draws_depend_on_the_seed_alone():
    strata_N = list("aabbbb")
    np.testing.assert_array_equal(
        resample(strata_N, draws=100, seed=3), resample(strata_N, draws=100, seed=3)
    )
    assert (resample(strata_N, draws=100, seed=3) != resample(strata_N, draws=100, seed=4)).any()


@given(rows, st.integers(0, 3))
@settings(max_examples=50)
def test_a_weighted_mean_is_the_mean_of_the_docs_written_out(table, seed):
    strata_N, groups_N, scores = zip(*table, strict=True)
    weights_R_N = resample(strata_N, draws=20, seed=seed)
    sample = Sample(
        scores_N=np.array(scores), columns=columns_of(strata_N, groups_N), weights_R_N=weights_R_N
    )
    got_R = sample.mean(stratum="x", group="p")
    for draw, got in zip(weights_R_N, got_R, strict=True):
        drawn = [
            score
            for (s, g, score), times in zip(table, draw, strict=True)
            if (s, g) == ("x", "p")
            for _ in range(int(times))
        ]
        assert got == pytest.approx(sum(drawn) / len(drawn)) if drawn else math.isnan(got)


def test_the_interval_is_that_of_all_possible_resamples():
    scores = [0.0, 0.0, 1.0, 1.0, 1.0]
    exact = sorted(
        sum(draw) / 5 for draw in itertools.product(scores, repeat=5)
    )  # 3125 equally likely resamples
    weights_R_N = resample(["a"] * 5, draws=40_000, seed=1)
    drawn_R = Sample(
        scores_N=np.array(scores), columns=columns_of("aaaaa"), weights_R_N=weights_R_N
    ).mean()
    for value in sorted(set(exact)):
        share = exact.count(value) / len(exact)
        # Four standard errors of a share.
        assert np.isclose(drawn_R, value).mean() == pytest.approx(
            share, abs=4 * math.sqrt(share / 40_000)
        )
    estimate = bootstrap(MEAN, np.array(scores), columns_of("aaaaa"), weights_R_N)
    assert estimate.value == pytest.approx(0.6)
    assert estimate.low == pytest.approx(exact[int(0.025 * len(exact))])
    assert estimate.high == pytest.approx(exact[int(0.975 * len(exact))])
    assert estimate.half_width == pytest.approx((estimate.high - estimate.low) / 2)


def test_the_standard_error_is_the_analytic_one_within_strata():
    rng = np.random.default_rng(0)
    strata_N = ["a"] * 200 + ["b"] * 50
    scores_N = np.concatenate([rng.random(200) < 0.8, rng.random(50) < 0.3]).astype(float)
    estimate = bootstrap(
        MEAN, scores_N, columns_of(strata_N), resample(strata_N, draws=8000, seed=2)
    )
    parts = (scores_N[:200], scores_N[200:])
    expected = math.sqrt(sum((len(part) / 250) ** 2 * part.var() / len(part) for part in parts))
    # The standard error of a standard deviation from 8000 draws is 0.8 %.
    assert estimate.stderr == pytest.approx(expected, rel=0.03)
    # The mean of 250 is nearly normal, so 95 % lie within 1.96 standard errors.
    assert estimate.half_width == pytest.approx(1.96 * expected, rel=0.05)
    pooled = bootstrap(
        MEAN, scores_N, columns_of(strata_N), resample(["all"] * 250, draws=8000, seed=2)
    )
    assert (
        pooled.stderr > 1.05 * estimate.stderr
    )  # drawing over strata adds the variance between them


def test_strata_of_equal_scores_leave_no_uncertainty():
    strata_N = ["a"] * 10 + ["b"] * 30
    scores_N = np.array([1.0] * 10 + [0.0] * 30)
    estimate = bootstrap(MEAN, scores_N, columns_of(strata_N), resample(strata_N, seed=0))
    assert (estimate.low, estimate.value, estimate.high, estimate.stderr) == (0.25, 0.25, 0.25, 0.0)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(0, 5))
def test_the_rows_of_a_cluster_are_drawn_together(clusters_N, seed):
    weights_R_N = resample(["all"] * len(clusters_N), clusters_N, draws=40, seed=seed)
    first = {cluster: clusters_N.index(cluster) for cluster in clusters_N}
    for row, cluster in enumerate(clusters_N):
        np.testing.assert_array_equal(weights_R_N[:, row], weights_R_N[:, first[cluster]])
    assert (weights_R_N[:, list(first.values())].sum(axis=1) == len(first)).all()


def test_single_rows_are_clusters_of_their_own():
    strata_N = list("aabbbb")
    np.testing.assert_array_equal(
        resample(strata_N, draws=50, seed=3), resample(strata_N, list("uvwxyz"), draws=50, seed=3)
    )


def test_rows_that_say_the_same_do_not_narrow_the_interval():
    scores_N, columns = np.array([1.0, 0.0] * 20), columns_of("a" * 40)
    single = bootstrap(MEAN, scores_N, columns, resample(["a"] * 40, draws=4000, seed=0))
    tenfold = np.repeat(scores_N, 10)
    clustered = bootstrap(
        MEAN,
        tenfold,
        columns_of("a" * 400),
        resample(["a"] * 400, np.repeat(np.arange(40), 10).tolist(), draws=4000, seed=0),
    )
    naive = bootstrap(
        MEAN, tenfold, columns_of("a" * 400), resample(["a"] * 400, draws=4000, seed=0)
    )
    # The standard error of a share of one half among 40 is sqrt(1/4/40) = 0.0791; among 400 independent ones 0.025.
    assert single.stderr == pytest.approx(0.0791, rel=0.05)
    assert clustered.stderr == pytest.approx(0.0791, rel=0.05)
    assert naive.stderr == pytest.approx(0.025, rel=0.05)


def test_a_cluster_in_two_strata_is_refused():
    with pytest.raises(ValueError, match="The cluster 7 is in the strata 'a' and 'b'"):
        resample(["a", "b"], [7, 7], seed=0)


def test_shares_and_ratios_by_hand():
    sample = Sample(
        scores_N=np.array([0.5, 0.49, 1.0]),
        columns=columns_of("xxy"),
        weights_R_N=np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]]),
        parts={
            "above": np.array([1.0, 2.0, 3.0]),
            "below": np.array([2.0, 4.0, 3.0]),
            "none": np.zeros(3),
        },
    )
    assert sample.share(0.5).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert sample.share(0.5, stratum="x").tolist() == [0.5, 0.0]
    assert sample.ratio("above", "below").tolist() == pytest.approx([6 / 9, 7 / 11])
    assert np.isnan(sample.ratio("above", "none")).all()
    assert np.isnan(sample.ratio("above", "absent")).all()
    assert mean_of("stratum", "y")(sample).tolist() == [1.0, 1.0]


@given(
    st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))
)
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(case):
    of, right, k = case
    draws = list(itertools.combinations([1] * right + [0] * (of - right), k))
    assert pass_at(k, right, of) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))


def test_pass_at_k_has_bounds():
    assert (pass_at(1, 3, 4), pass_at(4, 1, 4), pass_at(3, 0, 8)) == (0.75, 1.0, 0.0)
    for k, right, of in ((0, 1, 2), (3, 1, 2), (1, 3, 2)):
        with pytest.raises(ValueError, match="k must be from 1 to"):
            pass_at(k, right, of)


def test_a_group_without_docs_has_no_value_and_raises_no_warning():
    weights_R_N = resample(["a"] * 4, seed=0)
    estimate = bootstrap(
        lambda sample: sample.mean(group="absent"), np.ones(4), columns_of("aaaa"), weights_R_N
    )
    assert math.isnan(estimate.value)
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.stderr)


def test_a_group_that_some_resamples_miss_is_judged_by_the_others():
    scores_N = np.array([1.0, 0.0, 0.0, 0.0])
    estimate = bootstrap(
        lambda sample: sample.mean(group="p"),
        scores_N,
        columns_of("aaaa", "pqqq"),
        resample(["a"] * 4, seed=0),
    )
    assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)


def test_a_paired_difference_ignores_what_both_runs_share():
    rng = np.random.default_rng(0)
    first_N, second_N = (rng.random(400) < 0.6).astype(float), np.zeros(400)
    second_N[:] = first_N
    second_N[:20] = 1 - second_N[:20]  # they differ in 20 of 400 docs
    columns, weights_R_N = columns_of(["a"] * 400), resample(["a"] * 400, seed=5)
    same = bootstrap_difference(MEAN, first_N, first_N, columns, weights_R_N)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    one_way = bootstrap_difference(MEAN, first_N, second_N, columns, weights_R_N)
    other_way = bootstrap_difference(MEAN, second_N, first_N, columns, weights_R_N)
    assert one_way.value == pytest.approx(
        point(MEAN, first_N, columns) - point(MEAN, second_N, columns)
    )
    assert (one_way.value, one_way.low, one_way.high) == pytest.approx(
        (-other_way.value, -other_way.high, -other_way.low)
    )
    single = bootstrap(MEAN, first_N, columns, weights_R_N)
    # Unpaired the error would be about sqrt(2) of a single run's; only 20 docs of 400 carry any here.
    assert one_way.stderr < 0.6 * single.stderr
    assert one_way.stderr == pytest.approx((first_N - second_N).std() / 20, rel=0.08)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=0, max_size=12))
def test_mcnemar_counts_every_outcome_of_fair_coins(pairs):
    result = mcnemar(np.array([float(a) for a, _ in pairs]), np.array([float(b) for _, b in pairs]))
    first = sum(a and not b for a, b in pairs)
    second = sum(b and not a for a, b in pairs)
    assert (result.only_first, result.only_second) == (first, second)
    tosses = list(itertools.product((0, 1), repeat=first + second))
    as_uneven = sum(abs(2 * sum(toss) - len(toss)) >= abs(first - second) for toss in tosses)
    assert result.p_value == pytest.approx(as_uneven / len(tosses))


def test_mcnemar_by_hand():
    # 1 against 5 of 6 discordant docs: 2 (C(6,0) + C(6,1)) / 2^6 = 14/64.
    first_N, second_N = (
        np.array([1.0] + [0.0] * 5 + [1.0] * 4),
        np.array([0.0] + [1.0] * 5 + [1.0] * 4),
    )
    assert mcnemar(first_N, second_N).p_value == 0.21875
    # Thousands of docs are integers to Python, not an overflow.
    assert mcnemar(np.ones(2638), np.zeros(2638)).p_value == pytest.approx(0.0, abs=1e-300)


def test_unequal_or_graded_scores_are_refused():
    with pytest.raises(ValueError, match="same docs twice; got 3 and 2"):
        mcnemar(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="scores of 0 and 1"):
        mcnemar(np.array([0.5]), np.array([1.0]))
    with pytest.raises(ValueError, match="same docs twice; got 3 and 2"):
        bootstrap_difference(MEAN, np.ones(3), np.ones(2), columns_of("aaa"), np.ones((1, 3)))
    with pytest.raises(ValueError, match="0 draws"):
        resample(["a"], draws=0, seed=0)


def test_a_thousand_resamples_of_a_whole_benchmark_take_well_under_a_second():
    strata_N = ["ADE20K"] * 633 + ["COCO"] * 805 + ["Omni3D"] * 1200
    start = time.process_time()
    bootstrap(
        MEAN, np.arange(2638) % 2.0, columns_of(strata_N), resample(strata_N, draws=1000, seed=0)
    )
    assert time.process_time() - start < 1.0
