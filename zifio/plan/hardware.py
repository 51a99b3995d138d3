"""Machines: the table `hardware.toml`, and one's own, as `zifio plan --probe` measured it.

Try it: `python -c "from zifio.plan.hardware import devices; print(devices()['h800'])"`
"""

from __future__ import annotations

import json
import os
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat

from zifio.config import Config, ConfigError, build, read_toml, suggestion

Precision = Literal["fp32", "bf16", "fp8"]
BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp8": 1}
"""Of a number."""
MINE = "this"
"""What one's own machine is called."""


class Device(Config):
    """What one device can do at most, draws and costs."""

    name: str
    """In words."""
    peak: dict[Precision, PositiveFloat]
    """TFLOPS by the precision of matrix products, dense."""
    memory_gb: PositiveFloat
    """Memory."""
    bandwidth_gb_s: PositiveFloat
    """Between memory and whatever computes."""
    watts: NonNegativeFloat = 0.0
    """The most that it draws; 0 for unknown."""
    usd_per_hour: NonNegativeFloat | None = None
    """Rent."""
    source: str
    """Where peak, memory and watts are from."""
    read: date
    """When that was read, or measured."""
    price_source: str | None = None
    """Where the price is from."""
    price_date: date | None = None
    """When that was so."""

    def flops(self, precision: Precision) -> float:
        """Peak FLOP/s in this precision, or in the next wider one that the device has."""
        order: list[Precision] = ["fp8", "bf16", "fp32"]
        wider = order[order.index(precision) :]
        known = next((self.peak[one] for one in wider if one in self.peak), None)
        if known is None:
            raise ConfigError(
                f"precision: wanted one of {', '.join(self.peak)}, which {self.name} has, came {precision!r}. Set "
                f"precision={next(iter(self.peak))}."
            )
        return known * 1e12


class _Table(Config):
    devices: dict[str, Device]


@lru_cache
def devices() -> dict[str, Device]:
    """The devices of `hardware.toml` by their short names."""
    return build(_Table, {"devices": read_toml(Path(__file__).with_name("hardware.toml"))}, "hardware.toml").devices


def find_device(name: str) -> Device:
    """A device of the table, or one's own. Raises ConfigError when there is none, or it was not probed yet."""
    if name == MINE:
        return read_probe()
    known = devices()
    if name.lower() not in known:
        hint = suggestion(name, known) or f"Or {MINE}, which is measured once by zifio plan --probe."
        raise ConfigError(f"hardware: wanted one of {', '.join(known)}, came {name!r}. {hint}")
    return known[name.lower()]


def probe_file() -> Path:
    """Where the measurements of this machine are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "zifio" / "hardware.json"


def read_probe() -> Device:
    """This machine as it was measured. Raises ConfigError when it was not."""
    try:
        found = json.loads(probe_file().read_text())
    except (OSError, ValueError):
        raise ConfigError(
            f"hardware: wanted measurements of this machine in {probe_file()}, came none. Measure it, in at most a "
            "minute: zifio plan --probe"
        ) from None
    return build(Device, found, str(probe_file()))


def write_probe(device: Device) -> None:
    """Keep the measurements of this machine."""
    probe_file().parent.mkdir(parents=True, exist_ok=True)
    probe_file().write_text(device.model_dump_json(indent=1) + "\n")
