"""A server with a tiny model in this process, on a real socket, and clients for it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Mapping
from typing import Any

import httpx2
import uvicorn
from openai import OpenAI
from tiny import lively, llama

from zifio.config import build
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import TokenizerConfig, chat_tokenizer, train_tokenizer
from zifio.engine.policy import LocalPolicy
from zifio.loopback import listen
from zifio.serve.app import make_app
from zifio.serve.model import Served
from zifio.serve.settings import ServeConfig


def tokenizer() -> ChatTokenizer:
    """Byte pairs over a little text, with the tokens for tools: whatever clients send has tokens."""
    return chat_tokenizer(train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), ["the whale dives"], True))


def policy(push: float = 0.5, context: int = 512) -> LocalPolicy:
    """An untrained model that ends its replies now and then."""
    words = tokenizer()
    config = llama(vocab_size=words.vocab_size, max_position_embeddings=context)
    return LocalPolicy(lively(config, words.eos_id, push=push), words)


class Here:
    """A server that runs."""

    def __init__(self, url: str, served: Served) -> None:
        self.url, self.served = url, served
        self.engine = served.worker.engine
        self.http = httpx2.Client(base_url=url, timeout=60)
        self.openai = OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=60)

    def post(self, path: str, **body: Any) -> httpx2.Response:
        """A request as raw as it gets."""
        return self.http.post(path, json={"model": "tiny", **body})

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
def serving(
    settings: dict[str, Any] | None = None, keys: Mapping[str, str] | None = None, made: LocalPolicy | None = None
) -> Generator[Here, None, None]:
    """The server until the block ends."""
    served = Served("tiny", made or policy())
    app = make_app({"tiny": served}, build(ServeConfig, settings or {}, "test"), keys)
    socket, url = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    here = Here(url, served)
    try:
        yield here
    finally:
        here.http.close()
        here.openai.close()
        server.should_exit = True
        thread.join(20)
        socket.close()
        assert not thread.is_alive()
