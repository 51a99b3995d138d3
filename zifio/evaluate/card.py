"""A claim card as Markdown and as a picture.

Try it alone: `pytest tests/evaluate/test_claim.py`
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.figure import Figure as Canvas

from zifio.evaluate.drawing import LIGHT, STYLE, finish
from zifio.evaluate.wording import percent, seconds_text


def ends(card: dict[str, Any]) -> str:
    """The interval of the ratio in words."""
    low, high = card["interval"]
    return f"{low:.3f} to {'infinity' if high is None else f'{high:.3f}'}"


def card_page(card: dict[str, Any]) -> str:
    """claim.md."""
    a, b = card["a"], card["b"]
    low, high = (100 * end for end in card["difference"]["interval"])
    lines = [f"# {card['statement']}", "", card["reason"], "", "![The ratio and the claim](claim.png)", ""]
    lines += [f"| | {a['name']} (A) | {b['name']} (B) |", "|---|---:|---:|"]
    for label, cell in _LINES.items():
        cells = [cell(side) for side in (a, b)]
        if any(cells):
            lines.append(f"| {label} | {cells[0] or 'not known'} | {cells[1] or 'not known'} |")
    lines.append("")
    lines.append(
        f"- Problems: {card['n_problems']}; left out because none of their checks worked: {card['n_left_out']}."
    )
    lines.append(f"- A minus B, paired: {100 * card['difference']['mean']:+.1f} points ({low:+.1f} to {high:+.1f}).")
    if card["mcnemar"]:
        one, other, p = (card["mcnemar"][key] for key in ("only_first", "only_other", "p"))
        lines.append(
            f"- First replies: only A right on {one} problems, only B on {other}; McNemar's exact test p = {p:.3g}."
        )
    lines.append(f"- Date {card['date']}; digest of prompts and gold answers `{card['prompts_digest']}`.")
    if card["task"]:
        lines.append(f"- Task: `{json.dumps(card['task'], ensure_ascii=False)}`.")
    lines += [f"- {warning}" for warning in card["warnings"]]
    lines += ["", _METHOD, ""]
    return "\n".join(lines)


_METHOD = (
    "The ratio is that of mean accuracies over the same problems. Its interval resamples problems (paired, clustered "
    "bootstrap) and counts two made-up problems against each end, so that a few problems never look certain. "
    "Supported: the whole interval lies above the claim. Refuted: below. Underpowered: neither."
)

_LINES: dict[str, Any] = {
    "accuracy": lambda side: percent(side["accuracy"]),
    "95% interval": lambda side: " to ".join(map(percent, side["interval"])),
    "replies to each problem": lambda side: str(side["n_per_problem"]),
    "checks that broke": lambda side: str(side["n_errors"]),
    "cost per solved problem": lambda side: _spent(side, "cost", lambda x: f"{x:.4g}"),
    "tokens per solved problem": lambda side: _spent(side, "tokens", lambda x: f"{x:,.0f}"),
    "time per solved problem": lambda side: _spent(side, "seconds", seconds_text),
    "measured": lambda side: side["date"],
    "model": lambda side: _code(side.get("subject")),
    "sampling": lambda side: _code(side.get("sampling")),
    "task digest": lambda side: _code(side.get("task_digest")),
    "verifier digest": lambda side: _code(side.get("verifier_digest")),
}


def _spent(side: dict[str, Any], what: str, words: Callable[[float], str]) -> str:
    return words(side[f"{what}_per_solved"]) if f"{what}_per_solved" in side else ""


def _code(value: Any) -> str:
    """A value as code in a cell; of a table its parts."""
    if isinstance(value, dict):
        parts = ((key, part) for key, part in value.items() if part not in ({}, None, []))
        return ", ".join(f"`{key}={json.dumps(part, ensure_ascii=False)}`" for key, part in parts)
    return f"`{value}`" if value else ""


def card_picture(card: dict[str, Any]) -> bytes:
    """A PNG: the interval of the ratio, and the claim as a line."""
    colour = LIGHT[{"supported": "right", "refuted": "wrong"}.get(card["verdict"], "series-0")]
    low, high = card["interval"]
    a, b, statement = (text.replace("$", r"\$") for text in (card["a"]["name"], card["b"]["name"], card["statement"]))
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(6.4, 1.9))
        axes = canvas.subplots()
        far = 2 * card["ratio"] if high is None else high
        axes.plot([low, far], [0, 0], color=colour, linewidth=7, alpha=0.45, solid_capstyle="butt")
        axes.scatter([card["ratio"]], [0], s=80, color=colour, zorder=3)
        axes.axvline(card["claim"], color=LIGHT["ink"], linestyle="--", linewidth=1.2)
        beside = {"textcoords": "offset points", "fontsize": 9}
        axes.annotate(f"claim {card['claim']:g}", (card["claim"], 0.8), (4, 0), **beside)
        said = f"{card['ratio']:.3f} ({ends(card)})"
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # over the claim's line
        axes.annotate(said, (card["ratio"], 0), (0, -22), ha="center", bbox=paper, **beside)
        axes.set_ylim(-1.2, 1.2)
        axes.margins(x=0.15)
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"accuracy of {a} / accuracy of {b}")
        axes.set_title(f"{statement} ({card['n_problems']} problems)", wrap=True)
        return finish(canvas, "claim", "", "", "").png
