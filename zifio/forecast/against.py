"""A forecast and what happened: seconds and memory of every stage, side by side.

A run on one processor is compared by its processor's seconds, where it told them, as the rehearsal was: what others did
on the machine meanwhile is no fault of a forecast. The clock's seconds stand beside.

Try it: `zifio plan recipes/quickstart.toml --against runs/quickstart`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from zifio.config import ConfigError
from zifio.evaluate.wording import bytes_text, seconds_text
from zifio.forecast.recipe import short
from zifio.record.stage import StageRecord, about

WALL_WITHIN, MEMORY_WITHIN = 0.25, 0.15
"""How near a forecast is to be."""


def score(found: dict[str, Any], run: Path) -> dict[str, Any]:
    """The forecast `found` beside the run, or a seed's folder where it is a claim's. Totals are over stages that are in
    both and done.

    Raises ConfigError when there are none.
    """
    rows = []
    for stage in found["stages"]:
        record = StageRecord(stage["name"], stage["kind"], **about(run / stage["name"]))
        if not record.done or record.seconds is None:
            continue
        seconds, measure = _seconds(record, found["threads"])
        rows.append({
            "name": stage["name"], "forecast_s": stage["seconds"], "interval_s": [stage["low_s"], stage["high_s"]],
            "happened_s": seconds, "measured_by": measure, "wall_s": record.wall_s or record.seconds,
            "cores": record.cores, "forecast_bytes": stage["peak_bytes"], "happened_bytes": record.peak_rss_bytes,
        })  # fmt: skip
    if not rows:
        raise ConfigError(f"{run}: wanted finished stages of {found['recipe']}, came none. Give the run's own folder.")
    out: dict[str, Any] = {"run": str(run), "stages": rows, "threads": found["threads"]}
    out["forecast_s"], out["happened_s"] = (sum(row[key] for row in rows) for key in ("forecast_s", "happened_s"))
    out["seconds_error"] = out["forecast_s"] / out["happened_s"] - 1
    out["interval_s"] = [sum(row["interval_s"][end] for row in rows) for end in (0, 1)]
    peaks = [row["happened_bytes"] for row in rows if row["happened_bytes"]]
    if peaks:
        out["forecast_bytes"], out["happened_bytes"] = max(row["forecast_bytes"] for row in rows), max(peaks)
        out["memory_error"] = out["forecast_bytes"] / out["happened_bytes"] - 1
        out["memory_is_near"] = abs(out["memory_error"]) <= MEMORY_WITHIN
    out["seconds_are_near"] = abs(out["seconds_error"]) <= WALL_WITHIN
    others = sorted({row["cores"] for row in rows if row["cores"] not in (None, found["threads"])})
    if others:
        out["warning"] = f"the run had {others[0]} processors, the rehearsal {found['threads']}: no fair comparison"
    return out


def _seconds(record: StageRecord, threads: int) -> tuple[float, str]:
    """What a stage took, and by which measure."""
    if threads == 1 and record.cores == 1 and record.cpu_s is not None:
        return record.cpu_s, "processor"
    return float(record.seconds or 0.0), "clock"


def score_table(scored: dict[str, Any]) -> Table:
    """The comparison for people."""
    title = f"{scored['run']}: time {scored['seconds_error']:+.0%}"
    if "memory_error" in scored:
        title += f", memory {scored['memory_error']:+.0%}"
    table = Table("stage", title=title, title_justify="left")
    for column in ("forecast", "interval", "happened", "by", "off", "memory", "happened"):
        table.add_column(column, justify="right")
    for row in scored["stages"]:
        low, high = map(seconds_text, row["interval_s"])
        held = row["happened_bytes"]
        table.add_row(
            short(row["name"]), seconds_text(row["forecast_s"]), f"{low} to {high}", seconds_text(row["happened_s"]),
            row["measured_by"], f"{row['forecast_s'] / max(row['happened_s'], 1e-9) - 1:+.0%}",
            bytes_text(row["forecast_bytes"]), "" if held is None else bytes_text(held),
        )  # fmt: skip
    return table
