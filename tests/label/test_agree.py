"""Agreement equals scikit-learn, statsmodels and krippendorff; estimates keep their promise of coverage."""

from __future__ import annotations

import math
from typing import Any

import krippendorff
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa as fleiss_theirs

from zifio.label.agree import (
    agreement,
    cohen_kappa,
    dawid_skene,
    fleiss_kappa,
    fleiss_of,
    krippendorff_alpha,
    pairwise_kappa,
)
from zifio.label.estimate import powered_mean, student_quantile


def labels(seed: int, n_annotators: int, n_items: int, n_classes: int, missing: float = 0.0) -> np.ndarray:
    """Labels of people who are right four times in five, some of them missing."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(n_classes, size=n_items)
    said = np.where(
        rng.random((n_annotators, n_items)) < 0.8, truth, rng.integers(n_classes, size=(n_annotators, n_items))
    )
    return np.where(rng.random(said.shape) < missing, np.nan, said.astype(float))


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
@pytest.mark.parametrize("seed", range(5))
def test_cohen_equals_scikit_learn(seed: int, weights: Any):
    one, other = labels(seed, 2, 40, 4)
    assert cohen_kappa(one.tolist(), other.tolist(), weights) == pytest.approx(
        cohen_kappa_score(one, other, weights=weights), abs=1e-12
    )


@pytest.mark.parametrize("seed", range(5))
def test_fleiss_equals_statsmodels(seed: int):
    said = labels(seed, 4, 30, 3)
    counts = np.array([[np.sum(said[:, item] == one) for one in range(3)] for item in range(30)], dtype=float)
    assert fleiss_kappa(counts) == pytest.approx(fleiss_theirs(counts), abs=1e-12)
    assert fleiss_of(said) == pytest.approx(fleiss_theirs(counts), abs=1e-12)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize(("seed", "missing"), [(0, 0.0), (1, 0.2), (2, 0.6), (3, 0.8)])
def test_alpha_equals_krippendorff(seed: int, missing: float, level: Any):
    said = labels(seed, 5, 60, 4, missing)
    theirs = krippendorff.alpha(reliability_data=said, level_of_measurement=level)
    assert krippendorff_alpha(said, level) == pytest.approx(theirs, abs=1e-12)


def test_alpha_of_ratings_that_are_no_counts():
    said = np.array(
        [[-1.0, 0.0, 1.0, 1.0, np.nan, 7.5], [-1.0, 1.0, 1.0, 0.0, 0.0, 7.5], [np.nan, 0.0, 1.0, 1.0, 0.0, -2.0]]
    )
    for level in ("nominal", "ordinal", "interval"):
        theirs = krippendorff.alpha(reliability_data=said, level_of_measurement=level)
        assert krippendorff_alpha(said, level) == pytest.approx(theirs, abs=1e-12)


def test_what_is_not_defined_is_no_number():
    always = np.ones((2, 5))
    once = np.array([[1.0, np.nan], [np.nan, 2.0]])
    assert math.isnan(cohen_kappa([1, 1], [1, 1])) and math.isnan(fleiss_of(always))
    assert math.isnan(krippendorff_alpha(always)) and math.isnan(krippendorff_alpha(once))
    assert math.isnan(agreement(once, krippendorff_alpha).value) and agreement(once, krippendorff_alpha).n_items == 0
    with pytest.raises(ValueError, match="equally many"):
        fleiss_kappa(np.array([[2.0, 0.0], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="as many labels"):
        cohen_kappa([1], [1, 2])


def test_what_is_not_defined_has_no_interval():
    """Fleiss' kappa of items with two labels and with three; half of the resamples are of one sort alone."""
    asked = []

    def fleiss(values: Any) -> float:
        asked.append(values)
        return fleiss_of(values)

    found = agreement(np.array([[0.0, 1.0], [1.0, 1.0], [np.nan, 0.0]]), fleiss, resamples=100)
    assert math.isnan(found.value) and np.isnan(found.interval).all() and (found.n_items, found.n_labels) == (2, 5)
    assert len(asked) == 1


def test_intervals_cover_what_they_should():
    """Of 60 samples the 95 % interval of kappa holds the value of a very large sample in 51 or more (p < .002)."""
    truth = pairwise_kappa(labels(0, 2, 100_000, 3))
    found = [agreement(labels(seed, 2, 80, 3), pairwise_kappa, resamples=100) for seed in range(1, 61)]
    assert sum(one.interval[0] <= truth <= one.interval[1] for one in found) >= 51
    assert all(one.n_items == 80 and one.n_labels == 160 for one in found)
    assert found[0] == agreement(labels(1, 2, 80, 3), pairwise_kappa, resamples=100)


def test_dawid_skene_finds_who_is_careless():
    """Three labellers who guess outvote two who are right, but not their own inconsistency."""
    rng = np.random.default_rng(1)
    truth = rng.integers(3, size=400)
    careful = [np.where(rng.random(400) < 0.95, truth, rng.integers(3, size=400)) for _ in range(2)]
    said = np.array([*careful, *rng.integers(3, size=(3, 400))])
    said[rng.random(said.shape) < 0.2] = -1
    found = dawid_skene(said, 3)
    votes = np.array([[(said[:, item] == one).sum() for one in range(3)] for item in range(400)]).argmax(axis=1)
    assert (found.class_IK.argmax(axis=1) == truth).mean() > 0.9 > (votes == truth).mean() + 0.1
    right = np.array([np.diag(matrix).mean() for matrix in found.confusion_AKK])
    assert right[:2].min() > 0.85 and right[2:].max() < 0.5
    assert found.class_IK.sum(axis=1) == pytest.approx(np.ones(400))


def test_dawid_skene_equals_its_definition():
    """One step of expectation and maximisation at the result, written out, leaves it where it is."""
    said = np.array([[0, 1, 1, 0, -1, 1], [0, 1, 0, 0, 1, 1], [1, 1, 1, 0, 0, -1]])
    found = dawid_skene(said, 2)
    again = np.empty_like(found.class_IK)
    for item in range(6):
        for true in range(2):
            chance = found.prevalence_K[true]
            for who in range(3):
                if said[who, item] >= 0:
                    chance *= found.confusion_AKK[who, true, said[who, item]]
            again[item, true] = chance
    again /= again.sum(axis=1, keepdims=True)
    assert again == pytest.approx(found.class_IK, abs=1e-6)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 29, 30, 199])
def test_students_quantile_equals_scipy(df: int):
    assert student_quantile(0.975, df) == pytest.approx(stats.t.ppf(0.975, df), abs=1e-8)


@pytest.mark.parametrize(
    ("n", "good", "share", "bias", "shorter"),
    [(40, 0.95, 0.6, 0.9, 0.6), (40, 0.5, 0.6, 0.9, 1.0), (40, 0.95, 0.95, 0.9, 1.0), (20, 0.5, 0.95, 0.9, 1.0)],
)
def test_the_powered_interval_is_valid(n: int, good: float, share: float, bias: float, shorter: float):
    """500 samples of few human and 1,000 machine labels, of a machine that errs rarely, often or to one side: the
    interval of 95 % misses the truth in 7.5 % at most (p < .01 when it is valid), and is shorter than that of people
    alone."""
    rng = np.random.default_rng(5)
    missed, widths = 0, []
    for _ in range(500):
        truth = (rng.random(n + 1000) < share).astype(float)
        machine = np.where(rng.random(n + 1000) < good, truth, rng.random(n + 1000) < bias)
        found = powered_mean(truth[:n].tolist(), machine[:n].tolist(), machine[n:].tolist())
        alone = powered_mean(truth[:n].tolist(), machine[:n].tolist(), [])
        missed += not found.interval[0] <= share <= found.interval[1]
        widths.append((found.interval[1] - found.interval[0]) / (alone.interval[1] - alone.interval[0]))
    assert missed / 500 <= 0.075
    assert np.mean(widths) < shorter


def test_without_a_machine_it_is_the_mean_of_the_people():
    found = powered_mean([1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0])
    half = stats.t.ppf(0.975, 3) * stats.sem([1, 0, 1, 1, 0.75 - 1, 0.75 + 1])  # with one error of each sign made up
    assert (found.mean, found.weight) == (0.75, 0.0) and found.interval == pytest.approx((0.75 - half, 0.75 + half))
    with pytest.raises(ValueError, match="3 human labels"):
        powered_mean([1, 0], [1, 0], [1])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        powered_mean([1, 0, 2], [1, 0, 1], [1])
