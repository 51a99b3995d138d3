"""A server that is asked over HTTP for JSON: requests side by side, tried again when that may help.

Several requests are under way at once. What may pass is tried again: 408, 409, 425, 429, 5xx, connections that break,
answers that are cut or make no sense, each time after a longer wait or as long as the server asks. What will not pass
(a wrong key, a wrong model) ends the run. The key comes from an environment variable; it is in no message or file.

Try it alone: `pytest tests/evaluate/test_endpoint.py`, which has a server that misbehaves.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from zifio.config import ConfigError, EndpointSettings, is_url
from zifio.seed import stream

Answer = TypeVar("Answer")

_PASSING = (408, 409, 425, 429, *range(500, 600))
_HOPELESS = (401, 402, 403, 404, 405, *range(300, 400))
_FIRST_WAIT_S = 0.5
_LARGEST_BODY = 64 * 2**20  # bytes
_LAST_S = 0.5  # for requests that are under way when all is to end
_EXCERPT = 300  # characters of a server's complaint that a message repeats


class Refused(Exception):
    """The server will never answer this request."""


class _Passing(Exception):
    """This try failed; another may not. `wait_s` is what the server asks for."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Wire:
    """One address that answers JSON."""

    def __init__(self, url: str, settings: EndpointSettings, path: str, wanted: str) -> None:
        """`url` ends in /v1 or wherever `path` hangs; `wanted` says in messages what an answer is.

        Raises ConfigError for what is no such address.
        """
        self.url, self.settings, self.wanted = _checked(url, path), settings, wanted
        self._key = _key(settings.key_env)
        self._stop = threading.Event()
        self._idle = threading.Condition()
        self._n_open = 0
        self._not_before = 0.0  # on the monotonic clock: when the server asked to be left alone until
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(settings.timeout_s, connect=settings.connect_s),
            limits=httpx2.Limits(max_connections=settings.concurrency),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
        )

    def close(self) -> None:
        """End all requests that are under way.

        They have a moment to end by themselves: one that is just connecting would not notice, and keep its socket.
        """
        self._stop.set()
        with self._idle:
            self._idle.wait_for(lambda: not self._n_open, timeout=_LAST_S)
        self._client.close()

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[None]:
        with self._idle:
            if self._stop.is_set():
                raise Refused("stopped")
            self._n_open += 1
        try:
            yield
        finally:
            with self._idle:
                self._n_open -= 1
                self._idle.notify_all()

    def run(self, jobs: Sequence[Callable[[], Answer]]) -> Iterator[tuple[int, Answer]]:
        """(place, result) of every job, as they come, by daemon threads that a stopped run leaves.

        Raises what a job raises.
        """
        todo: SimpleQueue[int | None] = SimpleQueue()
        done: SimpleQueue[tuple[int, Answer | Exception]] = SimpleQueue()
        ended = threading.Event()

        def work() -> None:
            while not ended.is_set() and (place := todo.get()) is not None:
                try:
                    done.put((place, jobs[place]()))
                except Exception as error:  # handed on: the caller raises it
                    ended.set()
                    done.put((place, error))

        n_threads = min(self.settings.concurrency, len(jobs))
        for item in [*range(len(jobs)), *[None] * n_threads]:
            todo.put(item)
        for _ in range(n_threads):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in jobs:
                place, outcome = done.get()
                if isinstance(outcome, Exception):
                    raise outcome
                yield place, outcome
        finally:
            ended.set()

    def ask(self, body: bytes, read: Callable[[Any, float, int], Answer], seed: int) -> Answer | str:
        """What `read(answer, seconds, number of the try)` makes of the answer, after as many tries as it takes; or why
        there is none. An answer on which `read` raises as plain code does on nonsense is one to be tried again.

        Raises ConfigError when the server refuses us altogether.
        """
        jitter = stream(seed, "endpoint/wait")
        for number in range(1, self.settings.tries + 1):
            self._wait(self._not_before - time.monotonic())
            try:
                return self._once(body, read, number)
            except Refused as error:
                return self._safe(str(error))
            except _Passing as error:
                if number == self.settings.tries or self._stop.is_set():
                    return self._safe(f"{error} (tried {number} times)")
                backoff = _FIRST_WAIT_S * 2 ** (number - 1) * (0.5 + jitter.random())
                wait_s = min(max(backoff, error.wait_s), self.settings.longest_wait_s)
                if error.wait_s:
                    self._not_before = max(self._not_before, time.monotonic() + wait_s)
                self._wait(wait_s)
        raise AssertionError("the last try returns")

    def _wait(self, seconds: float) -> None:
        if seconds > 0:
            self._stop.wait(seconds)

    def _once(self, body: bytes, read: Callable[[Any, float, int], Answer], number: int) -> Answer:
        """One try. Raises _Passing, Refused, or ConfigError when the server refuses us altogether."""
        began = time.monotonic()
        with self._under_way():
            status, headers, raw = self._post(body, began + self.settings.timeout_s)
        if status != 200:
            self._complain(status, headers, raw)
        try:
            return read(json.loads(raw), time.monotonic() - began, number)
        except ConfigError:
            raise
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise _Passing(f"an answer that is no {self.wanted} ({error!r}): {_excerpt(raw)}") from None

    def _post(self, body: bytes, deadline: float) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and the whole body, which must be there by the deadline, however it trickles in."""
        chunks, size = [], 0
        try:
            with self._client.stream(
                "POST", self.url, content=body, headers={"Content-Type": "application/json"}
            ) as response:
                for chunk in response.iter_bytes():
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > _LARGEST_BODY:
                        raise Refused(f"an answer of more than {_LARGEST_BODY // 2**20} MiB")
                    if time.monotonic() > deadline:
                        raise _Passing(f"no whole answer within {self.settings.timeout_s:g} s")
                return response.status_code, response.headers, b"".join(chunks)
        except httpx2.TimeoutException as error:
            raise _Passing(f"no answer in time ({type(error).__name__})") from None
        except httpx2.HTTPError as error:
            raise _Passing(f"the connection failed ({type(error).__name__}: {error})") from None
        except RuntimeError as error:  # the client was closed under a request
            raise Refused(f"stopped ({error})") from None

    def _complain(self, status: int, headers: httpx2.Headers, raw: bytes) -> None:
        """Raise what a status other than 200 means."""
        said = f"HTTP {status}: {_excerpt(raw)}"
        if status in _PASSING:
            raise _Passing(said, _asked_wait(headers))
        if status in _HOPELESS:
            hint = {
                401: f"Put a valid API key into the environment variable {self.settings.key_env}.",
                402: "Pay the account.",
                403: f"Is the key in {self.settings.key_env} allowed to do this?",
                404: "Check the address (it usually ends in /v1) and --model.",
            }.get(status, "Check the address: it usually ends in /v1.")
            raise ConfigError(self._safe(f"{self.url}: wanted a {self.wanted}, came {said}. {hint}"))
        raise Refused(said)

    def _safe(self, text: str) -> str:
        """The text without the key, should a server repeat it."""
        return text.replace(self._key, "***") if self._key else text


def _asked_wait(headers: httpx2.Headers) -> float:
    """Seconds of Retry-After, a number or a date; 0 where there is none that we understand."""
    asked = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _excerpt(raw: bytes) -> str:
    """A server's own words, short and on one line."""
    text = " ".join(raw.decode(errors="replace").split())
    return text[:_EXCERPT] + ("..." if len(text) > _EXCERPT else "") or "nothing"


def _key(name: str) -> str:
    """The API key of this environment variable; empty where there is none. Raises ConfigError for what is no key."""
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{name}: wanted an API key of plain characters, came others. Set the variable anew.")
    return key


def _checked(url: str, path: str) -> str:
    """The address of what `path` names. Raises ConfigError, without repeating what may be a password."""
    try:
        parts = urlsplit(url)
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):
        parts = urlsplit("")
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            "endpoint: wanted an address without user name, password or query, came one with them. Put the key into "
            "an environment variable (endpoint.key_env names it)."
        )
    if not is_url(url) or not parts.hostname:
        raise ConfigError(f"endpoint: wanted an address as http://127.0.0.1:8000/v1, came {url!r}. Mend it.")
    base = url.rstrip("/")
    return base if base.endswith(path) else f"{base}{path}"
