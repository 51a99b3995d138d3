"""A plan as a picture: memory by part, and what the work costs.

Try it: `zifio plan deepseek-v3 --figure plan.png`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure as Canvas

from zifio.evaluate.drawing import LIGHT, STYLE, WIDTH, finish
from zifio.forecast.tables import hours_text, usd_text
from zifio.record.stage import write_whole

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
        left = [0.0] * len(stages)
        for place, part in enumerate(("training", "drawing", "rest")):
            values = [stage["parts"][part] for stage in stages]
            axes.barh(range(len(stages)), values, left=left, color=LIGHT[f"series-{place + 1}"], label=part, height=0.6)
            left = [a + b for a, b in zip(left, values, strict=True)]
        for y, stage in enumerate(stages):
            axes.plot([stage["low_s"], stage["high_s"]], [y, y], color=LIGHT["ink"], linewidth=1.2)
            if stage["name"] in happened:
                axes.scatter(happened[stage["name"]], y, color=LIGHT["wrong"], s=26, zorder=3)
        axes.set_yticks(range(len(stages)), [stage["name"] for stage in stages], parse_math=False)
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds; line: interval" + ("; dot: what happened" if happened else ""))
        axes.legend(ncols=3, fontsize=8, frameon=False)
        canvas.suptitle(f"{found['recipe']}, {found['threads']} threads", x=0.02, ha="left", fontweight="bold")
        picture = finish(canvas, "forecast", found["recipe"], "Seconds of every stage.", "")
    write_whole(path, picture.png)


def _memory(axes: Any, plan: dict[str, Any]) -> None:
    kinds = plan["memory_by_device"]
    left = [0.0] * len(kinds)
    for place, part in enumerate(_PARTS):
        values = [parts[part] / 1e9 for parts in kinds.values()]
        if any(values):
            axes.barh(list(kinds), values, left=left, color=LIGHT[f"series-{place + 1}"], label=part, height=0.6)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.axvline(plan["device"]["memory_gb"], color=LIGHT["ink"], linewidth=1, linestyle="--")
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("GB on the fullest device; dashed: what it has")
    axes.legend(ncols=3, fontsize=8, frameon=False)


def _work(axes: Any, plan: dict[str, Any]) -> None:
    work = plan["work"]
    rows = [*work["pretraining"], work["sft"], work["rl"]["drawing"], work["rl"]["training"]]
    axes.barh([row["name"] for row in rows], [row["gpu_hours"] for row in rows], color=LIGHT["series-1"], height=0.6)
    for place, row in enumerate(rows):
        label = f" {hours_text(row['gpu_hours'])} h, {usd_text(row['usd'])}"
        axes.text(row["gpu_hours"], place, label, va="center", fontsize=8, color=LIGHT["ink"], parse_math=False)
    axes.set_xscale("log")
    axes.set_xlim(right=30 * max(row["gpu_hours"] for row in rows))
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("device hours")
