"""A model that is served: its tokenizer, its engine's thread, and what replies of it look like.

Try it alone: `pytest tests/serve/test_chat_api.py`
"""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from zifio.data.spelling import token_bytes
from zifio.engine.config import EngineConfig
from zifio.engine.engine import Engine
from zifio.engine.policy import LocalPolicy, load_policy
from zifio.models.device import Device
from zifio.serve.worker import Worker
from zifio.tasks.form import THINK, THOUGHT

if TYPE_CHECKING:
    from zifio.serve.grammar import Grammars


class Served:
    """One model under its name."""

    def __init__(self, name: str, policy: LocalPolicy) -> None:
        self.name, self.policy, self.tokenizer = name, policy, policy.tokenizer
        self.created = int(time.time())
        self.context = policy.model.config.max_position_embeddings
        self.n_vocab = policy.model.config.vocab_size or 0
        self.longest = self.context
        """Most tokens of a prompt with its reply."""
        self.worker = Worker(self._make, name)
        find = self.tokenizer.tokenizer.token_to_id
        self.think: int | None = find(THINK) if find(THOUGHT) is not None else None
        self.thought: int | None = find(THOUGHT) if self.think is not None else None

    @cached_property
    def spelled(self) -> list[bytes]:
        """The bytes of every token."""
        return token_bytes(self.tokenizer.tokenizer)

    @cached_property
    def grammars(self) -> Grammars:
        """What makes grammars for this vocabulary; building it takes a moment."""
        from zifio.serve.grammar import Grammars

        return Grammars(self.tokenizer)

    def _make(self) -> Engine:
        old = self.policy.engine
        engine = Engine(old.model, old.eos_ids, old.max_rows, old.settings, self.tokenizer.decode, old.precision)
        self.longest = engine.reserve(engine.max_rows, self.context)
        return engine


def load(name: str, folder: str | Path, settings: EngineConfig, device: Device = "cpu") -> Served:
    """The model of a folder, a GGUF file or a name at the hub. Raises what `load_policy` raises."""
    return Served(name, load_policy(folder, settings=settings, device=device, precision="bf16"))
