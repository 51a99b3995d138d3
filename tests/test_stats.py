"""Estimates against enumeration, closed forms and scipy; intervals that cover what they promise."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.proportion import proportion_confint

from zifio.stats import (
    bootstrap_interval,
    mcnemar,
    paired_difference,
    paired_ratio,
    pass_at_k,
    problems_needed,
    share_interval,
    wilson_interval,
)


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
def test_wilson_is_scipys_and_statsmodels(right, n, confidence):
    theirs = scipy_stats.binomtest(right, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(right, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert wilson_interval(right, n, confidence) == pytest.approx(
        proportion_confint(right, n, 1 - confidence, method="wilson"), abs=1e-12
    )


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
    monkeypatch.setattr("zifio.stats._CELLS_AT_ONCE", 70)  # many small blocks
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


# Ratios and exact tests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("only_first", "only_other"), [(0, 0), (1, 0), (7, 2), (3, 12), (10, 10), (40, 61)])
def test_mcnemar_is_statsmodels_and_scipys(only_first, only_other):
    one = [True] * only_first + [False] * only_other + [True] * 5 + [False] * 4
    two = [False] * only_first + [True] * only_other + [True] * 5 + [False] * 4
    ours = mcnemar(one, two)
    theirs = their_mcnemar([[5, only_first], [only_other, 4]], exact=True)
    assert ours[:2] == (only_first, only_other)
    assert ours.p == pytest.approx(theirs.pvalue if only_first + only_other else 1.0, abs=1e-12)
    if only_first + only_other:
        assert ours.p == pytest.approx(scipy_stats.binomtest(only_first, only_first + only_other).pvalue, abs=1e-12)


def test_ratio_agrees_with_scipys_bootstrap_where_problems_are_many():
    rng = np.random.default_rng(2)
    skill = rng.beta(2, 1, 3000)
    a, b = rng.binomial(8, 0.9 * skill) / 8, rng.binomial(8, skill) / 8
    ours = paired_ratio(a.tolist(), b.tolist(), 1)
    theirs = scipy_stats.bootstrap(
        (a, b), lambda x, y, axis: x.mean(axis) / y.mean(axis), paired=True, vectorized=True, n_resamples=4000,
        method="percentile", rng=2,
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(a.mean() / b.mean())
    assert ours.interval == pytest.approx((theirs.low, theirs.high), abs=0.15 * width)
    assert ours.interval[0] < theirs.low + 0.05 * width, "made-up problems only widen"
    assert paired_ratio(a.tolist(), b.tolist(), 1) == ours


def test_few_problems_without_a_difference_prove_no_ratio():
    low, high = paired_ratio([1.0] * 20, [1.0] * 20, 1).interval
    assert low < 0.85 and high > 1.0
    assert paired_ratio([1.0] * 2000, [1.0] * 2000, 1).interval[0] > 0.99
    with pytest.raises(ValueError, match="no ratio"):
        paired_ratio([1.0, 0.0], [0.0, 0.0], 1)


def claim_data(kind: str, n: int, ratio: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two models of which the first is truly right `ratio` times as often as the second."""
    if kind == "nested":  # solves only what the other solves
        b = rng.binomial(1, 0.8, n)
        return b * rng.binomial(1, ratio, n), b
    if kind == "certain":
        return rng.binomial(1, ratio, n), np.ones(n)
    if kind == "clusters":
        skill = rng.beta(0.9, 0.6, n)
        return rng.binomial(8, ratio * skill) / 8, rng.binomial(8, skill) / 8
    return rng.binomial(1, 0.8 * ratio, n), rng.binomial(1, 0.8, n)


@pytest.mark.parametrize("kind", ["independent", "nested", "certain", "clusters"])
@pytest.mark.parametrize("n", [30, 100, 300])
def test_a_claim_at_its_edge_is_seldom_supported_or_refuted(kind, n, monkeypatch):
    """With the true ratio at the claim, each of both mistakes may come in 2.5 % of trials; 4.5 % is three sigmas."""
    monkeypatch.setattr("zifio.stats._RESAMPLES", 400)
    rng, trials, supported, refuted = np.random.default_rng(11), 400, 0, 0
    for trial in range(trials):
        a, b = claim_data(kind, n, 0.95, rng)
        low, high = paired_ratio(a.tolist(), b.tolist(), trial).interval
        supported += low > 0.95
        refuted += high < 0.95
    assert supported / trials <= 0.045
    assert refuted / trials <= 0.045


@pytest.mark.parametrize("kind", ["independent", "nested", "clusters"])
@pytest.mark.parametrize("truth", [1.0, 0.88])
def test_as_many_problems_as_needed_do_tell(kind, truth, monkeypatch):
    """The number asked for decides a claim of 0.95 about as often as its power says."""
    monkeypatch.setattr("zifio.stats._RESAMPLES", 400)
    rng = np.random.default_rng(12)
    needed = problems_needed(*(x.tolist() for x in claim_data(kind, 20_000, truth, rng)), 0.95)
    assert needed is not None and 40 < needed < 3000

    def told(n: int) -> float:
        count = 0
        for trial in range(100):
            a, b = claim_data(kind, n, truth, rng)
            low, high = paired_ratio(a.tolist(), b.tolist(), trial).interval
            count += low > 0.95 if truth > 0.95 else high < 0.95
        return count / 100

    assert told(needed) >= 0.65
    assert told(needed // 3) <= 0.6


def test_no_number_of_problems_tells_a_ratio_from_itself():
    assert problems_needed([0.95] * 30, [1.0] * 30, 0.95) is None
    few, more = problems_needed([1.0] * 30, [1.0] * 30, 0.8), problems_needed([1.0] * 30, [1.0] * 30, 0.95)
    assert few is not None and more is not None and 10 < few < more < 150
