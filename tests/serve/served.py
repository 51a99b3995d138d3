"""A server with a tiny model in this process, on a real socket, and clients for it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2
import torch
from openai import OpenAI
from starlette.types import ASGIApp
from tiny import lively, llama, made

from zifio.config import build
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import TokenizerConfig, chat_tokenizer, train_tokenizer
from zifio.engine.engine import Engine
from zifio.engine.policy import LocalPolicy
from zifio.loopback import listen
from zifio.serve.app import make_app
from zifio.serve.connection import Server
from zifio.serve.model import Served, here
from zifio.serve.settings import ServeConfig
from zifio.serve.thread import EngineThread

ASK = [{"role": "user", "content": "How deep?"}]
FAST = {
    "type": "object", "properties": {"fast": {"type": "boolean"}}, "required": ["fast"], "additionalProperties": False,
}  # fmt: skip
"""What a dive needs to know."""
DIVE = {"name": "dive", "parameters": FAST}
STRICT_DIVE = {"type": "function", "function": {"name": "dive", "strict": True, "parameters": FAST}}
WHALE = {
    "type": "object", "properties": {"deep": {"type": "boolean"}, "kind": {"enum": ["whale", "seal"]}},
    "required": ["deep", "kind"], "additionalProperties": False,
}  # fmt: skip


def tokenizer() -> ChatTokenizer:
    """Byte pairs over a little text, with the tokens for tools: whatever clients send has tokens."""
    return chat_tokenizer(train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), ["the whale dives"], True))


def policy(push: float = 0.5, context: int = 512) -> LocalPolicy:
    """An untrained model that ends its replies now and then."""
    words = tokenizer()
    config = llama(vocab_size=words.vocab_size, max_position_embeddings=context)
    return LocalPolicy(lively(config, words.eos_id, push=push), words)


def endless(seed: int = 1, context: int = 8192) -> LocalPolicy:
    """An untrained model that never ends a reply unless it has to: one width of every position speaks against it."""
    words = tokenizer()
    model = made(llama(vocab_size=words.vocab_size, max_position_embeddings=context), seed)
    with torch.no_grad():
        model.embed_tokens.weight[:, 0] = 4.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[words.eos_id] = 0.0
        model.lm_head.weight[words.eos_id, 0] = -100.0
    return LocalPolicy(model, words)


class Here:
    """A server that runs."""

    def __init__(self, url: str, served: Served, made: LocalPolicy, server: Server) -> None:
        self.url, self.served, self.policy, self._server = url, served, made, server
        self.http = httpx2.Client(base_url=url, timeout=60)
        self.openai = OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=60)

    @property
    def never_ends(self) -> dict[str, int]:
        """Biases under which a reply does not end by itself."""
        return {str(self.served.tokenizer.eos_id): -100}

    def post(self, path: str, **body: Any) -> httpx2.Response:
        """A request as raw as it gets."""
        return self.http.post(path, json={"model": "tiny", **body})

    @property
    def engine(self) -> Engine:
        """The engine of now: behind a failure it is another."""
        far = self.served.worker.far
        assert isinstance(far, EngineThread) and far.engine is not None
        return far.engine

    @property
    def n_connections(self) -> int:
        """Clients that are connected."""
        return len(self._server.server_state.connections)

    def is_idle(self, within_s: float) -> bool:
        """Whether the engine has nothing left within so many seconds."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            scheduler = self.engine._scheduler
            if not self.engine.has_work and scheduler is not None and scheduler.pages.n_held == 0:
                return True
            time.sleep(0.02)
        return False


@contextlib.contextmanager
def running(app: ASGIApp, drain_s: float, end: Callable[[], None]) -> Generator[tuple[str, Server], None, None]:
    """(where an application answers, what serves it) until the block ends."""
    listening, url = listen("127.0.0.1", 0)
    server = Server(app, drain_s, end)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield url, server
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()


def connected(url: str, timeout_s: float = 10.0) -> socket.socket:
    """A bare connection to a server."""
    place = urlsplit(url)
    return socket.create_connection((place.hostname or "", place.port or 0), timeout=timeout_s)


@contextlib.contextmanager
def serving(
    settings: dict[str, Any] | None = None,
    keys: Mapping[str, str] | None = None,
    made: LocalPolicy | None = None,
    beside: Mapping[str, LocalPolicy] = {},
) -> Generator[Here, None, None]:
    """The server until the block ends; `beside`: more models than `tiny`."""
    made, config = made or policy(), build(ServeConfig, settings or {}, "test")
    served = here("tiny", made)
    app = make_app({"tiny": served} | {name: here(name, one) for name, one in beside.items()}, config, keys)
    with running(app, config.drain_s, app.state.end) as (url, server):
        one = Here(url, served, made, server)
        try:
            yield one
        finally:
            one.http.close()
            one.openai.close()
