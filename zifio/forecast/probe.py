"""What this machine can do: products, memory, in at most a minute.

Try it: `zifio plan --probe`
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime

import torch

from zifio.kernels import operators as kernels
from zifio.log import cores
from zifio.plan.hardware import Device, Precision

_SECONDS = 4.0
"""Of each measurement; the best of several counts, for others may be at work."""


def probe() -> Device:
    """Measure this machine: its GPU where there is one, else its processors."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak: dict[Precision, float] = {"fp32": _products(device, torch.float32)}
    peak["bf16"] = _products(device, torch.bfloat16)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    else:
        name = f"{_processor()}, {cores()} processors"
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(
        name=name,
        peak=peak,
        memory_gb=memory / 1e9,
        bandwidth_gb_s=_bandwidth(device),
        source="measured here: large products and copies, the best of several",
        read=datetime.now(UTC).date(),
    )


def _products(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOPS of a large product, by our kernels where they serve and by torch."""
    n = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    forms: list[Callable[[], object]] = [lambda: left @ right]
    if kernels.native(left):
        forms.append(lambda: kernels.linear(left, right))
    return max(2 * n**3 / _best(form, device) for form in forms) / 1e12


def _bandwidth(device: torch.device) -> float:
    """GB/s of a large copy, which reads and writes."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device) / 1e9


def _best(work: Callable[[], object], device: torch.device) -> float:
    """The least seconds of one call."""
    best, until = float("inf"), time.perf_counter() + _SECONDS
    work()
    while best == float("inf") or time.perf_counter() < until:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best


def _processor() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
