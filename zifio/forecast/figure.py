"""A plan as a picture: memory by part, and what the work costs.

Try it: `zifio plan deepseek-v3 --figure plan.png`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure as Canvas

from zifio.evaluate.drawing import LIGHT, STYLE, WIDTH, finish
from zifio.forecast.tables import hours_text, usd_text
from zifio.record.stage import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PARTS = ("weights", "gradients", "optimizer", "activations", "kv", "rollouts")


def draw_plan(plan: dict[str, Any], path: Path) -> None:
    """Write the picture of a model's plan."""
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, 4.6), layout="constrained")
        memory, work = canvas.subplots(2, 1)
        _memory(memory, plan)
        _work(work, plan)
        canvas.suptitle(f"{plan['model']} on {plan['device']['name']}", x=0.02, ha="left", fontweight="bold")
        picture = finish(canvas, "plan", plan["model"], "Memory of the fullest device, and device hours.", "")
    write_whole(path, picture.png)


def draw_recipe(found: dict[str, Any], path: Path) -> None:
    """Write the picture of a recipe's forecast: seconds of every stage with their interval, by what takes them; where a
    run is scored, what happened."""
    stages = found["stages"]
    happened = {row["name"]: row["happened_s"] for row in found.get("against", {}).get("stages", [])}
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, 1.4 + 0.34 * len(stages)), layout="constrained")
        axes = canvas.subplots()
        _bars(axes, {part: [stage["parts"][part] for stage in stages] for part in ("training", "drawing", "rest")})
        for y, stage in enumerate(stages):
            axes.plot([stage["low_s"], stage["high_s"]], [y, y], color=LIGHT["ink"], linewidth=1.2)
            if stage["name"] in happened:
                axes.scatter(happened[stage["name"]], y, color=LIGHT["wrong"], s=26, zorder=3)
        xlabel = "seconds; line: interval" + ("; dot: what happened" if happened else "")
        _lying(axes, [stage["name"] for stage in stages], xlabel)
        canvas.suptitle(f"{found['recipe']}, {found['threads']} threads", x=0.02, ha="left", fontweight="bold")
        picture = finish(canvas, "forecast", found["recipe"], "Seconds of every stage.", "")
    write_whole(path, picture.png)


def _bars(axes: Axes, parts: dict[str, list[float]], names_empty: bool = True) -> None:
    """Bars of several parts, one behind the other."""
    left = [0.0] * len(next(iter(parts.values())))
    for place, (part, values) in enumerate(parts.items(), start=1):
        if names_empty or any(values):
            axes.barh(range(len(values)), values, left=left, color=LIGHT[f"series-{place}"], label=part, height=0.6)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.legend(ncols=3, fontsize=8)


def _lying(axes: Axes, names: Sequence[str], xlabel: str) -> None:
    """What bars that lie have around them, the first above."""
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(xlabel)


def _memory(axes: Axes, plan: dict[str, Any]) -> None:
    kinds = plan["memory_by_device"]
    gigabytes = {part: [parts[part] / 1e9 for parts in kinds.values()] for part in _PARTS}
    _bars(axes, gigabytes, names_empty=False)
    axes.axvline(plan["device"]["memory_gb"], color=LIGHT["ink"], linewidth=1, linestyle="--")
    _lying(axes, [*kinds], "GB on the fullest device; dashed: what it has")


def _work(axes: Axes, plan: dict[str, Any]) -> None:
    work = plan["work"]
    rows = [*work["pretraining"], work["sft"], work["rl"]["drawing"], work["rl"]["training"]]
    axes.barh(range(len(rows)), [row["gpu_hours"] for row in rows], color=LIGHT["series-1"], height=0.6)
    for place, row in enumerate(rows):
        label = f" {hours_text(row['gpu_hours'])} h, {usd_text(row['usd'])}"
        axes.text(row["gpu_hours"], place, label, va="center", fontsize=8, color=LIGHT["ink"], parse_math=False)
    axes.set_xscale("log")
    axes.set_xlim(right=30 * max(row["gpu_hours"] for row in rows))
    _lying(axes, [row["name"] for row in rows], "device hours")
