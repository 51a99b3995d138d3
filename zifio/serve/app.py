"""The routes: OpenAI's, DeepSeek's and Anthropic's paths, with and without /v1, over the models that are served.

Try it alone: `zifio serve runs/quickstart/r1/model`
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from zifio.config import ConfigError
from zifio.log import say
from zifio.loopback import AsciiJSON, add_page, to_json
from zifio.serve.answer import QUIET, Answer, Writer
from zifio.serve.asked import Asked, ask_chat
from zifio.serve.chat import ChatAnswer
from zifio.serve.completions import CompletionAnswer, ask_completion
from zifio.serve.gate import Gate
from zifio.serve.guard import Guard
from zifio.serve.images import ImageAnswer, ImageRequest, ask_image
from zifio.serve.messages_in import MessageCount, MessageRequest, ask_message, count_message
from zifio.serve.messages_out import MessageAnswer
from zifio.serve.metrics import Metrics
from zifio.serve.model import Served
from zifio.serve.news import Fault
from zifio.serve.refused import Refused, form_of
from zifio.serve.request import ChatRequest, CompletionRequest, Drawing
from zifio.serve.responses_in import ResponseRequest, ask_response
from zifio.serve.responses_out import ResponseAnswer
from zifio.serve.settings import ServeConfig, Thinks
from zifio.serve.worker import Ticket

PAGE = Path(__file__).parent / "page"
PREFIXES = ("/v1", "", "/beta", "/beta/v1", "/anthropic/v1", "/anthropic")
"""Where the routes are found; the first of them is in the OpenAPI page."""
_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": about, "content": {"application/json": {"schema": {"type": "object"}}}}
    for status, about in {
        200: "The answer, or server-sent events with `stream`.", 400: "The request is wrong.", 401: "The key is.",
        404: "There is no such model.", 408: "The request was too slow.", 413: "The request is too long.",
        429: "Too many requests.", 500: "The engine failed.", 503: "The server is full.", 504: "It took too long.",
    }.items()
}  # fmt: skip
Ask = Callable[[Served, Any, ServeConfig, Thinks], list[Asked]]
"""What a body asks of the engine. Raises Refused or ConfigError."""
Write = Callable[[Served, Any, list[Asked], list[Ticket], ServeConfig], Writer]
"""What writes the answer to it."""
_T = TypeVar("_T")
_SHORT = 4096  # bytes of a request that a thread would only delay


class Server:
    """The models, who may use them, and what is counted."""

    def __init__(self, models: Mapping[str, Served], config: ServeConfig, keys: Mapping[str, str]) -> None:
        self.models, self.config = models, config
        self.gate, self.metrics = Gate(keys, config), Metrics(models)

    def find(self, name: str) -> tuple[Served, Thinks]:
        """A model by its name or an alias, and whether it thinks under that. Raises Refused."""
        alias = self.config.alias(name)
        found = self.models.get(name if alias is None else alias.model)
        if found is None:
            known = ", ".join([*self.models, *self.config.aliases])
            raise Refused(404, f"model: wanted one of {known}; came {name[:100]!r}.", "model", "model_not_found")
        return found, "default" if alias is None else alias.thinking

    def listed(self) -> list[dict[str, Any]]:
        """The models as OpenAI lists them, and Anthropic."""
        names = [(name, name) for name in self.models]
        names += [(name, alias.model) for name in self.config.aliases if (alias := self.config.alias(name))]
        return [
            {"id": name, "object": "model", "created": self.models[of].created, "owned_by": "zifio"}
            | {"max_model_len": self.models[of].longest}
            | _modalities(self.models[of])
            | {"type": "model", "display_name": name, "created_at": _moment(self.models[of].created)}
            for name, of in names
        ]

    async def answer(self, body: Drawing, request: Request, ask: Ask, write: Write) -> Response:
        """Ask the engine, and answer as it goes. Raises Refused."""
        if body.temperature is None:
            body.temperature = self.config.temperature
        leave = self.gate.enter(self.gate.who(request.headers))
        tickets: list[Ticket] = []
        try:
            served, thinking = self.find(body.model)
            is_short = len(await request.body()) <= _SHORT and body.is_light()
            asked = await _understood(is_short, ask, served, body, self.config, thinking)
            for one in asked:
                tickets.append(served.worker.ask(one.request, bool(body.stream)))
            writer = write(served, body, asked, tickets, self.config)
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            leave()
            raise
        headers = {"x-zifio-warning": asked[0].warning} if asked[0].warning else {}
        if self.config.log_requests:
            say(f"{served.name}: asked {to_json(body.model_dump(exclude_none=True)).decode()}")
        lines = self._timed(served.name, tickets, writer.stream() if body.stream else writer.whole())
        return Answer(tickets, lines, writer.failed if body.stream else None, leave, headers, self.config.request_s)

    async def count(self, body: MessageCount, request: Request) -> int:
        """The tokens of a prompt. Raises Refused."""
        leave = self.gate.enter(self.gate.who(request.headers))
        try:
            served, thinking = self.find(body.model)
            return await _understood(False, count_message, served, body, self.config, thinking)
        finally:
            leave()

    def end(self) -> None:
        """End all that is under way; everybody is told."""
        for served in self.models.values():
            served.worker.end(Fault(503, "shutting_down", "The server was told to end, and could wait no longer."))

    async def _timed(
        self, model: str, tickets: Sequence[Ticket], lines: AsyncGenerator[bytes, None]
    ) -> AsyncIterator[bytes]:
        """The lines, with their times taken."""
        begin, is_first, fault = time.monotonic(), True, "abort"
        try:
            async with contextlib.aclosing(lines):
                async for line in lines:
                    if is_first and line not in QUIET:
                        self.metrics.first_token(model, time.monotonic() - begin)
                        is_first = False
                    yield line
            fault = ""
        except Refused:
            fault = "error"
            raise
        finally:
            finishes = [finish for ticket in tickets for finish in ticket.finishes]
            self.metrics.ended(model, [fault] if fault else finishes, time.monotonic() - begin)


async def _understood(is_short: bool, read: Callable[..., _T], *given: Any) -> _T:
    """What `read` makes of a request; others need not wait while schemas and books are read. Raises Refused."""
    try:
        return read(*given) if is_short else await asyncio.to_thread(read, *given)
    except (ConfigError, RecursionError) as error:
        raise Refused(400, str(error) or "The request is too deep.") from None


def make_app(
    models: Mapping[str, Served], config: ServeConfig, keys: Mapping[str, str] | None = None, alone: bool = True
) -> FastAPI:
    """The application; `alone`: only this machine reaches it."""
    server = Server(models, config, keys or {})

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncGenerator[None, None]:
        yield
        for served in models.values():
            await asyncio.to_thread(served.worker.stop)

    app = FastAPI(title="zifio", lifespan=running, docs_url=None, redoc_url=None)
    app.state.end = server.end
    app.add_middleware(Guard, config=config, alone=alone)  # type: ignore[arg-type]
    for kind in (Refused, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _explained)
    router = _routes(server)
    for place, prefix in enumerate(PREFIXES):
        app.include_router(router, prefix=prefix, include_in_schema=place == 0)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server is up."""
        return {"status": "ok"}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    add_page(app, PAGE)
    return app


def _routes(server: Server) -> APIRouter:
    router = APIRouter(responses=_RESPONSES)

    @router.post("/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """The assistant's next message."""
        return await server.answer(body, request, ask_chat, ChatAnswer)

    @router.post("/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """What follows a text."""
        return await server.answer(body, request, ask_completion, CompletionAnswer)

    @router.post("/responses")
    async def responses(body: ResponseRequest, request: Request) -> Response:
        """The next response; nothing of it is kept."""
        return await server.answer(body, request, ask_response, ResponseAnswer)

    @router.post("/images/generations")
    async def images(body: ImageRequest, request: Request) -> Response:
        """Drawings."""
        return await server.answer(body, request, ask_image, ImageAnswer)

    @router.post("/messages")
    async def messages(body: MessageRequest, request: Request) -> Response:
        """The next message."""
        return await server.answer(body, request, ask_message, MessageAnswer)

    @router.post("/messages/count_tokens")
    async def count_tokens(body: MessageCount, request: Request) -> Response:
        """How many tokens a prompt has."""
        return AsciiJSON({"input_tokens": await server.count(body, request)})

    @router.get("/models")
    async def models(request: Request) -> Response:
        """The models there are."""
        server.gate.who(request.headers)
        every = server.listed()
        ends = {"first_id": every[0]["id"], "last_id": every[-1]["id"], "has_more": False}
        return AsciiJSON({"object": "list", "data": every, **ends})

    @router.get("/models/{name:path}")
    async def model(name: str, request: Request) -> Response:
        """One model."""
        server.gate.who(request.headers)
        server.find(name)
        return AsciiJSON(next(one for one in server.listed() if one["id"] == name))

    return router


def _modalities(served: Served) -> dict[str, list[str]]:
    """What a model reads and writes."""
    both = ["text"] if served.sight is None else ["text", "image"]
    return {"input_modalities": both, "output_modalities": both}


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


async def _explained(request: Request, error: Exception) -> Response:
    """Any refusal in the form of its path; what came is told short."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"] if step != "body")
        error = Refused(400, f"{where or 'body'}: {first['msg']}"[:500], where or None)
    elif isinstance(error, HTTPException):
        error = Refused(error.status_code, str(error.detail))
    assert isinstance(error, Refused)
    return AsciiJSON(error.body(form_of(request.url.path)), error.status, error.headers())
