"""What this machine serves: who may ask, what keeps foreign code out, and the port it listens at.

Try it alone: `pytest tests/label/test_app.py tests/board/test_board_app.py tests/serve/test_limits.py`
"""

import ipaddress
import json
import re
import socket
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zifio.config import ConfigError

LONGEST_BODY = 1 << 20
_SHARED = Path(__file__).with_name("page")
LOOPBACK_NAME = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)
"""What a browser on this machine puts into `Host`. A page from elsewhere may have bound a name of its own to us."""
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def to_json(value: Any) -> bytes:
    """JSON in ASCII: no text of a model is too strange for it."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


class AsciiJSON(JSONResponse):
    """An answer as `to_json` writes it."""

    def render(self, content: Any) -> bytes:
        """The bytes of an answer."""
        return to_json(content)


def closed(send: Send, shows_pictures: bool = False) -> Send:
    """As `send`, with the headers that keep foreign code out of whatever is answered.

    `shows_pictures`: those that the page itself holds, as data URLs.
    """
    headers = dict(_HEADERS)
    if shows_pictures:
        policy = headers["content-security-policy"]
        headers["content-security-policy"] = policy.replace("img-src 'self'", "img-src 'self' data:")

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            more = [(name.encode(), value.encode()) for name, value in headers.items()]
            message["headers"] = [*message["headers"], *more]
        await send(message)

    return sending


class Guard:
    """Refuses what no page of ours sends: another host's name (which a foreign page could have bound to this machine),
    bodies without an end. Adds the headers that keep foreign code out."""

    def __init__(self, app: ASGIApp, alone: bool, what: str) -> None:
        """`alone`: only this machine can reach it; `what` it is, in words."""
        self._app, self._alone, self._what = app, alone, what

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        length = headers.get("content-length", "0")
        refusal = None
        if self._alone and not LOOPBACK_NAME.fullmatch(headers.get("host", "")):
            refusal = (403, f"This {self._what} answers to localhost only.")
        elif "transfer-encoding" in headers or not length.isdecimal() or int(length) > LONGEST_BODY:
            refusal = (413, f"Wanted at most {LONGEST_BODY} bytes.")

        if refusal is None:
            await self._app(scope, receive, closed(send))
        else:
            await AsciiJSON({"error": refusal[1]}, status_code=refusal[0])(scope, receive, closed(send))


def add_page(app: Starlette, folder: Path) -> None:
    """Serve a page: its index.html at /, its files under /page, and what all our pages share under /shared."""

    async def index(_: Request) -> FileResponse:
        return FileResponse(folder / "index.html", headers={"cache-control": "no-cache"})

    app.add_route("/", index)
    app.mount("/page", StaticFiles(directory=folder), name="page")
    app.mount("/shared", StaticFiles(directory=_SHARED), name="shared")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """(a socket that listens there, its address as a browser wants it). Raises ConfigError where the port is taken."""
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"--port {port}: wanted a free port on {host}, came: {error.strerror}. Choose another."
        ) from None
    # Answers go out as head and body; without this the body waits 40 ms for the head's receipt. asyncio sets it only on
    # sockets that name their protocol, which those of `create_server` do not.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    shown = f"[{host}]" if ":" in host else host
    return listening, f"http://{shown}:{listening.getsockname()[1]}"


def serve_until_stopped(app: ASGIApp, listening: socket.socket) -> None:
    """Answer until Ctrl-C or SIGTERM, and then for at most 5 s what has been asked already."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=30,  # clients keep a connection for longer than uvicorn's 5 s, and would meet a closed one
    )
    with listening:
        uvicorn.Server(config).run(sockets=[listening])
