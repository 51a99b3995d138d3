"""One engine in a thread of its own, and the way there and back for an event loop.

The thread does nothing but steps; requests and cancellations reach it through a queue, and what a step did goes to the
loop in one call. When a step fails, everybody who was under way is told so, and the next request gets a new engine.

Try it alone: `pytest tests/serve/test_disconnect.py`
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

from zifio.engine.engine import Engine, Event, Load, Request
from zifio.log import say


class Note(NamedTuple):
    """What became of one of a request's replies, or with a fault of all of them."""

    place: int
    event: Event | None
    fault: str = ""


class Ticket:
    """A request in the engine, as the event loop holds it. `notes` has its news."""

    def __init__(self, worker: Worker, request: Request) -> None:
        self.request, self.notes = request, asyncio.Queue[Note]()
        self.loop = asyncio.get_running_loop()
        self.ids: list[int] = []  # the thread's
        self.is_over = False
        self._worker = worker

    def cancel(self) -> None:
        """Take it out of the engine, from any thread, at any time."""
        self.is_over = True
        self._worker.put(lambda: self._worker.drop(self))


class Worker:
    """An engine and its thread."""

    def __init__(self, make: Callable[[], Engine], name: str) -> None:
        self._make, self.engine = make, make()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._where: dict[int, tuple[Ticket, int]] = {}
        self._thread = threading.Thread(target=self._run, name=f"engine of {name}", daemon=True)
        self._thread.start()

    def ask(self, request: Request) -> Ticket:
        """Queue a request; to be called from an event loop."""
        ticket = Ticket(self, request)
        self.put(lambda: self._take(ticket))
        return ticket

    def load(self) -> Load:
        """How busy the engine is."""
        return self.engine.load()

    def stop(self) -> None:
        """End the thread; what is under way stays unanswered."""
        self._jobs.put(None)
        self._thread.join(timeout=30)

    def put(self, job: Callable[[], None]) -> None:
        """Have the thread do something between two steps."""
        self._jobs.put(job)

    def drop(self, ticket: Ticket) -> None:
        """In the thread: cancel what is left of a request."""
        for id in ticket.ids:
            if self._where.pop(id, None) is not None:
                self.engine.cancel(id)

    def _take(self, ticket: Ticket) -> None:
        if ticket.is_over:
            return
        try:
            ticket.ids = self.engine.submit(ticket.request)
        except Exception:  # whoever asked is told with the others, by `_fail`
            self._where[-1] = (ticket, 0)
            raise
        self._where.update((id, (ticket, place)) for place, id in enumerate(ticket.ids))

    def _run(self) -> None:
        while True:
            try:
                if not self._heed():
                    return
                self._tell(self.engine.step())
            except Exception as error:  # the boundary: a guide or the memory failed; the server goes on
                self._fail(f"the engine failed: {type(error).__name__}")

    def _heed(self) -> bool:
        """Do what has been asked for, and wait for something when there is nothing to compute. Whether to go on."""
        while True:
            try:
                job = self._jobs.get(block=not self.engine.has_work)
            except queue.Empty:
                return True
            if job is None:
                return False
            job()

    def _tell(self, events: list[Event]) -> None:
        told: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Note]]] = {}
        for event in events:
            known = self._where.get(event.id)
            if known is not None:
                ticket, place = known
                told.setdefault(ticket.loop, []).append((ticket, Note(place, event)))
                if event.completion is not None:
                    del self._where[event.id]
        self._send(told)

    def _fail(self, fault: str) -> None:
        say(f"{self._thread.name}: {fault}; it starts anew")
        told: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Note]]] = {}
        for ticket, place in self._where.values():
            told.setdefault(ticket.loop, []).append((ticket, Note(place, None, fault)))
        self._where.clear()
        self.engine = self._make()
        self._send(told)

    @staticmethod
    def _send(told: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Note]]]) -> None:
        for loop, notes in told.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_deliver, notes)


def _deliver(notes: list[tuple[Ticket, Note]]) -> None:
    for ticket, note in notes:
        ticket.notes.put_nowait(note)
