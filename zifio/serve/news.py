"""What an engine tells the server of requests under way, whatever engine it is; it travels between processes.

Try it alone: `pytest tests/serve/test_worker.py`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from zifio.engine.request import Event, Load, Stats

EVERYBODY = -1
"""The number of all requests that are under way."""


class Fault(NamedTuple):
    """Why a request has no answer."""

    status: int
    code: str
    message: str


class Note(NamedTuple):
    """What is new of one of a request's replies, or with a fault of all of them."""

    place: int
    event: Event | None
    fault: Fault | None = None

    def merged(self, later: Note) -> Note:
        """Both as one, with the later's fault; the lists of this one grow."""
        if self.event is None or later.event is None:
            return later
        one, two = self.event, later.event
        one.tokens.extend(two.tokens)
        one.logps.extend(two.logps)
        one.tops.extend(two.tops)  # type: ignore[attr-defined]
        return later._replace(event=one._replace(completion=two.completion))


class State(NamedTuple):
    """How an engine is."""

    load: Load
    stats: Stats


class Sight(NamedTuple):
    """What must be known of a model that reads and draws."""

    side: int
    """Of the pictures that it reads, in pixels."""
    n_patches: int
    """Tokens that each takes."""
    first_patch: int
    """The token of the first."""
    drawn_side: int
    """Of its drawings, in pixels."""
    n_codes: int
    """Tokens of a drawing."""


class About(NamedTuple):
    """What must be known of a model to ask it."""

    context: int
    n_vocab: int
    longest: int
    """Most tokens of a prompt with its reply: the context, or less where the memory is short."""
    sight: Sight | None = None
    """Of a model that reads pictures and draws."""


News = list[tuple[int, Note]]
"""(number of the request, what is new of it)."""
Tell = Callable[[News, State | None], None]
"""Takes news, and how the engine is where that has changed."""
