"""Curves as a page can draw them: thinned without losing a spike, and the band of reference runs behind them.

Try it alone: `pytest tests/board/test_curves.py`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_GRID = 200
_DIGITS = 5
_SMOOTH = 9  # a run is compared with a band as a whole, not by single noisy steps
_INSIDE = 0.9


def thin(steps: np.ndarray, values: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `points` of a curve: of every stretch its least and its greatest value, where they stand."""
    if len(steps) <= points:
        return steps, values
    width = -(-len(steps) // max(1, points // 2))
    padded = np.pad(values, (0, -len(steps) % width), mode="edge").reshape(-1, width)
    starts = np.arange(len(padded)) * width
    ends = [0, len(steps) - 1]
    kept = np.concatenate([starts + padded.argmin(axis=1), starts + padded.argmax(axis=1), ends])
    kept = np.unique(np.minimum(kept, len(steps) - 1))  # the padding repeats the last value
    return steps[kept], values[kept]


def plain(values: np.ndarray) -> list[float]:
    """The numbers with a few digits, as JSON holds them."""
    values = np.asarray(values, dtype=np.float64)
    size = np.zeros_like(values)
    np.log10(np.abs(values), where=values != 0, out=size)
    scale = 10.0 ** (_DIGITS - 1 - np.floor(size))
    return (np.round(values * scale) / scale).tolist()


def band(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, list[float]] | None:
    """From the least to the greatest of several runs at every step that all have reached; None for fewer than two."""
    curves = [(steps, _smooth(values)) for steps, values in curves if len(steps) > 1]
    if len(curves) < 2:
        return None
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    if last <= first:
        return None
    grid = np.unique(np.linspace(first, last, min(_GRID, int(last - first) + 1)))
    each = np.stack([np.interp(grid, steps, values) for steps, values in curves])
    return {"x": plain(grid), "low": plain(each.min(axis=0)), "high": plain(each.max(axis=0)), "n": len(curves)}  # type: ignore[dict-item]


def standing(steps: np.ndarray, values: np.ndarray, found: dict[str, Any]) -> str:
    """`inside the band of 5 reference runs`, or where it lies."""
    low, high, grid = np.array(found["low"]), np.array(found["high"]), np.array(found["x"])
    there = (grid >= steps[0]) & (grid <= steps[-1]) if len(steps) else np.zeros(len(grid), dtype=bool)
    if not there.any():
        return ""
    mine = np.interp(grid[there], steps, _smooth(values))
    margin = 0.02 * max(float(high.max() - low.min()), 1e-12)
    is_below, is_above = mine < low[there] - margin, mine > high[there] + margin
    inside = 1 - (is_below | is_above).mean()
    runs = f"the band of {found['n']} reference runs"
    if inside >= _INSIDE and not (is_below[-1] or is_above[-1]):
        return f"inside {runs}"
    where = "below" if is_below.sum() > is_above.sum() else "above"
    return f"{where} {runs} at step {grid[there][-1]:.0f}" if is_below[-1] or is_above[-1] else f"back inside {runs}"


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running means over a few points, one point where there are few."""
    width = min(_SMOOTH, max(1, len(values) // 10))
    if width < 2:
        return np.asarray(values, dtype=np.float64)
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")
