"""Messages to the text after which the model replies, with DeepSeek's rules for thinking, prefixes and tools.

Try it alone: `pytest tests/serve/test_chat_api.py -k "refused or prefix"`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from zifio.config import ConfigError
from zifio.data.calls import CALL_BEGIN
from zifio.data.template import ChatTokenizer, Message
from zifio.serve.split import Phase
from zifio.tasks.environment import THINKING_KEYS
from zifio.tasks.form import THINK, THOUGHT

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_OFFER = (
    "You may call functions. They are, as JSON schemas:\n<tools>\n{tools}\n</tools>\n"
    "For each call write a JSON object with its name and arguments:\n"
    '<tool_call>\n{{"name": "NAME", "arguments": {{...}}}}\n</tool_call>'
)
"""For templates that know no tools, in the words of Hermes and Qwen."""


class Prompt(NamedTuple):
    """What the model sees, and what it has been made to begin."""

    text: str
    phase: Phase
    warning: str = ""
    pictures: tuple[np.ndarray, ...] = ()
    """What stands in the places of its marks for pictures, as the model's eye wants it."""


def chat_prompt(
    tokenizer: ChatTokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[dict[str, Any]] = (),
    thinks: bool | None = None,
    variables: Mapping[str, Any] = {},
    is_strict: bool = False,
) -> Prompt:
    """The prompt of a conversation; `thinks`: made to think or not to, None: as the template has it.

    `is_strict` refuses what DeepSeek refuses. Raises ConfigError for messages that cannot be rendered.
    """
    has_tags = tokenizer.tokenizer.token_to_id(THINK) is not None
    given = [_message(message, place) for place, message in enumerate(messages)]
    prefix = given.pop() if messages[-1].get("prefix") and given[-1]["role"] == "assistant" else None
    warning = _not_passed_back(given) if has_tags and thinks is not False else ""
    if warning and is_strict:
        raise ConfigError(warning)
    shown = _with_thinking(given, tokenizer.template, has_tags)
    if "tools" not in tokenizer.template and CALL_BEGIN not in tokenizer.template:
        shown = _in_words(shown, tools)
    switches = {} if thinks is None else {"enable_thinking": thinks, "thinking": thinks}

    def rendered(**changes: Any) -> str:
        every = {**switches, **changes, **variables}
        return tokenizer.render(shown, generation_prompt=True, tools=tools, variables=every)

    text = rendered()
    asks = has_tags and thinks is not None
    has_switch = asks and text != rendered(enable_thinking=not thinks, thinking=not thinks)
    opening, phase = _opening(text, thinks if asks and not has_switch else None)
    if prefix is not None:
        said, phase = _continued(prefix, phase, has_tags)
        opening += said
    return Prompt(text + opening, phase, warning)


def _opening(text: str, thinks: bool | None) -> tuple[str, Phase]:
    """What a reply begins with, and where it then stands."""
    tail = text[-64:].rstrip()
    is_open, is_closed = tail.endswith(THINK), tail.endswith(THOUGHT)
    if thinks is False and not is_closed:
        blanks = "\n\n" if text.endswith("\n") and is_open else ""
        return (f"{blanks[:1]}{THOUGHT}{blanks}" if is_open else THINK + THOUGHT), "content"
    if thinks and not is_open:
        return THINK, "thinking"
    return "", "thinking" if is_open else "content" if is_closed else "start"


def _continued(prefix: Message, phase: Phase, has_tags: bool) -> tuple[str, Phase]:
    """The beginning that a client gave, and where the reply then stands."""
    reasoning, content = prefix.get(THINKING_KEYS[0], ""), prefix["content"]
    if not has_tags:
        return content, "content"
    said = reasoning
    if reasoning and phase == "start":
        said, phase = THINK + reasoning, "thinking"
    if content:
        said += (THOUGHT if phase == "thinking" else "") + content
        phase = "content"
    return said, phase


def _message(message: Mapping[str, Any], place: int) -> Message:
    """A message with text for content. Raises ConfigError."""
    where = f"messages.{place}"
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ConfigError(f"{where}.role: wanted one of {', '.join(_ROLES)}, came {str(role)[:40]!r}. Choose one.")
    out: Message = {"role": _ROLES[role], "content": _text(message.get("content"), f"{where}.content", role)}
    if role == "assistant":
        reasoning = next((message[key] for key in THINKING_KEYS if isinstance(message.get(key), str)), "")
        out |= {THINKING_KEYS[0]: reasoning} if reasoning else {}
        if message.get("tool_calls"):
            out["tool_calls"] = _calls(message["tool_calls"], f"{where}.tool_calls")
    if role == "tool" and isinstance(message.get("tool_call_id"), str):
        out["tool_call_id"] = message["tool_call_id"]
    for text in (out["content"], out.get(THINKING_KEYS[0], "")):
        if not is_sound(text):
            raise ConfigError(f"{where}: wanted text, came half of a surrogate pair. Send sound Unicode.")
    return out


def _text(content: Any, where: str, role: str) -> str:
    if content is None and role == "assistant":
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) and content else [content]
    texts: list[str] = []
    for part in parts:
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ConfigError(f"{where}: wanted text, came {str(kind)[:40]}. This model reads text only.")
    return "\n".join(texts)


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    out = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ConfigError(f"{where}: wanted calls of functions with a name, came {str(call)[:80]}. Mend them.")
        arguments = function.get("arguments") or "{}"
        arguments = arguments if isinstance(arguments, str) else json.dumps(arguments)
        if not (is_sound(arguments) and is_sound(function["name"])):
            raise ConfigError(f"{where}: wanted text, came half of a surrogate pair. Send sound Unicode.")
        out.append(
            {"id": str(call.get("id") or ""), "type": "function"}
            | {"function": {"name": function["name"], "arguments": arguments}}
        )
    return out


def is_sound(text: str) -> bool:
    """Whether no half of a surrogate pair is in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _n_before_turn(messages: Sequence[Message]) -> int:
    """Messages up to and with the user's last."""
    return max((place + 1 for place, message in enumerate(messages) if message["role"] == "user"), default=0)


def _not_passed_back(messages: Sequence[Message]) -> str:
    """What DeepSeek says of tool calls in this turn that came without their thinking."""
    turn = messages[_n_before_turn(messages) :]
    if any(message.get("tool_calls") and THINKING_KEYS[0] not in message for message in turn):
        return "The `reasoning_content` in the thinking mode must be passed back to the API."
    return ""


def _with_thinking(messages: Sequence[Message], template: str, has_tags: bool) -> list[Message]:
    """The messages as the template wants earlier thinking: in a field of its own, or before the content.

    Between two questions of the user thinking is dropped; of a turn that is still going on it stays.
    """
    if THINKING_KEYS[0] in template:
        return list(messages)
    begin = _n_before_turn(messages)
    out = []
    for place, message in enumerate(messages):
        reasoning = message.get(THINKING_KEYS[0])
        plain = {key: value for key, value in message.items() if key != THINKING_KEYS[0]}
        if reasoning and has_tags and place >= begin:
            plain["content"] = f"{THINK}{reasoning}{THOUGHT}{plain['content']}"
        out.append(plain)
    return out


def _in_words(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    """For templates that know no tools: offers, calls and results as text."""
    out: list[Message] = []
    for message in messages:
        content = message["content"]
        for call in message.get("tool_calls", ()):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            said = f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'
            content += f"\n<tool_call>\n{said}\n</tool_call>"
        if message["role"] == "tool":
            out.append({"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"})
        else:
            out.append({"role": message["role"], "content": content})
    if tools:
        offer = _OFFER.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
        if out and out[0]["role"] == "system":
            out[0] = {**out[0], "content": f"{out[0]['content']}\n\n{offer}"}
        else:
            out.insert(0, {"role": "system", "content": offer})
    return out
