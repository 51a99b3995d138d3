"""Answers to /v1/messages as Anthropic's clients read them: whole, or event by event.

Try it alone: `pytest tests/serve/test_messages_api.py`
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from zifio.loopback import to_json
from zifio.serve.answer import BLANK, PING, sent
from zifio.serve.asked import Asked
from zifio.serve.messages_in import UNREADABLE, MessageRequest
from zifio.serve.model import Served
from zifio.serve.parts import Part, Parts, Step, steps
from zifio.serve.refused import Refused
from zifio.serve.settings import ServeConfig
from zifio.serve.worker import Ticket


class MessageAnswer:
    """One message on its way out."""

    def __init__(
        self, _: Served, body: MessageRequest, asked: list[Asked], tickets: list[Ticket], config: ServeConfig
    ) -> None:
        self.body, self.config, self.parts = body, config, Parts()
        (self.asked,), (self.ticket,) = asked, tickets
        self._head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": body.model}

    async def whole(self) -> AsyncGenerator[bytes, None]:
        """One body."""
        async with aclosing(steps(self.parts, self.asked, self.ticket, self.config)) as news:
            async for every in news:
                if every is None:
                    yield BLANK
        content = [_block(part) for part in self.parts.parts]
        yield to_json({**self._head, "content": content, **self._end(), "usage": self.usage()})

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Events. The prompt is counted at the start, what the cache held of it only at the end."""
        is_begun = False
        async with aclosing(steps(self.parts, self.asked, self.ticket, self.config)) as news:
            async for every in news:
                if every is None:
                    yield PING
                    continue
                told = [event for step in every for event in _events(step)]
                if told and not is_begun:
                    is_begun = True
                    nothing = dict.fromkeys(self._end())
                    message = {**self._head, "content": [], **nothing, "usage": self.usage()}
                    told.insert(0, _event("message_start", message=message))
                if told:
                    yield b"".join(told)
        yield _event("message_delta", delta=self._end(), usage=self.usage())
        yield _event("message_stop")

    def failed(self, refused: Refused) -> bytes:
        """An error event."""
        return sent(refused.body("anthropic"), "error")

    def usage(self) -> dict[str, Any]:
        """What it took. As at Anthropic's, tokens that the cache held do not count among the input's."""
        voice = self.asked.voices[0]
        return {
            "input_tokens": self.asked.n_prompt - voice.n_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": voice.n_cached,
            "output_tokens": voice.n_tokens,
            "output_tokens_details": {"thinking_tokens": voice.n_reasoning},
            "cache_creation": None,
            "server_tool_use": None,
            "service_tier": "standard",
            "inference_geo": None,
        }

    def _end(self) -> dict[str, Any]:
        """Why it ended."""
        voice, stop = self.asked.voices[0], None
        if voice.finish == "length":
            is_fitted = self.asked.request.sampling.max_new_tokens < self.body.max_tokens
            reason = "model_context_window_exceeded" if is_fitted else "max_tokens"
        elif voice.finish == "tool_calls":
            reason = "tool_use"
        else:
            stop = voice.stop
            reason = "end_turn" if stop is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": stop, "stop_details": None, "container": None}


def _block(part: Part, is_empty: bool = False) -> dict[str, Any]:
    """A part as a content block, or the block that its growth is added to."""
    text = "" if is_empty else part.text
    if part.kind == "text":
        return {"type": "text", "text": text, "citations": None}
    if part.kind == "thinking":
        return {"type": "thinking", "thinking": text, "signature": "" if is_empty else _signature(part)}
    named = {"type": "tool_use", "id": f"toolu_{part.id[:24]}", "name": part.name}
    return {**named, "input": {} if is_empty else table(text), "caller": {"type": "direct"}}


def _events(step: Step) -> Iterator[bytes]:
    part, text = step.part, step.text
    if step.what == "begin":
        yield _event("content_block_start", index=part.place, content_block=_block(part, is_empty=True))
    elif step.what == "end":
        if part.kind == "thinking":
            yield _delta(part, "signature_delta", signature=_signature(part))
        yield _event("content_block_stop", index=part.place)
    elif part.kind == "call":
        yield _delta(part, "input_json_delta", partial_json=json.dumps(table(text), ensure_ascii=False))
    elif text:
        name = {"thinking": "thinking", "text": "text"}[part.kind]
        yield _delta(part, f"{name}_delta", **{name: text})


def _signature(part: Part) -> str:
    """Clients keep it with the thinking and send both back; nothing is refused for want of it."""
    return hashlib.sha256(part.text.encode()).hexdigest()


def table(arguments: str) -> dict[str, Any]:
    """A call's arguments as a table, whatever the model wrote."""
    try:
        table = json.loads(arguments or "{}", parse_constant=int)  # which refuses NaN
    except (ValueError, RecursionError):
        table = None
    return table if isinstance(table, dict) else {UNREADABLE: arguments}


def _delta(part: Part, kind: str, **more: str) -> bytes:
    return _event("content_block_delta", index=part.place, delta={"type": kind, **more})


def _event(kind: str, **more: Any) -> bytes:
    return sent({"type": kind, **more}, kind)
