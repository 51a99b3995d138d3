"""A reply as parts, one behind the other: thinking, text, a call. For interfaces that number them.

A whole answer and a stream are written from the same steps, so that one adds up to the other.

Try it alone: `pytest tests/serve/test_parts.py`
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from zifio.serve.answer import deltas
from zifio.serve.asked import Asked
from zifio.serve.reply import Delta, Drawn
from zifio.serve.settings import ServeConfig
from zifio.serve.split import CallPiece
from zifio.serve.worker import Ticket


@dataclass
class Part:
    """One of them, as far as it has come."""

    kind: Literal["thinking", "text", "call"]
    place: int
    name: str = ""
    """Of a call the function's."""
    text: str = ""
    """Of a call the arguments."""
    drawn: list[Drawn] = field(default_factory=list)
    """The tokens of a text."""
    is_cut: bool = False
    """Whether the reply was cut within it."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


class Step(NamedTuple):
    """Something that happens to a part: it begins, grows, or ends."""

    what: Literal["begin", "more", "end"]
    part: Part
    text: str = ""
    drawn: tuple[Drawn, ...] = ()


class Parts:
    """Makes parts of what is new of a reply. There is always at least one, if need be an empty text."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._open: Part | None = None
        self._drawn: list[Drawn] = []  # tokens whose text is still held back

    def feed(self, delta: Delta) -> list[Step]:
        """What a delta does; with the reply's end all parts end."""
        self._drawn += delta.drawn["content"]
        steps: list[Step] = []
        for piece in delta.pieces:
            if isinstance(piece, CallPiece):
                steps += [*self._close(), *self._begin("call", piece.name), self._more(piece.arguments), *self._close()]
            else:
                steps += self._grow("thinking" if piece.kind == "reasoning" else "text", piece.text)
        if delta.finish is not None:
            is_text = self._open is not None and self._open.kind == "text"
            steps += [] if self.parts else self._begin("text")
            steps += [self._more("")] if is_text and self._drawn else []
            steps += self._close(is_cut=delta.finish == "length")
        return steps

    def cut(self) -> None:
        """Nothing more will come."""
        self._close(is_cut=True)

    def _grow(self, kind: Literal["thinking", "text"], text: str) -> list[Step]:
        if self._open is not None and self._open.kind == kind:
            return [self._more(text)]
        return [*self._close(), *self._begin(kind), self._more(text)]

    def _begin(self, kind: Literal["thinking", "text", "call"], name: str = "") -> list[Step]:
        self._open = Part(kind, len(self.parts), name)
        self.parts.append(self._open)
        return [Step("begin", self._open)]

    def _more(self, text: str) -> Step:
        assert self._open is not None
        drawn: list[Drawn] = []
        if self._open.kind == "text":
            drawn, self._drawn = self._drawn, []
        self._open.text += text
        self._open.drawn += drawn
        return Step("more", self._open, text, tuple(drawn))

    def _close(self, is_cut: bool = False) -> list[Step]:
        part, self._open = self._open, None
        if part is None:
            return []
        part.is_cut = is_cut
        return [Step("end", part)]


async def steps(
    parts: Parts, asked: Asked, ticket: Ticket, config: ServeConfig
) -> AsyncGenerator[list[Step] | None, None]:
    """What happens to the parts of the only reply; None where nothing happened for a while. Raises Refused."""
    async with aclosing(deltas(asked, ticket, config)) as news:
        async for delta in news:
            yield None if delta is None else parts.feed(delta)
