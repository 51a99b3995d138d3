"""What a run's models see and draw, for the report: read off the last looks of its stages.

Try it alone: `pytest tests/evaluate/test_sight.py`
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import PercentFormatter

from zifio.evaluate.drawing import LIGHT, WIDTH, Figure, colour_of, finish, share_panels
from zifio.evaluate.wording import percent
from zifio.record.stage import StageRecord

# Metrics of a look, and what the report calls them.
_CODES = {"psnr": "psnr", "codes_used": "codes_used", "perplexity": "perplexity"}
_JUDGE = {"accuracy": "pass_at_1", "accuracy_low": "pass_at_1_low", "accuracy_high": "pass_at_1_high"}
_EYES = {
    "words_right": "words_right", "captions_right": "pass_at_1", "captions_right_low": "pass_at_1_low",
    "captions_right_high": "pass_at_1_high",
}  # fmt: skip
_LOOK = re.compile(
    r"held_out/(?P<what>captions|drawings)/(?P<split>held_out|unseen)(/guidance_(?P<scale>[0-9.e+-]+))?"
    r"/(?P<figure>pass_at_1|pass_at_1_low|pass_at_1_high|format_rate|spread|real_spread|real_pass_at_1)"
)
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+=*")
_LONGEST_PICTURE = 300_000  # characters
_SPLITS = {"held_out": ("-", "held out"), "unseen": ("--", "unseen glyphs")}


def is_picture(text: str) -> bool:
    """Whether a text is a PNG as a data URL and nothing else, so that a page may show it."""
    return len(text) <= _LONGEST_PICTURE and _PICTURE.fullmatch(text) is not None


def sight(stages: Sequence[StageRecord]) -> dict[str, dict[str, Any]]:
    """`codes`, `judges`, `eyes` and `models`, by stage: how well pictures come back from their codes and how many codes
    that takes; labels right; words and whole captions that an encoder names right, at the end and `by_step`; captions
    right, and drawings right by split and scale of guidance, with 95% intervals. Of drawings that a classifier judges
    also their spread, and both of real pictures. Empty without any."""
    codes, judges, eyes, models = {}, {}, {}, {}
    for stage in stages:
        last = {key: value for row in stage.metrics for key, value in row.items() if key.startswith("held_out/")}
        if stage.kind == "vq" and (found := _figures(last, _CODES)):
            codes[stage.name] = found
        if stage.kind == "classifier" and "held_out/accuracy" in last:
            judges[stage.name] = _figures(last, _JUDGE)
        if stage.kind == "vision" and (by_step := _by_step(stage)):
            eyes[stage.name] = _figures(last, _EYES) | {"by_step": by_step}
        if stage.kind == "janus" and (seen := _seen(last)):
            models[stage.name] = seen
    found = {"codes": codes, "judges": judges, "eyes": eyes, "models": models}
    return {key: value for key, value in found.items() if value}


def _by_step(stage: StageRecord) -> list[dict[str, Any]]:
    """The looks of an encoder that learns from captions, in order."""
    looks = [row for row in stage.metrics if "held_out/captions_right" in row]
    return [{"step": row["step"]} | _figures(row, _EYES) for row in looks]


def _figures(row: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Those of the metrics that a look logged, as the report calls them."""
    return {name: row[f"held_out/{key}"] for key, name in names.items() if f"held_out/{key}" in row}


def named(stages: Sequence[StageRecord]) -> dict[str, list[dict[str, Any]]]:
    """By stage the pictures that an encoder was shown at its last look, with what it named in them."""
    eyes = [stage for stage in stages if stage.kind == "vision" and stage.rollouts]
    lasts = {stage.name: max(row["step"] for row in stage.rollouts) for stage in eyes}
    return {stage.name: [row for row in stage.rollouts if row["step"] == lasts[stage.name]] for stage in eyes}


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
    rows = [(name, "labels of real pictures right", [one, {}]) for name, one in found.get("judges", {}).items()]
    for name, one in found.get("eyes", {}).items():
        words = f" (of all their words {percent(one['words_right'])})" if "words_right" in one else ""
        rows.append((name, f"captions named word for word{words}", [one, {}]))
    for name, one in found.get("models", {}).items():
        if captions := one.get("captions"):
            rows.append((name, "captions right", [captions.get(split, {}) for split in _SPLITS]))
        drawings = one.get("drawings", {})
        for scale in sorted({scale for by_scale in drawings.values() for scale in by_scale}, key=float):
            cells = [drawings.get(split, {}).get(scale, {}) for split in _SPLITS]
            rows.append((name, f"drawings right, guidance {scale}{_apart(cells[0])}", cells))
    return rows


def _apart(cell: dict[str, Any]) -> str:
    """How far apart drawings of one label are, beside real pictures, where a classifier judges them."""
    if "spread" not in cell or "real_spread" not in cell:
        return ""
    real = f"{cell['real_spread']:.2f}, right {cell['real_pass_at_1']:.1%}"
    return f" (apart by {cell['spread']:.2f}; real pictures {real})"


def reading_figure(stages: Sequence[StageRecord]) -> Figure | None:
    """Captions, and words of them, that encoders name right, by step."""
    found = [stage for stage in stages if stage.kind == "vision" and stage.series("held_out/captions_right")[0]]
    captions, words = ("held_out/captions_right", "whole captions"), ("held_out/words_right", "words")
    canvas = share_panels(found, colour_of(stages), "named right", captions, words)
    return canvas and finish(
        canvas,
        "reading",
        "What an encoder reads in pictures",
        "Held-out captions whose every word is named right, all at once and from the picture alone, with the 95% "
        "interval; dashed: words.",
        "Words come first, as many are the same in every caption; whole captions follow. Words that rise alone: the "
        "encoder has learnt how captions sound, and sees little.",
    )


def guidance_figure(stages: Sequence[StageRecord]) -> Figure | None:
    """Drawings that are right, and where a classifier judges also how different they are, by the scale of guidance."""
    models = {name: one["drawings"] for name, one in sight(stages).get("models", {}).items() if "drawings" in one}
    if not models:
        return None
    apart = any("spread" in cell for one in models.values() for by_scale in one.values() for cell in by_scale.values())
    canvas = Canvas(figsize=(WIDTH, 5.4 if apart else 3.4))
    panels = canvas.subplots(1 + apart, squeeze=False, sharex=True)[:, 0]
    colours = colour_of(stages)
    for name, drawings in models.items():
        for split, by_scale in drawings.items():
            _line(panels[0], "pass_at_1", by_scale, colours[name], name, split)
            if apart:
                _line(panels[1], "spread", by_scale, colours[name], name, split)
    panels[0].set_ylim(-0.03, 1.03)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    panels[0].set_ylabel("drawings right")
    panels[0].legend()
    if apart:
        panels[1].set_ylim(bottom=0)
        panels[1].set_ylabel("apart within a label")
    panels[-1].set_xlabel("scale of guidance")
    shows, means = "", ""
    if apart:
        shows = (
            " Below, how far apart two drawings of one label are in the classifier's last layer. Dotted: the same of "
            "real pictures."
        )
        means = " Right more often than real pictures, and less apart: the model draws what is typical alone."
    return finish(
        canvas,
        "guidance",
        "What guidance does to drawings",
        "Drawings of held-out texts that a parser, or an independent classifier, reads as exactly what was asked, by "
        "the scale of classifier-free guidance; 1 is none. Dashed: captions with a colour and a shape that training "
        "never named together." + shows,
        "A rise from 1 to somewhere between 2 and 5, and a fall behind it, where drawings become crude. A dashed line "
        "far below the other: what was learnt apart is not put together." + means,
    )


def _line(axes: Axes, figure: str, by_scale: dict[str, dict[str, Any]], colour: str, name: str, split: str) -> None:
    """One figure of a model's drawings by scale, with its interval, and the mark of real pictures."""
    style, words = _SPLITS[split]
    scales = [scale for scale in sorted(by_scale, key=float) if figure in by_scale[scale]]
    x, colour = [float(scale) for scale in scales], LIGHT[colour]
    axes.plot(x, [by_scale[s][figure] for s in scales], style, color=colour, marker="o", ms=4, label=f"{name}, {words}")
    ends = [
        [by_scale[s][f"{figure}_{end}"] for s in scales if f"{figure}_{end}" in by_scale[s]] for end in ("low", "high")
    ]
    if all(len(end) == len(x) for end in ends):
        axes.fill_between(x, ends[0], ends[1], color=colour, alpha=0.12)
    for real in {by_scale[s][f"real_{figure}"] for s in scales if f"real_{figure}" in by_scale[s]}:
        axes.axhline(real, color=LIGHT["muted"], linestyle=":", linewidth=1.2)
