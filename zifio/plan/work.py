"""What work costs: pretraining, fine-tuning, reinforcement (drawing and training apart) and serving, in FLOPs, device
hours, energy and money.

    training    hours = tokens x FLOPs per token / (peak x MFU x 3600)
    drawing     a step of n rows takes the longer of its products and of reading weights and cache:
                max(n F / (peak x share), (weights + n x context x cache per token) / (bandwidth x share))

Try it: `zifio plan deepseek-v3`
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat, PositiveInt, model_validator

from zifio.config import Config, build, read_toml
from zifio.models.config import AnyConfig
from zifio.models.count import forward_flops, parameters
from zifio.plan.hardware import Device, find_device
from zifio.plan.memory import Memory, cache_bytes, serving_weights, training_memory, weights_read
from zifio.plan.settings import Layout, PlanConfig

_DENSE_MFU, _SPARSE_MFU = 0.40, 0.35
TOKENS_PER_PARAMETER = 20
DEFAULT_HARDWARE = "h100"


class Phase(Config):
    """A part of a model's published training; tokens, or hours of devices, or devices and hours on the wall."""

    name: str
    """In words."""
    tokens: PositiveFloat | None = None
    """Tokens that it read."""
    seq_len: PositiveInt = 4096
    """In sequences of this length."""
    hours: PositiveFloat | None = None
    """Device hours, as published; nothing is computed then."""
    device_count: PositiveInt | None = None
    """Devices, with `wall_hours`."""
    wall_hours: PositiveFloat | None = None
    """Hours that they were busy."""
    published_hours: PositiveFloat | None = None
    """What the publication says of device hours, beside a computed figure."""

    @model_validator(mode="after")
    def _one_measure(self) -> Phase:
        if sum(value is not None for value in (self.tokens, self.hours, self.wall_hours)) != 1:
            raise ValueError("wanted one of tokens, hours, wall_hours. Leave the others out")
        if (self.device_count is None) != (self.wall_hours is None):
            raise ValueError("device_count and wall_hours belong together. Give both")
        return self


class Published(Config):
    """What a model took, by its makers' word."""

    hardware: str
    """A name of hardware.toml."""
    devices: PositiveInt | None = None
    """How many."""
    mfu: PositiveFloat | None = None
    """Of the peak in bf16."""
    plan: PlanConfig = PlanConfig()
    """How its makers laid it out: defaults for a plan on that hardware."""
    source: str
    """Where this is from."""
    phase: list[Phase]
    """Its parts, in order."""


class _Facts(Config):
    models: dict[str, Published]


@lru_cache
def published() -> dict[str, Published]:
    """What is published of the presets."""
    return build(_Facts, {"models": read_toml(Path(__file__).with_name("published.toml"))}, "published.toml").models


@dataclass(frozen=True)
class Cost:
    """What one piece of work takes."""

    name: str
    gpu_hours: float
    usd: float | None
    kwh: float
    days: float
    """On the wall, with the plan's devices."""
    flops: float | None = None
    tokens: float | None = None
    published_hours: float | None = None
    how: str = "computed"
    """computed: from FLOPs; published: taken over."""
    details: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """A plan's numbers with every default resolved for one model."""

    config: AnyConfig
    plan: PlanConfig
    device: Device
    hardware: str
    devices: int
    mfu: float
    usd_per_hour: float | None
    facts: Published | None

    def cost(self, name: str, hours: float, **more: Any) -> Cost:
        """Hours of devices as a cost."""
        usd = None if self.usd_per_hour is None else hours * self.usd_per_hour
        kwh = hours * self.device.watts * self.plan.power_use * self.plan.pue / 1000
        return Cost(name, hours, usd, kwh, hours / self.devices / 24, **more)

    def training_hours(self, flops: float, mfu: float) -> float:
        """Device hours of so many FLOPs."""
        return flops / (self.device.flops(self.plan.precision) * mfu * 3600)


def settle(config: AnyConfig, plan: PlanConfig, name: str = "") -> Setting:
    """Resolve what the plan leaves open: by what is published of the preset `name`, or by stated defaults.

    Raises ConfigError for hardware that is unknown or was not probed.
    """
    facts = published().get(name)
    hardware = plan.hardware or (facts.hardware if facts else DEFAULT_HARDWARE)
    device = find_device(hardware)
    as_published = facts is not None and hardware == facts.hardware
    if as_published and facts is not None:
        theirs = {key: getattr(facts.plan, key) for key in facts.plan.model_fields_set - plan.model_fields_set}
        plan = plan.model_copy(update=theirs)
    spread = plan.layout.devices
    devices = plan.devices or (spread if spread > 1 else (facts.devices if as_published and facts else None) or 1)
    mfu = plan.mfu or (facts.mfu if facts else None) or (_SPARSE_MFU if config.moe else _DENSE_MFU)
    price = device.usd_per_hour if plan.usd_per_hour is None else plan.usd_per_hour
    return Setting(config, plan, device, hardware, devices, mfu, price, facts)


def training_flops(setting: Setting, tokens: float, seq_len: int) -> float:
    """Forward and backward over so many tokens in sequences of this length."""
    again = 4 if setting.plan.recompute == "block" else 3
    return again * forward_flops(setting.config, [seq_len]) / seq_len * tokens


def pretraining(setting: Setting) -> list[Cost]:
    """The phases of the model's own training as published, or one over the plan's tokens."""
    plan = setting.plan
    if setting.facts is None or plan.tokens is not None:
        tokens = plan.tokens or TOKENS_PER_PARAMETER * parameters(setting.config).active
        return [_computed(setting, Phase(name="pre-training", tokens=float(tokens), seq_len=plan.seq_len))]
    return [_computed(setting, phase) for phase in setting.facts.phase]


def _computed(setting: Setting, phase: Phase) -> Cost:
    if phase.tokens is None:
        hours = phase.hours if phase.hours is not None else (phase.device_count or 0) * (phase.wall_hours or 0)
        return setting.cost(phase.name, hours, published_hours=phase.published_hours or hours, how="published")
    flops = training_flops(setting, phase.tokens, phase.seq_len)
    hours = setting.training_hours(flops, setting.mfu)
    return setting.cost(phase.name, hours, flops=flops, tokens=phase.tokens, published_hours=phase.published_hours)


def fine_tuning(setting: Setting) -> Cost:
    """SFT on the plan's examples."""
    sft = setting.plan.sft
    tokens = float(sft.examples * sft.tokens * sft.epochs)
    flops = training_flops(setting, tokens, sft.tokens)
    return setting.cost("SFT", setting.training_hours(flops, setting.mfu), flops=flops, tokens=tokens)


def reinforcement(setting: Setting) -> tuple[Cost, Cost]:
    """(drawing, training) of the plan's RL; a reference model's reading counts as training."""
    plan, rl = setting.plan, setting.plan.rl
    n = rl.steps * rl.prompts * rl.group
    whole = rl.prompt_tokens + rl.reply_tokens
    pace = drawing(setting, rl.prompt_tokens, rl.reply_tokens, rl.prompts * rl.group)
    drawn = n * rl.reply_tokens
    draw_flops = n * forward_flops(setting.config, [rl.reply_tokens], firsts=[rl.prompt_tokens])
    draw_flops += n / rl.group * forward_flops(setting.config, [rl.prompt_tokens])  # a group's prompt once
    flops = training_flops(setting, n * whole, whole)
    flops += rl.with_reference * n * forward_flops(setting.config, [whole])
    return (
        setting.cost(
            "RL: drawing replies", drawn / pace.tokens_per_s / 3600, flops=draw_flops, tokens=float(drawn),
            details={"tokens_per_s_per_device": pace.tokens_per_s, "rows_per_device": pace.rows},
        ),
        setting.cost("RL: training", setting.training_hours(flops, plan.rl_mfu), flops=flops, tokens=float(n * whole)),
    )  # fmt: skip


@dataclass(frozen=True)
class Pace:
    """How fast a device of a group draws."""

    tokens_per_s: float
    """Drawn, for each device."""
    rows: float
    """Replies side by side, for each device."""
    step_s: float
    """Seconds between two tokens of a reply."""
    bound_by: str
    """What sets the pace: memory or products."""
    layout: Layout
    """How a copy is spread."""
    fits: bool
    """Whether the devices hold its weights."""


def draw_layout(setting: Setting) -> Layout:
    """How a copy is spread that draws: as the plan says, or over 1, 2, 4, ... devices, at most 8 to a matrix."""
    plan, config = setting.plan, setting.config
    if plan.draw_layout is not None:
        return plan.draw_layout
    layout = Layout()
    for power in range(8):
        tensor = math.gcd(min(2**power, 8), config.num_attention_heads)
        layout = Layout(tensor=tensor, pipeline=min(2**power // tensor, config.num_hidden_layers))
        if serving_weights(config, layout, plan.weight_precision) <= 0.7e9 * setting.device.memory_gb:
            break
    return layout


def drawing(setting: Setting, prompt_tokens: int, reply_tokens: int, most_rows: float | None = None) -> Pace:
    """The pace of drawing replies, reading their prompts included, on one copy of the model, at most so many at once.

    As many replies are under way as memory holds.
    """
    plan, config, device, layout = setting.plan, setting.config, setting.device, draw_layout(setting)
    group, precision = layout.devices, plan.weight_precision
    peak = device.flops(plan.precision)
    context = prompt_tokens + reply_tokens / 2  # on average
    weights = serving_weights(config, layout, precision)
    room = 0.9e9 * device.memory_gb - weights
    rows = max(1.0, room / cache_bytes(config, layout, prompt_tokens + reply_tokens))  # of one copy
    wanted = plan.serve.rows if most_rows is None else most_rows
    rows = min(rows, wanted) if wanted is not None else rows
    read = weights_read(config, layout, precision, rows) + cache_bytes(config, layout, rows * context)
    products = rows * forward_flops(config, [1], firsts=[round(context)]) / group
    by_memory = read / (1e9 * device.bandwidth_gb_s * plan.bandwidth_use)
    by_products = products / (peak * plan.decode_mfu)
    prompts = rows * forward_flops(config, [prompt_tokens]) / group / (peak * setting.mfu) / reply_tokens  # a step's
    seconds = max(by_memory, by_products) + prompts
    bound = "memory" if by_memory > by_products else "products"
    return Pace(rows / group / seconds, rows / group, seconds, bound, layout, room > 0)


def serving(setting: Setting) -> dict[str, Any]:
    """Pace, memory and the price of a million tokens drawn."""
    serve = setting.plan.serve
    pace = drawing(setting, serve.prompt_tokens, serve.reply_tokens)
    cost = setting.cost("serving", 1e6 / pace.tokens_per_s / 3600)  # of a device, for a million tokens
    return {
        "tokens_per_s_per_device": pace.tokens_per_s,
        "tokens_per_s_per_reply": 1 / pace.step_s,
        "rows_per_device": pace.rows,
        "bound_by": pace.bound_by,
        "layout": pace.layout.model_dump(),
        "usd_per_million_tokens": cost.usd,
        "kwh_per_million_tokens": cost.kwh,
        "fits": pace.fits,
    }


def memory(setting: Setting) -> dict[str, Memory]:
    """The fullest device in training (pretraining and SFT), in RL where training and drawing take turns on the same
    devices, and in serving."""
    plan, config, rl, serve = setting.plan, setting.config, setting.plan.rl, setting.plan.serve
    training = training_memory(config, plan)

    def drawn(prompt: int, reply: int, most: int | None) -> tuple[float, float]:
        pace = drawing(setting, prompt, reply, most)
        tokens = pace.rows * pace.layout.devices * (prompt + reply)
        return serving_weights(config, pace.layout, plan.weight_precision), cache_bytes(config, pace.layout, tokens)

    weights, kv = drawn(rl.prompt_tokens, rl.reply_tokens, rl.prompts * rl.group)
    served, served_kv = drawn(serve.prompt_tokens, serve.reply_tokens, None)
    one_row = cache_bytes(config, draw_layout(setting), rl.prompt_tokens + rl.reply_tokens)
    room = 0.9e9 * setting.device.memory_gb - training.total - weights  # the cache takes what training leaves
    return {
        "training": training,
        "rl": replace(training, kv=min(kv, max(one_row, room)), rollouts=weights),
        "serving": Memory(weights=served, kv=served_kv),
    }
