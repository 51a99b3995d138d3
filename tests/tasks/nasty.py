"""A task whose checks go wrong in every way that the pool must survive. The response says in which."""

import ctypes
import os
import re
import subprocess
import sys
import threading
import time
from typing import Any, ClassVar, Literal

from zifio.config import Config, build
from zifio.tasks.runtime import Limits
from zifio.tasks.task import Problem, Verdict

READER = "nasty:read_task"
_HOARD: list[bytearray] = []


class Nasty(Config):
    """Right when the response is the gold; anything else it obeys."""

    name: Literal["nasty"] = "nasty"
    broken: bool = False
    isolated: ClassVar[bool] = True
    limits: ClassVar[Limits] = Limits(seconds=0.3, memory_mb=256)

    def problem(self, split: str, index: int, seed: int) -> Problem:
        return Problem(f"nasty/{index}", f"say {index}", str(index))

    def document(self, problem: Problem, shows_working: bool) -> str:
        return problem.gold

    def check_gold(self, problem: Problem) -> Verdict:
        return self.score(problem, problem.gold)

    def score(self, problem: Problem, response: str) -> Any:
        verb, _, word = response.partition(" ")
        if verb in DEEDS:
            return DEEDS[verb](word)
        right = response == problem.gold
        return Verdict("right" if right else "wrong", float(right), {"accuracy": float(right)}, "" if right else "no")


def read_task(data: dict[str, Any], where: str) -> Nasty:
    task = build(Nasty, data, where)
    if task.broken:
        raise OSError("the task's file is gone")
    return task


def _recurse(_: str) -> Any:
    def deeper(depth: int) -> int:
        return deeper(depth + 1)

    return deeper(0)


def _bomb(_: str) -> Any:
    sys.setrecursionlimit(10**9)
    return _recurse("")


def _eat(_: str) -> Any:
    hoard = []
    while True:
        hoard.append(bytearray(1 << 24))


def _leak(_: str) -> Any:
    """Leaves 200 MB behind, says it is fine."""
    _HOARD.append(bytearray(200 << 20))
    return Verdict("right", 1.0)


def _later(_: str) -> Any:
    """Says it is fine and ends the process soon after."""
    threading.Timer(0.05, os._exit, [7]).start()
    return Verdict("right", 1.0)


def _child(path: str) -> Any:
    """Starts a process that would go on, writes its pid and hangs."""
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with open(path, "w") as file:
        file.write(f"{child.pid} {os.getpid()}")
    while True:
        time.sleep(1)


class _Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def _raise(error: BaseException) -> Any:
    raise error


def _flood(_: str) -> Any:
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"x" * 100 + b"\n")
        except OSError:
            continue
    return Verdict("right", 1.0)


DEEDS: dict[str, Any] = {
    "sleep": lambda seconds: time.sleep(float(seconds)) or Verdict("right", 1.0),
    "spin": lambda _: [None for _ in iter(int, 1)],
    "regex": lambda _: re.match(r"(a+)+$", "a" * 64 + "b"),
    "power": lambda _: 9**9**9,
    "exit": lambda _: os._exit(3),
    "sysexit": lambda _: sys.exit(0),
    "crash": lambda _: ctypes.string_at(0),
    "kill": lambda _: os.kill(os.getpid(), 9),
    "recurse": _recurse,
    "bomb": _bomb,
    "eat": _eat,
    "huge": lambda _: bytearray(1 << 40),
    "leak": _leak,
    "later": _later,
    "child": _child,
    "raise": lambda word: _raise(RuntimeError(word)),
    "interrupt": lambda _: _raise(KeyboardInterrupt()),
    "unspeakable": lambda _: _Unspeakable(),
    "nan": lambda _: Verdict("right", float("nan")),
    "inf": lambda _: Verdict("right", float("inf")),
    "over": lambda _: Verdict("right", 1.5),
    "under": lambda _: Verdict("wrong", -0.5),
    "text": lambda _: Verdict("right", "1"),  # type: ignore[arg-type]
    "parts": lambda _: Verdict("right", 1.0, {"accuracy": float("inf")}),
    "outcome": lambda _: Verdict("maybe", 1.0),  # type: ignore[arg-type]
    "number": lambda _: 1.0,
    "none": lambda _: None,
    "flood": _flood,
    "template": lambda _: os.kill(os.getppid(), 9) or time.sleep(5),
    "pid": lambda _: Verdict("right", 1.0, {}, str(os.getpid())),
    "torch": lambda _: Verdict("right", float("torch" in sys.modules)),
    "say": lambda word: Verdict("wrong", 0.0, {}, word * 3000),
}
