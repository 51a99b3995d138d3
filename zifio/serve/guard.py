"""What stands before the application: foreign pages, bodies without an end, and the headers of every answer.

Try it alone: `pytest tests/serve/test_limits.py`
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zifio.loopback import LOOPBACK_NAME, AsciiJSON, closed
from zifio.serve.refused import Refused, form_of
from zifio.serve.settings import ServeConfig


class Guard:
    """Reads the whole body, within its limits of size and time, before anybody else sees the request."""

    def __init__(self, app: ASGIApp, config: ServeConfig, alone: bool) -> None:
        """`alone`: the server is reached from this machine only, and answers to no other name."""
        self._app, self._config, self._alone = app, config, alone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request in, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = closed(send, shows_pictures=True)
        try:
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            if self._alone and not LOOPBACK_NAME.fullmatch(headers.get(b"host", "")):
                raise Refused(403, "This server answers to localhost only.")
            body = await self._body(headers.get(b"content-length", ""), receive)
        except Refused as refused:
            headers = {"connection": "close", **refused.headers()}
            await AsciiJSON(refused.body(form_of(scope["path"])), refused.status, headers)(scope, receive, send)
            return
        if body is None:
            return
        told = False

        async def receiving() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receiving, send)

    async def _body(self, length: str, receive: Receive) -> bytes | None:
        """The body; None where the client left before it was whole."""
        most = self._config.max_body_bytes
        if length.isdecimal() and int(length[:20]) > most:
            raise Refused(413, f"Wanted a request of at most {most} bytes, came {length[:20]}.")
        body = bytearray()
        try:
            async with asyncio.timeout(self._config.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise Refused(413, f"Wanted a request of at most {most} bytes.")
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise Refused(408, f"Wanted the whole request within {self._config.body_s:g} s.") from None
