"""How sure we are of a measured share: pass@k, and intervals that know that replies to one problem are alike.

pass@k is the unbiased estimate of Chen et al. 2021 (arXiv 2107.03374, equation 1). Replies to the same problem are no
independent evidence, so intervals resample whole problems (clustered bootstrap), and two models are compared problem by
problem; Miller, arXiv 2411.00640, makes the case for both.

Try it alone:

    python -c "from zifio.stats import *; print(pass_at_k(n=16, right=2, k=4), wilson_interval(0, 20))"
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zifio.seed import stream_seed

Interval = tuple[float, float]

_RESAMPLES = 2000
_CELLS_AT_ONCE = 4_000_000  # bounds the memory of one block of resamples


class Difference(NamedTuple):
    """How much more often the one is right than the other, on the same problems."""

    mean: float
    interval: Interval


class Ratio(NamedTuple):
    """How often the one is right for every time that the other is, on the same problems."""

    value: float
    interval: Interval


class McNemar(NamedTuple):
    """Problems that only the one solves, that only the other solves, and how likely such a difference is by chance."""

    only_first: int
    only_other: int
    p: float


def mean(values: Sequence[float]) -> float:
    """Of at least one value."""
    return sum(values) / len(values)


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that at least one of k replies is right, from `right` of n: 1 - C(n - right, k) / C(n, k).

    Unbiased, unlike 1 - (1 - right/n)**k. Exact integers, so nothing overflows.
    """
    assert 0 <= right <= n and 1 <= k <= n, f"n={n}, right={right}, k={k}"
    return 1.0 - comb(n - right, k) / comb(n, k)


def wilson_interval(right: int, n: int, confidence: float = 0.95) -> Interval:
    """Interval of a proportion from n independent trials (Wilson 1927); never empty, also for none or all right."""
    assert 0 <= right <= n and n > 0, f"n={n}, right={right}"
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = right / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z / scale * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if right == 0 else max(0.0, middle - half)
    high = 1.0 if right == n else min(1.0, middle + half)
    return low, high


def mean_distance(points: np.ndarray) -> float:
    """Mean Euclidean distance between two different rows of `points` [n, width], n of at least 2."""
    n, points = len(points), points.astype(np.float64)
    assert n >= 2, n
    squared = (points**2).sum(axis=1)
    between = np.maximum(squared[:, None] + squared - 2 * points @ points.T, 0.0)
    np.fill_diagonal(between, 0.0)
    return float(np.sqrt(between).sum() / (n * (n - 1)))


def share_interval(share_P: Sequence[float], seed: int, *names: int | str, confidence: float = 0.95) -> Interval:
    """Interval of the mean over problems of a share in [0, 1] that each problem has.

    Clustered percentile bootstrap. Where all problems have share 0, or all 1, resampling shows no spread although we
    are not certain; then each problem counts as one trial of `wilson_interval`.
    """
    if len(set(share_P)) == 1 and share_P[0] in (0.0, 1.0):
        return wilson_interval(int(share_P[0]) * len(share_P), len(share_P), confidence)
    return bootstrap_interval(share_P, seed, *names, confidence=confidence)


def bootstrap_interval(
    value_P: Sequence[float],
    seed: int,
    *names: int | str,
    confidence: float = 0.95,
    resamples: int = _RESAMPLES,
) -> Interval:
    """Percentile interval of the mean of one value per problem, resampling problems with replacement.

    The same seed and names give the same resamples.
    """
    values = np.asarray(value_P, dtype=np.float64)
    assert values.ndim == 1 and len(values), "wanted one value per problem, and at least one problem"
    means = _resampled_means(values, stream_seed(seed, *names, "bootstrap"), resamples)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_difference(
    value_P: Sequence[float], other_P: Sequence[float], seed: int, *names: int | str, confidence: float = 0.95
) -> Difference:
    """Mean of `value - other` over the same problems, with its interval.

    Pairing takes out how hard each problem is, so the interval is narrower than two separate ones suggest.
    """
    _check_paired(value_P, other_P)
    gap_P = np.asarray(value_P, dtype=np.float64) - np.asarray(other_P, dtype=np.float64)
    interval = bootstrap_interval(gap_P.tolist(), seed, *names, "paired", confidence=confidence)
    return Difference(float(gap_P.mean()), interval)


def paired_ratio(
    value_P: Sequence[float], other_P: Sequence[float], seed: int, *names: int | str, confidence: float = 0.95
) -> Ratio:
    """mean(value) / mean(other) over the same problems of shares in [0, 1], with its interval.

    Clustered percentile bootstrap, each end with z**2 / 2 (about two) made-up problems against it: ones that only the
    other solves for the lower end, that only the first solves for the upper one. Agresti and Coull (1998) do so for
    one share. Without them a few problems on which both agree would prove any ratio: with 30 the plain bootstrap's
    lower end exceeds the true ratio in up to three of ten trials. Raises ValueError where the other solves nothing.
    """
    _check_paired(value_P, other_P)
    pair_P2 = np.asarray([value_P, other_P], dtype=np.float64).T
    top, bottom = pair_P2.mean(axis=0)
    if bottom == 0:
        raise ValueError("no ratio to a share of 0")
    tail = (1 - confidence) / 2
    made_up = round(NormalDist().inv_cdf(1 - tail) ** 2 / 2)
    ends = []
    for end, against, quantile in (("low", (0.0, 1.0), tail), ("high", (1.0, 0.0), 1 - tail)):
        rows = np.concatenate([pair_P2, np.tile(against, (made_up, 1))])
        means = _resampled_rows(rows, stream_seed(seed, *names, "ratio", end), _RESAMPLES)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.nan_to_num(means[:, 0] / means[:, 1], nan=0.0 if end == "low" else np.inf, posinf=np.inf)
        ends.append(float(np.quantile(ratios, quantile, method="lower" if end == "low" else "higher")))
    return Ratio(float(top / bottom), (ends[0], ends[1]))


def problems_needed(
    value_P: Sequence[float], other_P: Sequence[float], ratio: float, confidence: float = 0.95, power: float = 0.8
) -> int | None:
    """How many problems it takes until the interval of `paired_ratio` leaves `ratio` outside with this power, if what
    these problems show is the truth. None when they show that very ratio: no number would tell.

    From the spread of value - ratio * other over problems, by the normal approximation, made-up problems included.
    """
    _check_paired(value_P, other_P)
    margin_P = np.asarray(value_P, dtype=np.float64) - ratio * np.asarray(other_P, dtype=np.float64)
    mean, spread = abs(float(margin_P.mean())), float(margin_P.std())
    if mean < 1e-9:
        return None
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    made_up, weight = round(z * z / 2), ratio if margin_P.mean() > 0 else 1.0
    reach = z + NormalDist().inv_cdf(power)

    def tells(n: int) -> bool:
        return n * mean - made_up * weight >= reach * sqrt(n * spread**2 + made_up * weight**2)

    high = 1
    while not tells(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tells(middle) else (middle, high)
    return high


def mcnemar(right_P: Sequence[bool], other_P: Sequence[bool]) -> McNemar:
    """McNemar's exact test that both are right equally often, one reply of each to the same problems, two-sided.

    Only the problems on which they differ speak: under the hypothesis each is a fair coin.
    """
    _check_paired(right_P, other_P)
    only_first = sum(one and not two for one, two in zip(right_P, other_P, strict=True))
    only_other = sum(two and not one for one, two in zip(right_P, other_P, strict=True))
    differ = only_first + only_other
    tail = sum(comb(differ, i) for i in range(min(only_first, only_other) + 1))
    return McNemar(only_first, only_other, min(1.0, 2 * tail / 2**differ))


def _check_paired(value_P: Sequence[float | bool], other_P: Sequence[float | bool]) -> None:
    assert len(value_P) == len(other_P), f"{len(value_P)} problems beside {len(other_P)}: not the same ones"
    assert len(value_P), "wanted at least one problem"


def _resampled_means(values: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """Means of `resamples` draws of as many values as there are, with replacement."""
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS_AT_ONCE // len(values))
    means = [
        values[rng.integers(0, len(values), (min(block, resamples - start), len(values)))].mean(axis=1)
        for start in range(0, resamples, block)
    ]
    return np.concatenate(means)


def _resampled_rows(rows: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """As `_resampled_means` for rows of values. Equal rows are drawn together, for there are only a few kinds."""
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(rows), counts / len(rows), resamples)
    return drawn @ kinds / len(rows)
