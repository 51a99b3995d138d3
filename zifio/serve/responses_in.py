"""What OpenAI's clients send to /v1/responses, put into the words of a chat. Nothing is kept from one to the next.

Try it alone: `pytest tests/serve/test_responses_api.py`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from zifio.serve.asked import Asked, ask_chat
from zifio.serve.model import Served
from zifio.serve.refused import Refused
from zifio.serve.request import ChatRequest, Count, Drawing
from zifio.serve.settings import ServeConfig, Thinks

_SYSTEM = ("system", "developer")
_ROLES = ("user", "assistant", *_SYSTEM)
_KEPT = ("previous_response_id", "conversation", "background", "prompt")


class Reasoning(BaseModel):
    """How much to think, and whether to tell it as a summary."""

    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseRequest(Drawing):
    """POST /v1/responses"""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: Count | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    prompt: dict[str, Any] | None = None

    def wants_logprobs(self) -> bool:
        """Whether texts come with the log-probs of their tokens."""
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())

    def functions(self) -> list[dict[str, Any]]:
        """The tools that the client runs. Tools of OpenAI's own servers are passed over, as their clients offer them to
        everybody."""
        return [tool for tool in self.tools or [] if tool.get("type", "function") == "function"]

    def form(self) -> dict[str, Any]:
        """What the text must be like. Raises Refused."""
        form = (self.text or {}).get("format")
        if not isinstance(form, dict | None):
            raise Refused(400, "text.format: wanted a table.", "text.format")
        return form or {"type": "text"}


def ask_response(served: Served, body: ResponseRequest, config: ServeConfig, thinking: Thinks) -> list[Asked]:
    """A request for the next response. Raises Refused or ConfigError."""
    for name in _KEPT:
        if getattr(body, name):
            raise Refused(
                400, f"{name}: this server keeps nothing between requests. Send the whole conversation as input.", name
            )
    if body.wants_logprobs() and body.functions() and body.tool_choice != "none":
        told = "log-probs are told of texts, where no tools are offered. Leave out one or the other"
        raise Refused(400, f"include: {told}.", "include")
    return ask_chat(served, _chat(body), config, thinking)


def _chat(body: ResponseRequest) -> ChatRequest:
    """The same as a chat."""
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": _content(body.instructions, "instructions")})
    given = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    for place, item in enumerate(given):
        _add(messages, item, f"input.{place}")
    if not messages:
        raise Refused(400, "input: wanted at least one message, came none.", "input")
    tools, choice = _tools(body)
    form = body.form()
    return ChatRequest(
        **body.drawing(),
        messages=messages,
        max_completion_tokens=body.max_output_tokens,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls,
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
        response_format={"type": form.get("type"), "json_schema": {"schema": form.get("schema")}},
        logprobs=body.wants_logprobs(),
        top_logprobs=body.top_logprobs,
    )


def _add(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    """Put an item behind the messages. What one reply was made of comes as several, and becomes one message."""
    kind = item.get("type") or "message"
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    has_thought_only = (
        last is not None and set(last) == {"role", "content", "reasoning_content"} and not last["content"]
    )
    if kind == "message":
        role = item.get("role")
        if role not in _ROLES:
            raise Refused(400, f"{where}.role: wanted one of {', '.join(_ROLES)}, came {str(role)[:40]!r}.", where)
        content = _content(item.get("content"), f"{where}.content")
        if role == "assistant" and last is not None and has_thought_only:
            last["content"] = content
        elif role in _SYSTEM and messages and messages[-1]["role"] == "system":
            messages[-1]["content"] += content  # templates know one
        else:
            role = "system" if role in _SYSTEM else role
            messages.append({"role": role, "content": content})
    elif kind == "reasoning":
        thought = _thought(item, where)
        if last is not None and has_thought_only:
            last["reasoning_content"] += f"\n{thought}"
        elif thought:
            messages.append({"role": "assistant", "content": "", "reasoning_content": thought})
    elif kind == "function_call":
        if last is None:
            messages.append(last := {"role": "assistant", "content": ""})
        last.setdefault("tool_calls", []).append(_call(item, where))
    elif kind == "function_call_output":
        content = _content(item.get("output"), f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": str(item.get("call_id") or ""), "content": content})
    else:
        known = "message, function_call, function_call_output or reasoning"
        raise Refused(400, f"{where}.type: wanted {known}, came {str(kind)[:40]!r}.", where)


def _content(content: Any, where: str) -> list[dict[str, Any]]:
    """Parts of text, and pictures in the words of a chat."""
    parts = content if isinstance(content, list) else [content]
    if isinstance(content, str | None):
        parts = [{"type": "text", "text": content or ""}]
    return [_part(part, f"{where}.{place}") for place, part in enumerate(parts)]


def _part(part: Any, where: str) -> dict[str, Any]:
    if isinstance(part, dict) and part.get("type") == "input_image":
        url = part.get("image_url")
        return {"type": "image_url", "image_url": {"url": url}, "where": where, "kind": "input_image"}
    return {"type": "text", "text": _text(part, where)}


def _text(part: Any, where: str) -> str:
    text = (part.get("text") or part.get("refusal") or "") if isinstance(part, dict) else None
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if not isinstance(text, str) or not str(kind).endswith(("text", "refusal")):
        raise Refused(400, f"{where}: wanted text, came {str(kind)[:40]}. This model reads text only.", where)
    return text


def _thought(item: Mapping[str, Any], where: str) -> str:
    """The thinking, or the summary where a client has kept only that."""
    for name in ("content", "summary"):
        if item.get(name):
            return "\n".join(part.get("text", "") for part in _content(item[name], f"{where}.{name}"))
    return ""


def _call(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    name, arguments = item.get("name"), item.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, str | None):
        raise Refused(400, f"{where}: wanted a call with a name, and its arguments as text.", where)
    function = {"name": name, "arguments": arguments or "{}"}
    return {"id": str(item.get("call_id") or ""), "type": "function", "function": function}


def _tools(body: ResponseRequest) -> tuple[list[dict[str, Any]], Any]:
    """The functions, and which of them, as chats spell it."""
    given, choice = body.functions(), body.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        named = choice.get("tools")
        allowed = [tool.get("name") for tool in (named if isinstance(named, list) else []) if isinstance(tool, dict)]
        given = [tool for tool in given if tool.get("name") in allowed]
        choice = str(choice.get("mode") or "auto")
    elif isinstance(choice, dict):
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    told = ("name", "description", "parameters", "strict")
    functions = [{key: tool[key] for key in told if tool.get(key) is not None} for tool in given]
    return [{"type": "function", "function": function} for function in functions], choice
