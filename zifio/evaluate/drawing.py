"""How the report's figures look: colours for light and dark, one style, small panels per stage, PNG and SVG.

An SVG's colours are CSS variables, so that a page which defines THEME can show it in light and dark.

Try it alone: `pytest tests/evaluate/test_figures.py`
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator, PercentFormatter

from zifio.record.stage import StageRecord

# Light and dark value of each CSS variable. Figures are drawn with the light ones.
THEME = {
    "ink": ("#1c2733", "#e6edf3"),
    "muted": ("#5d6b7a", "#93a1b0"),
    "rule": ("#dbe1e8", "#2c3743"),
    "right": ("#1a8f6a", "#4cc9a0"),
    "wrong": ("#cc4b37", "#ff8a73"),
    "series-0": ("#64748b", "#a3b1c2"),
    "series-1": ("#1f77b8", "#5fb0ec"),
    "series-2": ("#d98324", "#f2ab5a"),
    "series-3": ("#7a52b8", "#b695ee"),
    "series-4": ("#0e8f93", "#45c9cc"),
    "series-5": ("#c2417c", "#f283b4"),
    "series-6": ("#7d8a1c", "#bfcb58"),
    "series-7": ("#8a5a3c", "#d09f7f"),
}
LIGHT = {name: light for name, (light, _) in THEME.items()}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.8,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 1.4,
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    "figure.constrained_layout.use": True,
}
WIDTH, _ROW, COLUMNS = 5.2, 1.95, 3  # inches; panels per row


_N_SERIES = sum(name.startswith("series-") for name in THEME)
_NO_MODEL = ("tokenizer", "sample", "eval")  # kinds of stage that make no model


def colour_of(stages: Sequence[StageRecord]) -> dict[str, str]:
    """The THEME variable of each stage that makes a model, by name, and of each model that is measured."""
    names = [stage.name for stage in stages if stage.kind not in _NO_MODEL]
    names += [model for stage in stages for model in stage.results]
    return {name: f"series-{place % _N_SERIES}" for place, name in enumerate(dict.fromkeys(names))}


@dataclass(frozen=True)
class Figure:
    """One picture and what to say beside it."""

    name: str
    title: str
    shows: str
    """What is drawn, in plain words."""
    look_for: str
    """What a good run looks like, and a bad one."""
    png: bytes
    svg: str
    """An `<svg>` element for a page that defines the variables of THEME."""


def panels(
    stages: Sequence[StageRecord],
    panel: Callable[[Axes, StageRecord], None],
    colours: dict[str, str],
    ylabel: str,
    limits: tuple[float | int, float | None],
) -> Canvas | None:
    """One small picture per stage, on a common y axis, with one legend for all."""
    if not stages:
        return None
    columns = 2 if len(stages) == 4 else min(len(stages), COLUMNS)
    rows = -(-len(stages) // columns)
    canvas = Canvas(figsize=(WIDTH, 0.7 + (_ROW if len(stages) > 1 else 2.4) * rows))
    grid = canvas.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(stages) :]:
        axes.set_visible(False)
    for axes, stage in zip(grid.flat, stages, strict=False):
        panel(axes, stage)
        axes.set_title(stage.name, color=LIGHT[colours[stage.name]])
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    grid[0, 0].set_ylim(*limits)
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
    for axes in grid.flat[max(0, len(stages) - columns) : len(stages)]:
        axes.set_xlabel("step")
    _legend(canvas, grid)
    return canvas


def share_panels(
    stages: Sequence[StageRecord],
    colours: dict[str, str],
    ylabel: str,
    solid: tuple[str, str],
    dashed: tuple[str, str] | None,
) -> Canvas | None:
    """Shares by step, a panel per stage: a solid line and perhaps a dashed one, each a metric and what it is called."""
    drawn = [(solid, "-", 0.22)] + ([(dashed, (0, (4, 2)), 0.10)] if dashed else [])

    def panel(axes: Axes, stage: StageRecord) -> None:
        for (key, label), linestyle, alpha in drawn:
            band(axes, stage, key, LIGHT[colours[stage.name]], linestyle=linestyle, label=label, alpha=alpha)
        axes.yaxis.set_major_formatter(PercentFormatter(1))

    return panels(stages, panel, colours, ylabel, (-0.03, 1.03))


def _legend(canvas: Canvas, grid: Any) -> None:
    """One legend above all panels; grey where a label has another colour in every panel."""
    lines: dict[str, list[Any]] = {}
    for axes in grid.flat:
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
            lines.setdefault(label, []).append(line)
    if len(lines) < 2:
        return
    shown = canvas.legend(
        [same[0] for same in lines.values()], list(lines), loc="outside upper right", ncols=len(lines)
    )
    for handle, same in zip(shown.legend_handles, lines.values(), strict=True):
        if handle is not None and len({line.get_color() for line in same}) > 1:
            handle.set_color(LIGHT["muted"])  # type: ignore[attr-defined]


def curve(
    axes: Axes, steps: list[float | int], values: list[float | int], colour: str, label: str, linestyle: Any = "-"
) -> None:
    """Every step thin, the trend thick."""
    if not steps:
        return
    if len(steps) > 20:
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
    marker = "o" if len(steps) < 4 else None
    axes.plot(steps, smooth(values), color=colour, label=label, linestyle=linestyle, marker=marker, markersize=3)


def band(axes: Axes, stage: StageRecord, key: str, colour: str, linestyle: Any, label: str, alpha: float) -> None:
    """A measured share with its interval, where that was logged too."""
    steps, values = stage.series(key)
    if not steps:
        return
    axes.plot(steps, values, color=colour, linestyle=linestyle, label=label, marker="o", markersize=2.5)
    low, high = stage.series(f"{key}_low")[1], stage.series(f"{key}_high")[1]
    if len(low) == len(high) == len(steps):
        axes.fill_between(steps, low, high, color=colour, alpha=alpha, linewidth=0)


def smooth(values: Sequence[float | int]) -> list[float]:
    """Centred running mean over about a twentieth of the curve; short curves stay as they are."""
    reach = len(values) // 40
    window = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in window]


def step_axis(axes: Axes, label: str) -> None:
    """Whole steps from left to right."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _around_even() -> ListedColormap:
    """Blue below, clear at, orange above the even share: clear, so that the page shows through in light and dark."""
    place = np.linspace(-1, 1, 255)
    low, high = to_rgb(LIGHT["series-1"]), to_rgb("#e0762a")
    rgba = [[*(low if x < 0 else high), min(1.0, abs(x)) ** 0.8] for x in place]
    return ListedColormap(rgba)


AROUND_EVEN = _around_even()


def scale(canvas: Canvas, grid: Any) -> None:
    """The colours of the expert map, as a small strip."""
    bar = canvas.colorbar(
        ScalarMappable(Normalize(0, 2), ListedColormap([[0, 0, 0, 0]])),
        ax=grid, shrink=0.8, aspect=26, pad=0.02,
    )  # fmt: skip
    strip = np.linspace(2, 0, 128)[:, None]
    bar.ax.imshow(strip, aspect="auto", extent=(0, 1, 0, 2), cmap=AROUND_EVEN, vmin=0, vmax=2)
    bar.set_ticks([0, 1, 2], labels=["none", "even", "twice"])
    bar.outline.set_visible(False)  # type: ignore[operator]


def finish(canvas: Canvas, name: str, title: str, shows: str, look_for: str) -> Figure:
    """Both pictures of a finished canvas; equal data give equal bytes."""
    canvas.draw_without_rendering()
    canvas.set_layout_engine("none")  # the layout stands; both files keep it
    png, svg = io.BytesIO(), io.StringIO()
    canvas.savefig(png, format="png", facecolor="white", metadata={"Software": None})
    with matplotlib.rc_context({"svg.hashsalt": name}):
        canvas.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Figure(name, title, shows, look_for, png.getvalue(), _themed(svg.getvalue(), name))


def _themed(svg: str, name: str) -> str:
    """The `<svg>` element alone, with CSS variables for colours and ids that no other figure of the page has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(xmlns(:\w+)?|width|height)="[^"]*"', "", svg, count=4)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    for variable, (light, _) in THEME.items():
        svg = svg.replace(light, f"var(--{variable})")
    return re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg).replace("#000000", "var(--ink)")
