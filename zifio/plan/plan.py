"""A model's whole plan as one object: what it is, what its work costs, what memory that wants, what was assumed.

Try it: `zifio plan deepseek-v3 --json`
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from zifio.models.config import AnyConfig
from zifio.plan.figures import figures
from zifio.plan.settings import PlanConfig
from zifio.plan.work import Cost, Setting, fine_tuning, memory, pretraining, reinforcement, serving, settle


def plan_model(config: AnyConfig, settings: PlanConfig, name: str) -> dict[str, Any]:
    """The plan of a model; `name` finds what is published of a preset.

    `gpu_hours`, `usd` and `kwh` are of its pretraining and whatever else its makers count. Raises ConfigError.
    """
    setting = settle(config, settings, name)
    own, (drawing, training) = pretraining(setting), reinforcement(setting)
    total = setting.cost("total", sum(cost.gpu_hours for cost in own))
    parts = {kind: {**asdict(one), "total": one.total} for kind, one in memory(setting).items()}
    return {
        "model": name,
        **asdict(figures(config, setting.plan.seq_len)),
        "gpu_hours": total.gpu_hours,
        "usd": total.usd,
        "kwh": total.kwh,
        "days": total.days,
        "hardware": setting.hardware,
        "device": setting.device.model_dump(mode="json"),
        "devices": setting.devices,
        "mfu": setting.mfu,
        "usd_per_hour": setting.usd_per_hour,
        "work": {
            "pretraining": [asdict(cost) for cost in own],
            "sft": asdict(fine_tuning(setting)),
            "rl": {"drawing": asdict(drawing), "training": asdict(training)},
            "serving": serving(setting),
        },
        "memory_by_device": parts,
        "assumptions": assumptions(setting, own),
        "settings": setting.plan.model_dump(mode="json"),
    }


def assumptions(setting: Setting, own: list[Cost]) -> list[str]:
    """What the figures rest on, in words."""
    plan, facts, device = setting.plan, setting.facts, setting.device
    peak = device.flops(plan.precision) / 1e12
    out = [f"{device.name}: {peak:,.4g} TFLOPS in {plan.precision}, {device.source}, read {device.read}"]
    whose = "set" if plan.mfu else "as published" if facts is not None and facts.mfu else "an assumption"
    out.append(f"training reaches {setting.mfu:.1%} of that ({whose}); in RL {plan.rl_mfu:.0%} (an assumption)")
    out.append(
        f"drawing reaches {plan.bandwidth_use:.0%} of {device.bandwidth_gb_s:,.4g} GB/s or {plan.decode_mfu:.0%} of "
        "the peak (assumptions)"
    )
    if setting.usd_per_hour is None:
        out.append(f"no price of {device.name} is known: usd_per_hour=... sets it")
    elif plan.usd_per_hour is None:
        out.append(f"${setting.usd_per_hour:g} an hour: {device.price_source}, {device.price_date}")
    out.append(f"{device.watts:g} W at most, {plan.power_use:.0%} of them drawn, times {plan.pue:g} for the building")
    if any(cost.how == "published" for cost in own):
        names = ", ".join(cost.name for cost in own if cost.how == "published")
        out.append(f"taken over as published, not computed: {names}")
    if facts is not None:
        out.append(f"published: {facts.source}")
    elif plan.tokens is None:
        out.append("pretraining on 20 tokens for each active parameter (arXiv:2203.15556); tokens=... sets it")
    return out
