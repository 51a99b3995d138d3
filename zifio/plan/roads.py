"""Efficiency against brute force: what the same result costs by the leader's road and by the follower's.

Figures and sources are in `roads.toml`. Hours on different hardware are not the same thing, so pairs are compared by
hours as they are and by money at each device's rent; where a teacher is needed, the follower is counted without it (it
exists), with its writing, and with its making.

Try it: `zifio plan --roads`
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import PositiveFloat

from zifio.config import Config, build, read_toml
from zifio.models.presets import preset
from zifio.plan.hardware import find_device
from zifio.plan.settings import PlanConfig, RlPlan, SftPlan
from zifio.plan.work import drawing, fine_tuning, reinforcement, settle, training_flops


class Road(Config):
    """One way to a result."""

    name: str
    """In words."""
    hardware: str
    """A name of hardware.toml."""
    source: str
    """Where its figures are from."""
    hours: PositiveFloat | None = None
    """Device hours, as published."""
    flops: PositiveFloat | None = None
    """As published."""
    model: str | None = None
    """A preset, for what is computed."""
    tokens: PositiveFloat | None = None
    """Tokens of its pretraining."""
    rl: RlPlan | None = None
    """Its reinforcement."""
    sft: SftPlan | None = None
    """Its fine-tuning."""
    tokens_drawn: PositiveFloat | None = None
    """Tokens that a teacher writes."""
    quality: float | None = None
    """Of the result, by the pair's measure."""


class Pair(Config):
    """The same result twice."""

    title: str
    """What is made."""
    result: str
    """How good it is, by which measure, and where that stands."""
    leader: Road
    """Brute force, or the one who went first."""
    follower: Road
    """Efficiency, or the one who learned from the first."""
    teacher: Road | None = None
    """Whom the follower learns from."""


class _Pairs(Config):
    pair: list[Pair]


@dataclass(frozen=True)
class Walked:
    """What a road costs."""

    name: str
    hours: float
    usd: float | None
    flops: float | None
    quality: float | None
    how: str
    """published or computed."""
    source: str


@dataclass(frozen=True)
class Compared:
    """A pair of roads and how many times cheaper the second is."""

    title: str
    result: str
    leader: Walked
    follower: Walked
    ratios: dict[str, float]
    """By hours, by usd, by flops; and by hours with the teacher's writing and making."""


@lru_cache
def pairs() -> list[Pair]:
    """The pairs of `roads.toml`."""
    return build(_Pairs, read_toml(Path(__file__).with_name("roads.toml")), "roads.toml").pair


def compare(pair: Pair) -> Compared:
    """Both roads and their ratios."""
    leader, follower = walk(pair.leader), walk(pair.follower)
    ratios = {"hours": leader.hours / follower.hours}
    if leader.usd is not None and follower.usd is not None:
        ratios["usd"] = leader.usd / follower.usd
    if leader.flops is not None and follower.flops is not None:
        ratios["flops"] = leader.flops / follower.flops
    if pair.teacher is not None:
        writing, making = _writing_hours(pair.teacher), pair.teacher.hours or 0.0
        ratios["hours with the teacher's writing"] = leader.hours / (follower.hours + writing)
        ratios["hours with the teacher's making"] = leader.hours / (follower.hours + writing + making)
    return Compared(pair.title, pair.result, leader, follower, ratios)


def walk(road: Road) -> Walked:
    """What a road costs: as published, or by the formulas of `work.py`."""
    price = find_device(road.hardware).usd_per_hour
    hours, flops = road.hours, road.flops
    if road.model is not None:
        plan = PlanConfig(hardware=road.hardware, rl=road.rl or RlPlan(), sft=road.sft or SftPlan())
        setting = settle(preset(road.model), plan, road.model)
        work = list(reinforcement(setting)) if road.rl else [fine_tuning(setting)] if road.sft else []
        if work:
            flops, computed = sum(cost.flops or 0 for cost in work), sum(cost.gpu_hours for cost in work)
            hours = computed if hours is None else hours
        elif road.tokens is not None and flops is None:
            flops = training_flops(setting, road.tokens, 4096)
    assert hours is not None, f"{road.name}: neither hours nor work"
    how = "published" if road.hours is not None else "computed"
    return Walked(road.name, hours, price and hours * price, flops, road.quality, how, road.source)


def _writing_hours(teacher: Road) -> float:
    """Hours that a teacher needs to write its tokens in replies of 5,000, its weights in fp8."""
    assert teacher.model is not None and teacher.tokens_drawn is not None, teacher.name
    plan = PlanConfig(hardware=teacher.hardware, weight_precision="fp8")
    pace = drawing(settle(preset(teacher.model), plan, teacher.model), 256, 5000)
    return teacher.tokens_drawn / pace.tokens_per_s / 3600
