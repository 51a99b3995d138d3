"""Many machine labels corrected by few human ones: a mean with an interval that holds whatever the machine is worth.

Prediction-powered inference (Angelopoulos et al. 2023, arXiv:2301.09633) with the weight of PPI++ (arXiv:2311.01453):
where the machine knows nothing, its weight goes to 0 and what is left is the mean of the human labels. The items that
people labelled must be a random sample of all (queue = "random").

As published the interval is far too short where the machine errs rarely: among 40 labels there may be no error, so
none is believed possible (an interval of 95 % then misses in up to 16 % of our simulations, with a rare class in 38
%). So one made-up error of each sign joins the spread, as Agresti and Coull (1998) do for a share; then at most 5 %
miss.

Try it alone:

    python -c "from zifio.label.estimate import *; print(powered_mean([1, 0, 1], [1, 0, 0], [1, 0, 1, 1, 0, 0, 1]))"
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_FEWEST = 3


class Estimate(NamedTuple):
    """A mean, its interval, and how much of the machine's word is in it."""

    mean: float
    interval: tuple[float, float]
    weight: float
    """0: human labels alone. 1: the machine's mean, moved by its mean error."""


def powered_mean(
    human: Sequence[float],
    machine_too: Sequence[float],
    machine_only: Sequence[float],
    confidence: float = 0.95,
    weight: float | None = None,
) -> Estimate:
    """The mean of what people would say about all items, from their labels on some (`human`), the machine's on those
    (`machine_too`) and the machine's on all others (`machine_only`); all in [0, 1].

    w * mean(machine_only) + mean(human - w * machine_too), with the variance w^2 var(machine) / N + var(human - w *
    machine_too) / n and Student's quantile for n - 1. Raises ValueError for fewer than 3 human labels, or others.
    """
    y, f, rest = (np.asarray(values, dtype=float) for values in (human, machine_too, machine_only))
    if len(y) != len(f) or len(y) < _FEWEST:
        raise ValueError(f"wanted {_FEWEST} human labels or more, each with the machine's; came {len(y)}, {len(f)}")
    if any(len(values) and not (values.min() >= 0 and values.max() <= 1) for values in (y, f, rest)):
        raise ValueError("wanted labels in [0, 1], came others")
    if not len(rest):
        weight = 0.0
    if weight is None:
        weight = _weight(y, f, rest)
    error = y - weight * f
    mean = float(error.mean() + (weight * rest.mean() if len(rest) else 0.0))
    spread = ((error - error.mean()) ** 2).sum() + 2  # with the two made-up errors
    n = len(y) + 2
    variance = spread / (n - 1) / n + (weight**2 * rest.var() / len(rest) if len(rest) else 0.0)
    half = student_quantile(0.5 + confidence / 2, len(y) - 1) * float(np.sqrt(variance))
    return Estimate(mean, (mean - half, mean + half), float(weight))


def _weight(y: np.ndarray, f: np.ndarray, rest: np.ndarray) -> float:
    """The weight that makes the variance least: cov(y, f) / ((1 + n / N) var(f)), held to [0, 1]."""
    spread = np.concatenate([f, rest]).var()
    if spread == 0:
        return 0.0
    covariance = float(np.cov(y, f)[0, 1])
    return float(np.clip(covariance / ((1 + len(f) / len(rest)) * spread), 0, 1))


@lru_cache(maxsize=64)
def student_quantile(p: float, df: int) -> float:
    """The quantile of Student's t for p > 1/2, by bisection on its distribution (Abramowitz and Stegun 26.7.3-4)."""
    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _student(middle, df) < p else (low, middle)
    return (low + high) / 2


def _student(t: float, df: int) -> float:
    """P(T <= t) for t >= 0: finite sums, one for odd and one for even degrees of freedom."""
    angle = np.arctan(t / np.sqrt(df))
    cosine, sine = np.cos(angle), np.sin(angle)
    if df % 2:
        term, total = cosine, cosine if df > 1 else 0.0
        for j in range(3, df, 2):
            term *= cosine**2 * (j - 1) / j
            total += term
        inside = 2 / np.pi * (angle + sine * total)
    else:
        term = total = 1.0
        for j in range(2, df, 2):
            term *= cosine**2 * (j - 1) / j
            total += term
        inside = sine * total
    return float(0.5 + inside / 2)
