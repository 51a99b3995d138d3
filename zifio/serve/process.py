"""An engine in a process of its own, so that what it computes and what goes out to clients have a processor each.

Python runs one thread of a process at a time; a nano model's engine needs all of that time itself. The two processes
speak through a pair of sockets. When the engine's process dies, everybody under way is told so, and another is started.
It ends by itself when the server does, however that came.

Try it alone: `pytest tests/serve/test_verb.py`
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zifio.config import ConfigError
from zifio.engine.config import EngineConfig
from zifio.engine.request import Load, Request, Stats
from zifio.log import say
from zifio.serve.news import EVERYBODY, About, Fault, Note, State, Tell
from zifio.serve.settings import EngineKind, VllmConfig

if TYPE_CHECKING:
    from zifio.models.device import Device

_OPENING = "import sys; from zifio.serve.child import child; child(int(sys.argv[1]))"
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class EnginePlan:
    """Which engine to start, and with what."""

    kind: EngineKind
    name: str
    folder: str
    settings: EngineConfig
    device: Device
    vllm: VllmConfig
    python: str = ""
    """Whose libraries it runs with; empty: ours."""


class EngineProcess:
    """The server's end. Raises ConfigError when the model cannot be opened."""

    def __init__(self, plan: EnginePlan, tell: Tell) -> None:
        self.name, self._tell, self._plan = plan.name, tell, plan
        self._lock = threading.Lock()
        self._wanted = threading.Event()  # somebody asks an engine that is not there
        self._is_over = False
        self._line: Connection | None = None
        self._backlog: list[tuple[Any, ...]] = []  # what was asked while there was none
        self._open()
        self._thread = threading.Thread(target=self._keep, name=f"news of {self.name}", daemon=True)
        self._thread.start()

    def ask(self, key: int, request: Request, is_stream: bool) -> None:
        """Queue a request under a number."""
        self._send((key, request, is_stream))

    def cancel(self, key: int) -> None:
        """Take a request out of the engine."""
        self._send((key,))

    def stop(self) -> None:
        """End the process; what is under way stays unanswered."""
        self._is_over = True
        self._wanted.set()
        with self._lock, contextlib.suppress(OSError):
            if self._line is not None:
                self._socket.shutdown(socket.SHUT_RDWR)  # its reader finds the end, and so does ours
        self._thread.join(timeout=30)

    def _open(self) -> None:
        """Start the process and wait until it can be asked."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [self._plan.python or sys.executable, "-c", _OPENING, str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=_with_zifio(),
            )  # fmt: skip
        line = Connection(ours.detach())
        try:
            line.send(self._plan)
            answer = line.recv()
        except (EOFError, OSError):
            answer = f"{self.name}: the engine's process ended with code {self.process.wait()} before it was ready."
        if isinstance(answer, str):
            line.close()
            self.process.wait()
            raise ConfigError(answer)
        self.about: About = answer
        with self._lock:
            self._socket, self._line = socket.socket(fileno=line.fileno()), line
            backlog, self._backlog = self._backlog, []
        for what in backlog:
            self._send(what)

    def _send(self, what: tuple[Any, ...]) -> None:
        self._wanted.set()
        with self._lock, contextlib.suppress(OSError):  # it has died, and everybody is about to be told
            if self._line is None:
                self._backlog.append(what)
            else:
                self._line.send(what)

    def _keep(self) -> None:
        """In a thread: pass on news, and start another process when one has died."""
        while True:
            line = self._line
            assert line is not None
            with contextlib.suppress(EOFError, OSError):
                while not self._is_over:
                    self._tell(*line.recv())
            code = self._close()
            if self._is_over:
                return
            self._lose(f"the engine's process ended with code {code}")
            while not self._reopened():
                self._wanted.clear()
                self._wanted.wait()
                if self._is_over:
                    return

    def _reopened(self) -> bool:
        try:
            self._open()
        except (ConfigError, OSError) as error:
            with self._lock:
                self._backlog.clear()
            self._lose(f"the engine does not start: {error}")
            return False
        return True

    def _lose(self, message: str) -> None:
        say(f"{self.name}: {message}; it starts anew")
        fault = Note(0, None, Fault(500, "engine_failed", message))
        self._tell([(EVERYBODY, fault)], State(Load(0, 0, 0.0), Stats()))

    def _close(self) -> int:
        with self._lock:
            assert self._line is not None
            self._socket.detach()
            self._line.close()
            self._line = None
        try:
            return self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # it computes, and does not look up
            self.process.kill()
            return self.process.wait()


def _with_zifio() -> dict[str, str]:
    """The environment, in which another Python finds this package too."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def settle() -> None:
    """What is loaded by now stays: spare the collector looking through it again and again."""
    gc.collect()
    gc.freeze()
