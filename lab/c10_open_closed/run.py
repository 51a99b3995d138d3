"""C10: open against closed models, by scores that can be cited. No training: four numbers for each pair.

Run: `zifio lab run C10`
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from math import log
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from zifio.lab.design import Design, Experiment, Table, Verdict
from zifio.lab.effects import Effect, over_seeds, paired_ratio
from zifio.lab.picture import COLOURS

FEWEST, WANTED = 8, 0.95
PAIRS = [
    ["DeepSeek-R1", "OpenAI o1-1217"],
    ["Kimi-K2-Instruct", "Claude Opus 4, no thinking"],
    ["DeepSeek-V3.2", "GPT-5 (thinking)"],
    ["MiniMax-M2", "GPT-5 (thinking)"],
]
SCALES: dict[str, Table] = {scale: {"seeds": 1, "pairs": PAIRS} for scale in ("smoke", "cpu", "gpu")}
_EDGE = 0.005
"""Nearest to 0 and 1 that a score counts in logits: half a problem of a hundred."""


def _design(settings: Table, seed: int) -> list[Design]:
    return []


def read_scores() -> list[Table]:
    """The tracker's rows, shares in place of percent."""
    with (Path(__file__).parent / "scores.csv").open() as file:
        rows = [dict(row) for row in csv.DictReader(file)]
    return [{**row, "score": float(row["score"]) / 100, "floor": float(row["floor"]) / 100} for row in rows]


def _measure(parts: Mapping[str, Any], settings: Table) -> Table:
    """Per pair the scores on the benchmarks that one table has of both, and how many months the open one came later."""
    rows, out = read_scores(), {}
    for opened, closed in settings["pairs"]:
        ours = {(row["benchmark"], row["source"]): row for row in rows if row["model"] == opened}
        theirs = {(row["benchmark"], row["source"]): row for row in rows if row["model"] == closed}
        both = [key for key in ours if key in theirs]
        out[f"{opened} / {closed}"] = {
            "released": ours[both[0]]["released"] if both else "",
            "benchmarks": [key[0] for key in both],
            "open": [ours[key]["score"] for key in both],
            "closed": [theirs[key]["score"] for key in both],
            "floor": [ours[key]["floor"] for key in both],
            "lag_months": [_lag(rows, ours[key]) for key in both],
            "private": sum(ours[key]["access"] == "private" for key in both),
            "others_measured": sum("maker" not in (ours[k]["measured_by"], theirs[k]["measured_by"]) for k in both),
        }
    return out


def _lag(rows: list[Table], ours: Table) -> float:
    """Months since the first closed model of the same table reached this score; 0 where none had."""
    same = [row for row in rows if (row["benchmark"], row["source"]) == (ours["benchmark"], ours["source"])]
    before = [row["released"] for row in same if row["open"] == "0" and row["score"] >= ours["score"]]
    return max(0.0, _months(ours["released"]) - _months(min(before))) if before else 0.0


def _months(text: str) -> float:
    year, month = text.split("-")
    return 12.0 * int(year) + int(month)


def four_numbers(pair: Table) -> dict[str, Effect]:
    """Ratio over chance, ratio of errors, difference in logits, lag in months: a mean over benchmarks each."""

    def logit(share: float) -> float:
        share = min(max(share, _EDGE), 1 - _EDGE)
        return log(share / (1 - share))

    rows = list(zip(pair["open"], pair["closed"], pair["floor"], strict=True))
    above = [(max(o - f, _EDGE), max(c - f, _EDGE)) for o, c, f in rows]
    return {
        "ratio": paired_ratio([o for o, _ in above], [c for _, c in above], "C10", "ratio"),
        "errors": paired_ratio([1 - o for o, _, _ in rows], [1 - c for _, c, _ in rows], "C10", "errors"),
        "logits": over_seeds([logit(o) - logit(c) for o, c, _ in rows], "C10", "logits"),
        "lag_months": over_seeds(pair["lag_months"], "C10", "lag"),
    }


def _judge(rows: list[Table], settings: Table) -> Verdict:
    pairs = {name: pair for name, pair in rows[0].items() if len(pair["benchmarks"]) >= FEWEST}
    if not pairs:
        return Verdict("underpowered", f"No pair has {FEWEST} benchmarks in common: no verdict.")
    numbers = {name: four_numbers(pair) for name, pair in pairs.items()}
    newest = max(pairs, key=lambda name: (pairs[name]["released"], pairs[name]["others_measured"]))
    ratio, pair = numbers[newest]["ratio"], pairs[newest]
    independent = max(pair["private"], pair["others_measured"])
    if ratio.high < WANTED:
        word = "refuted"
    elif ratio.low >= WANTED:
        word = "supported" if independent >= FEWEST else "narrowed"
    else:
        word = "underpowered"
    said = [
        f"{name} ({len(pairs[name]['benchmarks'])} benchmarks, {pairs[name]['others_measured']} of them measured by "
        f"others): ratio {n['ratio'].times()}, errors {n['errors'].times()}, logits {n['logits'].mean:+.2f} "
        f"({n['logits'].low:+.2f} to {n['logits'].high:+.2f}), {n['lag_months'].mean:.1f} months later"
        for name, n in numbers.items()
    ]
    why = f"Decided by {newest}. " + "; ".join(said) + "."
    figures = {name: {key: [*effect] for key, effect in n.items()} for name, n in numbers.items()}
    return Verdict(word, why, figures | {"decided_by": newest})


def _draw(canvas: Figure, rows: list[Table], verdict: Verdict) -> None:
    left, right = canvas.subplots(1, 2, sharey=True)
    names = [name for name in rows[0] if name in verdict.figures]
    for place, name in enumerate(names):
        for axes, key in ((left, "ratio"), (right, "errors")):
            middle, low, high, _ = verdict.figures[name][key]
            axes.plot([low, high], [place, place], color=COLOURS[place], linewidth=1.4)
            axes.scatter([middle], [place], color=COLOURS[place], s=30, zorder=3)
    left.set_yticks(range(len(names)), [name.replace(" / ", "\n") for name in names], fontsize=8)
    left.axvline(WANTED, linestyle=":", color="#5d6b7a")
    right.axvline(1.0, linestyle=":", color="#5d6b7a")
    left.set_xlabel("score over chance, open / closed")
    right.set_xlabel("errors, open / closed")


EXPERIMENT = Experiment(
    "C10", "Open against closed", SCALES, _design, _measure, _judge, _draw, "Two of the four numbers, with intervals."
)
