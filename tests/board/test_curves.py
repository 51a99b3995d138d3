"""Thinning keeps every spike; the band is that of the reference runs, and a run lies inside it or not."""

from __future__ import annotations

import numpy as np
import pytest

from zifio.board.curves import band, plain, standing, thin


def test_thinning_keeps_ends_and_spikes():
    rng = np.random.default_rng(1)
    steps, values = np.arange(1, 10_001), rng.normal(size=10_000)
    values[4321], values[8765] = 50.0, -60.0
    x, y = thin(steps, values, 200)
    assert len(x) <= 202 and x[0] == 1 and x[-1] == 10_000 and (np.diff(x) > 0).all()
    assert y.max() == 50.0 and y.min() == -60.0
    assert all(values[at - 1] == value for at, value in zip(x, y, strict=True))
    same = thin(steps[:150], values[:150], 200)
    assert same[0].tolist() == steps[:150].tolist()


def test_numbers_keep_five_digits():
    values = np.array([0.0, 1.0, -123456.0, 0.000123456, 1e-300, 3.4e10])
    assert plain(values)[:3] == [0.0, 1.0, -123460.0]
    np.testing.assert_allclose(plain(values), values, rtol=1e-4)


def course(height: float, n: int = 100) -> tuple[np.ndarray, np.ndarray]:
    steps = np.arange(1, n + 1)
    return steps, height * (1 - np.exp(-steps / 20))


def test_a_band_and_who_is_inside():
    assert band([course(1.0)]) is None, "one run is no band"
    found = band([course(1.0), course(0.9), course(0.95, 80)])
    assert found is not None and found["n"] == 3
    assert found["x"][0] == 1 and found["x"][-1] == 80, "where all are"
    assert standing(*course(0.97), found) == "inside the band of 3 reference runs"
    assert standing(*course(0.97, 30), found) == "inside the band of 3 reference runs", "as far as it has come"
    assert standing(*course(0.3), found) == "below the band of 3 reference runs at step 80"
    assert standing(*course(1.5), found) == "above the band of 3 reference runs at step 80"
    late = (np.arange(1, 101), np.where(np.arange(1, 101) < 60, 0.0, course(0.95)[1]))
    assert standing(*late, found) == "back inside the band of 3 reference runs"


@pytest.mark.parametrize("values", [[], [0.5]])
def test_too_little_to_stand_anywhere(values: list[float]):
    found = band([course(1.0), course(0.9)])
    assert found is not None
    assert standing(np.array([200.0] * len(values)), np.array(values), found) == ""
