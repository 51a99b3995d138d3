"""Who may ask, and how much at once.

Try it alone: `pytest tests/serve/test_limits.py`
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping

from zifio.serve.refused import Refused
from zifio.serve.settings import ServeConfig


class Gate:
    """Counts requests by key. Of keys only digests are kept."""

    def __init__(self, keys: Mapping[str, str], config: ServeConfig, now: Callable[[], float] = time.monotonic) -> None:
        """`keys`: the name by key; without any, everybody is one and the same."""
        self._names = {hashlib.sha256(key.encode()).digest(): name for key, name in keys.items()}
        self._config, self._now = config, now
        self._running: Counter[str] = Counter()
        self._recent: dict[str, deque[float]] = {}

    @property
    def n_running(self) -> int:
        """Requests under way."""
        return self._running.total()

    def who(self, headers: Mapping[str, str]) -> str:
        """The name behind a request's key. Raises Refused."""
        if not self._names:
            return ""
        kind, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        name = next((name for known, name in self._names.items() if hmac.compare_digest(known, digest)), None)
        if name is None:
            raise Refused(
                401,
                "Wanted an API key that this server knows: Authorization: Bearer KEY, or x-api-key: KEY.",
                code="wrong_key",
            )
        return name

    def enter(self, name: str) -> Callable[[], None]:
        """Count a request in; what comes back, called once or more, counts it out. Raises Refused."""
        config, now = self._config, self._now()
        if self.n_running >= config.waiting:
            raise Refused(503, "The server has as many requests as it takes. Try again soon.", retry_s=1)
        if self._running[name] >= config.key_requests:
            raise Refused(429, f"This key has {config.key_requests} requests under way already.", retry_s=1)
        if config.key_per_minute:
            recent = self._recent.setdefault(name, deque())
            while recent and recent[0] <= now - 60:
                recent.popleft()
            if len(recent) >= config.key_per_minute:
                wait = recent[0] + 60 - now
                raise Refused(429, f"This key may ask {config.key_per_minute} times a minute.", retry_s=wait)
            recent.append(now)
        self._running[name] += 1
        inside = [name]

        def leave() -> None:
            if inside:
                self._running[inside.pop()] -= 1

        return leave
