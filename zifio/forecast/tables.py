"""A plan as tables on the terminal.

Try it: `zifio plan deepseek-v3`
"""

from __future__ import annotations

from typing import Any

from rich.table import Table

from zifio.evaluate.wording import bytes_text, count_text, flops_text
from zifio.plan.roads import Compared

_COUNTS = {
    "total_params": "parameters",
    "active_params": "active: all that a token meets",
    "active_params_no_input_embedding": "active, without the input embedding",
    "non_embedding_params": "without both embeddings",
    "active_non_embedding_params": "active, without both embeddings",
    "mtp_params": "beside them, multi-token prediction",
}


def model_table(plan: dict[str, Any]) -> Table:
    """What the model is."""
    table = Table("of one model", "", title=plan["model"], title_justify="left")
    table.columns[1].justify = "right"
    for key, words in _COUNTS.items():
        if plan[key]:
            table.add_row(words, f"{plan[key]:,}")
    length = plan["seq_len"]
    table.add_row(f"FLOPs a token, forward (of {length:,})", flops_text(plan["forward_flops_per_token"]))
    table.add_row("FLOPs a token, training", flops_text(plan["train_flops_per_token"]))
    table.add_row("cache a token (bf16)", f"{plan['kv_bytes_per_token']:,} bytes")
    table.add_row("state a sequence, whatever its length", f"{plan['state_bytes']:,} bytes")
    return table


def work_table(plan: dict[str, Any]) -> Table:
    """What its work costs."""
    title = f"on {plan['devices']:,} x {plan['device']['name']}"
    table = Table("work", title=title, title_justify="left")
    for column in ("tokens", "FLOPs", "device hours", "published", "days", "kWh", "price"):
        table.add_column(column, justify="right")
    work = plan["work"]
    rows = [*work["pretraining"], _sum(plan), work["sft"], work["rl"]["drawing"], work["rl"]["training"]]
    for row in rows:
        hours = hours_text(row["gpu_hours"])
        table.add_row(
            row["name"],
            "" if row.get("tokens") is None else count_text(row["tokens"]),
            "" if row.get("flops") is None else flops_text(row["flops"]),
            f"{hours} (given)" if row.get("how") == "published" else hours,
            "" if row.get("published_hours") is None else hours_text(row["published_hours"]),
            f"{row['days']:,.1f}" if row["days"] >= 0.1 else f"{row['days']:.2g}",
            count_text(row["kwh"]),
            usd_text(row["usd"]),
            end_section=row["name"] in ("total", "SFT"),
        )
    return table


def _sum(plan: dict[str, Any]) -> dict[str, Any]:
    published = [row["published_hours"] for row in plan["work"]["pretraining"]]
    known = None if None in published else sum(published)
    return {key: plan[key] for key in ("gpu_hours", "days", "kwh", "usd")} | {
        "name": "total",
        "published_hours": known,
    }


def memory_table(plan: dict[str, Any]) -> Table:
    """What the fullest device holds, by part."""
    layout = plan["settings"]["layout"]
    spread = " x ".join(f"{layout[key]} {key}" for key in ("data", "tensor", "pipeline", "expert"))
    table = Table("memory of the fullest device", title=f"training on {spread}", title_justify="left")
    kinds = plan["memory_by_device"]
    for kind in kinds:
        table.add_column(kind, justify="right")
    for part in next(iter(kinds.values())):
        table.add_row(part, *(bytes_text(parts[part]) if parts[part] else "" for parts in kinds.values()))
    room = plan["device"]["memory_gb"] * 1e9
    table.add_row("fits", *("yes" if parts["total"] <= room else "no" for parts in kinds.values()))
    return table


def serving_text(plan: dict[str, Any]) -> str:
    """How it serves, in a line."""
    found = plan["work"]["serving"]
    layout = found["layout"]
    price = usd_text(found["usd_per_million_tokens"])
    return (
        f"serving on {layout['tensor']} x {layout['pipeline']} devices: {found['tokens_per_s_per_device']:,.0f} "
        f"tokens/s a device, {found['tokens_per_s_per_reply']:,.0f} a reply, {found['rows_per_device']:,.1f} replies a "
        f"device, bound by {found['bound_by']}; {price} a million tokens, questions included"
    )


def roads_table(pair: Compared) -> Table:
    """The same result by two roads."""
    table = Table("road", title=f"{pair.title}: {pair.result}", title_justify="left")
    for column in ("device hours", "price", "FLOPs", "quality"):
        table.add_column(column, justify="right")
    for road in (pair.leader, pair.follower):
        flops = "" if road.flops is None else flops_text(road.flops)
        quality = "" if road.quality is None else f"{road.quality:g}"
        table.add_row(road.name, f"{hours_text(road.hours)} ({road.how})", usd_text(road.usd), flops, quality)
    return table


def ratios_text(pair: Compared) -> str:
    """How many times cheaper the second road is."""
    return "the second is cheaper: " + ", ".join(f"{ratio:.3g} x by {what}" for what, ratio in pair.ratios.items())


def hours_text(hours: float) -> str:
    """2,788,000 as `2.79 M`, 0.01 as `0.01`."""
    return count_text(hours) if hours >= 1000 else f"{hours:,.3g}"


def usd_text(usd: float | None) -> str:
    """$5.59 M, $0.83; `–` where no price is known."""
    if usd is None:
        return "–"
    return f"${count_text(usd)}" if usd >= 1000 else f"${usd:,.2f}"
