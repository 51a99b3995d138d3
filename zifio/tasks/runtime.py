"""Checking answers: in this process, or, for a task that says `isolated`, in a pool of processes that can be killed.

`judge` and `judge_all` are the one boundary around code that we do not trust to work, the verifier. A check that
raises, hangs, crashes, eats memory or gives what is no verdict becomes a verdict with outcome `error` that says who
failed; the others go on. The pool is no sandbox: it is for checks that may break, not for programs that mean harm.

A task in the pool is a catalog task: it is rebuilt over there from its config, and nothing is ever unpickled. It may
have the attributes `isolated` (true), `limits` (its `Limits`) and `needs` (modules to import before the first fork).

Try it alone: `pytest tests/tasks/test_runtime.py`
"""

import atexit
import contextlib
import dataclasses
import json
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from zifio.log import cores
from zifio.tasks.checking import (
    Checked,
    Checker,
    Limits,
    config_of,
    described,
    error_verdict,
    named,
    verdict_fault,
    verdict_of,
)
from zifio.tasks.task import Problem, Verdict

__all__ = ["Checked", "Checker", "Limits", "Pool", "check_all", "judge", "judge_all", "shared_pool"]

CATALOG = "zifio.tasks.catalog:read_task"
_SETUP_S = 60.0  # to rebuild a task, which may have to read a file
_GRACE_S = 2.0  # the worker's own alarm comes first; then we wait this much longer for a sign of it
_START_S = 180.0  # a machine short of time imports slowly
_MOST_CHECKS, _MOST_CHARACTERS = 64, 1 << 20  # of one message
_MOST_ATTEMPTS = 3  # for a check beside which the whole pool dies
_LONGEST_LINE = 1 << 20
_LONGEST_REASON = 2000


def judge(task: Checker, problem: Problem, response: str) -> Verdict:
    """The task's verdict, or one with outcome "error" that names the task, the problem and what went wrong."""
    return judge_all(task, [(problem, response)])[0]


def judge_all(task: Checker, answered: Sequence[tuple[Problem, str]]) -> list[Verdict]:
    """The verdict on each response, in order: here, or in the shared pool when the task is isolated."""
    return [checked.verdict for checked in check_all(task, answered)]


def check_all(task: Checker, answered: Sequence[tuple[Problem, str]]) -> list[Checked]:
    """As `judge_all`, with the seconds that each check took."""
    if getattr(task, "isolated", False):
        return shared_pool().check(task, answered)
    return [_check_here(task, problem, response) for problem, response in answered]


def _check_here(task: Checker, problem: Problem, response: str) -> Checked:
    start = time.perf_counter()
    try:
        verdict = verdict_of(task, problem, response)
    except (Exception, SystemExit) as error:  # the boundary: a broken check must neither stop a run nor pass for wrong
        verdict = error_verdict(f"{named(task, problem)} raised {described(error)}")
    return Checked(verdict, time.perf_counter() - start)


class _TemplateDied(Exception):
    """The process that forks workers is gone, and so are they."""


class _Template:
    """The process that forks workers (`zifio.tasks.worker`), seen from here. Safe to use from several threads."""

    def __init__(self, reader: str) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(_START_S)
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        # One thread each, and the same order of sets in every worker, so that a check repeats.
        alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = {**os.environ, **alone, "PYTHONPATH": path, "PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-P", "-m", "zifio.tasks.worker", str(theirs.fileno()), reader]
        with theirs, tempfile.TemporaryFile() as told:
            # A session of its own: Ctrl-C is for us, and we end it by closing the socket.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=told,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,
            )
            theirs.close()
            self._socket, self._lock, self._buffer, self._imported = ours, threading.Lock(), b"", set()
            try:
                self._answer()
            except _TemplateDied:
                self.close()
                told.seek(0)
                said = told.read().decode(errors="replace").strip()[-_LONGEST_REASON:]
                raise RuntimeError(f"the processes that check answers do not start: {said or 'no word'}") from None

    def fork(self) -> "_Worker":
        """A new worker."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                pid = self._ask({"fork": True}, [theirs.fileno()])["pid"]
            except _TemplateDied:
                ours.close()
                raise
        return _Worker(pid, ours, self)

    def end(self, pid: int) -> int:
        """Kill a worker, if it lives; how it ended comes back, as `os.waitpid` says it."""
        return self._ask({"end": pid})["status"]

    def prepare(self, modules: Sequence[str]) -> None:
        """Import what the workers forked from now on will need. A module that fails here fails in the task too."""
        wanted = [module for module in modules if module not in self._imported]
        if wanted:
            self._ask({"import": wanted})
            self._imported.update(wanted)

    def close(self) -> None:
        """End it and every worker."""
        self._socket.close()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        with self._lock:
            try:
                socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
            except OSError:
                raise _TemplateDied from None
            return self._answer()

    def _answer(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            try:
                data = self._socket.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                raise _TemplateDied
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)


@dataclass(eq=False)
class _Worker:
    """One process that checks, and what it is at."""

    pid: int
    wire: socket.socket
    template: _Template
    used: int = 0
    """Checks it has begun."""
    indexes: list[int] = field(default_factory=list)
    """The checks of its message that have no verdict yet."""
    set_up: bool = False
    deadline: float = math.inf
    buffer: bytes = b""

    def send(self, message: dict[str, Any]) -> None:
        """Hand it a message. One that has died cannot take it: that shows when we listen."""
        self.wire.settimeout(_SETUP_S)
        with contextlib.suppress(OSError):
            self.wire.sendall(json.dumps(message).encode() + b"\n")
        self.wire.settimeout(0)

    def lines(self) -> list[bytes] | None:
        """The whole lines that have come since, or None when nothing more will."""
        try:
            data = self.wire.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data or len(self.buffer) > _LONGEST_LINE:
            return None
        *whole, self.buffer = (self.buffer + data).split(b"\n")
        return whole

    def end(self) -> int:
        """Kill it; how it ended comes back. Raises _TemplateDied when nobody knows."""
        try:
            return self.template.end(self.pid)
        finally:
            self.wire.close()


class Pool:
    """Processes that check answers; each may be killed, and is then replaced. Safe to use from several threads."""

    def __init__(self, workers: int | None = None, reader: str = CATALOG) -> None:
        """`reader` names, as module:function, what makes a task of its config over there."""
        self._size, self._reader = workers or max(2, cores()), reader
        self._free, self._waiting = self._size, 0
        self._idle: list[_Worker] = []
        self._template: _Template | None = None
        self._turn = threading.Condition()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process. The pool starts anew when it is used again."""
        with self._turn:
            for worker in self._idle:
                worker.wire.close()
            self._idle.clear()
            if self._template is not None:
                self._template.close()
                self._template = None

    def check(
        self, task: Checker, answered: Sequence[tuple[Problem, str]], limits: Limits | None = None
    ) -> list[Checked]:
        """The verdict on each response and its seconds, in order. `limits` are the task's own unless given.

        Raises ConfigError for a task that has no config, and RuntimeError where no process can be started.
        """
        return _Call(self, task, answered, limits or getattr(task, "limits", None) or Limits()).run()

    @contextlib.contextmanager
    def seats(self, wanted: int) -> Generator["_Seats", None, None]:
        """Places for up to `wanted` workers, at least one, ours until the block ends or we give some back."""
        with self._turn:
            self._waiting += 1
            self._turn.wait_for(lambda: self._free)
            self._waiting -= 1
            seats = _Seats(self, min(wanted, self._free))
            self._free -= seats.n
        try:
            yield seats
        finally:
            seats.give_back(seats.n)

    def template(self) -> _Template:
        """The living template."""
        with self._turn:
            if self._template is None:
                self._template = _Template(self._reader)
            return self._template

    def forget(self, template: _Template) -> None:
        """It has died: let the next worker come from a new one."""
        with self._turn:
            if self._template is template:
                template.close()
                self._template = None
                for worker in self._idle:
                    worker.wire.close()
                self._idle.clear()

    def take(self, fresh: bool) -> _Worker:
        """An idle worker, or a new one; `fresh`: one that has checked nothing yet."""
        with self._turn:
            for worker in self._idle:
                if not (fresh and worker.used):
                    self._idle.remove(worker)
                    return worker
            spare = self._idle.pop() if self._idle else None
        if spare is not None:  # every seat holds one process, so an unfit one goes
            self.drop(spare)
        while True:
            template = self.template()
            try:
                return template.fork()
            except _TemplateDied:
                self.forget(template)

    def keep(self, worker: _Worker) -> None:
        """Take back a worker that is at nothing."""
        with self._turn:
            if worker.template is self._template:
                self._idle.append(worker)
                return
        worker.wire.close()

    def drop(self, worker: _Worker) -> int | None:
        """Kill a worker; how it ended comes back, or None when the template has died and nobody knows."""
        try:
            return worker.end()
        except _TemplateDied:
            self.forget(worker.template)
            return None


@dataclass
class _Seats:
    """How many workers a call may have at once."""

    pool: Pool
    n: int

    def give_back(self, n: int) -> None:
        """Let others have n of them."""
        turn = self.pool._turn
        with turn:
            self.n -= n
            self.pool._free += n
            turn.notify_all()

    def share(self) -> None:
        """Give one back when somebody waits and we have another."""
        if self.n > 1 and self.pool._waiting:
            self.give_back(1)


class _Call:
    """One call of `Pool.check`.

    A check that a worker dies of, or that runs out of memory, is guilty only when it was the first of a fresh
    worker; otherwise it is tried again alone, because an earlier one may have left the worker in a bad state. Those
    that were under way when the whole pool died come last, one at a time, so that none dies by another's guilt again.
    """

    def __init__(self, pool: Pool, task: Checker, answered: Sequence[tuple[Problem, str]], limits: Limits) -> None:
        self.pool, self.task, self.answered, self.limits = pool, task, answered, limits
        self.config = config_of(task)
        self.done: list[Checked | None] = [None] * len(answered)
        self.batches = deque(self._batches())
        self.suspects: deque[int] = deque()
        self.last: deque[int] = deque()
        self.attempts: dict[int, int] = {}
        self.busy: set[_Worker] = set()
        self.selector = selectors.DefaultSelector()

    def _batches(self) -> Generator[list[int], None, None]:
        most = max(1, min(_MOST_CHECKS, -(-len(self.answered) // self.pool._size)))
        batch, characters = [], 0
        for index, (problem, response) in enumerate(self.answered):
            batch.append(index)
            characters += len(problem.prompt) + len(problem.working) + len(response)
            if len(batch) == most or characters > _MOST_CHARACTERS:
                yield batch
                batch, characters = [], 0
        if batch:
            yield batch

    def run(self) -> list[Checked]:
        """Hand out, listen, until every check has its verdict."""
        if not self.answered:
            return []
        self._prepare()
        with self.pool.seats(len(self.batches)) as seats, self.selector:
            try:
                while self.batches or self.suspects or self.last or self.busy:
                    while len(self.busy) < seats.n and (self.batches or self.suspects):
                        self._hand_out()
                    if not self.busy:
                        self.suspects.append(self.last.popleft())
                        self._hand_out()
                    self._listen()
                    if len(self.busy) < seats.n:
                        seats.share()
            finally:
                for worker in self.busy:  # only when something above was interrupted
                    self.pool.drop(worker)
        return [checked for checked in self.done if checked is not None]

    def _prepare(self) -> None:
        needs = [type(self.task).__module__, *getattr(self.task, "needs", ())]
        template = self.pool.template()
        try:
            template.prepare([name for name in needs if name != "__main__"])
        except _TemplateDied:
            self.pool.forget(template)

    def _hand_out(self) -> None:
        alone = bool(self.suspects)
        worker = self.pool.take(fresh=alone)
        worker.indexes = [self.suspects.popleft()] if alone else self.batches.popleft()
        worker.set_up, worker.deadline = False, time.monotonic() + _SETUP_S + _GRACE_S
        self.busy.add(worker)
        self.selector.register(worker.wire, selectors.EVENT_READ, worker)
        checks = [[dataclasses.astuple(self.answered[n][0]), self.answered[n][1]] for n in worker.indexes]
        limits = {**dataclasses.asdict(self.limits), "setup_seconds": _SETUP_S}
        worker.send({"task": self.config, **limits, "checks": checks})

    def _listen(self) -> None:
        wait = min(worker.deadline for worker in self.busy) - time.monotonic()
        for key, _ in self.selector.select(max(0.0, wait)):
            worker: _Worker = key.data
            lines = worker.lines()
            if lines is None:
                self._died(worker)
            elif not all(self._heard(worker, line) for line in lines if worker in self.busy):
                self._died(worker, "wrote to the pool's own channel")
        now = time.monotonic()
        for worker in [worker for worker in self.busy if worker.deadline < now]:
            self._died(worker, f"took longer than {self.limits.seconds if worker.set_up else _SETUP_S:g} s")

    def _heard(self, worker: _Worker, line: bytes) -> bool:
        """Whether a worker's line makes sense; what it tells is noted."""
        try:
            told = json.loads(line)
            if not worker.set_up:
                fault = str(told["setup"])
                if fault:
                    self._cannot_set_up(worker, fault)
                    return True
                worker.set_up = True
            else:
                verdict, seconds = Verdict(*told["verdict"]), float(told["seconds"])
                if verdict_fault(verdict):
                    return False
                if told["memory"]:
                    self._guilty(worker, f"wanted more than {self.limits.memory_mb} MB of memory", seconds)
                    return True
                worker.used += 1
                self.done[worker.indexes.pop(0)] = Checked(verdict, seconds)
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            return False
        worker.deadline = time.monotonic() + self.limits.seconds + _GRACE_S
        if not worker.indexes:
            self._leave(worker)
            self.pool.keep(worker)
        return True

    def _died(self, worker: _Worker, what: str = "") -> None:
        """A worker died, or did what it must die for."""
        if worker not in self.busy:
            return
        self._leave(worker)
        status = self.pool.drop(worker)
        if status is None:
            self._again(worker)
        elif not worker.set_up and worker.used:  # something that an earlier check left there
            self.batches.appendleft(worker.indexes)
        elif not worker.set_up:
            self._cannot_set_up(worker, what or _ending(status, _SETUP_S))
        else:
            self._guilty(worker, what or _ending(status, self.limits.seconds), self.limits.seconds)

    def _guilty(self, worker: _Worker, what: str, seconds: float) -> None:
        """The check that a worker is at broke it: the verdict when it was alone there, else another try."""
        if worker in self.busy:
            self._leave(worker)
            self.pool.drop(worker)
        index, *rest = worker.indexes
        if rest:
            self.batches.appendleft(rest)
        if worker.used:
            self.suspects.append(index)
            return
        problem, _ = self.answered[index]
        self.done[index] = Checked(error_verdict(f"{named(self.task, problem)} {what}"), seconds)

    def _again(self, worker: _Worker) -> None:
        """The whole pool died, nobody knows by whom: each check again, alone, and not for ever."""
        for index in worker.indexes:
            self.attempts[index] = self.attempts.get(index, 0) + 1
            if self.attempts[index] < _MOST_ATTEMPTS:
                self.last.append(index)
                continue
            problem, _ = self.answered[index]
            reason = f"{named(self.task, problem)} was begun {_MOST_ATTEMPTS} times, and each time the whole pool died"
            self.done[index] = Checked(error_verdict(reason), 0.0)

    def _cannot_set_up(self, worker: _Worker, fault: str) -> None:
        """No check of this call can be made: the task cannot be rebuilt."""
        if worker in self.busy:
            self._leave(worker)
            self.pool.drop(worker)
        self.batches.clear()
        self.suspects.clear()
        self.last.clear()
        for other in list(self.busy):
            self._leave(other)
            self.pool.drop(other)
        for index, (problem, _) in enumerate(self.answered):
            if self.done[index] is None:
                reason = f"{named(self.task, problem)} never began: setting up the task {fault}"
                self.done[index] = Checked(error_verdict(reason), 0.0)

    def _leave(self, worker: _Worker) -> None:
        self.busy.discard(worker)
        self.selector.unregister(worker.wire)


def _ending(status: int, seconds: float) -> str:
    """What a worker's end says about its check."""
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number == signal.SIGALRM:
        return f"took longer than {seconds:g} s"
    if number == signal.SIGKILL:
        return "was killed: by itself, or because the machine ran out of memory"
    if number:
        return f"crashed ({signal.Signals(number).name})"
    return f"ended its process with exit code {os.waitstatus_to_exitcode(status)}"


_shared: dict[int, Pool] = {}


def shared_pool() -> Pool:
    """The pool of this process; one that was forked has its own."""
    pid = os.getpid()
    if pid not in _shared:
        atexit.register(_shared.setdefault(pid, Pool()).close)
    return _shared[pid]
