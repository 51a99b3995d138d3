"""Chat completions as bytes: whole, or chunk by chunk.

Try it alone: `pytest tests/serve/test_chat_api.py`
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from zifio.loopback import to_json
from zifio.serve.answer import events
from zifio.serve.asked import Asked
from zifio.serve.model import Served
from zifio.serve.refused import Refused
from zifio.serve.reply import Delta, Drawn, Voice
from zifio.serve.settings import ServeConfig
from zifio.serve.split import CallPiece
from zifio.serve.worker import Ticket

KEEP_ALIVE, DONE = b": keep-alive\n\n", b"data: [DONE]\n\n"
_LEAST = -9999.0  # JSON has no infinity


class ChatAnswer:
    """One chat request on its way out."""

    def __init__(self, served: Served, asked: Asked, ticket: Ticket, config: ServeConfig, name: str) -> None:
        self.served, self.asked, self.ticket, self.config = served, asked, ticket, config
        self.has_logprobs = False
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        self._head["system_fingerprint"] = "zifio"

    async def whole(self) -> AsyncGenerator[bytes, None]:
        """One body, blank lines before it while it takes long."""
        total = [Delta(place) for place in range(len(self.asked.voices))]
        async for delta in self._deltas():
            if delta is None:
                yield b"\n"
                continue
            one = total[delta.place]
            one.reasoning, one.content = one.reasoning + delta.reasoning, one.content + delta.content
            one.calls += delta.calls
            for kind, drawn in delta.drawn.items():
                one.drawn[kind] += drawn
        choices = [self._choice(voice, delta) for voice, delta in zip(self.asked.voices, total, strict=True)]
        yield to_json({**self._head, "object": "chat.completion", "choices": choices, "usage": self.usage()})

    async def stream(self, with_usage: bool) -> AsyncGenerator[bytes, None]:
        """Chunks as server-sent events."""
        begun: set[int] = set()
        numbers = [0] * len(self.asked.voices)
        nothing = {"usage": None} if with_usage else {}
        async for delta in self._deltas():
            if delta is None:
                yield KEEP_ALIVE
                continue
            if delta.place not in begun:
                begun.add(delta.place)
                yield self._chunk(delta.place, {"role": "assistant", "content": ""}, None, None, nothing)
            for place, piece in enumerate(self._pieces(delta, numbers)):
                logprobs = self._logprobs(delta) if place == 0 else None
                yield self._chunk(delta.place, piece, logprobs, None, nothing)
            if delta.finish:
                yield self._chunk(delta.place, {}, None, delta.finish, nothing)
        if with_usage:
            yield _event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self.usage()})
        yield DONE

    def usage(self) -> dict[str, Any]:
        """What it took, in DeepSeek's and OpenAI's words."""
        voices = self.asked.voices
        n_cached = min(voice.n_cached for voice in voices)
        return usage(self.asked.n_prompt, [voice.n_tokens for voice in voices], n_cached) | {
            "completion_tokens_details": {"reasoning_tokens": sum(voice.n_reasoning for voice in voices)}
        }

    async def _deltas(self) -> AsyncGenerator[Delta | None, None]:
        async with aclosing(events(self.ticket, self.config)) as news:
            async for item in news:
                if item is None:
                    yield None
                    continue
                place, event = item
                if self.asked.steering and (fault := self.asked.steering[place].fault):
                    raise Refused(500, f"The reply cannot follow its grammar: {fault}.", code="grammar_failed")
                delta = self.asked.voices[place].feed(event)
                if not delta.is_empty:
                    yield delta

    def _pieces(self, delta: Delta, numbers: list[int]) -> list[dict[str, Any]]:
        pieces: list[dict[str, Any]] = []
        if delta.reasoning:
            pieces.append(self._reasoning(delta.reasoning))
        if delta.content:
            pieces.append({"content": delta.content})
        for call in delta.calls:
            number = numbers[delta.place]
            numbers[delta.place] += 1
            pieces.append({"tool_calls": [{"index": number, **_call(call)}]})
        if not pieces and self.has_logprobs and any(delta.drawn.values()):
            pieces.append({"content": ""})
        return pieces

    def _choice(self, voice: Voice, delta: Delta) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": delta.content, "refusal": None}
        if delta.reasoning:
            message |= self._reasoning(delta.reasoning)
        if delta.calls:
            message |= {"content": delta.content or None, "tool_calls": [_call(call) for call in delta.calls]}
        logprobs = self._logprobs(delta)
        return {"index": voice.place, "message": message, "logprobs": logprobs, "finish_reason": voice.finish}

    def _reasoning(self, text: str) -> dict[str, Any]:
        field = self.config.reasoning_field
        return dict.fromkeys(("reasoning_content", "reasoning") if field == "both" else (field,), text)

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if not self.has_logprobs:
            return None
        told = {kind: [self._token(drawn) for drawn in delta.drawn[kind]] for kind in ("content", "reasoning")}
        return {"content": told["content"], "refusal": None, "reasoning_content": told["reasoning"]}

    def _token(self, drawn: Drawn) -> dict[str, Any]:
        tops = [named(self.served, *top) for top in drawn.tops]
        return {**named(self.served, drawn.token, drawn.logp), "top_logprobs": tops}

    def _chunk(
        self, place: int, delta: dict[str, Any], logprobs: Any, finish: str | None, more: dict[str, Any]
    ) -> bytes:
        choice = {"index": place, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return _event({**self._head, "object": "chat.completion.chunk", "choices": [choice], **more})


def usage(n_prompt: int, n_drawn: list[int], n_cached: int) -> dict[str, Any]:
    """Tokens of a request."""
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": sum(n_drawn),
        "total_tokens": n_prompt + sum(n_drawn),
        "prompt_cache_hit_tokens": n_cached,
        "prompt_cache_miss_tokens": n_prompt - n_cached,
        "prompt_tokens_details": {"cached_tokens": n_cached},
    }


def named(served: Served, token: int, logp: float) -> dict[str, Any]:
    """A token as OpenAI's log-probs tell it."""
    spelled = served.spelled[token] if token < len(served.spelled) else b""
    return {"token": spelled.decode(errors="replace"), "logprob": max(logp, _LEAST), "bytes": list(spelled)}


def _call(call: CallPiece) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _event(value: Any) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"
