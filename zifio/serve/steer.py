"""What steers one reply: the thinking budget, a grammar behind the thinking, biases, penalties, stop strings.

Try it alone: `pytest tests/serve/test_chat_api.py -k "thinking or biases"`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from zifio.engine.stops import TextOf, find_stop
from zifio.serve.news import Fault
from zifio.serve.split import Phase
from zifio.tasks.form import THINK, THOUGHT

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
    """The token that opens the thinking, where there is one. Without it the marks are found in the text."""
    thought: tuple[int, ...] = ()
    """The tokens that close it."""
    budget: int | None = None
    """Most tokens of thinking; then it is closed."""
    grammar: str | None = None
    """What the content must be like."""
    static: dict[int, float] = field(default_factory=dict)
    """What is added to the logits of some tokens."""
    presence: float = 0.0
    frequency: float = 0.0
    """Taken from the logits of tokens that the reply has, once, and for each time (OpenAI's penalties)."""
    stops: tuple[str, ...] = ()
    """Hold for the content."""
    fault: str = ""
    """Why the content is not what it had to be, if it is not."""
    matcher: Matcher | None = None
    text_of: TextOf | None = None
    _n_thought: int = 0
    _seen: Counter[int] = field(default_factory=Counter)
    _content: list[int] = field(default_factory=list)
    _thinking: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.think is None and self.phase == "start" and self.budget is None:
            self.phase = "content"

    def equip(self, matcher_of: Callable[[str], Matcher], text_of: TextOf) -> None:
        """Give it what it works with where the engine is; until then it is data, and may travel."""
        self.matcher = None if self.grammar is None else matcher_of(self.grammar)
        self.text_of = text_of

    @property
    def refusal(self) -> Fault | None:
        """What a client is told where the content is not what it had to be."""
        if not self.fault:
            return None
        return Fault(400, "grammar_failed", f"The reply cannot follow its grammar: {self.fault}.")

    def bias(self) -> np.ndarray | None:
        """What is added to the next token's logits."""
        if self.phase == "thinking" and self.budget is not None and self._n_thought >= self.budget:
            closing = self.thought[self._n_thought - self.budget :]
            if closing:
                return self._only([closing[0]])
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
            if self._closes(token):
                self.phase = "content"
            return ""
        if self.phase == "start":
            if token == self.think:
                self.phase = "thinking"
                return ""
            if self.matcher is None and self.text_of is not None and self._is_undecided(token, self.text_of):
                return ""
            self.phase = "content"
        if self.matcher is not None and not self.matcher.take(token):
            self.fault = self.fault or self.matcher.fault or "a token that the grammar does not allow"
            return "the grammar was left"
        self._content.append(token)
        if self.stops and self.text_of is not None and (found := find_stop(self._content, self.stops, self.text_of)):
            return f"stop string {found[1]!r}"
        return ""

    def _is_undecided(self, token: int, text_of: TextOf) -> bool:
        """Whether thinking may still begin behind this token, or has by its text."""
        if self.think is not None:
            return not text_of([token]).strip()
        head = text_of([*self._content, token]).lstrip()
        if head.startswith(THINK):
            self.phase, self._content = "thinking", []
        elif THINK.startswith(head):
            self._content.append(token)
        else:
            return False
        return True

    def _closes(self, token: int) -> bool:
        """Whether the thinking ends with this token."""
        if self.think is not None or self.text_of is None:
            return token in self.thought
        self._thinking.append(token)
        return find_stop(self._thinking, (THOUGHT,), self.text_of) is not None

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
