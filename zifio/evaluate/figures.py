"""The report's figures: one function per question that a reader asks of a run, drawn straight with matplotlib.

A figure without data is left out. A stage, and the model that it made, has one colour everywhere.

Try it alone: `pytest tests/evaluate/test_figures.py`, or `write_report` on any run folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

from zifio.evaluate.drawing import (
    AROUND_EVEN,
    COLUMNS,
    LIGHT,
    STYLE,
    WIDTH,
    Figure,
    colour_of,
    curve,
    finish,
    panels,
    scale,
    share_panels,
    smooth,
    step_axis,
)
from zifio.evaluate.sight import guidance_figure, reading_figure
from zifio.evaluate.wording import flops_text, percent, seconds_text
from zifio.record.stage import StageRecord, expert_keys, expert_layers


def draw(stages: Sequence[StageRecord]) -> list[Figure]:
    """All figures for which the run has data, in the order of the report."""
    with matplotlib.rc_context(STYLE):
        return [figure for one in _FIGURES if (figure := one(stages)) is not None]


# One function per figure ---------------------------------------------------------------------------------------------


def _final(stages: Sequence[StageRecord]) -> Figure | None:
    measured = [(stage, model, found) for stage in stages for model, found in stage.results.items()]
    measured = [row for row in measured if "pass_at_1" in row[2]]
    if not measured:
        return None
    colours, several = colour_of(stages), len({stage.name for stage, _, _ in measured}) > 1
    canvas = Canvas(figsize=(WIDTH, 0.9 + 0.46 * len(measured)))
    axes = canvas.subplots()
    largest = max((int(k) for _, _, found in measured for k in found["pass_at_k"]), default=1)
    for y, (_, model, found) in enumerate(measured):
        colour = LIGHT[colours[model]]
        others = {int(k): share for k, share in found["pass_at_k"].items() if k != "1"}
        if others:
            reach = [found["pass_at_1"], *others.values()]
            axes.plot([min(reach), max(reach)], [y, y], color=colour, alpha=0.25, linewidth=1.2, zorder=1)
        for k, share in others.items():
            axes.scatter(share, y, s=22 + 30 * k / largest, facecolors="none", edgecolors=colour, linewidths=1.3)
        low, high = found["pass_at_1_interval"]
        axes.plot([low, high], [y, y], color=colour, linewidth=4.5, alpha=0.45, zorder=2)
        axes.scatter(found["pass_at_1"], y, s=62, color=colour, zorder=3)
        axes.annotate(
            percent(found["pass_at_1"]), (found["pass_at_1"], y), (0, -9), textcoords="offset points", ha="center",
            va="top", fontsize=9, color=LIGHT["ink"],
        )  # fmt: skip
    labels = [f"{model} ({stage.name})" if several else model for stage, model, _ in measured]
    axes.set_yticks(range(len(measured)), labels, color=LIGHT["ink"], parse_math=False)
    axes.set_ylim(len(measured) - 0.35, -0.6)
    axes.set_xlim(-0.03, 1.03)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("held-out problems answered right")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    rings = _and_list(
        [f"k = {k}" for k in sorted({int(k) for *_, found in measured for k in found["pass_at_k"]} - {1})]
    )
    return finish(
        canvas,
        "final",
        "How often each model is right",
        "Every model answered the same problems, none of which was trained on. The filled dot is the share answered "
        "right in one try (pass@1); the thick bar around it is the 95% interval."
        + (f" Rings: at least one of k tries is right (pass@k); larger rings, more tries: {rings}." if rings else ""),
        "Training by reward should move the dot to where the rings of the model before were: what that one did now "
        "and then, this one does every time. Two models whose bars overlap may be equally good.",
    )  # fmt: skip


def _curves(stages: Sequence[StageRecord]) -> Figure | None:
    found = [stage for stage in stages if any(len(one.get("pass_at_k", {})) > 2 for one in stage.results.values())]
    if not found:
        return None
    colours = colour_of(stages)
    canvas = Canvas(figsize=(WIDTH, 3.2 * len(found)))
    for axes, stage in zip(canvas.subplots(len(found), 1, squeeze=False)[:, 0], found, strict=True):
        for model, one in stage.results.items():
            shares = {int(k): share for k, share in one.get("pass_at_k", {}).items()}
            axes.plot(list(shares), list(shares.values()), color=LIGHT[colours[model]], label=model, marker="o", ms=3)
            ends = [one["pass_at_k_interval"][str(k)] for k in shares] if "pass_at_k_interval" in one else []
            if ends:
                axes.fill_between(list(shares), *zip(*ends, strict=True), color=LIGHT[colours[model]], alpha=0.15)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel(f"k tries ({stage.name})" if len(found) > 1 else "k tries")
        axes.set_ylabel("pass@k")
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        _plain_legend(axes)
    return finish(
        canvas,
        "pass_at_k",
        "What more tries bring",
        "The chance that at least one of k replies is right, for each model on the same problems. Bands are 95% "
        "intervals.",
        "A curve that starts high and stays flat says the same thing every time. Where a lower start overtakes it "
        "further right, training has made the model surer and not more able.",
    )


def _held_out(stages: Sequence[StageRecord]) -> Figure | None:
    found = [stage for stage in stages if stage.series("held_out/pass_at_1")[0]]
    many = sorted(
        {int(k) for s in found for row in s.metrics for k in re.findall(r"held_out/pass_at_(\d+) ", _keys(row))}
    )
    k = many[-1] if many and many[-1] > 1 else None
    more = None if k is None else (f"held_out/pass_at_{k}", f"pass@{k}")
    canvas = share_panels(found, colour_of(stages), "right", ("held_out/pass_at_1", "pass@1"), more)
    return canvas and finish(
        canvas,
        "held_out",
        "Held-out problems along the way",
        "The same small set of held-out problems, asked again and again during training. Solid: right in one try "
        f"(pass@1). {f'Dashed: right in at least one of {k} (pass@{k}). ' if k else ''}Bands are 95% intervals.",
        "Solid rising towards dashed is reinforcement at work: it makes reliable what was already possible. Both "
        "falling means that the model forgets. A dashed line that falls while the solid one rises means that it puts "
        "everything on one way of answering.",
    )


def _together(
    stages: Sequence[StageRecord], key: str, step: str, value: str, scale: str = "linear", bottom: float | None = None
) -> Canvas | None:
    """One panel with a metric's curve of every stage that logged it, from `bottom` on; None where nobody did."""
    found, colours = [stage for stage in stages if stage.series(key)[0]], colour_of(stages)
    if not found:
        return None
    canvas = Canvas(figsize=(WIDTH, 2.8))
    axes = canvas.subplots()
    for stage in found:
        curve(axes, *stage.series(key), LIGHT[colours[stage.name]], stage.name)
    step_axis(axes, step)
    axes.set_ylabel(value)
    axes.set_yscale(scale)
    axes.set_ylim(bottom=bottom)
    axes.legend(loc="best")
    return canvas


def _plain_legend(axes: Axes) -> None:
    """A legend in which a name with dollars is no formula."""
    for text in axes.legend(loc="best").get_texts():
        text.set_parse_math(False)


def _reward(stages: Sequence[StageRecord]) -> Figure | None:
    canvas = _together(stages, "reward", "reinforcement step of the stage", "mean reward of a reply")
    return canvas and finish(
        canvas,
        "reward",
        "Reward",
        "What the verifier gave on average to the replies of each step: for a right answer, and for the agreed shape. "
        "Thin: each step; thick: smoothed.",
        "A steady climb that levels off. Flat from the start: the groups hold no right and wrong replies to tell "
        "apart. A sudden fall: the learning rate is too high. Reward that climbs while held-out answers get no better: "
        "the model has found a way to please the verifier alone.",
    )


def _guard(stages: Sequence[StageRecord]) -> Figure | None:
    found = [stage for stage in stages if stage.series("guard/gold")[0]]
    colours = colour_of(stages)

    def panel(axes: Axes, stage: StageRecord) -> None:
        colour = LIGHT[colours[stage.name]]
        for key, dash in (("gold", "-"), ("proxy", (0, (4, 2)))):
            axes.plot(
                *stage.series(f"guard/{key}"), color=colour, linestyle=dash, label=key, marker="o", markersize=2.5
            )
        told = [row for row in stage.metrics if row.get("guard/alarms", 0) > 0 and "guard/gold" in row]
        steps, gold = [row["step"] for row in told], [row["guard/gold"] for row in told]
        axes.plot(steps, gold, color=LIGHT["wrong"], linestyle="", marker="x", label="alarm", zorder=3)
        axes.yaxis.set_major_formatter(PercentFormatter(1))

    canvas = panels(found, panel, colours, "probes right", (-0.03, 1.03))
    return canvas and finish(
        canvas,
        "guard",
        "Is the reward being farmed?",
        "Probe problems that nobody trains on. Solid: right by the gold check. Dashed: accepted by the check that the "
        "stage is rewarded by. Crosses: the guard sounded an alarm.",
        "Both lines together. Dashed that leaves solid behind: replies that please the reward and are wrong.",
    )


def _length(stages: Sequence[StageRecord]) -> Figure | None:
    keys = {"right": "completions/mean_length_right", "wrong": "completions/mean_length_wrong"}
    found = [stage for stage in stages if any(stage.series(key)[0] for key in keys.values())]
    colours = colour_of(stages)

    def panel(axes: Axes, stage: StageRecord) -> None:
        for outcome, key in keys.items():
            curve(axes, *stage.series(key), LIGHT[outcome], outcome)

    canvas = panels(found, panel, colours, "tokens in a reply", (0, None))
    return canvas and finish(
        canvas,
        "response_length",
        "Length of right and wrong replies",
        "Mean number of tokens in the replies of each reinforcement step, right and wrong ones apart.",
        "Right replies that grow longer: the model has learned to work problems out rather than to guess. Wrong "
        "replies far longer than right ones: it rambles, or is cut off at the limit.",
    )


def _tools(stages: Sequence[StageRecord]) -> Figure | None:
    keys = {"episodes that call": "tools/share_of_episodes", "calls that fail": "tools/failure_frequency"}
    found = [stage for stage in stages if any(stage.series("tools/call_frequency")[1])]
    colours = colour_of(stages)

    def panel(axes: Axes, stage: StageRecord) -> None:
        for outcome, (name, key) in zip(("right", "wrong"), keys.items(), strict=True):
            curve(axes, *stage.series(key), LIGHT[outcome], name)
        axes.yaxis.set_major_formatter(PercentFormatter(1))

    canvas = panels(found, panel, colours, "share", (-0.03, 1.03))
    return canvas and finish(
        canvas,
        "tools",
        "Use of tools",
        "Share of the episodes of each reinforcement step in which the model called a tool, and of its calls that "
        "failed.",
        "Calls that become more frequent while fewer fail: the model has found that the tool pays. Calls that vanish: "
        "they failed too often at first to be worth their tokens.",
    )


def _entropy(stages: Sequence[StageRecord]) -> Figure | None:
    canvas = _together(stages, "entropy", "reinforcement step of the stage", "entropy of a token (nats)", bottom=0)
    return canvas and finish(
        canvas,
        "entropy",
        "How undecided the model is",
        "Entropy of the model's choice of each next token, in the replies of each step: 0 means that only one token "
        "is possible, 0.69 a fair coin.",
        "A slow fall is normal. A plunge to zero ends the search: every reply in a group becomes the same and nothing "
        "more is learned. A rise means that training is undoing the model.",
    )


def _expert_map(stages: Sequence[StageRecord]) -> Figure | None:
    stage = next((stage for stage in stages if expert_layers(stage.keys)), None)
    if stage is None:
        return None
    layers = expert_layers(stage.keys)
    columns = min(len(layers), COLUMNS)
    rows = -(-len(layers) // columns)
    canvas = Canvas(figsize=(WIDTH, 0.75 + 1.75 * rows))
    grid = canvas.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(layers) :]:
        axes.set_visible(False)
    for axes, layer in zip(grid.flat, layers, strict=False):
        steps, load_ES = _load(stage, layer)
        extent = (steps[0] - 0.5, steps[-1] + 0.5, len(load_ES) - 0.5, -0.5)
        axes.imshow(load_ES, aspect="auto", extent=extent, cmap=AROUND_EVEN, vmin=0, vmax=2, interpolation="nearest")
        axes.set_title(f"MoE layer {layer}", color=LIGHT["ink"])
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.grid(visible=False)
    for axes in grid[:, 0]:
        axes.set_ylabel("expert")
    for axes in grid.flat[max(0, len(layers) - columns) : len(layers)]:
        axes.set_xlabel(f"step of {stage.name}")
    scale(canvas, grid)
    return finish(
        canvas,
        "expert_load",
        f"Which experts are busy ({stage.name})",
        "One picture per mixture-of-experts layer, one line per routed expert, steps from left to right. Colour is the "
        "expert's share of the tokens against an even share: orange gets too much, blue too little.",
        "Strong colours at the left that fade: the balancing bias spreads the work. A line that stays blue is an "
        "expert that never learns; one that stays orange does the work of others.",
    )


def _expert_balance(stages: Sequence[StageRecord]) -> Figure | None:
    found, colours = [stage for stage in stages if expert_layers(stage.keys)], colour_of(stages)
    layers = sorted({layer for stage in found for layer in expert_layers(stage.keys)})
    shades = dict(zip(layers, np.linspace(1.0, 0.35, max(len(layers), 1)), strict=False))

    def panel(axes: Axes, stage: StageRecord) -> None:
        for layer in expert_layers(stage.keys):
            steps, values = stage.series(f"expert_load/{layer}/max_over_mean")
            colour = LIGHT[colours[stage.name]]
            axes.plot(steps, smooth(values), color=colour, alpha=shades[layer], label=f"layer {layer}", linewidth=1.4)
        axes.axhline(1, color=LIGHT["muted"], linewidth=0.8, linestyle=(0, (1, 2)))

    canvas = panels(found, panel, colours, "busiest / mean", (0.9, None))
    return canvas and finish(
        canvas,
        "expert_balance",
        "Load of the busiest expert",
        "Tokens of the busiest expert over the mean of its layer, for every stage that trains a mixture of experts; "
        "1 (dotted) is perfect balance. Smoothed.",
        "Values that come down and stay low. A layer that climbs stage after stage is collapsing onto few experts: "
        "raise balance.bias_speed.",
    )


def _gap(stages: Sequence[StageRecord]) -> Figure | None:
    key = "sampling/sampling_logp_difference/max"
    found = [stage for stage in stages if any(value > 0 for value in stage.series(key)[1])]
    if not found:
        return None
    colours = colour_of(stages)
    canvas = Canvas(figsize=(WIDTH, 2.8))
    axes = canvas.subplots()
    axes.set_yscale("log")
    for stage in found:
        steps, values = stage.series(key)
        shown = [(step, value) for step, value in zip(steps, values, strict=True) if value > 0]
        axes.plot(*zip(*shown, strict=True), color=LIGHT[colours[stage.name]], label=stage.name, linewidth=1.4)
    axes.axhline(1e-5, color=LIGHT["muted"], linewidth=0.8, linestyle=(0, (1, 2)))
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 1e-8), max(high, 1e-4))
    step_axis(axes, "reinforcement step of the stage")
    axes.set_ylabel("largest gap in log-prob")
    axes.legend(loc="best")
    return finish(
        canvas,
        "sampler_trainer_gap",
        "Do sampler and trainer agree?",
        "The sampler notes how likely each token was when it drew it; the trainer computes the same number again. "
        "Drawn is the largest difference of each step. With several updates per step the later ones differ rightly, "
        "because the model has moved.",
        "In single precision with one update per step, stay below the dotted line. A jump means that "
        "sampler and trainer do not run the same model, and that the gradient is wrong although all else looks well.",
    )


def _loss(stages: Sequence[StageRecord]) -> Figure | None:
    keys = {"next token": ("cross_entropy", "-"), "token after (MTP)": ("mtp_cross_entropy", (0, (4, 2)))}
    found = [stage for stage in stages if stage.series("cross_entropy")[0]]
    colours = colour_of(stages)

    def panel(axes: Axes, stage: StageRecord) -> None:
        for label, (key, dash) in keys.items():
            curve(axes, *stage.series(key), LIGHT[colours[stage.name]], label, linestyle=dash)

    canvas = panels(found, panel, colours, "nats per token", (0, None))
    return canvas and finish(
        canvas,
        "loss",
        "Loss on text",
        "Cross-entropy on the text that each stage imitates: solid for the next token, dashed for the one after it "
        "(multi-token prediction, where the model has that module).",
        "A quick fall, then a slow one. The level depends on how predictable the text is: the random terms of a "
        "problem can never be foreseen. A spike that heals is harmless; one that stays is divergence.",
    )


def _divergence(stages: Sequence[StageRecord]) -> Figure | None:
    canvas = _together(stages, "divergence", "distillation step of the stage", "nats per token", scale="log")
    return canvas and finish(
        canvas,
        "divergence",
        "How far students are from their teachers",
        "The divergence of the student's next-token distribution from the teacher's, on the text of each step. Which "
        "divergence, and whose text, is the stage's own choice: levels of different methods are not comparable.",
        "A quick fall that goes on slowly. A level that stays high: the student is too small, or the text is not the "
        "teacher's. A rise on the student's own replies: it has wandered off to where the teacher is of no help.",
    )


def _labels(stages: Sequence[StageRecord]) -> Figure | None:
    """Gains over the majority against labels, of reward models of one origin and unlike schooling."""
    schooled: dict[str | None, dict[str, int]] = {}
    for stage in stages:
        if stage.solutions:
            schooled.setdefault(stage.from_, {})[stage.name] = stage.solutions
    found = [
        (stage, model, lines)
        for stage in stages
        for model, one in stage.results.items()
        for alike in schooled.values()
        if len(lines := _gains(one.get("rerank", {}), alike)) > 1
    ]
    if not found:
        return None
    colours, several = colour_of(stages), len(found) > 1
    canvas = Canvas(figsize=(WIDTH, 3.0))
    axes = canvas.subplots()
    for stage, model, lines in found:
        labels = [labels for labels, _ in lines]
        for way, dash in (("best", "-"), ("weighted", (0, (4, 2)))):
            gains = [line[f"{way}_gain"] for _, line in lines]
            whose = f"{model} ({stage.name}): " if several else ""
            shown = {"best": "best of them", "weighted": "weighted vote"}[way]
            axes.plot(
                labels, [gain["mean"] for gain in gains], color=LIGHT[colours[model]], linestyle=dash, marker="o", ms=3,
                label=whose + shown,
            )  # fmt: skip
            low, high = ([gain["interval"][end] for gain in gains] for end in (0, 1))
            axes.fill_between(labels, low, high, color=LIGHT[colours[model]], alpha=0.15, linewidth=0)
    axes.axhline(0, color=LIGHT["muted"], linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set_xscale("log")
    axes.set_xticks(sorted({labels for _, _, lines in found for labels, _ in lines}), minor=False)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    axes.set_xlabel("labelled solutions")
    axes.set_ylabel("over the majority's vote")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _plain_legend(axes)
    k = max(line["k"] for _, _, lines in found for _, line in lines)
    return finish(
        canvas,
        "labels",
        "What labels bring",
        f"How much more often the choice among {k} replies is right than their majority's vote, by process reward "
        "models that learned from more and more labelled solutions (score of a reply: its least step). Bands are 95% "
        "intervals.",
        "Where the curve levels off further labels of this kind are wasted: other solutions, harder or more convincing "
        "ones, bring more. Below the dotted line the majority should be asked.",
    )


def _gains(rerank: dict[str, Any], schooled: dict[str, int]) -> list[tuple[int, dict[str, Any]]]:
    """(labelled solutions, the table's line of the largest k by the least step), fewest first."""
    lines = [
        (schooled[prm], [line for line in found["table"] if line["by"] in ("min", "last")])
        for prm, found in rerank.items()
        if prm in schooled
    ]
    return sorted(
        ((labels, max(table, key=lambda line: (line["k"], line["by"] == "min"))) for labels, table in lines if table),
        key=lambda one: one[0],
    )


def _cost(stages: Sequence[StageRecord]) -> Figure | None:
    found = [stage for stage in stages if stage.seconds]
    if not found:
        return None
    colours = colour_of(stages)
    canvas = Canvas(figsize=(WIDTH, 0.95 + 0.3 * len(found)))
    left, right = canvas.subplots(1, 2, sharey=True)
    bars = [LIGHT[colours[stage.name]] if stage.name in colours else LIGHT["muted"] for stage in found]
    for axes, values, title, unit in (
        (left, [stage.seconds or 0 for stage in found], "time", seconds_text),
        (right, [stage.flops or 0 for stage in found], "work", flops_text),
    ):
        axes.barh(range(len(found)), values, color=bars, height=0.62)
        for y, value in enumerate(values):
            axes.annotate(
                unit(value) if value else "–", (value, y), (4, 0), textcoords="offset points", va="center", fontsize=9
            )
        axes.set_xlim(0, max(values) * 1.38 or 1)
        axes.set_title(title)
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
    left.set_yticks(range(len(found)), [stage.name for stage in found], color=LIGHT["ink"])
    left.set_ylim(len(found) - 0.4, -0.6)
    return finish(
        canvas,
        "cost",
        "What each stage cost",
        "Wall-clock time, and arithmetic work counted from the shapes (one FLOP is one addition or multiplication).",
        "Where the time goes. Much time for little work: the stage is held up by something other than arithmetic, such "
        "as drawing replies one token after another.",
    )


_FIGURES: tuple[Callable[[Sequence[StageRecord]], Figure | None], ...] = (
    _final, _curves, _labels, _held_out, reading_figure, guidance_figure, _reward, _guard, _length, _tools, _entropy,
    _gap, _loss, _divergence, _expert_map, _expert_balance, _cost,
)  # fmt: skip


# What they ask of a stage --------------------------------------------------------------------------------------------


def _keys(row: dict[str, Any]) -> str:
    return " ".join(row) + " "


def _load(stage: StageRecord, layer: int) -> tuple[list[float | int], Any]:
    """Steps, and load of each expert over its even share, shape (experts, columns); long runs are averaged down."""
    rows = [row for row in stage.metrics if f"expert_load/{layer}/max_over_mean" in row]
    experts = expert_keys(rows[0], layer)
    share_SE = np.array([[row[key] for key in experts] for row in rows])
    parts = np.array_split(share_SE, min(len(rows), 120))
    load_ES = np.stack([part.mean(axis=0) for part in parts], axis=1) * len(experts)
    return [row["step"] for row in rows], load_ES


def _and_list(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
