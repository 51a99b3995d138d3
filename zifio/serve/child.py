"""The engine's process, seen from inside: it does what the server's end (`serve/process.py`) sends, and tells news.

Try it alone: `pytest tests/serve/test_verb.py`
"""

from __future__ import annotations

import contextlib
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

from zifio.config import ConfigError
from zifio.serve.news import Fault, News, Note, State, Tell
from zifio.serve.process import EnginePlan, settle
from zifio.serve.worker import Far


def child(fd: int) -> None:
    """The engine's process, from its start to the end of the connection."""
    for ours in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ours, signal.SIG_IGN)  # a terminal tells both processes, and the server ends us in its time
    line, lock = Connection(fd), threading.Lock()

    def tell(news: News, state: State | None) -> None:
        with lock, contextlib.suppress(OSError):
            line.send((news, state))

    with contextlib.suppress(EOFError, OSError):
        try:
            far = _start(line.recv(), tell)
        except ConfigError as error:
            line.send(str(error))
            return
        line.send(far.about)
        settle()
        while True:
            _do(far, tell, *line.recv())


def _start(plan: EnginePlan, tell: Tell) -> Far:
    """The engine, ready to be asked. Raises ConfigError."""
    if plan.kind == "vllm":
        from zifio.serve.vllm_engine import VllmEngine

        return VllmEngine(plan, tell)
    from zifio.engine.policy import load_policy
    from zifio.serve.thread import EngineThread

    policy = load_policy(plan.folder, settings=plan.settings, device=plan.device, precision="bf16")
    return EngineThread(policy, plan.name, tell)


def _do(far: Far, tell: Tell, key: int, *asked: Any) -> None:
    if not asked:
        far.cancel(key)
        return
    try:
        far.ask(key, *asked)
    except Exception as error:  # the boundary: a grammar that does not open is one request's misfortune
        fault = Fault(500, "engine_failed", f"the request was not understood: {type(error).__name__}")
        tell([(key, Note(0, None, fault))], None)
