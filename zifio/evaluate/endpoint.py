"""A model behind OpenAI's chat completions (DeepSeek, vLLM, llama.cpp, a closed one) as a policy.

Several requests are under way at once. What may pass is tried again: 408, 409, 425, 429, 5xx, connections that break,
answers that are cut or are no JSON, each time after a longer wait or as long as the server asks. What will not pass (a
wrong key, a wrong model) ends the run. A reply that failed is never a wrong one: it is missing, and can be asked for
again.

The key comes from an environment variable; it is in no record, message or file.

Try it: `zifio eval http://127.0.0.1:8000/v1 --model NAME --task chain_sum --problems 8`
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import httpx2

from zifio.config import ConfigError, Sampling
from zifio.evaluate.config import EndpointSettings, Prices
from zifio.evaluate.replies import Ask, Failed, Frame, Said
from zifio.seed import stream
from zifio.tasks.environment import THINKING_KEYS, Call, Message
from zifio.tasks.episode import Reply

_PASSING = (408, 409, 425, 429, *range(500, 600))
_HOPELESS = (401, 402, 403, 404, 405, *range(300, 400))
_FIRST_WAIT_S = 0.5
_LARGEST_BODY = 64 * 2**20  # bytes
_EXCERPT = 300  # characters of a server's complaint that a message repeats


class Refused(Exception):
    """The server will never answer this request."""


class _Passing(Exception):
    """This try failed; another may not. `wait_s` is what the server asks for."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Endpoint:
    """Implements `tasks.episode.Policy` and `evaluate.replies.Subject` over HTTP."""

    budget_by = "the most tokens of a reply, thinking and answer together"

    def __init__(
        self,
        url: str,
        model: str,
        settings: EndpointSettings | None = None,
        sampling: Sampling | None = None,
        prices: Prices | None = None,
        frame: Frame | None = None,
    ) -> None:
        """`url` ends in /v1 or wherever /chat/completions hangs. Raises ConfigError for what is no such address."""
        self.url, self.model = _checked(url), model
        self.settings = settings or EndpointSettings()
        self.sampling = sampling or Sampling(max_new_tokens=1024)
        self.prices, self.frame = prices, frame or Frame()
        self._key = _key(self.settings.key_env)
        self._stop = threading.Event()
        self._not_before = 0.0  # on the monotonic clock: when the server asked to be left alone until
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(self.settings.timeout_s, connect=self.settings.connect_s),
            limits=httpx2.Limits(max_connections=self.settings.concurrency),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
        )

    def close(self) -> None:
        """End all requests that are under way."""
        self._stop.set()
        self._client.close()

    def identity(self) -> dict[str, Any]:
        """The address, the model and what is asked besides."""
        return {"endpoint": self.url, "model": self.model, "extra": self.settings.extra}

    def complete(
        self, conversations: list[list[Message]], n: int, sampling: Sampling, seeds: list[list[int]]
    ) -> list[list[Reply]]:
        """n replies to each conversation, without tokens; reply j to conversation p carries `seeds[p][j]`.

        Raises ConfigError when one of them does not come.
        """
        jobs = [
            partial(self.ask, c, sampling, seed)
            for c, group in zip(conversations, seeds, strict=True)
            for seed in group
        ]
        said: dict[int, Said] = {}
        for place, outcome in self._run(jobs):
            if isinstance(outcome, str):
                raise ConfigError(f"{self.url}: wanted {len(jobs)} replies, came a failure: {outcome}. Try again.")
            said[place] = outcome
        replies = iter(said[place] for place in range(len(jobs)))
        return [[_reply(next(replies)) for _ in range(n)] for _ in conversations]

    def answer(self, asks: list[Ask]) -> Iterator[list[tuple[Ask, Said] | Failed]]:
        """Replies as they come. Raises ConfigError when the server refuses us altogether."""
        jobs = [partial(self.ask, self.frame.messages(a.problem), self._limited(a.budget), a.seed) for a in asks]
        yield from self.answered(asks, jobs)

    def answered(
        self, asks: list[Ask], jobs: Sequence[Callable[[], Said | str]]
    ) -> Iterator[list[tuple[Ask, Said] | Failed]]:
        """What the job of each of these comes to, as they come. Raises what a job raises."""
        for place, outcome in self._run(jobs):
            ask = asks[place]
            yield [Failed(ask, outcome) if isinstance(outcome, str) else (ask, outcome)]

    def _limited(self, budget: int | None) -> Sampling:
        return self.sampling if budget is None else self.sampling.model_copy(update={"max_new_tokens": budget})

    def _run(self, jobs: Sequence[Callable[[], Said | str]]) -> Iterator[tuple[int, Said | str]]:
        """(place, reply or why none came) for every job, as they come, by daemon threads that a stopped run leaves.

        Raises what a job raises.
        """
        todo: SimpleQueue[int | None] = SimpleQueue()
        done: SimpleQueue[tuple[int, Said | str | Exception]] = SimpleQueue()
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

    def ask(
        self, messages: list[Message], sampling: Sampling, seed: int, tools: Sequence[dict[str, Any]] = ()
    ) -> Said | str:
        """The reply, after as many tries as it takes; or why there is none.

        Raises ConfigError when the server refuses us altogether.
        """
        body = self._body(messages, sampling, seed, tools)
        jitter = stream(seed, "endpoint/wait")
        for number in range(1, self.settings.tries + 1):
            self._wait(self._not_before - time.monotonic())
            try:
                return self._said(body, number, seed if self.settings.send_seed else None)
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

    def _body(self, messages: list[Message], sampling: Sampling, seed: int, tools: Sequence[dict[str, Any]]) -> bytes:
        """The request. What is as a server does by itself is left out, so that strict ones do not stumble."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "temperature": sampling.temperature,
            self.settings.length_key: sampling.max_new_tokens,
        }
        plain = Sampling()
        for name in ("top_p", "top_k", "min_p", "repetition_penalty"):
            if getattr(sampling, name) != getattr(plain, name):
                body[name] = getattr(sampling, name)
        if tools:
            body["tools"] = list(tools)
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if self.settings.send_seed:
            body["seed"] = seed
        if self.settings.logprobs:
            body["logprobs"] = True
        return json.dumps(body | self.settings.extra).encode()

    def _said(self, body: bytes, number: int, seed: int | None) -> Said:
        """One try. Raises _Passing, Refused, or ConfigError when the server refuses us altogether."""
        began = time.monotonic()
        status, headers, raw = self._post(body, began + self.settings.timeout_s)
        if status != 200:
            self._complain(status, headers, raw)
        try:
            found = json.loads(raw)
            choice = found["choices"][0]
            message = choice["message"]
            content = message.get("content")
            if not isinstance(content, str | None):
                raise TypeError("content is no text")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise _Passing(f"an answer that is no chat completion ({error!r}): {_excerpt(raw)}") from None
        usage = _Usage.of(found.get("usage"))
        thinking = next((message[k] for k in THINKING_KEYS if isinstance(message.get(k), str)), None)
        logps = _logps(choice)
        return Said(
            text=content or "",
            thinking=thinking,
            n_tokens=usage.drawn,
            n_prompt_tokens=usage.prompt,
            n_thinking_tokens=usage.thinking,
            finish=str(choice.get("finish_reason") or "stop"),
            seconds=time.monotonic() - began,
            cost=usage.cost(self.prices),
            logp=sum(logps) if logps else None,
            seed=seed,
            extra={"served": str(found.get("model", "")), "tries": number},
            calls=_calls(message.get("tool_calls")),
        )

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
            raise ConfigError(self._safe(f"{self.url}: wanted a chat completion, came {said}. {hint}"))
        raise Refused(said)

    def _safe(self, text: str) -> str:
        """The text without the key, should a server repeat it."""
        return text.replace(self._key, "***") if self._key else text


@dataclass(frozen=True)
class _Usage:
    """Tokens as the server counts them; None where it does not say."""

    prompt: int | None = None
    drawn: int | None = None
    thinking: int | None = None
    cached: int = 0

    @classmethod
    def of(cls, usage: Any) -> _Usage:
        if not isinstance(usage, dict):
            return cls()
        details, before = usage.get("completion_tokens_details"), usage.get("prompt_tokens_details")
        cached = _count(before, "cached_tokens")
        return cls(
            _count(usage, "prompt_tokens"),
            _count(usage, "completion_tokens"),
            _count(details, "reasoning_tokens"),
            cached if cached is not None else _count(usage, "prompt_cache_hit_tokens") or 0,
        )

    def cost(self, prices: Prices | None) -> float | None:
        if prices is None or self.prompt is None or self.drawn is None:
            return None
        return prices.cost(self.prompt, self.drawn, min(self.cached, self.prompt))


def _count(table: Any, key: str) -> int | None:
    value = table.get(key) if isinstance(table, dict) else None
    return value if type(value) is int and value >= 0 else None


def _calls(found: Any) -> tuple[Call, ...]:
    """The tool calls of a message; one that does not look like one is a call with a fault, which the model is told."""
    calls = []
    for call in found if isinstance(found, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        name, arguments = (function.get("name"), function.get("arguments")) if isinstance(function, dict) else (0, 0)
        if isinstance(name, str) and isinstance(arguments, str):
            calls.append(Call(name, arguments))
        else:
            calls.append(Call("", "", "a call is a function with a name and its arguments as text"))
    return tuple(calls)


def _logps(choice: dict[str, Any]) -> list[float]:
    """The log-probs of the reply's tokens, where the server sent them."""
    try:
        logps = [float(token["logprob"]) for token in choice["logprobs"]["content"]]
    except (KeyError, TypeError, ValueError):
        return []
    return logps if all(map(math.isfinite, logps)) else []


def _reply(said: Said) -> Reply:
    """For `Policy`, which knows two ways to end."""
    return Reply([], said.text, [], "length" if said.finish == "length" else "stop")


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


def is_url(word: str) -> bool:
    """Whether this means an endpoint."""
    return word.startswith(("http://", "https://"))


def _checked(url: str) -> str:
    """The address of chat completions. Raises ConfigError, without repeating what may be a password."""
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
    return base if base.endswith("/chat/completions") else f"{base}/chat/completions"
