"""A desk that is served by a process of its own, as `zifio label DB` does it, and that may be killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx2

from zifio import cli

ROOT = Path(__file__).resolve().parents[2]
_START_S = 120.0


class Server:
    """One process at one port."""

    def __init__(self, where: str, port: int = 0, *more: str) -> None:
        command = [sys.executable, "-m", "zifio.cli", "label", where, "--port", str(port), *more]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ})
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        found = re.search(r"http://[^/\s]+", line)
        assert found, line + self.process.stderr.read()
        self.url = found[0]
        self.port = int(self.url.rpartition(":")[2])
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            with contextlib.suppress(httpx2.TransportError):
                httpx2.get(self.url)
                return
            time.sleep(0.1)
        raise AssertionError("the desk does not answer")

    def kill(self) -> None:
        """As a power cut would."""
        os.kill(self.process.pid, signal.SIGKILL)
        self._end()

    def stop(self) -> None:
        """As Ctrl-C does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self._end()

    def _end(self) -> None:
        self.process.wait(30)
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextlib.contextmanager
def serving(where: str, port: int = 0, *more: str) -> Generator[Server, None, None]:
    """A desk at its URL until the block ends."""
    server = Server(where, port, *more)
    try:
        yield server
    finally:
        server.stop()


class Caller:
    """Somebody who talks to the desk as its page does."""

    def __init__(self, url: str, token: str = "", **headers: str) -> None:
        self.headers = {"X-Desk": "1", **({"Authorization": f"Bearer {token}"} if token else {}), **headers}
        self.client = httpx2.Client(base_url=url, headers=self.headers, timeout=60)

    def __call__(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        answer = self.client.post(f"/api/{path}", json=body)
        return answer.status_code, answer.json()

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()


def told(capsys: Any, *words: str) -> dict[str, Any]:
    """What a command of `zifio label` answers, as JSON."""
    assert cli.main(["label", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)
