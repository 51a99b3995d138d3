"""Replies in the making: what the engine draws becomes deltas of thinking, content, calls and log-probs.

Try it alone: `pytest tests/serve/test_chat_api.py`
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from zifio.engine.guide import Top
from zifio.engine.request import Event
from zifio.engine.stops import TextOf
from zifio.serve.split import CallPiece, Kind, Phase, Piece, Splitter
from zifio.serve.text import TokenText
from zifio.tasks.form import THOUGHT


class Drawn(NamedTuple):
    """A token with what is told beside it."""

    token: int
    logp: float
    tops: list[Top]


@dataclass
class Delta:
    """What is new of one reply."""

    place: int
    pieces: list[Piece | CallPiece] = field(default_factory=list)
    """Thinking, content and calls, in the order in which they were written."""
    drawn: dict[Kind, list[Drawn]] = field(default_factory=lambda: {"reasoning": [], "content": []})
    """The tokens behind the text, the marks of thinking among those of the thinking; without the end token."""
    finish: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.pieces or self.finish or any(self.drawn.values()))

    @property
    def reasoning(self) -> str:
        """All thinking."""
        return "".join(piece.text for piece in self.pieces if isinstance(piece, Piece) and piece.kind == "reasoning")

    @property
    def content(self) -> str:
        """All content."""
        return "".join(piece.text for piece in self.pieces if isinstance(piece, Piece) and piece.kind == "content")

    @property
    def calls(self) -> list[CallPiece]:
        """All calls."""
        return [piece for piece in self.pieces if isinstance(piece, CallPiece)]


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
        self._text, self._text_of = TokenText(text_of), text_of
        self._splitter = Splitter(phase=phase, stops=stops, has_tools=has_tools)
        self._undecided: list[Drawn] = []
        self.n_tokens = self.n_reasoning = self.n_calls = 0
        self.n_cached = 0
        self.finish: str | None = None

    @property
    def stop(self) -> str | None:
        """The stop string that ended it."""
        return self._splitter.stop

    def feed(self, event: Event) -> Delta:
        """What an event of the engine adds."""
        delta = Delta(self.place)
        self.n_tokens += len(event.tokens)
        for run in self._runs(event):
            before = self._splitter.phase
            pieces = self._splitter.feed(self._text.feed(*(one.token for one in run)))
            self._file(delta, run, before)
            self._add(delta, pieces)
        if event.completion is not None:
            self._add(delta, [*self._splitter.feed(self._text.end()), *self._splitter.end()])
            delta.drawn["content"] += self._undecided
            self._undecided = []
            self.n_cached = event.completion.n_cached
            called = self.n_calls and event.completion.finish == "stop"
            self.finish = delta.finish = "tool_calls" if called else event.completion.finish
        return delta

    def _runs(self, event: Event) -> Iterator[list[Drawn]]:
        """The event's tokens, together where no thinking can begin or end between them, else one by one."""
        tops = event.tops or [[] for _ in event.tokens]
        every = zip(event.tokens, event.logps, tops, strict=True)
        drawn = [Drawn(*one) for one in every if one[0] != self._end]
        first = 0
        for place, one in enumerate(drawn):
            phase = self._splitter.phase  # as the run before has left it
            if phase == "content":
                yield drawn[place:]
                return
            if phase == "thinking" and THOUGHT[-1] not in self._text_of([one.token]):
                continue
            if place > first:
                yield drawn[first:place]
            yield [one]
            first = place + 1
        if first < len(drawn):
            yield drawn[first:]

    def _file(self, delta: Delta, run: list[Drawn], before: Phase) -> None:
        """A token belongs to the thinking when that goes on before or behind it."""
        after = self._splitter.phase
        if after == "start":
            self._undecided += run
            return
        kind: Kind = "reasoning" if "thinking" in (before, after) else "content"
        new = [*self._undecided, *run]
        self._undecided = []
        delta.drawn[kind] += new
        self.n_reasoning += len(new) if kind == "reasoning" else 0

    def _add(self, delta: Delta, pieces: list[Piece | CallPiece]) -> None:
        for piece in pieces:
            if isinstance(piece, CallPiece):
                if self.n_calls and not self._parallel:
                    continue
                self.n_calls += 1
            delta.pieces.append(piece)
