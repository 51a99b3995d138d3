"""The report of a run: one page for people (report.html, report.md, figures/*.png) and one file for scripts.

The page stands alone: figures and styles are inside it, nothing is fetched, and what models wrote is escaped.

Try it alone:

    from zifio.evaluate.report import write_report
    write_report(Path("runs/quickstart"), "quickstart", [("base", "pretrain"), ("r1-zero", "rl"), ("final", "eval")])
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.table import Table
from rich.text import Text

from zifio.evaluate.drawing import THEME, colour_of
from zifio.evaluate.examples import examples
from zifio.evaluate.figures import draw
from zifio.evaluate.ledger import ledger
from zifio.evaluate.sight import is_picture, named, rows_of_sight, sight
from zifio.evaluate.wording import bytes_text, count_text, flops_text, percent, points_text, seconds_text
from zifio.record.stage import StageRecord, read_run, write_whole

_LONGEST = 700  # characters of a reply that the page shows
_MARKDOWN = re.compile(r"[\\`*_{}\[\]|~$!]")


def write_report(run_folder: Path, recipe_name: str, stage_order: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Write report.html, report.md, report.json and figures/*.png into the run folder; returns what report.json holds.

    `stage_order` is (name, kind) of the recipe's stages. A stage that has not begun is left out, as is a figure
    without data.
    """
    stages = read_run(run_folder, stage_order)
    report, figures = build_report(recipe_name, stages, run_folder), draw(stages)
    for figure in figures:
        write_whole(run_folder / "figures" / f"{figure.name}.png", figure.png)
    words = {
        "report": report,
        "figures": figures,
        "named": named(stages),
        "evaluations": [(stage, examples(stage)) for stage in stages if stage.results],
        "colours": colour_of(stages),
        "theme": THEME,
    }
    write_whole(run_folder / "report.html", _pages(escaped=True).get_template("report.html.jinja").render(words))
    write_whole(run_folder / "report.md", _pages(escaped=False).get_template("report.md.jinja").render(words))
    write_whole(run_folder / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def build_report(recipe_name: str, stages: Sequence[StageRecord], run_folder: Path) -> dict[str, Any]:
    """What report.json holds: `models`, `stages`, `evaluations`, what they see and draw (`sight`), the `ledger` of the
    models, and totals over all stages.

    A model that several `eval` stages have measured stands in `models` as the first of them found it.
    """
    models: dict[str, dict[str, Any]] = {}
    for stage in stages:
        models = {**stage.results, **models}
    names = ("kind", "from_", "done", "seconds", "flops", "look_flops", "tokens", "peak_rss_bytes")
    values = {stage.name: {name.rstrip("_"): getattr(stage, name) for name in names} for stage in stages}
    report = {
        "recipe": recipe_name,
        "headline": headline(models),
        "seconds": sum(stage.seconds or 0.0 for stage in stages),
        "peak_rss_bytes": max((stage.peak_rss_bytes or 0 for stage in stages), default=0),
        "flops": sum(stage.flops or 0.0 for stage in stages),
        "look_flops": sum(stage.look_flops or 0.0 for stage in stages),
        "models": {name: models[name] for stage in stages for name in stage.results},
        "stages": {name: {key: v for key, v in row.items() if v is not None} for name, row in values.items()},
        "evaluations": {stage.name: stage.results for stage in stages if stage.results},
        "sight": sight(stages),
        "ledger": ledger({name: _stage_folder(run_folder, name, found) for name, found in models.items()}),
    }
    return report


def _stage_folder(run_folder: Path, name: str, found: dict[str, Any]) -> Path:
    """Where the stage that made a model has written, which may be another run's; of a run that was moved, here."""
    folder = Path(found.get("path", "")).parent
    return folder if (folder / "done.json").exists() else run_folder / name


def headline(models: dict[str, dict[str, Any]]) -> str:
    """The outcome in two sentences."""
    measured = {name: found for name, found in models.items() if "pass_at_1" in found}
    if not measured:
        return "No model of this run has been measured on held-out problems."
    best = max(measured, key=lambda name: measured[name]["pass_at_1"])
    found = measured[best]
    said = f"{best} answers {percent(found['pass_at_1'])} of held-out problems right in one try"
    gain = found.get("gain")
    if gain is None or gain["over"] not in measured:
        return f"{said}."
    before = measured[gain["over"]]
    low, high = (100 * end for end in gain["interval"])
    tokens = f"{found['mean_response_tokens']:.0f} tokens instead of {before['mean_response_tokens']:.0f}"
    return (
        f"{said}; {gain['over']} answered {percent(before['pass_at_1'])} (a gain of {low:.0f} to {high:.0f} points, "
        f"95% interval). Its replies take {tokens}."
    )


def terminal_table(report: dict[str, Any]) -> Table:
    """The models' figures for the terminal; of a run without any, the stages and what they cost."""
    cost = f"{seconds_text(report['seconds'])}, {flops_text(report['flops'])}"
    table = Table(title=Text(report["headline"]), title_justify="left", caption=Text(cost), caption_justify="left")
    if not report["models"]:
        for column in ("stage", "kind", "time", "work"):
            table.add_column(column, justify="right" if column in ("time", "work") else "left")
        for name, row in report["stages"].items():
            table.add_row(name, row["kind"], seconds_text(row.get("seconds", 0.0)), flops_text(row.get("flops", 0.0)))
        return table
    most = max((int(k) for found in report["models"].values() for k in found.get("pass_at_k", {})), default=1)
    calls = ["calls tools"] if any("share_calls_tools" in found for found in report["models"].values()) else []
    columns = ("pass@1", "95%", *([f"pass@{most}"] if most > 1 else []), "worked out", *calls, "tokens", "active")
    table.add_column("model")
    for column in columns:
        table.add_column(column, justify="right")
    for name, found in report["models"].items():
        interval = found.get("pass_at_1_interval")
        cells = {
            "pass@1": percent(found.get("pass_at_1")),
            "95%": f"{percent(interval[0])} to {percent(interval[1])}" if interval else "–",
            f"pass@{most}": percent(found.get("pass_at_k", {}).get(str(most))),
            "worked out": percent(found.get("process_pass_at_1")),
            "calls tools": percent(found.get("share_calls_tools")),
            "tokens": f"{found['mean_response_tokens']:.0f}" if "mean_response_tokens" in found else "–",
            "active": count_text(found["parameters"]["active"]),
        }
        table.add_row(Text(name), *(cells[column] for column in columns))
    return table


# Foreign text -------------------------------------------------------------------------------------------------------


def shorten(text: str) -> str:
    """A text of bearable length that says how much is missing."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text) - _LONGEST} more characters)"


def markdown_code(text: str) -> str:
    """Foreign text as code in a Markdown table cell, showing every character and meaning none."""
    plain = html.escape(text).replace("\n", "<br>")
    return f"<code>{_MARKDOWN.sub(lambda hit: f'&#{ord(hit.group())};', plain)}</code>"


def _pages(escaped: bool) -> Environment:
    """Where the page templates come from, with the words for numbers as filters."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests["picture"] = is_picture
    environment.filters |= {
        "percent": percent,
        "rows_of_sight": rows_of_sight,
        "points": points_text,
        "seconds": seconds_text,
        "flops": flops_text,
        "count": count_text,
        "bytes": bytes_text,
        "shorten": shorten,
        "code": markdown_code,
    }
    return environment
