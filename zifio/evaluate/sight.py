"""What a run's models see and draw, for the report: read off the last looks of its `vq` and `janus` stages.

Try it alone: `pytest tests/evaluate/test_sight.py`
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import PercentFormatter

from zifio.evaluate.drawing import LIGHT, WIDTH, Figure, finish
from zifio.record.stage import StageRecord

_CODES = ("psnr", "codes_used", "perplexity")
_LOOK = re.compile(
    r"held_out/(?P<what>captions|drawings)/(?P<split>held_out|unseen)(/guidance_(?P<scale>[0-9.e+-]+))?"
    r"/(?P<figure>pass_at_1|pass_at_1_low|pass_at_1_high|format_rate)"
)
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+=*")
_LONGEST_PICTURE = 300_000  # characters
_SPLITS = {"held_out": ("-", "known glyphs"), "unseen": ("--", "unseen glyphs")}


def is_picture(text: str) -> bool:
    """Whether a text is a PNG as a data URL and nothing else, so that a page may show it."""
    return len(text) <= _LONGEST_PICTURE and _PICTURE.fullmatch(text) is not None


def sight(stages: Sequence[StageRecord]) -> dict[str, dict[str, Any]]:
    """`codes` and `models`, by stage: how well pictures come back from their codes and how many codes that takes;
    captions right, and drawings right by split and scale of guidance, with 95% intervals. Empty without any."""
    codes, models = {}, {}
    for stage in stages:
        last = {key: value for row in stage.metrics for key, value in row.items() if key.startswith("held_out/")}
        found = {key: last[f"held_out/{key}"] for key in _CODES if f"held_out/{key}" in last}
        if stage.kind == "vq" and found:
            codes[stage.name] = found
        if stage.kind == "janus" and (seen := _seen(last)):
            models[stage.name] = seen
    return {key: value for key, value in (("codes", codes), ("models", models)) if value}


def _seen(last: dict[str, Any]) -> dict[str, Any]:
    """The figures of a look: captions by split, drawings by split and scale."""
    out: dict[str, Any] = {}
    for key, value in last.items():
        found = _LOOK.fullmatch(key)
        if found is None:
            continue
        place = out.setdefault(found["what"], {}).setdefault(found["split"], {})
        if found["scale"] is not None:
            place = place.setdefault(found["scale"], {})
        place[found["figure"]] = value
    return out


def rows_of_sight(found: dict[str, dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """What `sight` found of models as rows of a table: stage, what was asked, figures of known and of unseen glyphs."""
    rows = []
    for name, one in found.get("models", {}).items():
        if captions := one.get("captions"):
            rows.append((name, "captions right", [captions.get(split, {}) for split in _SPLITS]))
        drawings = one.get("drawings", {})
        for scale in sorted({scale for by_scale in drawings.values() for scale in by_scale}, key=float):
            cells = [drawings.get(split, {}).get(scale, {}) for split in _SPLITS]
            rows.append((name, f"drawings right, guidance {scale}", cells))
    return rows


def guidance_figure(stages: Sequence[StageRecord]) -> Figure | None:
    """Drawings that are right, against the scale of guidance."""
    models = {name: one["drawings"] for name, one in sight(stages).get("models", {}).items() if "drawings" in one}
    if not models:
        return None
    canvas = Canvas(figsize=(WIDTH, 3.4))
    axes = canvas.subplots()
    for place, (name, drawings) in enumerate(models.items()):
        for split, by_scale in drawings.items():
            style, words = _SPLITS[split]
            scales = sorted(by_scale, key=float)
            x, colour = [float(scale) for scale in scales], LIGHT[f"series-{place}"]
            shares, label = [by_scale[s]["pass_at_1"] for s in scales], f"{name}, {words}"
            axes.plot(x, shares, style, color=colour, marker="o", ms=4, label=label)
            low, high = ([by_scale[s].get(f"pass_at_1_{end}") for s in scales] for end in ("low", "high"))
            if None not in low + high:
                axes.fill_between(x, low, high, color=colour, alpha=0.12)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("scale of guidance")
    axes.set_ylabel("drawings exactly right")
    axes.legend()
    return finish(
        canvas,
        "guidance",
        "What guidance does to drawings",
        "Drawings of held-out captions that a parser reads as exactly what was asked, by the scale of classifier-free "
        "guidance; 1 is none. Dashed: captions with a colour and a shape that training never brought together.",
        "A rise from 1 to somewhere between 2 and 5, and a fall behind it, where drawings become crude. A dashed line "
        "far below the other: what was learnt apart is not put together.",
    )
