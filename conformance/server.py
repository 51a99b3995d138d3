"""The server that the clients talk to: `zifio serve` as a user starts it, in a process of its own, with a key.

Try it alone: `python -m conformance.run --only "llm-comply chat"`
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

TEXT, THINKS, SEES = "smollm2", "r1", "sees"
"""What the models are called; the third one reads pictures (conformance/sight.toml)."""
SETTINGS = ("temperature=0", "max_tokens=200", f"aliases.claude-sonnet-4={TEXT}")
"""Most clients do not say how long and how freely: greedy replies of a bounded length are the same each time.
Some ask a model to think only where they know its name."""
STARTS_WITHIN_S = 600


class Server:
    """Runs until `stop`."""

    def __init__(self, models: dict[str, str], log: Path) -> None:
        """`models`: the folder, or what else `zifio serve` takes, by name."""
        self.key = secrets.token_hex(16)
        self.log = log
        words = [f"models.{name}={folder}" for name, folder in models.items()]
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "zifio.cli", "serve", *words, *SETTINGS, "--port", "0"],
                stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=os.environ | {"ZIFIO_API_KEY": self.key},
            )  # fmt: skip
        self.url = self._address()

    @property
    def is_alive(self) -> bool:
        """Whether it runs and answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=30) as answer:
                return self.process.poll() is None and answer.status == 200
        except OSError:
            return False

    def n_running(self) -> int:
        """Replies that the engines still draw, and those that wait."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return int(sum(map(float, re.findall(r"^zifio:num_requests_(?:running|waiting)\{.*\} (\S+)$", text, re.M))))

    def stop(self) -> None:
        """End it as Ctrl-C would."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _address(self) -> str:
        end = time.monotonic() + STARTS_WITHIN_S
        while time.monotonic() < end and self.process.poll() is None:
            if found := re.search(r"serving: (\S+)/v1", self.log.read_text()):
                return found.group(1)
            time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"The server did not start: {self.log.read_text()[-600:]}")
