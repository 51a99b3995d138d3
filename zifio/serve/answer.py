"""Answers as they go out: news of the engine, watched over by time limits and by whether anybody still listens.

Try it alone: `pytest tests/serve/test_disconnect.py`
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from zifio.engine.engine import Event
from zifio.loopback import to_json
from zifio.serve.refused import Refused
from zifio.serve.settings import ServeConfig
from zifio.serve.worker import Ticket

Events = AsyncIterator[tuple[int, Event] | None]
"""(which reply, what the engine did for it); None where nothing happened for a while."""


async def events(ticket: Ticket, config: ServeConfig) -> AsyncGenerator[tuple[int, Event] | None, None]:
    """What becomes of a request, until all its replies have ended. Raises Refused when the engine or the time fails."""
    left = len(ticket.request.seeds)
    end = time.monotonic() + config.request_s
    while left:
        patience = min(config.keep_alive_s, end - time.monotonic())
        try:
            note = await asyncio.wait_for(ticket.notes.get(), max(patience, 0))
        except TimeoutError:
            if time.monotonic() >= end:
                raise Refused(504, f"The reply took longer than {config.request_s:g} s.", code="timeout") from None
            yield None
            continue
        if note.event is None:
            raise Refused(500, note.fault, code="engine_failed")
        done = note.event.completion
        if done is not None:
            left -= 1
            if done.finish == "refused":
                raise Refused(400, done.reason)
        yield note.place, note.event


class Answer(Response):
    """A response whose bytes come from `lines`, in a stream or, for one body, with blank lines while it waits.

    The engine stops as soon as nobody listens any more; `over` is called in the end, whatever comes.
    """

    def __init__(
        self,
        tickets: Sequence[Ticket],
        lines: AsyncIterator[bytes],
        is_stream: bool,
        over: Callable[[], None],
        headers: dict[str, str],
    ) -> None:
        super().__init__()
        self.tickets, self.lines, self.is_stream, self.over = tickets, lines, is_stream, over
        kind = "text/event-stream; charset=utf-8" if is_stream else "application/json"
        self.more = {"content-type": kind, "cache-control": "no-cache", **headers}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all, or as much as is wanted."""
        sending = asyncio.ensure_future(self._send(send))
        watching = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self.over()
            for ticket in self.tickets:
                ticket.cancel()
            for task in (sending, watching):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    async def _send(self, send: Send) -> None:
        is_begun = False

        async def begin(status: int, headers: dict[str, str]) -> None:
            both = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": status, "headers": both})

        try:
            async for line in self.lines:
                if not is_begun:
                    await begin(200, self.more)
                    is_begun = True
                await send({"type": "http.response.body", "body": line, "more_body": True})
        except Refused as refused:
            body = to_json(refused.body())
            if not is_begun:
                await begin(refused.status, {"content-type": "application/json", **refused.headers()})
            elif self.is_stream:
                body = b"data: " + body + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
        self.over()  # before the client knows that it has all, and asks again
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return
