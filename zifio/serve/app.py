"""The routes: OpenAI's and DeepSeek's paths, with and without /v1 and /beta, over the models that are served.

Try it alone: `zifio serve runs/quickstart/r1/model`
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from zifio.config import ConfigError
from zifio.log import say
from zifio.loopback import to_json
from zifio.serve.answer import Answer
from zifio.serve.asked import ask_chat
from zifio.serve.chat import ChatAnswer
from zifio.serve.completions import CompletionAnswer, ask_completion
from zifio.serve.gate import Gate
from zifio.serve.guard import Guard
from zifio.serve.metrics import Metrics
from zifio.serve.model import Served
from zifio.serve.refused import Refused
from zifio.serve.request import Body, ChatRequest, CompletionRequest
from zifio.serve.settings import ServeConfig, Thinks

PREFIXES = ("/v1", "", "/beta", "/beta/v1")
"""Where the routes are found; the first of them is in the OpenAPI page."""
_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": about, "content": {"application/json": {"schema": {"type": "object"}}}}
    for status, about in {
        200: "The answer, or server-sent events with `stream`.", 400: "The request is wrong.", 401: "The key is.",
        404: "There is no such model.", 408: "The request was too slow.", 413: "The request is too long.",
        429: "Too many requests.", 500: "The engine failed.", 503: "The server is full.", 504: "It took too long.",
    }.items()
}  # fmt: skip
Make = Callable[[Served, Thinks], tuple[Any, list[Any]]]


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
        """The models as OpenAI lists them."""
        names = [(name, name) for name in self.models]
        names += [(name, alias.model) for name in self.config.aliases if (alias := self.config.alias(name))]
        return [
            {"id": name, "object": "model", "created": self.models[of].created, "owned_by": "zifio"}
            | {"max_model_len": self.models[of].longest}
            for name, of in names
        ]

    async def answer(self, body: Body, request: Request, make: Callable[..., Any]) -> Response:
        """Ask the engine, and answer as it goes. Raises Refused."""
        leave = self.gate.enter(self.gate.who(request.headers))
        try:
            served, thinking = self.find(body.model)
            try:
                asked = await asyncio.to_thread(make, served, thinking)
            except (ConfigError, RecursionError) as error:
                raise Refused(400, str(error) or "The request is too deep.") from None
            every = asked if isinstance(asked, list) else [asked]
            tickets = [served.worker.ask(one.request) for one in every]
            if isinstance(body, ChatRequest):
                out: Any = ChatAnswer(served, every[0], tickets[0], self.config, body.model)
                out.has_logprobs = bool(body.logprobs)
            else:
                out = CompletionAnswer(served, body, every, tickets, self.config)  # type: ignore[arg-type]
        except BaseException:
            leave()
            raise
        headers = {"x-zifio-warning": every[0].warning} if every[0].warning else {}
        if self.config.log_requests:
            say(f"{served.name}: asked {to_json(body.model_dump(exclude_none=True)).decode()}")
        lines = out.stream(body.wants_usage()) if body.stream else out.whole()
        return Answer(tickets, self._timed(served.name, lines), bool(body.stream), leave, headers)

    async def _timed(self, model: str, lines: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
        """The lines, with their times taken."""
        begin, is_first, finish = time.monotonic(), True, "abort"
        try:
            async with contextlib.aclosing(lines):
                async for line in lines:
                    if is_first and len(line) > 1 and not line.startswith(b":"):
                        self.metrics.first_token(model, time.monotonic() - begin)
                        is_first = False
                    yield line
            finish = "stop"
        except Refused:
            finish = "error"
            raise
        finally:
            self.metrics.ended(model, finish, time.monotonic() - begin)


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

    return app


def _routes(server: Server) -> APIRouter:
    router = APIRouter(responses=_RESPONSES)

    @router.post("/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """The assistant's next message."""
        return await server.answer(
            body, request, lambda served, thinking: ask_chat(served, body, server.config, thinking)
        )

    @router.post("/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """What follows a text."""
        return await server.answer(body, request, lambda served, _: ask_completion(served, body, server.config))

    @router.get("/models")
    async def models(request: Request) -> Response:
        """The models there are."""
        server.gate.who(request.headers)
        return _json({"object": "list", "data": server.listed()})

    @router.get("/models/{name:path}")
    async def model(name: str, request: Request) -> Response:
        """One model."""
        server.gate.who(request.headers)
        server.find(name)
        return _json(next(one for one in server.listed() if one["id"] == name))

    return router


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, "application/json")


async def _explained(_: Request, error: Exception) -> Response:
    """Any refusal in OpenAI's form; what came is told short."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"] if step != "body")
        error = Refused(400, f"{where or 'body'}: {first['msg']}"[:500], where or None)
    elif isinstance(error, HTTPException):
        error = Refused(error.status_code, str(error.detail))
    assert isinstance(error, Refused)
    return _json(error.body(), error.status, error.headers())
