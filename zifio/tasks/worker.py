"""The other side of `runtime`: a template process that forks workers, and the workers, which check answers.

The template imports what checks need, runs none of it and never has a second thread, so a worker that must die is
replaced by a fork in milliseconds. It ends when its parent does, and takes its workers along. A worker reads a
message (a task's config, limits, some checks) and writes one line of JSON per check at once, so that whoever waits
knows at which check it died. An alarm with the kernel's own action, death, ends a check that takes too long, also
one that is deep in C and never lets go of the interpreter.

Try it alone: `pytest tests/tasks/test_runtime.py`
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from zifio.tasks.checking import Checker, Limits, described, named, verdict_of
from zifio.tasks.task import Problem

_CHUNK = 1 << 16
_PARENT_LOOK_S = 1.0  # how often the template looks whether its parent lives, beside the end of their socket
_MOST_TASKS = 16  # tasks a worker keeps
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def template(control: socket.socket, reader: str) -> None:
    """Answer requests on `control` until it closes: import modules, fork a worker, end one."""
    parent = os.getppid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what a check leaves behind becomes our child, so that we can end it
    make = _function(reader)
    workers: set[int] = set()
    _send(control, {"ready": os.getpid()})
    try:
        while os.getppid() == parent:
            if not select.select([control], [], [], _PARENT_LOOK_S)[0]:
                continue
            data, descriptors, _, _ = socket.recv_fds(control, _CHUNK, 1)
            if not data:
                return
            request = json.loads(data)
            if "import" in request:
                _send(control, {"error": _import(request["import"])})
            elif "fork" in request:
                workers.add(pid := _fork(control, descriptors[0], make))
                os.close(descriptors[0])
                _send(control, {"pid": pid})
            else:
                workers.discard(request["end"])
                _send(control, {"status": _end(request["end"], workers)})
    finally:
        for pid in workers:
            _kill(pid)


def _import(modules: list[str]) -> str:
    """Import what coming workers will need; what went wrong comes back, or ""."""
    try:
        for module in modules:
            importlib.import_module(module)
    except Exception as error:
        return described(error)
    gc.collect()
    gc.freeze()  # keeps a worker's collector from touching, and so copying, every page it shares with us
    return ""


def _fork(control: socket.socket, descriptor: int, make: Callable[[dict[str, Any], str], Checker]) -> int:
    """The pid of a new worker that talks through `descriptor`. In the worker itself this never returns."""
    us = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != us:  # it died before it could take us along
            os._exit(0)
        control.close()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nowhere, standard)
        with socket.socket(fileno=descriptor) as wire:
            work(wire, make)
    finally:
        os._exit(0)


def _end(pid: int, others: set[int]) -> int:
    """Kill a worker with all it started; how it ended comes back, as `os.waitpid` says it."""
    _kill(pid)
    _, status = os.waitpid(pid, 0)
    for stray in _children() - others:
        _kill(stray)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(stray, 0)
    return status


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _children() -> set[int]:
    """Our living and dead children; nothing where the kernel does not list them."""
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as listed:
        return set(map(int, listed.read().split()))
    return set()


def _prctl(option: int, value: int) -> None:
    """Linux's prctl; elsewhere nothing happens."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def work(wire: socket.socket, make: Callable[[dict[str, Any], str], Checker]) -> None:
    """Check what comes until nothing does any more."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    base, recursion = _mapped_bytes(), sys.getrecursionlimit()
    tasks: dict[str, Checker] = {}
    with wire.makefile("rb") as lines:
        for line in lines:
            message = json.loads(line)
            limits = Limits(message["seconds"], message["memory_mb"])
            _bound_memory(base + limits.memory_mb * 2**20)
            key = json.dumps(message["task"], sort_keys=True)
            signal.setitimer(signal.ITIMER_REAL, message["setup_seconds"])
            fault = ""
            if key not in tasks:
                try:
                    tasks[key] = make(message["task"], "task")
                except BaseException as error:
                    fault = f"raised {described(error)}"
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(wire, {"setup": fault})
            if fault:
                continue
            task = tasks[key]
            for fields, response in message["checks"]:
                _send(wire, _check(task, Problem(*fields), response, limits))
                sys.setrecursionlimit(recursion)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a check may have had alarms of its own
            if len(tasks) > _MOST_TASKS:
                del tasks[next(iter(tasks))]


def _check(task: Checker, problem: Problem, response: str, limits: Limits) -> dict[str, Any]:
    """One check under its alarm, as the line that tells of it."""
    start = time.perf_counter()
    memory = False
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)
    try:
        verdict = verdict_of(task, problem, response)
        told = [verdict.outcome, verdict.reward, verdict.parts, verdict.reason]
    except MemoryError:
        told, memory = ["error", 0.0, {}, ""], True
    except BaseException as error:
        told = ["error", 0.0, {}, f"{named(task, problem)} raised {described(error)}"]
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {"verdict": told, "seconds": time.perf_counter() - start, "memory": memory}


def _mapped_bytes() -> int:
    """The address space in use: where the kernel's limit counts from."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as pages:
        return int(pages.read().split()[0]) * resource.getpagesize()
    return 0


def _bound_memory(limit: int) -> None:
    """Beyond this the interpreter raises MemoryError. Where the system knows no such limit, nothing happens."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _send(wire: socket.socket, message: dict[str, Any]) -> None:
    wire.sendall(json.dumps(message).encode() + b"\n")


def _function(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as from_parent:
        template(from_parent, sys.argv[2])
