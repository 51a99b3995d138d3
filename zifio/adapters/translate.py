"""Between the messages and tools of other frameworks and ours: an assistant's message as a turn, a tool as a function.

Try it alone:

    python -c "from zifio.adapters.translate import turn_of; print(turn_of('<tool_call>{}</tool_call>', True))"
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from zifio.data.calls import read_calls
from zifio.tasks.environment import THINKING_KEYS, Call, Message, Turn

_EMPTY = re.compile(r"<think>\s*</think>\s*\Z")
_TYPES = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict}


def turn_of(said: str | Mapping[str, Any], has_tools: bool) -> Turn:
    """The turn that a text or an assistant's message is. Calls are read out of the text where there are tools and
    nobody did it before; thinking that somebody took out of the text is put back."""
    message: Mapping[str, Any] = {"content": said} if isinstance(said, str) else said
    text = message.get("content") or ""
    thinking = next((message[key] for key in THINKING_KEYS if message.get(key)), None)
    text = text if thinking is None else f"<think>{thinking}</think>{text}"
    if message.get("tool_calls"):
        return Turn(text, tuple(_call(call.get("function", call)) for call in message["tool_calls"]))
    if not has_tools:
        return Turn(text)
    text, calls = read_calls(text)
    return Turn(text, tuple(Call(*call) for call in calls))


def with_empty_thinking(said: str | Mapping[str, Any], raw: str) -> str | Mapping[str, Any]:
    """The message with the `<think></think>` that parsers of replies drop, where `raw`, all that was said, has it."""
    if isinstance(said, str) or any(said.get(key) for key in THINKING_KEYS):
        return said
    content = said.get("content") or ""
    before = raw.rstrip().removesuffix(content.rstrip())
    return {**said, "content": f"<think></think>{content}"} if content and _EMPTY.search(before) else said


def text_of(messages: Sequence[Message]) -> str:
    """What the messages say, for who hears texts."""
    return "\n".join(message["content"] for message in messages)


def as_function(schema: dict[str, Any], answer: Callable[[Any, Call], str]) -> Callable[..., str]:
    """A method by the tool's name with its parameters, which hands the call to `answer(self, call)`.

    Its signature and docstring are what frameworks read schemas out of. Arguments are checked by whoever answers, so
    that the policy is told what zifio would tell it.
    """
    name, about = schema["function"]["name"], schema["function"]["description"]
    properties = schema["function"]["parameters"].get("properties", {})
    required = schema["function"]["parameters"].get("required", [])

    def method(self: Any, **arguments: Any) -> str:
        return answer(self, Call(name, json.dumps(arguments)))

    hints: dict[str, Any] = {
        key: Annotated[_TYPES.get(spec.get("type", ""), Any), Field(description=spec.get("description", ""))]
        for key, spec in properties.items()
    }
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for key, hint in hints.items():
        default = inspect.Parameter.empty if key in required else None
        parameters.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint))
    method.__name__ = method.__qualname__ = name
    method.__doc__ = "\n".join(
        [about, "", "Args:", *(f"    {key}: {spec.get('description', '')}" for key, spec in properties.items())]
    )
    method.__annotations__ = {**hints, "return": str}
    vars(method)["__signature__"] = inspect.Signature(parameters, return_annotation=str)
    return method


def _call(function: Mapping[str, Any]) -> Call:
    arguments = function.get("arguments", "{}")
    return Call(str(function.get("name", "")), arguments if isinstance(arguments, str) else json.dumps(arguments))
