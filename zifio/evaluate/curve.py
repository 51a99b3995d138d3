"""The test-time curve: accuracy against the thinking budget, and against the number of replies, by method.

o1 made this picture known; here every point has its 95% interval. How several replies become one answer (any of them
right, their majority, the best by a scorer) has one colour in both panels.

Try it alone: `pytest tests/evaluate/test_curve.py`, or `zifio eval MODEL --task chain_mod --n 8 'budgets=[8, 16, 32]'`
"""

from __future__ import annotations

from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from zifio.evaluate.drawing import LIGHT, STYLE, finish

_NAMES = {
    "pass_at_k": ("any of k right (pass@k)", "series-0"),
    "majority_at_k": ("majority of k", "series-1"),
    "best_of_k_logp": ("best of k by log-prob", "series-2"),
    "best_of_k_short": ("shortest of k", "series-3"),
    "best_of_k_long": ("longest of k", "series-6"),
    "best_of_k_oracle": ("best of k by the verdict", "series-5"),
}
_FURTHER = ("series-4", "series-7")  # of scorers that a caller brings


def draw_curve(results: dict[str, Any]) -> bytes | None:
    """A PNG of results as `methods.summarise` gives them; None where there is neither a budget nor a second reply."""
    arms = [arm for arm in results.get("arms", []) if "pass_at_k" in arm]
    counts = [int(k) for k in results.get("pass_at_k", {})]
    panels = [bool(arms) and len(arms) > 1, len(counts) > 1]
    if not any(panels):
        return None
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(4.6 * sum(panels) + 0.4, 3.6))
        grid = list(canvas.subplots(1, sum(panels), squeeze=False, sharey=True)[0])
        if panels[0]:
            _against_budget(grid[0], arms, max(counts), results.get("budget_by", ""))
        if panels[1]:
            _against_count(grid[-1], results, counts)
        grid[0].set_ylabel("right answers")
        grid[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        lines: dict[str, Any] = {}
        for axes in grid:
            lines |= {label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        canvas.legend([*lines.values()], [*lines], loc="outside lower center", ncols=min(3, len(lines)))
        canvas.suptitle(f"{results.get('name', '')} on {results.get('task', '')}", fontsize=11)
        return finish(canvas, "curve", "", "", "").png


def _against_budget(axes: Axes, arms: list[dict[str, Any]], largest: int, budget_by: str) -> None:
    """One reply, and the largest k, at each budget; replies without one stand at the right, behind a gap."""
    budgets = [arm["budget"] for arm in arms if arm["budget"] is not None]
    places = [*range(len(budgets)), len(budgets)]
    labels = [*map(str, budgets), "none"]
    _line(axes, places, [arm["pass_at_k"].get("1") for arm in arms], "one reply (pass@1)", LIGHT["ink"])
    for name in (name for name in _methods(arms) if largest > 1):
        cells = [arm.get(name, {}).get(str(largest)) for arm in arms]
        label, colour = _look(name)
        _line(axes, places, cells, label, colour)
    axes.set_title(f"by thinking budget; k = {largest}" if largest > 1 else "by thinking budget")
    axes.set_xlabel("thinking budget, tokens" + (f"\n({budget_by})" if budget_by else ""))
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.set_xticklabels(labels)


def _against_count(axes: Axes, results: dict[str, Any], counts: list[int]) -> None:
    for name in _methods([results]):
        label, colour = _look(name)
        _line(axes, counts, [results[name].get(str(k)) for k in counts], label, colour)
    axes.set_title("by number of replies")
    axes.set_xlabel("replies to each problem, k")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(list(map(str, counts)))


def _line(axes: Axes, places: list[int], cells: list[dict[str, Any] | None], label: str, colour: str) -> None:
    """The points that are known, with their intervals as a band."""
    known = [(place, cell) for place, cell in zip(places, cells, strict=True) if cell is not None]
    if not known:
        return
    xs = [place for place, _ in known]
    axes.plot(xs, [cell["mean"] for _, cell in known], color=colour, label=label, marker="o", markersize=3.5)
    ends = [cell["interval"] for _, cell in known]
    axes.fill_between(xs, [low for low, _ in ends], [high for _, high in ends], color=colour, alpha=0.12, linewidth=0)


def _methods(tables: list[dict[str, Any]]) -> list[str]:
    """The methods that any of these have figures of, ours first."""
    found = {name for table in tables for name in table if name.endswith("_at_k") or name.startswith("best_of_k_")}
    return [name for name in [*_NAMES, *sorted(found - set(_NAMES))] if name in found]


def _look(name: str) -> tuple[str, str]:
    """What a method is called and its colour."""
    if name in _NAMES:
        label, series = _NAMES[name]
        return label, LIGHT[series]
    scorer = name.removeprefix("best_of_k_")
    return f"best of k by {scorer}", LIGHT[_FURTHER[len(scorer) % len(_FURTHER)]]
