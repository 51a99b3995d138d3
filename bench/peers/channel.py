"""What every worker speaks: JSON lines. Standard library only, for it runs in each peer's own environment.

    worker -> {"ready": true, "version": "5.23.0", "note": "dynamic cache"}
    parent -> {"go": 3}                            the number of the round, from which random numbers follow
    worker -> {"seconds": 4.1, "tokens": 12288, "peak_rss": 1.2e9, "lengths": [96, 96]}
    worker -> {"error": "why"}                     at any time; then it ends

What libraries print goes to stderr: the real stdout is kept for the lines above.

Try it alone: `echo '{"go": 0}' | python bench/peers/ours.py WORK.json`
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LONG_ROUND_S = 5.0
Job = dict[str, Any]
"""What to do: the contents of WORK.json (bench/work.py says what is in it)."""


@dataclass
class Done:
    """One round's result: how many tokens it made or learnt from, and the length of each reply."""

    tokens: int
    lengths: list[int] = field(default_factory=list)


class Absent(Exception):
    """This system cannot do this work; the message says why. It is reported, and the others go on."""


class Channel:
    """The worker's end of the line. Made before any library is imported, so that no print of theirs slips in."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.began = 0.0

    def ready(self, version: str, note: str = "") -> None:
        """Everything is loaded; `note` tells which settings were taken. Peak memory counts from here, so that neither
        loading nor what was tried and not taken is in it."""
        forget_peak()
        self._send({"ready": True, "version": version, "note": note})

    def wait(self) -> int:
        """The number of the next round, once the parent asks for it. Ends the process when nobody will."""
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        self.began = time.perf_counter()
        return int(json.loads(line)["go"])

    def done(self, result: Done) -> None:
        """The round is over; its seconds run from the last `wait`. On a GPU its memory is what counts."""
        gpu = _gpu()
        if gpu:
            gpu.synchronize()
        seconds = time.perf_counter() - self.began
        peak = gpu.max_memory_reserved() if gpu else peak_rss_bytes()
        self._send({"seconds": seconds, "tokens": result.tokens, "lengths": result.lengths, "peak_rss": peak})
        if seconds > LONG_ROUND_S:  # others work now, and may need the memory; short rounds would feel its return
            give_back()

    def error(self, reason: str) -> None:
        """Say why there will be no result."""
        self._send({"error": reason})

    def _send(self, message: dict[str, Any]) -> None:
        self.out.write(json.dumps(message) + "\n")
        self.out.flush()


def run(work: Callable[[Job, Channel], None]) -> None:
    """The main function of every worker: read the job of argv[1], do it, and turn a failure into one line."""
    channel = Channel()
    job: Job = json.loads(Path(sys.argv[1]).read_text())
    try:
        work(job, channel)
    except Absent as reason:
        channel.error(str(reason))
    except Exception as error:
        channel.error(f"{type(error).__name__}: {error}"[:600])
        raise


def rounds(channel: Channel, once: Callable[[int], Done]) -> None:
    """Do the rounds that the parent asks for, one after the other."""
    while True:
        channel.done(once(channel.wait()))


def fastest(candidates: dict[str, Callable[[], object]]) -> str:
    """The name of the quickest of several ways to do the same small piece of work, by the best of three after one that
    does not count: the machine's own noise must not choose.

    A way that raises is out. Raises Absent when none works.
    """
    seconds: dict[str, float] = {}
    reasons: list[str] = []
    for name, way in candidates.items():
        try:
            way()
            tries = []
            for _ in range(3):
                began = time.perf_counter()
                way()
                tries.append(time.perf_counter() - began)
            seconds[name] = min(tries)
        except Exception as error:  # a peer's own failure, whatever it is: that way is no candidate
            reasons.append(f"{name}: {type(error).__name__}: {error}"[:200])
    if not seconds:
        raise Absent("; ".join(reasons))
    return min(seconds, key=lambda name: seconds[name])


def _gpu() -> Any:
    """torch.cuda where this process uses it, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def peak_rss_bytes() -> int:
    """The most memory that this process and, where Linux tells, its children have held."""
    if not Path("/proc/self/status").exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return sum(_peak(pid) for pid in _family(os.getpid()))


def forget_peak() -> None:
    """Begin a new peak of memory, where Linux lets us."""
    give_back()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_back() -> None:
    """Give unused memory back to the machine, where the C library can."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _peak(pid: int) -> int:
    """VmHWM. Unlike ru_maxrss it does not begin with what the parent held when it started us."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    parent_of: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            parent_of[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for member in found:
        found += [child for child, parent in parent_of.items() if parent == member]
    return found
