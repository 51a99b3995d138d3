"""Replies in the making: what the engine draws becomes deltas of thinking, content, calls and log-probs.

Try it alone: `pytest tests/serve/test_chat_api.py`
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from zifio.engine.engine import Event
from zifio.engine.guide import Top
from zifio.engine.stops import TextOf
from zifio.serve.split import CallPiece, Kind, Phase, Piece, Splitter
from zifio.serve.text import TokenText


class Drawn(NamedTuple):
    """A token with what is told beside it."""

    token: int
    logp: float
    tops: list[Top]


@dataclass
class Delta:
    """What is new of one reply."""

    place: int
    reasoning: str = ""
    content: str = ""
    calls: list[CallPiece] = field(default_factory=list)
    drawn: dict[Kind, list[Drawn]] = field(default_factory=lambda: {"reasoning": [], "content": []})
    """The tokens behind the text, the marks of thinking among those of the thinking; without the end token."""
    finish: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.reasoning or self.content or self.calls or self.finish or any(self.drawn.values()))


class Voice:
    """One reply of a chat."""

    def __init__(
        self,
        place: int,
        text_of: TextOf,
        end: int,
        phase: Phase = "start",
        stops: tuple[str, ...] = (),
        has_tools: bool = False,
        parallel: bool = True,
    ) -> None:
        self.place, self._end, self._parallel = place, end, parallel
        self._text = TokenText(text_of)
        self._splitter = Splitter(phase=phase, stops=stops, has_tools=has_tools)
        self._undecided: list[Drawn] = []
        self.n_tokens = self.n_reasoning = self.n_calls = 0
        self.n_cached = 0
        self.finish: str | None = None
        self.reason = ""

    def feed(self, event: Event) -> Delta:
        """What an event of the engine adds."""
        delta = Delta(self.place)
        self.n_tokens += len(event.tokens)
        tops = event.tops or [[] for _ in event.tokens]
        for token, logp, likeliest in zip(event.tokens, event.logps, tops, strict=True):
            if token == self._end:
                continue
            before = self._splitter.phase
            pieces = self._splitter.feed(self._text.feed(token))
            self._file(delta, Drawn(token, logp, likeliest), before)
            self._add(delta, pieces)
        if event.completion is not None:
            self._add(delta, [*self._splitter.feed(self._text.end()), *self._splitter.end()])
            delta.drawn["content"] += self._undecided
            self._undecided = []
            self.n_cached, self.reason = event.completion.n_cached, event.completion.reason
            called = self.n_calls and event.completion.finish == "stop"
            self.finish = delta.finish = "tool_calls" if called else event.completion.finish
        return delta

    def _file(self, delta: Delta, drawn: Drawn, before: Phase) -> None:
        """A token belongs to the thinking when that goes on before or behind it."""
        after = self._splitter.phase
        if after == "start":
            self._undecided.append(drawn)
            return
        kind: Kind = "reasoning" if "thinking" in (before, after) else "content"
        new = [*self._undecided, drawn]
        self._undecided = []
        delta.drawn[kind] += new
        self.n_reasoning += len(new) if kind == "reasoning" else 0

    def _add(self, delta: Delta, pieces: list[Piece | CallPiece]) -> None:
        for piece in pieces:
            if isinstance(piece, CallPiece):
                if self._parallel or not self.n_calls:
                    self.n_calls += 1
                    delta.calls.append(piece)
            elif piece.kind == "reasoning":
                delta.reasoning += piece.text
            else:
                delta.content += piece.text
