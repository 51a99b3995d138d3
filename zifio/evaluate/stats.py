"""How sure we are of a measured share: pass@k, and intervals that know that replies to one problem are alike.

pass@k is the unbiased estimate of Chen et al. 2021 (arXiv 2107.03374, equation 1). Replies to the same problem are no
independent evidence, so intervals resample whole problems (clustered bootstrap), and two models are compared problem by
problem; Miller, arXiv 2411.00640, makes the case for both.

Try it alone:

    python -c "from zifio.evaluate.stats import *; print(pass_at_k(n=16, right=2, k=4), wilson_interval(0, 20))"
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
    assert len(value_P) == len(other_P), f"{len(value_P)} problems beside {len(other_P)}: not the same ones"
    gap_P = np.asarray(value_P, dtype=np.float64) - np.asarray(other_P, dtype=np.float64)
    interval = bootstrap_interval(gap_P.tolist(), seed, *names, "paired", confidence=confidence)
    return Difference(float(gap_P.mean()), interval)


def _resampled_means(values: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """Means of `resamples` draws of as many values as there are, with replacement."""
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS_AT_ONCE // len(values))
    means = [
        values[rng.integers(0, len(values), (min(block, resamples - start), len(values)))].mean(axis=1)
        for start in range(0, resamples, block)
    ]
    return np.concatenate(means)
