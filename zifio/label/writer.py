"""One thread that writes: what many requests want at the same time is committed together, and then acknowledged.

A commit waits for the disk; shared among all who wait, it costs each of them little. Every job has its own savepoint:
one that is refused takes nothing of the others along. Where the commit itself fails, nobody is acknowledged and
everybody may try again.

Try it alone: `pytest tests/label/test_app.py -k together`
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from sqlalchemy import Connection

from zifio.label.store import Store

Job = Callable[[Connection], Any]
_MOST_TOGETHER = 64


class Writer:
    """The writing thread of a desk, from `with` to the end of its block; what is asked for by then is still done."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._jobs: queue.SimpleQueue[tuple[Job, Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="desk-writer", daemon=True)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._jobs.put(None)
        self._thread.join()

    def submit(self, job: Job) -> "Future[Any]":
        """What `job(connection)` gives, once it is committed; or what it raised."""
        future: Future[Any] = Future()
        self._jobs.put((job, future))
        return future

    def _run(self) -> None:
        while True:
            batch = [self._jobs.get()]
            while len(batch) < _MOST_TOGETHER and not self._jobs.empty():
                batch.append(self._jobs.get())
            jobs = [one for one in batch if one is not None]
            if jobs:
                self._together(jobs)
            if len(jobs) < len(batch):
                return

    def _together(self, jobs: list[tuple[Job, "Future[Any]"]]) -> None:
        """One transaction for all of these; then, and only then, they learn what came of it."""
        told: list[tuple[Future[Any], Any, Exception | None]] = []
        try:
            with self._store.write() as connection:
                for job, future in jobs:
                    told.append((future, *_alone(connection, job)))
        except Exception as error:  # the boundary: whatever the database does, the desk goes on
            told = [(future, None, error) for _, future in jobs]
        for future, result, error in told:
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)


def _alone(connection: Connection, job: Job) -> tuple[Any, Exception | None]:
    """What a job gives, or what it raised, with nothing of it left behind."""
    try:
        with connection.begin_nested():
            return job(connection), None
    except Exception as error:  # the boundary: one request's failure is its own
        return None, error
