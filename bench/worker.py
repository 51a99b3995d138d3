"""The harness's end of a worker: a process that is started, asked for rounds in turns with others, and ended.

`bench/peers/channel.py` has the protocol.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent / "peers"
LONGEST_START_S, LONGEST_ROUND_S = 1800.0, 3600.0


class Failed(Exception):
    """The worker has no result to give; the message says why."""


class Worker:
    """One system at one work. `ready_s` is the time from the start of its process until it was ready."""

    def __init__(self, python: Path, script: str, job: Path, log: Path, variables: dict[str, str]) -> None:
        began = time.perf_counter()
        self.log = log
        self.stream = log.open("w")
        self.process = subprocess.Popen(
            [str(python), str(PEERS / script), str(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.stream, text=True, bufsize=1, env=os.environ | variables, start_new_session=True,
        )  # fmt: skip
        self.lines: queue.Queue[str] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        ready = self._answer(LONGEST_START_S)
        self.ready_s = time.perf_counter() - began
        self.version, self.note = ready["version"], ready["note"]

    def go(self, round_: int) -> dict[str, Any]:
        """One round: seconds, tokens, peak_rss, lengths. Raises Failed."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has died: the answer below says why
            self.process.stdin.write(json.dumps({"go": round_}) + "\n")
            self.process.stdin.flush()
        return self._answer(LONGEST_ROUND_S)

    def end(self) -> None:
        """Let the process end by itself, or make it."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join(timeout=20)
        self.stream.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.put(line)
        self.lines.put("")

    def _answer(self, most_s: float) -> dict[str, Any]:
        try:
            line = self.lines.get(timeout=most_s)
        except queue.Empty:
            self.process.kill()
            self.end()
            raise Failed(f"no answer in {most_s:.0f} s") from None
        if not line:
            self.end()
            raise Failed(f"ended with code {self.process.returncode}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            self.end()
            raise Failed(answer["error"])
        return answer

    def _last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"
