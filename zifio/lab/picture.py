"""The figure of a claim: the report's style, and the verdict in words below the title.

Try it alone: `zifio lab run C1 --scale smoke`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zifio.evaluate.drawing import LIGHT, STYLE, finish
from zifio.lab.design import Verdict
from zifio.lab.effects import over_seeds
from zifio.lab.shelf import Claim
from zifio.record.stage import write_whole

_SIZE = (7.2, 3.6)
COLOURS = [LIGHT[f"series-{place}"] for place in range(1, 8)] + [LIGHT["series-0"]]


def draw(claim: Claim, rows: Sequence[Mapping[str, Any]], verdict: Verdict, path: Path) -> None:
    """Write the picture of a claim's result."""
    experiment = claim.experiment
    assert experiment is not None, "it has a result"
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=_SIZE, layout="constrained")
        experiment.draw(canvas, [row["figures"] for row in rows], verdict)
        seeds = f" ({len(rows)} seeds)" if len(rows) > 1 else ""
        title = f"{claim.id}. {experiment.title}: {verdict.word}{seeds}"
        canvas.suptitle(title, x=0.01, ha="left", fontweight="bold")
        picture = finish(canvas, claim.id.lower(), claim.title, experiment.shows, "")
    write_whole(path, picture.png)


def bars(
    axes: Axes, values: Mapping[str, Sequence[float]], ylabel: str, limits: tuple[float, float] | None = (0, 1.02)
) -> None:
    """A bar for each arm, the mean over seeds, and a dot for each seed."""
    for place, (name, one) in enumerate(values.items()):
        colour = COLOURS[place % len(COLOURS)]
        axes.bar(place, over_seeds(list(one), name).mean, color=colour, alpha=0.35, width=0.7)
        axes.scatter([place] * len(one), list(one), color=colour, s=14, zorder=3)
    axes.set_xticks(range(len(values)), list(values), rotation=30, ha="right")
    axes.set_ylabel(ylabel)
    if limits is not None:
        axes.set_ylim(*limits)


def lines(
    axes: Axes, curves: Mapping[str, Sequence[Sequence[float]]], xs: Sequence[float], xlabel: str, ylabel: str
) -> None:
    """A line for each arm, the mean over seeds, and a thin one for each seed."""
    for place, (name, many) in enumerate(curves.items()):
        colour = COLOURS[place % len(COLOURS)]
        for one in many:
            axes.plot(xs, one, color=colour, linewidth=0.5, alpha=0.4)
        middle = [sum(column) / len(column) for column in zip(*many, strict=True)]
        axes.plot(xs, middle, color=colour, marker="o", markersize=3, label=name)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend()


def gold_by_step(canvas: Figure, rows: Sequence[Mapping[str, Any]], curves: Sequence[str], ends: Sequence[str]) -> None:
    """Gold of some arms by step, and of some at the end."""
    left, right = canvas.subplots(1, 2)
    by_step = {name: [row["gold"][name] for row in rows] for name in curves}
    lines(left, by_step, rows[0]["steps"], "step", "gold, held-out")
    left.set_ylim(0, 1.02)
    left.legend(fontsize=7, ncols=2)
    bars(right, {name: [row["end"][name] for row in rows] for name in ends}, "gold at the end")
