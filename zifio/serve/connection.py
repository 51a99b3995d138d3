"""Connections and the server around them: heads that never end, clients that never read, and an orderly end.

Try it alone: `pytest tests/serve/test_hostile_requests.py tests/serve/test_verb.py`
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Generator, MutableMapping
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from zifio.loopback import to_json
from zifio.serve.refused import Refused

_GRACE_S = 5  # behind the end of the drain, for errors to be told
_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_NO_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
)


class Connection(H11Protocol):
    """A connection whose requests must begin in time, whose client must read, and that can be cut."""

    PATIENCE_S = 30.0
    """How long the head of a request may take, a new connection be silent, or a client take nothing of what it gets
    (the last on Linux only; elsewhere the time of the whole reply bounds it)."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody has come."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "hang_up": transport.abort}
        self._late = self.loop.call_later(self.PATIENCE_S, self._too_late)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            line = transport.get_extra_info("socket")
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * self.PATIENCE_S))

    def data_received(self, data: bytes) -> None:
        """Something has come: the rest of a head, or not yet."""
        super().data_received(data)
        waits = self.cycle is None or self.cycle.response_complete
        if self._late is not None and not waits:
            self._late.cancel()
            self._late = None
        elif self._late is None and waits:
            self._late = self.loop.call_later(self.PATIENCE_S, self._too_late)

    def send_400_response(self, msg: str) -> None:
        """Tell somebody that this was no HTTP, as JSON like every other refusal."""
        cycle, body = self.cycle, to_json(Refused(400, msg).body())
        if cycle is None or cycle.response_complete or not cycle.response_started:  # else it would stand inside of that
            self.transport.write(_NO_HTTP % (len(body), body))
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Somebody has gone."""
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _too_late(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_LATE)
            self.transport.close()


def hang_up(scope: MutableMapping[str, Any]) -> None:
    """Cut a request's connection, whatever is still to be sent."""
    if (cut := scope.get("state", {}).get("hang_up")) is not None:
        cut()


class Server(uvicorn.Server):
    """Ends in order: who is under way may go on for a while, and is then told that it is over."""

    def __init__(self, app: ASGIApp, drain_s: float, end: Callable[[], None]) -> None:
        """`end` ends what is under way."""
        config = uvicorn.Config(
            app,
            http=Connection,
            log_level="error",  # its warnings repeat what clients are told
            access_log=False,
            timeout_graceful_shutdown=round(drain_s) + _GRACE_S,
            timeout_keep_alive=30,  # clients keep a connection for longer than uvicorn's 5 s
        )
        super().__init__(config)
        self._drain_s, self._end = drain_s, end

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn does, but SIGTERM is an order that has been carried out, not a death: exit code 0."""
        with super().capture_signals():
            yield
            self._captured_signals = [one for one in self._captured_signals if one != signal.SIGTERM]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """No new requests; those under way end by themselves or, after the drain, by us."""
        late = asyncio.get_running_loop().call_later(self._drain_s, self._end)
        await super().shutdown(sockets)
        late.cancel()
