"""Numbers as people read them.

Try it alone: `python -c "from zifio.evaluate.wording import *; print(seconds_text(83), percent(0.9996))"`
"""

from __future__ import annotations

from typing import Any


def percent(share: float | int | None) -> str:
    """`94.2%`; never rounded to a certainty that was not measured."""
    if share is None:
        return "–"
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    return f"{min(max(100 * share, 0.1), 99.9):.1f}%"


def points_text(difference: dict[str, Any]) -> str:
    """A difference of shares with its interval: `+4.1 points (+2.0 to +6.3)`."""
    low, high = (100 * end for end in difference["interval"])
    return f"{100 * difference['mean']:+.1f} points ({low:+.1f} to {high:+.1f})"


def count_text(count: float | int) -> str:
    """173 600 as `174 k`, 1.2e9 as `1.2 B`."""
    return _scaled(count, ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k"))).rstrip()


def bytes_text(n_bytes: float | int) -> str:
    """910_000_000 as `0.91 GB`."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 5e7 else f"{n_bytes / 1e6:.1f} MB"


def seconds_text(seconds: float | int) -> str:
    """0.4 s, 12 s, 3:05 min, 1:02 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def flops_text(flops: float | int) -> str:
    """12 GFLOP, 3.4 TFLOP."""
    scales = tuple((10.0 ** (3 * n), f" {unit}") for n, unit in zip(range(8, 1, -1), "YZEPTGM", strict=True))
    return f"{_scaled(flops, scales)}FLOP"


def _scaled(value: float | int, scales: tuple[tuple[float, str], ...]) -> str:
    """Three digits and the largest unit that fits after rounding to them."""
    for scale, unit in scales:
        if float(f"{value:.3g}") >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g} "
