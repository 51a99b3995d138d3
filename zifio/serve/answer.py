"""Answers as they go out: news of the engine, watched over by time limits and by whether anybody still listens.

Try it alone: `pytest tests/serve/test_disconnect.py`
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from zifio.engine.request import Event
from zifio.loopback import to_json
from zifio.serve.asked import Asked
from zifio.serve.connection import hang_up
from zifio.serve.refused import Form, Refused, form_of
from zifio.serve.reply import Delta
from zifio.serve.settings import ServeConfig
from zifio.serve.worker import Ticket

_GRACE_S = 2.0  # beyond its time, for an answer to tell that the time is over
Events = AsyncIterator[tuple[int, Event] | None]
"""(which reply, what the engine did for it); None where nothing happened for a while."""
KEEP_ALIVE, PING, BLANK = b": keep-alive\n\n", b'event: ping\ndata: {"type": "ping"}\n\n', b"\n"
QUIET = frozenset((KEEP_ALIVE, PING, BLANK))
"""What is sent where nothing happened for a while, to streams and before whole answers."""


class Writer(Protocol):
    """An answer in the form of one interface. Its generators raise Refused."""

    def whole(self) -> AsyncGenerator[bytes, None]:
        """One body as the last line, blank ones before it while it takes long."""
        ...

    def stream(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events."""
        ...

    def failed(self, refused: Refused) -> bytes:
        """How a stream ends that has begun and cannot go on."""
        ...


def sent(value: Any, name: str = "") -> bytes:
    """A server-sent event."""
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + to_json(value) + b"\n\n"


async def deltas(asked: Asked, ticket: Ticket, config: ServeConfig) -> AsyncGenerator[Delta | None, None]:
    """What is new of a chat's replies, as it comes. Raises Refused."""
    async with contextlib.aclosing(events(ticket, config)) as news:
        async for item in news:
            if item is None:
                yield None
                continue
            place, event = item
            delta = asked.voices[place].feed(event)
            if not delta.is_empty:
                yield delta


async def events(ticket: Ticket, config: ServeConfig) -> AsyncGenerator[tuple[int, Event] | None, None]:
    """What becomes of a request, until all its replies have ended. Raises Refused when the engine or the time fails.

    What came while nobody took it comes as one event.
    """
    left = len(ticket.request.seeds)
    end = time.monotonic() + config.request_s
    while left:
        notes = await ticket.notes(min(config.keep_alive_s, end - time.monotonic()))
        if time.monotonic() >= end:
            raise Refused(504, f"The reply took longer than {config.request_s:g} s.", code="timeout")
        if not notes:
            yield None
        for note in notes:
            if note.fault is not None:
                status, code, message = note.fault
                raise Refused(status, message, code=code, retry_s=1 if status == 503 else None)
            assert note.event is not None
            done = note.event.completion
            if done is not None:
                left -= 1
                if done.finish == "refused":
                    raise Refused(400, done.reason)
            yield note.place, note.event


class Answer(Response):
    """A response whose bytes come from `lines`, in a stream or, for one body, with blank lines while it waits.

    The engine stops as soon as nobody listens any more; who takes the bytes too slowly is hung up on; `over` is called
    in the end, whatever comes.
    """

    def __init__(
        self,
        tickets: Sequence[Ticket],
        lines: AsyncIterator[bytes],
        failed: Callable[[Refused], bytes] | None,
        over: Callable[[], None],
        headers: dict[str, str],
        most_s: float,
    ) -> None:
        """`failed` tells the end of a stream that cannot go on; None: this is one body.

        `most_s`: how long it may take.
        """
        super().__init__()
        self.tickets, self.lines, self.failed, self.over = tickets, lines, failed, over
        kind = "text/event-stream; charset=utf-8" if failed else "application/json"
        self.more = {"content-type": kind, "cache-control": "no-cache", **headers}
        self.most_s = most_s + _GRACE_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all, or as much as is wanted."""
        sending = asyncio.ensure_future(self._send(send, form_of(scope["path"])))
        watching = asyncio.ensure_future(_gone(receive))
        try:
            done, _ = await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED, timeout=self.most_s)
            if sending.done():
                sending.result()
            elif not done:
                hang_up(scope)
        finally:
            self.over()
            for ticket in self.tickets:
                ticket.cancel()
            for task in (sending, watching):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    async def _send(self, send: Send, form: Form) -> None:
        is_begun = False

        async def begin(status: int, headers: dict[str, str]) -> None:
            both = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": status, "headers": both})

        async def body(line: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": line, "more_body": more})

        last = b""
        try:
            async for line in self.lines:
                is_last = self.failed is None and line not in QUIET  # one body in one piece, if there was no wait
                if not is_begun:
                    await begin(200, self.more | ({"content-length": str(len(line))} if is_last else {}))
                    is_begun = True
                if is_last:
                    last = line
                else:
                    await body(line)
        except Refused as refused:
            last = to_json(refused.body(form))
            if not is_begun:
                await begin(refused.status, {"content-type": "application/json", **refused.headers()})
            elif self.failed is not None:
                last = self.failed(refused)
        self.over()  # before the client knows that it has all, and asks again
        await body(last, more=False)


async def _gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return
