"""What steers one reply: the thinking budget, a grammar behind the thinking, biases, penalties, stop strings.

Try it alone: `pytest tests/serve/test_chat_api.py -k "thinking or biases"`
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from zifio.engine.stops import TextOf, find_stop
from zifio.serve.split import Phase

if TYPE_CHECKING:
    from zifio.serve.grammar import Matcher


@dataclass
class Steering:
    """Implements `engine.guide.Guide`."""

    n_vocab: int
    """Rows of the logits."""
    end: int
    """The token that ends a reply."""
    phase: Phase
    """What the prompt has begun already."""
    think: int | None = None
    """The token that opens the thinking, where there is one; without it all is content."""
    thought: int | None = None
    """The token that closes it."""
    budget: int | None = None
    """Most tokens of thinking; then it is closed."""
    matcher: Matcher | None = None
    """What the content must be like."""
    static: dict[int, float] = field(default_factory=dict)
    """What is added to the logits of some tokens."""
    presence: float = 0.0
    frequency: float = 0.0
    """Taken from the logits of tokens that the reply has, once, and for each time (OpenAI's penalties)."""
    stops: tuple[str, ...] = ()
    """Hold for the content."""
    text_of: TextOf | None = None
    fault: str = ""
    """Why the content is not what it had to be, if it is not."""
    _n_thought: int = 0
    _seen: Counter[int] = field(default_factory=Counter)
    _content: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.think is None and self.phase == "start":
            self.phase = "content"

    def bias(self) -> np.ndarray | None:
        """What is added to the next token's logits."""
        if self.phase == "thinking" and self.budget is not None and self._n_thought >= self.budget:
            assert self.thought is not None
            return self._only([self.thought])
        if not self.static and self.matcher is None and not (self._seen and (self.presence or self.frequency)):
            return None
        bias = np.zeros(self.n_vocab, np.float32)
        for token, value in self.static.items():
            bias[token] += value
        if self.presence or self.frequency:
            for token, n in self._seen.items():
                bias[token] -= self.presence + self.frequency * n
        if self.matcher is not None:
            self._restrict(bias, self.matcher)
        return bias

    def hear(self, token: int) -> str:
        """A token was drawn. Why the reply ends with it, or nothing."""
        self._seen[token] += 1
        if self.phase == "thinking":
            self._n_thought += 1
            if token == self.thought:
                self.phase = "content"
            return ""
        if self.phase == "start":
            if token == self.think:
                self.phase = "thinking"
                return ""
            if self.matcher is None and self.text_of is not None and not self.text_of([token]).strip():
                return ""
            self.phase = "content"
        if self.matcher is not None and not self.matcher.take(token):
            self.fault = self.fault or self.matcher.fault or "a token that the grammar does not allow"
            return "the grammar was left"
        self._content.append(token)
        if self.stops and self.text_of is not None and (found := find_stop(self._content, self.stops, self.text_of)):
            return f"stop string {found[1]!r}"
        return ""

    def _restrict(self, bias: np.ndarray, matcher: Matcher) -> None:
        if self.phase == "thinking":
            bias[self.end] = -np.inf  # what had to follow would never come
            return
        allowed = matcher.allowed()
        self.fault = matcher.fault
        if self.phase == "start" and self.think is not None:
            allowed[self.think] = True
        if self.fault or not allowed.any():
            self.fault = self.fault or "the grammar has no way on with this vocabulary"
            allowed[:] = False
            allowed[self.end] = True
        bias[: len(allowed)][~allowed] = -np.inf
        bias[len(allowed) :] = -np.inf

    def _only(self, tokens: list[int]) -> np.ndarray:
        bias = np.full(self.n_vocab, -np.inf, np.float32)
        bias[tokens] = 0
        return bias
