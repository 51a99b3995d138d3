"""Clients of a server of chat completions, many at once in one process, with as little work of their own as can be.

Each asks over one connection after the other's answer, in HTTP as plain as it gets; some hang up in the middle of a
stream. Run by `bench/serve.py` as a process of its own: it reads a job as JSON and writes what came of it.

Try it alone: `python -m bench.callers '{"port": 8000, "bodies": ["{...}"], "at_once": 4}'`
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

_FIRST = re.compile(rb'"(?:content|reasoning_content|reasoning|text)": ?"[^"]')
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_END = b"0\r\n\r\n"
LONGEST_S = 300.0


@dataclass
class Found:
    """What came of it."""

    n: int = 0
    n_dropped: int = 0
    tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Caller(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answered: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.answered is not None and not self.answered.done():
            self.answered.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.answer += data
        if self.first is None and _FIRST.search(data):
            self.first = time.perf_counter()
        if self.drop_at and len(self.answer) > self.drop_at and self.transport is not None:
            self.transport.abort()
        if self._is_whole() and self.answered is not None and not self.answered.done():
            self.answered.set_result(None)

    async def ask(self, port: int, request: bytes, drop_at: int) -> None:
        """Send a request, and wait for its whole answer or for as many bytes as are wanted of it."""
        self.answer, self.first, self.drop_at = bytearray(), None, drop_at
        self._length: int | None = None
        loop = asyncio.get_running_loop()
        self.answered = loop.create_future()
        if self.transport is None:
            await loop.create_connection(lambda: self, "127.0.0.1", port)
        assert self.transport is not None
        self.transport.write(request)
        await asyncio.wait_for(self.answered, LONGEST_S)

    def _is_whole(self) -> bool:
        if self._length is None:
            head, found, _ = bytes(self.answer[:4000]).partition(b"\r\n\r\n")
            if not found:
                return False
            told = _LENGTH.search(head)
            self._length = len(head) + 4 + int(told[1]) if told else 0
        return len(self.answer) >= self._length if self._length else self.answer.endswith(_END)


async def call(job: dict[str, Any]) -> dict[str, Any]:
    """All callers until the bodies are through or, with `seconds`, the time is."""
    found, chance = Found(), random.Random(0)
    bodies = [body.encode() for body in job["bodies"]]
    todo = iter(bodies) if not job.get("seconds") else cycle(bodies)
    began = time.perf_counter()

    async def one() -> None:
        caller = Caller()
        for body in todo:
            if job.get("seconds") and time.perf_counter() - began > job["seconds"]:
                break
            is_dropped = chance.random() < job.get("dropped", 0)
            await _ask(caller, job, body, chance.randrange(300, 3000) if is_dropped else 0, found)

    await asyncio.gather(*(one() for _ in range(job["at_once"])))
    seconds = time.perf_counter() - began
    return {
        "requests": found.n, "dropped": found.n_dropped, "errors": len(found.errors), "told": found.errors[:5],
        "tokens": found.tokens, "seconds": round(seconds, 2), "requests_per_s": round(found.n / seconds, 1),
        "tokens_per_s": round(found.tokens / seconds, 1), "first_token_ms": percentiles(found.first_s),
        "whole_ms": percentiles(found.whole_s), "client_cpu_s": round(time.process_time(), 2),
    }  # fmt: skip


async def _ask(caller: Caller, job: dict[str, Any], body: bytes, drop_at: int, found: Found) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:{job['port']}\r\nContent-Type: application/json\r\n"
    start = time.perf_counter()
    try:
        await caller.ask(job["port"], f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, drop_at)
    except (OSError, TimeoutError) as error:
        found.errors.append(repr(error))
        return
    answer = bytes(caller.answer)
    if drop_at and caller.transport is None and len(answer) > drop_at:
        found.n_dropped += 1
        return
    told = _TOKENS.findall(answer)
    if not answer.startswith(b"HTTP/1.1 200") or b'"error"' in answer or not told:
        found.errors.append(answer[-300:].decode(errors="replace"))
        return
    found.n += 1
    found.tokens += int(told[-1])
    found.whole_s.append(time.perf_counter() - start)
    if caller.first is not None:
        found.first_s.append(caller.first - start)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(seconds) or [0.0]
    return {f"p{p}": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * p // 100)], 1) for p in (50, 95, 99)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(call(json.loads(sys.stdin.read() if len(sys.argv) < 2 else sys.argv[1])))))
