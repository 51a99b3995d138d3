"""How far labellers agree beyond chance, with intervals; and what they together say of each item.

- Cohen's kappa (1960) of two labellers, plain or weighted (Cohen 1968); Fleiss' kappa (1971) of many.
- Krippendorff's alpha (Content Analysis, 2004, chapter 11), with missing labels: nominal, ordinal or interval.
- Dawid and Skene (1979): each labeller's confusion matrix and each item's true class, by expectation-maximisation.

Intervals resample items (percentile bootstrap): the labels of one item are no independent evidence. A coefficient that
is not defined (everybody always says one thing) is nan, never 1 or 0. No label is written as nan or None.

Try it alone:

    python -c "from zifio.label.agree import *; print(cohen_kappa([0, 1, 1, 0], [0, 1, 0, 0]))"
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zifio.seed import stream_seed

Level = Literal["nominal", "ordinal", "interval"]
Weights = Literal["linear", "quadratic"] | None
Floats = NDArray[np.float64]

_RESAMPLES = 1000
_CONVERGED = 1e-8


class Agreement(NamedTuple):
    """A coefficient, its interval, and from how much it was computed."""

    value: float
    interval: tuple[float, float]
    n_items: int
    """Items that have two labels or more."""
    n_labels: int


class DawidSkene(NamedTuple):
    """What labels say together."""

    class_IK: Floats
    """The probability of each class for each item."""
    confusion_AKK: Floats
    """How often annotator A says the second class where the first is true."""
    prevalence_K: Floats


def cohen_kappa(one: Sequence[Any], other: Sequence[Any], weights: Weights = None) -> float:
    """(observed - expected agreement) / (1 - expected) of two labellers of the same items; weights by the distance
    between classes in sorted order. nan where chance alone explains everything."""
    classes = sorted({*one, *other})
    if len(one) != len(other) or not len(one):
        raise ValueError(
            f"wanted as many labels from the one as from the other, and some; came {len(one)}, {len(other)}"
        )
    place = {label: number for number, label in enumerate(classes)}
    table = np.zeros((len(classes), len(classes)))
    for left, right in zip(one, other, strict=True):
        table[place[left], place[right]] += 1
    gap = np.abs(np.subtract.outer(np.arange(len(classes)), np.arange(len(classes)))).astype(float)
    cost = {None: (gap > 0).astype(float), "linear": gap, "quadratic": gap**2}[weights]
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    return _ratio((cost * table).sum(), (cost * expected).sum())


def fleiss_kappa(count_IK: Floats) -> float:
    """Agreement of many labellers from how many gave each item each class; every item has equally many labels.

    nan where chance alone explains everything. Raises ValueError for items with different numbers of labels.
    """
    counts = np.asarray(count_IK, dtype=float)
    n = counts.sum(axis=1)
    if not len(counts) or n.min() != n.max() or n[0] < 2:
        raise ValueError("wanted items with equally many labels, two or more, came others")
    observed = ((counts**2).sum(axis=1) - n) / (n * (n - 1))
    share = counts.sum(axis=0) / counts.sum()
    return _ratio(1 - observed.mean(), 1 - (share**2).sum())


def krippendorff_alpha(value_AI: Floats, level: Level = "nominal") -> float:
    """1 - observed / expected disagreement; annotators in rows, items in columns, nan where there is no label.

    nan where nothing was labelled twice, or only one class ever came.
    """
    values = np.asarray(value_AI, dtype=float)
    classes = np.unique(values[~np.isnan(values)])
    if not len(classes):
        return float("nan")
    count_IK = (values.T[:, :, None] == classes).sum(axis=1).astype(float)
    return _alpha(count_IK, _distance(count_IK, classes, level))


def _alpha(count_IK: Floats, distance_KK: Floats | None) -> float:
    """From how many gave each item each class. Items with one label say nothing about agreement."""
    counts = count_IK[count_IK.sum(axis=1) >= 2]
    if distance_KK is None or not len(counts):
        return float("nan")
    n = counts.sum(axis=1)
    coincidence = np.einsum("ik,il,i->kl", counts, counts, 1 / (n - 1)) - np.diag(
        (counts / (n - 1)[:, None]).sum(axis=0)
    )
    total = coincidence.sum(axis=0)
    expected = (np.outer(total, total) - np.diag(total)) / (total.sum() - 1)
    return _ratio((coincidence * distance_KK).sum(), (expected * distance_KK).sum())


def _distance(count_IK: Floats, classes: Floats, level: Level) -> Floats | None:
    """Squared distances between classes."""
    if level == "nominal":
        return 1 - np.eye(len(classes))
    if level == "interval":
        return np.subtract.outer(classes, classes) ** 2
    total = count_IK[count_IK.sum(axis=1) >= 2].sum(axis=0)
    middle = np.cumsum(total) - total / 2  # n_g/2 + ... + n_h/2 is the gap between the middles of g and h
    return np.subtract.outer(middle, middle) ** 2


def agreement(
    value_AI: Floats,
    coefficient: Callable[[Floats], float],
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = _RESAMPLES,
    item_of_I: Sequence[int] | None = None,
) -> Agreement:
    """A coefficient of labels (annotators in rows, items in columns, nan for none) with its bootstrap interval.

    `coefficient` takes such labels. Where columns are steps, `item_of_I` says of which item, and items are resampled.
    Where it is not defined nothing is resampled; resamples in which it is not are left out, and with too few others the
    interval is nan.
    """
    values = np.asarray(value_AI, dtype=float)
    doubled = (~np.isnan(values)).sum(axis=0) >= 2
    values = values[:, doubled]
    if not values.shape[1]:
        return Agreement(float("nan"), (float("nan"), float("nan")), 0, 0)
    owner = np.arange(len(doubled)) if item_of_I is None else np.asarray(item_of_I)
    _, place = np.unique(owner[doubled], return_inverse=True)
    columns = np.split(np.argsort(place, kind="stable"), np.cumsum(np.bincount(place))[:-1])
    value, n_labels = coefficient(values), int((~np.isnan(values)).sum())
    if np.isnan(value):
        return Agreement(value, (float("nan"), float("nan")), len(columns), n_labels)
    rng = np.random.default_rng(stream_seed(seed, "label/agreement"))
    picks = rng.integers(len(columns), size=(resamples, len(columns)))
    drawn = np.array([coefficient(values[:, np.concatenate([columns[one] for one in pick])]) for pick in picks])
    drawn = drawn[~np.isnan(drawn)]
    tail = (1 - confidence) / 2
    ends = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) >= resamples / 2 else (np.nan, np.nan)
    return Agreement(value, (float(ends[0]), float(ends[1])), len(columns), n_labels)


def pairwise_kappa(value_AI: Floats, weights: Weights = None) -> float:
    """Cohen's kappa of two labellers from such rows, over what both labelled; nan without any."""
    both = ~np.isnan(value_AI).any(axis=0)
    if not both.any():
        return float("nan")
    return cohen_kappa(value_AI[0, both].tolist(), value_AI[1, both].tolist(), weights)


def fleiss_of(value_AI: Floats) -> float:
    """Fleiss' kappa from such rows; nan where items have different numbers of labels."""
    classes = np.unique(value_AI[~np.isnan(value_AI)])
    count_IK = (value_AI.T[:, :, None] == classes).sum(axis=1).astype(float)
    n = count_IK.sum(axis=1)
    return fleiss_kappa(count_IK) if len(n) and n.min() == n.max() and n[0] >= 2 else float("nan")


def dawid_skene(label_AI: NDArray[np.int64], n_classes: int, steps: int = 500) -> DawidSkene:
    """The classes of items from labels 0 .. n_classes - 1 (annotators in rows, -1 for none).

    Starts from each item's share of votes; a count of 0.01 in every cell keeps a labeller of few items from being
    certain.
    """
    labels = np.asarray(label_AI)
    said_AIK = (labels[:, :, None] == np.arange(n_classes)).astype(float)
    votes = said_AIK.sum(axis=0) + 1e-9
    class_IK = votes / votes.sum(axis=1, keepdims=True)
    while True:
        prevalence = class_IK.mean(axis=0) + 1e-12
        confusion = np.einsum("ik,ail->akl", class_IK, said_AIK) + 0.01
        confusion /= confusion.sum(axis=2, keepdims=True)
        logs = np.log(prevalence) + np.einsum("ail,akl->ik", said_AIK, np.log(confusion))
        logs -= logs.max(axis=1, keepdims=True)
        after = np.exp(logs)
        after /= after.sum(axis=1, keepdims=True)
        steps -= 1
        moved = np.abs(after - class_IK).max() if class_IK.size else 0.0
        class_IK = after
        if moved < _CONVERGED or steps <= 0:
            return DawidSkene(class_IK, confusion, prevalence)


def _ratio(observed: float, expected: float) -> float:
    """1 - observed / expected, nan where nothing was to be expected."""
    return float(1 - observed / expected) if expected > 0 else float("nan")
