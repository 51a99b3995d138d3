"""Answers to /v1/responses as OpenAI's clients read them: whole, or event by event.

Try it alone: `pytest tests/serve/test_responses_api.py`
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from zifio.loopback import to_json
from zifio.serve.answer import BLANK, KEEP_ALIVE, sent
from zifio.serve.asked import Asked
from zifio.serve.chat import token
from zifio.serve.model import Served
from zifio.serve.parts import Part, Parts, Step, steps
from zifio.serve.refused import Refused
from zifio.serve.reply import Drawn
from zifio.serve.responses_in import Reasoning, ResponseRequest
from zifio.serve.settings import ServeConfig
from zifio.serve.worker import Ticket

_IDS = {"thinking": "rs", "text": "msg", "call": "fc"}


class ResponseAnswer:
    """One response on its way out."""

    def __init__(
        self, served: Served, body: ResponseRequest, asked: list[Asked], tickets: list[Ticket], config: ServeConfig
    ) -> None:
        self.served, self.body, self.config, self.parts = served, body, config, Parts()
        (self.asked,), (self.ticket,) = asked, tickets
        self._id, self._created = f"resp_{uuid.uuid4().hex}", int(time.time())
        self._is_summary = body.reasoning is not None and body.reasoning.summary is not None
        self._n_sent = 0

    async def whole(self) -> AsyncGenerator[bytes, None]:
        """One body."""
        async with aclosing(steps(self.parts, self.asked, self.ticket, self.config)) as news:
            async for every in news:
                if every is None:
                    yield BLANK
        yield to_json(self._response(self._status()))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Numbered events."""
        async with aclosing(steps(self.parts, self.asked, self.ticket, self.config)) as news:
            async for every in news:
                if every is None:
                    yield KEEP_ALIVE
                    continue
                told = []
                if every and not self._n_sent:
                    begun = {**self._response("in_progress"), "output": []}
                    told = [self._event(kind, response=begun) for kind in ("created", "in_progress")]
                told += [event for step in every for event in self._events(step)]
                if told:
                    yield b"".join(told)
        yield self._event(self._status(), response=self._response(self._status()))

    def failed(self, refused: Refused) -> bytes:
        """The last event of a stream that could not go on, with what there is."""
        self.parts.cut()
        code = "server_error" if refused.status >= 500 else "invalid_prompt"
        error = {"code": code, "message": refused.message}
        return self._event("failed", response={**self._response("failed"), "error": error})

    def _status(self) -> str:
        return "incomplete" if self.asked.voices[0].finish == "length" else "completed"

    def _response(self, status: str) -> dict[str, Any]:
        """The whole object, with what was asked as it was understood."""
        body, sampling = self.body, self.asked.request.sampling
        reasoning = body.reasoning or Reasoning()
        parallel = body.parallel_tool_calls is not False
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": body.model,
            "output": [self._item(part) for part in self.parts.parts],
            "usage": None if status == "in_progress" else self._usage(),
            "instructions": body.instructions,
            "tools": [_tool(tool) for tool in body.functions()],
            "tool_choice": body.tool_choice or "auto",
            "parallel_tool_calls": parallel,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
            "text": {"format": _format(body.form())},
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": body.presence_penalty or 0.0,
            "frequency_penalty": body.frequency_penalty or 0.0,
            "top_logprobs": body.top_logprobs or 0,
            "metadata": body.metadata or {},
            "safety_identifier": body.safety_identifier,
            "prompt_cache_key": body.prompt_cache_key,
            "previous_response_id": None,
            "truncation": "disabled",
            "store": False,
            "background": False,
            "service_tier": "default",
        }

    def _usage(self) -> dict[str, Any]:
        voice, n_prompt = self.asked.voices[0], self.asked.n_prompt
        return {
            "input_tokens": n_prompt,
            "input_tokens_details": {"cached_tokens": voice.n_cached},
            "output_tokens": voice.n_tokens,
            "output_tokens_details": {"reasoning_tokens": voice.n_reasoning},
            "total_tokens": n_prompt + voice.n_tokens,
        }

    def _item(self, part: Part, is_begun: bool = False) -> dict[str, Any]:
        """A part as an output item, or the empty one that its growth is added to."""
        status = "in_progress" if is_begun else "incomplete" if part.is_cut else "completed"
        item = {"id": f"{_IDS[part.kind]}_{part.id}", "status": status}
        if part.kind == "call":
            named = {"call_id": f"call_{part.id[:24]}", "name": part.name}
            return {**item, "type": "function_call", **named, "arguments": "" if is_begun else part.text}
        inside = [] if is_begun else [self._inside(part)]
        if part.kind == "text":
            return {**item, "type": "message", "role": "assistant", "content": inside}
        content, summary = ([], inside) if self._is_summary else (inside, [])
        return {**item, "type": "reasoning", "summary": summary, "content": content}

    def _inside(self, part: Part, is_begun: bool = False) -> dict[str, Any]:
        """The only content of a text or of thinking."""
        text = "" if is_begun else part.text
        if part.kind == "thinking":
            return {"type": "summary_text" if self._is_summary else "reasoning_text", "text": text}
        logprobs = [] if is_begun else self._logprobs(part.drawn)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _logprobs(self, drawn: Sequence[Drawn]) -> list[dict[str, Any]]:
        return [token(self.served, one) for one in drawn] if self.body.wants_logprobs() else []

    def _events(self, step: Step) -> Iterator[bytes]:
        part = step.part
        at: dict[str, Any] = {"item_id": f"{_IDS[part.kind]}_{part.id}", "output_index": part.place}
        if step.what == "begin":
            item = self._item(part, is_begun=True)
            yield self._event("output_item.added", output_index=part.place, item=item)
        if part.kind == "call":
            yield from self._call_events(step, at)
        else:
            yield from self._text_events(step, at)
        if step.what == "end":
            yield self._event("output_item.done", output_index=part.place, item=self._item(part))

    def _call_events(self, step: Step, at: dict[str, Any]) -> Iterator[bytes]:
        if step.what == "more":
            yield self._event("function_call_arguments.delta", **at, delta=step.text)
        elif step.what == "end":
            done = {"name": step.part.name, "arguments": step.part.text}
            yield self._event("function_call_arguments.done", **at, **done)

    def _text_events(self, step: Step, at: dict[str, Any]) -> Iterator[bytes]:
        part, is_summary = step.part, step.part.kind == "thinking" and self._is_summary
        at |= {"summary_index" if is_summary else "content_index": 0}
        around = "reasoning_summary_part" if is_summary else "content_part"
        name = "reasoning_summary_text" if is_summary else self.config.reasoning_events
        name = "output_text" if part.kind == "text" else name
        if step.what == "begin":
            yield self._event(f"{around}.added", **at, part=self._inside(part, is_begun=True))
        elif step.what == "more":
            logprobs = {"logprobs": self._logprobs(step.drawn)} if part.kind == "text" else {}
            if step.text or logprobs.get("logprobs"):
                yield self._event(f"{name}.delta", **at, delta=step.text, **logprobs)
        else:
            logprobs = {"logprobs": self._logprobs(part.drawn)} if part.kind == "text" else {}
            yield self._event(f"{name}.done", **at, text=part.text, **logprobs)
            yield self._event(f"{around}.done", **at, part=self._inside(part))

    def _event(self, kind: str, **more: Any) -> bytes:
        event = {"type": f"response.{kind}", "sequence_number": self._n_sent, **more}
        self._n_sent += 1
        return sent(event, event["type"])


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    told = {key: tool.get(key) for key in ("name", "description", "parameters")}
    return {"type": "function", **told, "strict": bool(tool.get("strict"))}


def _format(form: dict[str, Any]) -> dict[str, Any]:
    if form.get("type") != "json_schema":
        return {"type": form.get("type", "text")}
    told = {key: form.get(key) for key in ("name", "description", "schema")}
    return {"type": "json_schema", **told, "strict": bool(form.get("strict"))}
