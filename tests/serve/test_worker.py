"""Between engine and event loop: nothing is lost or doubled, however it is bundled."""

from __future__ import annotations

import asyncio
import time

from served import policy

from zifio.config import Sampling
from zifio.engine.request import Request
from zifio.serve.model import here
from zifio.serve.news import Fault
from zifio.serve.worker import Ticket, Worker

PROMPT = [5, 6, 7]


def request(*seeds: int, n_new: int = 40) -> Request:
    """A few replies, with their likeliest tokens."""
    return Request(PROMPT, Sampling(max_new_tokens=n_new), seeds, n_top=1)


async def read(ticket: Ticket, pause_s: float) -> tuple[dict[int, list[tuple[int, float]]], int]:
    """(tokens and log-probs of each reply, how many notes they came in), by a reader who takes a rest between."""
    drawn: dict[int, list[tuple[int, float]]] = {}
    left, n_notes = len(ticket.request.seeds), 0
    while left:
        for note in await ticket.notes(5.0):
            assert note.event is not None and len(note.event.tops) == len(note.event.tokens)
            drawn.setdefault(note.place, []).extend(zip(note.event.tokens, note.event.logps, strict=True))
            left -= note.event.completion is not None
            n_notes += 1
        await asyncio.sleep(pause_s)
    return drawn, n_notes


def test_a_slow_reader_gets_the_same_in_fewer_pieces():
    worker = here("tiny", policy()).worker
    try:

        async def both() -> tuple[list[dict[int, list[tuple[int, float]]]], list[int]]:
            asked = [worker.ask(request(1, 2)), worker.ask(request(1, 2)), worker.ask(request(1, 2), is_stream=False)]
            found = await asyncio.gather(read(asked[0], 0), read(asked[1], 0.3), read(asked[2], 0))
            return [drawn for drawn, _ in found], [n for _, n in found]

        drawn, n_notes = asyncio.run(both())
        assert drawn[0] == drawn[1] == drawn[2] and all(drawn[0].values())
        assert n_notes[1] <= n_notes[0] and n_notes[2] == 2  # a whole answer comes once for each reply
    finally:
        worker.stop()


def test_what_nobody_wants_any_more_is_dropped_and_everybody_is_told_of_the_end():
    worker = here("tiny", policy(push=-9.0)).worker
    try:

        async def ask() -> list[Fault | None]:
            gone, stays = worker.ask(request(1, n_new=400)), worker.ask(request(2, n_new=400))
            await gone.notes(5.0)
            gone.cancel()
            worker.end(Fault(503, "shutting_down", "over"))
            told = [note.fault for note in await stays.notes(5.0)]
            stays.cancel()
            assert await gone.notes(0.05) == []
            return told

        assert Fault(503, "shutting_down", "over") in asyncio.run(ask())
        assert is_idle(worker)
    finally:
        worker.stop()


def is_idle(worker: Worker) -> bool:
    """Whether nothing runs, within a moment."""
    end = time.monotonic() + 5
    while worker.state.load.n_running and time.monotonic() < end:
        time.sleep(0.01)
    return worker.state.load == (0, 0, 0.0)
