"""The event loop's end of an engine: requests as tickets, and what becomes of them.

The engine itself runs in a thread (`serve/thread.py`) or in a process (`serve/process.py`).

Try it alone: `pytest tests/serve/test_worker.py`
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from typing import Protocol

from zifio.engine.request import Load, Request, Stats
from zifio.serve.news import EVERYBODY, About, Fault, News, Note, State, Tell


class Far(Protocol):
    """What an engine is to those who ask. All of it may be called from any thread, and returns at once but `stop`."""

    @property
    def about(self) -> About:
        """What must be known to ask."""
        ...

    def ask(self, key: int, request: Request, is_stream: bool) -> None:
        """Queue a request under a number; its news are told under that."""
        ...

    def cancel(self, key: int) -> None:
        """Take a request out; nothing more is told of it."""
        ...

    def stop(self) -> None:
        """End; what is under way stays unanswered."""
        ...


class Ticket:
    """A request in the engine, as the event loop holds it."""

    def __init__(self, worker: Worker, key: int, request: Request) -> None:
        self.key, self.request = key, request
        self.left = len(request.seeds)
        """Replies that have not ended."""
        self.finishes: list[str] = []
        """How those ended that have."""
        self._worker = worker
        self._notes: dict[int, Note] = {}  # what nobody has taken yet; while a client is slow they grow into one
        self._waiter: asyncio.Future[None] | None = None

    async def notes(self, patience_s: float) -> list[Note]:
        """What is new; nothing where that takes longer than so many seconds."""
        if not self._notes:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(max(patience_s, 0), self._wake)
            try:  # not by `asyncio.wait_for`, which before Python 3.12 may swallow that we are cancelled
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        notes, self._notes = list(self._notes.values()), {}
        return notes

    def hear(self, note: Note) -> None:
        """Take something new."""
        before = self._notes.get(note.place)
        self._notes[note.place] = note if before is None else before.merged(note)
        if note.event is not None and note.event.completion is not None:
            self.left -= 1
            self.finishes.append(note.event.completion.finish)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def cancel(self) -> None:
        """Take it out of the engine."""
        self._worker.drop(self)


class Worker:
    """An engine, as an event loop asks it."""

    def __init__(self, start: Callable[[Tell], Far]) -> None:
        self.state = State(Load(0, 0, 0.0), Stats())
        """As the engine last told it."""
        self._tickets: dict[int, Ticket] = {}
        self._keys = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.far = start(self._tell)

    def ask(self, request: Request, is_stream: bool = True) -> Ticket:
        """Queue a request, from the event loop; its tokens are told as they come, or all together."""
        self._loop = asyncio.get_running_loop()
        ticket = Ticket(self, next(self._keys), request)
        self._tickets[ticket.key] = ticket
        self.far.ask(ticket.key, request, is_stream)
        return ticket

    def drop(self, ticket: Ticket) -> None:
        """Forget a request; where it is under way it is taken out of the engine."""
        if self._tickets.pop(ticket.key, None) is not None and ticket.left:
            self.far.cancel(ticket.key)

    def end(self, fault: Fault) -> None:
        """End all that is under way, from the event loop; everybody is told why."""
        self._deliver([(EVERYBODY, Note(0, None, fault))])

    def stop(self) -> None:
        """End the engine; what is under way stays unanswered."""
        self.far.stop()

    def _tell(self, news: News, state: State | None) -> None:
        self.state = state or self.state
        loop = self._loop
        if news and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._deliver, news)

    def _deliver(self, news: News) -> None:
        for key, note in news:
            known = [*self._tickets.values()] if key == EVERYBODY else [self._tickets.get(key)]
            for ticket in known:
                if ticket is not None:
                    ticket.hear(note)
