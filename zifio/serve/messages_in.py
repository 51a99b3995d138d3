"""What Anthropic's clients send to /v1/messages, put into the words of a chat.

Try it alone: `pytest tests/serve/test_messages_api.py`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from zifio.serve.asked import Asked, ask_chat, chat_tokens
from zifio.serve.model import Served
from zifio.serve.refused import Refused
from zifio.serve.request import ChatRequest, Count, Drawing, Stop, Thinking
from zifio.serve.settings import ServeConfig, Thinks

UNREADABLE = "INVALID_JSON"
"""Under this key stand arguments that are no table, as Anthropic advises to send them back."""
_BILLING = "x-anthropic-billing-header:"
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class ToolChoice(BaseModel):
    """Which tools may be used."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class MessageCount(Drawing):
    """POST /v1/messages/count_tokens"""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=16)] | None = None
    output_config: dict[str, Any] | None = None


class MessageRequest(MessageCount):
    """POST /v1/messages"""

    max_tokens: Count


def ask_message(served: Served, body: MessageRequest, config: ServeConfig, thinking: Thinks) -> list[Asked]:
    """A request for the next message. Raises Refused or ConfigError."""
    return ask_chat(served, _chat(body, body.max_tokens), config, thinking)


def count_message(served: Served, body: MessageCount, config: ServeConfig, thinking: Thinks) -> int:
    """How many tokens a prompt has. Raises Refused or ConfigError."""
    return len(chat_tokens(served, _chat(body, None), config, thinking)[0])


def _chat(body: MessageCount, max_tokens: int | None) -> ChatRequest:
    """The same as a chat."""
    messages = [message for place, given in enumerate(body.messages) for message in _messages(given, place)]
    if messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]:
        messages[-1]["prefix"] = True
    if body.system:
        messages.insert(0, {"role": "system", "content": _system(body.system)})
    choice = body.tool_choice or ToolChoice(type="auto")
    output = body.output_config or {}
    form = output.get("format")
    return ChatRequest(
        **body.drawing(),
        messages=messages,
        max_tokens=max_tokens,
        stop=body.stop_sequences,
        tools=[_tool(tool, place) for place, tool in enumerate(body.tools or []) if _is_function(tool)],
        tool_choice=_CHOICES.get(choice.type) or {"type": "function", "function": {"name": choice.name}},
        parallel_tool_calls=not choice.disable_parallel_tool_use,
        thinking=body.thinking,
        reasoning_effort=_of(output.get("effort"), str, "output_config.effort"),
        response_format=None if form is None else _format(_of(form, dict, "output_config.format")),
    )


def _system(system: str | list[dict[str, Any]]) -> Any:
    if isinstance(system, str):
        return system
    # Claude Code's first block is a token of its own in every request: no prompt would begin like the one before.
    blocks = [_text(block, f"system.{place}") for place, block in enumerate(system)]
    return [block for block in blocks if not block["text"].startswith(_BILLING)] or ""


def _messages(message: Mapping[str, Any], place: int) -> list[dict[str, Any]]:
    """One message; more where it holds what tools have said."""
    where, role = f"messages.{place}", message.get("role")
    blocks = message.get("content")
    blocks = (
        [{"type": "text", "text": blocks}] if isinstance(blocks, str) else _of(blocks, list, f"{where}.content") or []
    )
    if role == "assistant":
        return [_said(blocks, f"{where}.content")]
    if role in ("user", "system"):
        return _heard(blocks, role, f"{where}.content")
    raise Refused(400, f"{where}.role: wanted user or assistant, came {str(role)[:40]!r}.", where)


def _heard(blocks: list[Any], role: str, where: str) -> list[dict[str, Any]]:
    """What the user said, and tools, each of these by itself."""
    out: list[dict[str, Any]] = []
    for place, block in enumerate(blocks):
        if _kind(block) == "tool_result":
            text = _result(block, f"{where}.{place}")
            out.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id") or ""), "content": text})
        elif out and out[-1]["role"] == role:
            out[-1]["content"].append(_part(block, f"{where}.{place}"))
        else:
            out.append({"role": role, "content": [_part(block, f"{where}.{place}")]})
    return out or [{"role": role, "content": ""}]


def _said(blocks: list[Any], where: str) -> dict[str, Any]:
    """What the assistant thought, said and called."""
    texts, thoughts, calls = [], [], []
    for place, block in enumerate(blocks):
        kind = _kind(block)
        if kind == "thinking":
            thoughts.append(_of(block.get("thinking"), str, f"{where}.{place}.thinking") or "")
        elif kind == "tool_use":
            calls.append(_call(block, f"{where}.{place}"))
        elif kind != "redacted_thinking":  # which nobody but its maker can read
            texts.append(_text(block, f"{where}.{place}"))
    message: dict[str, Any] = {"role": "assistant", "content": texts or None}
    message |= {"reasoning_content": "\n".join(thoughts)} if any(thoughts) else {}
    return message | ({"tool_calls": calls} if calls else {})


def _call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    given = _of(block.get("input"), dict, f"{where}.input") or {}
    raw = given.get(UNREADABLE) if len(given) == 1 else None
    arguments = raw if isinstance(raw, str) else json.dumps(given, ensure_ascii=False)
    function = {"name": _of(block.get("name"), str, f"{where}.name"), "arguments": arguments}
    return {"id": str(block.get("id") or ""), "type": "function", "function": function}


def _result(block: Mapping[str, Any], where: str) -> Any:
    """What a tool said; that it failed is told to the model in words."""
    content = block.get("content")
    parts = [{"text": content or ""}] if isinstance(content, str | None) else _of(content, list, f"{where}.content")
    parts = [_text(part, f"{where}.content.{place}") for place, part in enumerate(parts)]
    if block.get("is_error"):
        parts.insert(0, {"type": "text", "text": "Error:"})
    return parts or ""


def _part(block: Any, where: str) -> dict[str, Any]:
    """A text, or a picture in the words of a chat."""
    if not (isinstance(block, dict) and block.get("type") == "image"):
        return _text(block, where)
    source = _of(block.get("source"), dict, f"{where}.source") or {}
    url = source.get("url")
    if source.get("type") == "base64":
        url = f"data:{source.get('media_type')};base64,{source.get('data')}"
    return {"type": "image_url", "image_url": {"url": url}, "where": where, "kind": "image"}


def _text(block: Any, where: str) -> dict[str, str]:
    if isinstance(block, dict) and isinstance(block.get("text"), str):
        return {"type": "text", "text": block["text"]}
    raise Refused(400, f"{where}: wanted text, came {_kind(block)[:40]}. This model reads text only.", where)


def _is_function(tool: Mapping[str, Any]) -> bool:
    """Whether the client runs it. Tools of Anthropic's own servers are passed over."""
    return tool.get("type") in (None, "custom")


def _tool(tool: Mapping[str, Any], place: int) -> dict[str, Any]:
    schema = _of(tool.get("input_schema"), dict, f"tools.{place}.input_schema")
    function = {"name": tool.get("name"), "description": tool.get("description"), "parameters": schema}
    function |= {"strict": True} if tool.get("strict") else {}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _format(form: Mapping[str, Any]) -> dict[str, Any]:
    """`{"type": "json_schema", "schema": ...}`"""
    return {"type": form.get("type"), "json_schema": {"schema": form.get("schema")}}


def _kind(block: Any) -> str:
    return str(block.get("type")) if isinstance(block, dict) else type(block).__name__


def _of(value: Any, kind: type, where: str) -> Any:
    """A value of a kind, or nothing. Raises Refused."""
    if value is None or isinstance(value, kind):
        return value
    raise Refused(400, f"{where}: wanted {kind.__name__}, came {type(value).__name__}.", where)
