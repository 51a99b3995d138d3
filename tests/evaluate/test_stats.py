"""Estimates against enumeration, closed forms and scipy; intervals that cover what they promise."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from scipy import stats as scipy_stats

from zifio.evaluate.stats import bootstrap_interval, paired_difference, pass_at_k, share_interval, wilson_interval


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_draws_without_replacement_that_hold_a_right_reply(n):
    for right in range(n + 1):
        replies = [True] * right + [False] * (n - right)
        for k in range(1, n + 1):
            draws = [any(draw) for draw in combinations(replies, k)]
            assert pass_at_k(n, right, k) == pytest.approx(sum(draws) / len(draws))


def test_pass_at_k_is_unbiased():
    n, k, p = 16, 4, 0.13
    expected = sum(comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_pass_at_1_is_the_mean_and_large_counts_do_not_overflow():
    assert pass_at_k(16, 3, 1) == pytest.approx(3 / 16)
    assert 0 < pass_at_k(10_000, 1, 100) < pass_at_k(10_000, 2, 100) < 1


@pytest.mark.parametrize(("right", "n"), [(0, 20), (1, 20), (7, 20), (20, 20), (250, 256)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_scipys(right, n, confidence):
    theirs = scipy_stats.binomtest(right, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(right, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_bootstrap_agrees_with_scipys_and_with_the_normal_approximation():
    values = np.random.default_rng(0).binomial(16, 0.3, 256) / 16
    ours = bootstrap_interval(values.tolist(), 1, resamples=8000)
    theirs = scipy_stats.bootstrap((values,), np.mean, n_resamples=8000, method="percentile", rng=2).confidence_interval
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.1 * half)
    assert ours == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_bootstrap_depends_on_seed_and_names_alone(monkeypatch):
    values = np.random.default_rng(7).uniform(0, 1, 35).tolist()
    once = bootstrap_interval(values, 1, "pass", 4)
    assert once == bootstrap_interval(values, 1, "pass", 4)
    assert once != bootstrap_interval(values, 2, "pass", 4)
    assert once != bootstrap_interval(values, 1, "pass", 1)
    monkeypatch.setattr("zifio.evaluate.stats._CELLS_AT_ONCE", 70)  # many small blocks
    assert bootstrap_interval(values, 1, "pass", 4) == pytest.approx(once, abs=0.05)


def test_intervals_of_whole_problems_cover_the_truth_and_those_of_single_replies_do_not():
    """Problems differ (skill is Beta distributed), so replies to one are alike: the naive interval is too narrow."""
    rng, truth, covered, naive = np.random.default_rng(3), 0.5, 0, 0
    for trial in range(300):
        share_P = rng.binomial(16, rng.beta(0.5, 0.5, 60)) / 16
        low, high = bootstrap_interval(share_P.tolist(), trial, resamples=400)
        covered += low <= truth <= high
        low, high = wilson_interval(round(share_P.sum() * 16), 60 * 16)
        naive += low <= truth <= high
    assert 0.90 <= covered / 300 <= 0.98
    assert naive / 300 < 0.6


def test_a_model_that_is_always_right_is_not_certain_to_be():
    assert share_interval([1.0] * 50, 1) == wilson_interval(50, 50)
    assert share_interval([0.0] * 50, 1) == wilson_interval(0, 50)
    assert share_interval([0.0, 1.0] * 25, 1, "a") == bootstrap_interval([0.0, 1.0] * 25, 1, "a")


def test_paired_difference():
    rng = np.random.default_rng(5)
    hard_P = rng.uniform(0, 0.8, 200)
    before = hard_P + rng.normal(0, 0.02, 200)
    after = hard_P + 0.05 + rng.normal(0, 0.02, 200)
    gain = paired_difference(after.tolist(), before.tolist(), 1)
    assert gain.mean == pytest.approx(after.mean() - before.mean())
    theirs = scipy_stats.ttest_rel(after, before).confidence_interval(0.95)
    assert gain.interval == pytest.approx((theirs.low, theirs.high), abs=0.001)
    low, high = bootstrap_interval(after.tolist(), 1)
    assert gain.interval[1] - gain.interval[0] < 0.2 * (high - low), "pairing takes out how hard each problem is"
    back = paired_difference(before.tolist(), after.tolist(), 1)
    assert back.mean == pytest.approx(-gain.mean)
    assert back.interval == pytest.approx((-gain.interval[1], -gain.interval[0]))
    assert paired_difference(before.tolist(), before.tolist(), 1) == (0.0, (0.0, 0.0))


def test_runs_on_different_problems_are_not_compared():
    with pytest.raises(AssertionError, match="not the same"):
        paired_difference([1.0], [1.0, 0.0], 1)
