"""A model that is served: its tokenizer, its engine, and what replies of it look like.

Try it alone: `pytest tests/serve/test_chat_api.py`
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from zifio.config import ConfigError
from zifio.data.spelling import token_bytes
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import load_tokenizer
from zifio.models.hub import resolve
from zifio.serve.news import Sight, Tell
from zifio.serve.process import EnginePlan, EngineProcess
from zifio.serve.settings import EngineKind, ServeConfig
from zifio.serve.worker import Far, Worker
from zifio.tasks.form import THINK, THOUGHT

if TYPE_CHECKING:
    from zifio.engine.policy import LocalPolicy
    from zifio.models.device import Device
    from zifio.serve.grammar import Grammars


class Served:
    """One model under its name."""

    def __init__(self, name: str, tokenizer: ChatTokenizer, start: Callable[[Tell], Far]) -> None:
        self.name, self.tokenizer = name, tokenizer
        self.created = int(time.time())
        self.worker = Worker(start)
        find = tokenizer.tokenizer.token_to_id
        thought = find(THOUGHT)
        self.think: int | None = find(THINK) if thought is not None else None
        self.closing = (thought,) if thought is not None and self.think is not None else _spelled(tokenizer, THOUGHT)
        """The tokens that close the thinking; none where the vocabulary cannot spell it, and no model of it thinks."""

    @property
    def context(self) -> int:
        """Tokens that the model was made for."""
        return self.worker.far.about.context

    @property
    def longest(self) -> int:
        """Most tokens of a prompt with its reply."""
        return self.worker.far.about.longest

    @property
    def n_vocab(self) -> int:
        """Rows of the logits."""
        return self.worker.far.about.n_vocab

    @property
    def sight(self) -> Sight | None:
        """What a model is like that reads and draws; None: it is one of text."""
        return self.worker.far.about.sight

    @cached_property
    def spelled(self) -> list[bytes]:
        """The bytes of every token."""
        return token_bytes(self.tokenizer.tokenizer)

    @cached_property
    def grammars(self) -> Grammars:
        """What makes grammars for this vocabulary; building it takes a moment."""
        from zifio.serve.grammar import Grammars

        return Grammars(self.tokenizer)


def _spelled(tokenizer: ChatTokenizer, text: str) -> tuple[int, ...]:
    try:
        return tuple(tokenizer.encode(text))
    except ConfigError:
        return ()


def here(name: str, policy: LocalPolicy) -> Served:
    """A model whose engine is a thread of this process."""
    from zifio.serve.thread import EngineThread

    return Served(name, policy.tokenizer, lambda tell: EngineThread(policy, name, tell))


def load(
    name: str, folder: str | Path, config: ServeConfig, device: Device = "cpu", kind: EngineKind = "zifio"
) -> Served:
    """The model of a folder, a GGUF file or a name at the hub, its engine in a process of its own.

    Raises what `load_policy` raises, and ConfigError where vLLM is wanted and is not there.
    """
    path = resolve(folder)
    python = config.vllm.python if kind == "vllm" else ""
    plan = EnginePlan(kind, name, str(path), config.engine, device, config.vllm, python)
    return Served(name, load_tokenizer(path), lambda tell: EngineProcess(plan, tell))
