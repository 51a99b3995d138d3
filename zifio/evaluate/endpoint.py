"""A model behind OpenAI's chat completions (DeepSeek, vLLM, llama.cpp, a closed one) as a policy.

Several requests are under way at once and tried again where that may help (`zifio/wire.py`). A reply that failed is
never a wrong one: it is missing, and can be asked for again. The API key is in no record, message or file.

Try it: `zifio eval http://127.0.0.1:8000/v1 --model NAME --task chain_sum --problems 8`
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from zifio.config import ConfigError, EndpointSettings, Sampling
from zifio.evaluate.config import Prices
from zifio.evaluate.replies import Ask, Failed, Frame, Said, scored_text
from zifio.tasks.environment import THINKING_KEYS, Call, Message
from zifio.tasks.episode import Reply
from zifio.wire import Wire

_SEEDS = 2**31  # what servers take


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
        forgiving: bool = False,
    ) -> None:
        """`url` ends in /v1 or wherever /chat/completions hangs; `forgiving` is for `complete`.

        Raises ConfigError for what is no such address.
        """
        self.settings = settings or EndpointSettings()
        self._wire = Wire(url, self.settings, "/chat/completions", "chat completion")
        self.url, self.model = self._wire.url, model
        self.sampling = sampling or Sampling(max_new_tokens=1024)
        self.prices, self.frame, self.forgiving = prices, frame or Frame(), forgiving

    def close(self) -> None:
        """End all requests that are under way."""
        self._wire.close()

    @property
    def has_policy_logps(self) -> bool:
        """Where it draws from the model as it is: servers tell log-probs from before temperature."""
        return self.sampling.temperature == 1

    def identity(self) -> dict[str, Any]:
        """The address, the model and what is asked besides."""
        return {"endpoint": self.url, "model": self.model, "extra": self.settings.extra}

    def complete(
        self, conversations: list[list[Message]], n: int, sampling: Sampling, seeds: list[list[int]]
    ) -> list[list[Reply]]:
        """n replies to each conversation, without tokens; reply j to conversation p carries `seeds[p][j]`, as far as
        servers take it. Thinking that came apart stands before the answer.

        Raises ConfigError when one of them does not come; a forgiving endpoint gives one with a fault for it.
        """
        jobs = [
            partial(self.ask, c, sampling, seed % _SEEDS)
            for c, group in zip(conversations, seeds, strict=True)
            for seed in group
        ]
        said: dict[int, Said | str] = {}
        for place, outcome in self._wire.run(jobs):
            if isinstance(outcome, str) and not self.forgiving:
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
        for place, outcome in self._wire.run(jobs):
            ask = asks[place]
            yield [Failed(ask, outcome) if isinstance(outcome, str) else (ask, outcome)]

    def _limited(self, budget: int | None) -> Sampling:
        return self.sampling if budget is None else self.sampling.model_copy(update={"max_new_tokens": budget})

    def ask(
        self, messages: list[Message], sampling: Sampling, seed: int, tools: Sequence[dict[str, Any]] = ()
    ) -> Said | str:
        """The reply, after as many tries as it takes; or why there is none.

        Raises ConfigError when the server refuses us altogether.
        """
        body = self._body(messages, sampling, seed, tools)
        return self._wire.ask(body, partial(self._said, seed if self.settings.send_seed else None), seed)

    def _body(self, messages: list[Message], sampling: Sampling, seed: int, tools: Sequence[dict[str, Any]]) -> bytes:
        """The request. What is as a server does by itself is left out, so that strict ones do not stumble."""
        if any(message.get("pictures") or message.get("draws") for message in messages):
            raise ConfigError(
                f"{self.url}: wanted a task of text, came one with pictures, which endpoints are not sent. Measure a "
                "local model."
            )
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

    def _said(self, seed: int | None, found: Any, seconds: float, number: int) -> Said:
        """What an answer says. Raises what plain code does on something else than a chat completion."""
        choice = found["choices"][0]
        message = choice["message"]
        content = message.get("content")
        if not isinstance(content, str | None):
            raise TypeError("content is no text")
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
            seconds=seconds,
            cost=usage.cost(self.prices),
            logp=sum(logps) if logps else None,
            seed=seed,
            extra={"served": str(found.get("model", "")), "tries": number},
            calls=_calls(message.get("tool_calls")),
        )


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


def _reply(said: Said | str) -> Reply:
    """For `Policy`, which knows two ways to end. How many tokens were drawn is told, not which; why there is no reply
    is a fault."""
    if isinstance(said, str):
        return Reply([], "", fault=said)
    sampled = [True] * (said.n_tokens or 0)
    return Reply([], scored_text(said, shaped=True), [], "length" if said.finish == "length" else "stop", None, sampled)
