"""One thread that writes: what many requests want at the same time is committed together, and then acknowledged.

A commit waits for the disk; shared among all who wait, it costs each of them little. Every job has its own savepoint:
one that is refused takes nothing of the others along. Where the commit itself fails, nobody is acknowledged and
everybody may try again. Who only asks, or may lose what was written (a lease), is answered without waiting for the
disk.

Try it alone: `pytest tests/label/test_app.py -k together`
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from sqlalchemy import Connection

from zifio.label.store import Store

Work = Callable[[Connection], Any]
_MOST_TOGETHER = 64
_LONGEST_S = 0.01  # that others wait for their commit while more comes in


class _Job(NamedTuple):
    """Something to do, who waits for it, and whether they wait for the disk too."""

    work: Work
    future: "Future[Any]"
    lasting: bool


class Writer:
    """The writing thread of a desk, from `with` to the end of its block; what is asked for by then is still done."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="desk-writer", daemon=True)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._jobs.put(None)
        self._thread.join()

    def submit(self, work: Work, lasting: bool = True) -> "Future[Any]":
        """What `work(connection)` gives, or what it raised: once it is committed, or at once if it need not last."""
        future: Future[Any] = Future()
        self._jobs.put(_Job(work, future, lasting))
        return future

    def _run(self) -> None:
        job = self._jobs.get()
        while job is not None:
            job = self._together(job) or self._jobs.get()

    def _together(self, job: _Job | None) -> _Job | None:
        """One transaction for this job and those that come in meanwhile; the one that comes too late for it."""
        untold: list[tuple[Future[Any], Any]] = []
        n = 0
        try:
            with self._store.write() as connection:
                start = time.monotonic()
                while job is not None and n < _MOST_TOGETHER and time.monotonic() - start < _LONGEST_S:
                    n += 1
                    if job.future.set_running_or_notify_cancel():  # who waited may have gone
                        untold.append((job.future, None))
                        result, error = _alone(connection, job.work)
                        if error is not None:
                            untold.pop()[0].set_exception(error)
                        elif job.lasting:
                            untold[-1] = (job.future, result)
                        else:
                            untold.pop()[0].set_result(result)
                    job = self._next()
        except Exception as error:  # the boundary: whatever the database does, the desk goes on
            for future, _ in untold:
                future.set_exception(error)
            if not n and job is not None and job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)
                return None
            return job
        for future, result in untold:
            future.set_result(result)
        return job

    def _next(self) -> _Job | None:
        try:
            job = self._jobs.get_nowait()
        except queue.Empty:
            return None
        if job is None:
            self._jobs.put(None)  # the end: for `_run` to see
        return job


def _alone(connection: Connection, work: Work) -> tuple[Any, Exception | None]:
    """What a job gives, or what it raised, with nothing of it left behind."""
    try:
        with connection.begin_nested():
            return work(connection), None
    except Exception as error:  # the boundary: one request's failure is its own
        return None, error
