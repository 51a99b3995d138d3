"""Chat completions as bytes: whole, or chunk by chunk.

Try it alone: `pytest tests/serve/test_chat_api.py`
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from zifio.loopback import to_json
from zifio.serve.answer import BLANK, KEEP_ALIVE, deltas, sent
from zifio.serve.asked import Asked
from zifio.serve.model import Served
from zifio.serve.refused import Refused
from zifio.serve.reply import Delta, Drawn, Voice
from zifio.serve.request import ChatRequest
from zifio.serve.settings import ServeConfig
from zifio.serve.split import CallPiece
from zifio.serve.worker import Ticket

DONE = b"data: [DONE]\n\n"
_LEAST = -9999.0  # JSON has no infinity


class ChatAnswer:
    """One chat request on its way out."""

    def __init__(
        self, served: Served, body: ChatRequest, asked: list[Asked], tickets: list[Ticket], config: ServeConfig
    ) -> None:
        self.served, self.body, self.config = served, body, config
        (self.asked,), (self.ticket,) = asked, tickets
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
        self._head["system_fingerprint"] = "zifio"

    async def whole(self) -> AsyncGenerator[bytes, None]:
        """One body, blank lines before it while it takes long."""
        total = [Delta(place) for place in range(len(self.asked.voices))]
        async with aclosing(deltas(self.asked, self.ticket, self.config)) as news:
            async for delta in news:
                if delta is None:
                    yield BLANK
                    continue
                one = total[delta.place]
                one.pieces += delta.pieces
                for kind, drawn in delta.drawn.items():
                    one.drawn[kind] += drawn
        choices = [self._choice(voice, delta) for voice, delta in zip(self.asked.voices, total, strict=True)]
        yield to_json({**self._head, "object": "chat.completion", "choices": choices, "usage": self.usage()})

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Chunks as server-sent events."""
        with_usage = self.body.wants_usage()
        begun: set[int] = set()
        numbers = [0] * len(self.asked.voices)
        chunk = self._chunks(with_usage)
        async with aclosing(deltas(self.asked, self.ticket, self.config)) as news:
            async for delta in news:
                if delta is None:
                    yield KEEP_ALIVE
                    continue
                chunks = []
                if delta.place not in begun:
                    begun.add(delta.place)
                    chunks.append(chunk(delta.place, {"role": "assistant", "content": ""}))
                for place, piece in enumerate(self._pieces(delta, numbers)):
                    chunks.append(chunk(delta.place, piece, self._logprobs(delta) if place == 0 else None))
                if delta.finish:
                    chunks.append(chunk(delta.place, {}, finish=delta.finish))
                yield b"".join(chunks)
        end = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self.usage()}
        yield (sent(end) if with_usage else b"") + DONE

    def failed(self, refused: Refused) -> bytes:
        """An error instead of a chunk."""
        return sent(refused.body())

    def usage(self) -> dict[str, Any]:
        """What it took, in DeepSeek's and OpenAI's words."""
        voices = self.asked.voices
        n_cached = min(voice.n_cached for voice in voices)
        return usage(self.asked.n_prompt, [voice.n_tokens for voice in voices], n_cached) | {
            "completion_tokens_details": {"reasoning_tokens": sum(voice.n_reasoning for voice in voices)}
        }

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
        if not pieces and self.body.logprobs and any(delta.drawn.values()):
            pieces.append({"content": ""})
        return pieces

    def _choice(self, voice: Voice, delta: Delta) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": delta.content, "refusal": None, "annotations": []}
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
        if not self.body.logprobs:
            return None
        told = {kind: [token(self.served, drawn) for drawn in delta.drawn[kind]] for kind in ("content", "reasoning")}
        return {"content": told["content"], "refusal": None, "reasoning_content": told["reasoning"]}

    def _chunks(self, with_usage: bool) -> Callable[..., bytes]:
        """What writes a chunk; what all of them have in common is written once."""
        head = to_json({**self._head, "object": "chat.completion.chunk", "choices": []}).removesuffix(b"]}")
        tail = b"]%b}\n\n" % (b',"usage":null' if with_usage else b"")

        def chunk(place: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> bytes:
            choice = {"index": place, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return b"data: %b%b%b" % (head, to_json(choice), tail)

        return chunk


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


def token(served: Served, drawn: Drawn) -> dict[str, Any]:
    """A token with the likeliest ones beside it, as OpenAI tells them."""
    tops = [_named(served, *top) for top in drawn.tops]
    return {**_named(served, drawn.token, drawn.logp), "top_logprobs": tops}


def _named(served: Served, token: int, logp: float) -> dict[str, Any]:
    spelled = served.spelled[token] if token < len(served.spelled) else b""
    return {"token": spelled.decode(errors="replace"), "logprob": max(logp, _LEAST), "bytes": list(spelled)}


def _call(call: CallPiece) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
