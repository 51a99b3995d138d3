"""Tool calls in a model's text, in the forms in which published models write them.

    DeepSeek-V3.1, and ours   <｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>
    DeepSeek-V3, R1           <｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME, then the arguments in a fence of json
    Hermes, Qwen, SmolLM2     <tool_call>{"name": NAME, "arguments": {...}}</tool_call>, or a list of such tables

Text is only read here, never written back: what a model sampled stays the tokens that it sampled.

Try it alone: `pytest tests/data/test_calls.py`
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_SEP, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
OUTPUTS_BEGIN, OUTPUTS_END = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
OUTPUT_BEGIN, OUTPUT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
TOOL_TOKENS = (
    CALLS_BEGIN, CALL_BEGIN, CALL_SEP, CALL_END, CALLS_END, OUTPUTS_BEGIN, OUTPUT_BEGIN, OUTPUT_END, OUTPUTS_END,
)  # fmt: skip
"""DeepSeek-V3's, in the order of their ids behind the other special tokens."""

_HERMES_BEGIN, _HERMES_END = "<tool_call>", "</tool_call>"
_FENCE = re.compile(r"(?P<name>[^\n]*)\n```json\n(?P<arguments>.*)\n```", re.DOTALL)


class WrittenCall(NamedTuple):
    """A call as it stands in a text; with a fault when it cannot be read as one."""

    name: str
    arguments: str
    fault: str = ""


def read_calls(text: str) -> tuple[str, list[WrittenCall]]:
    """The text before the first call, and the calls; a text without any comes back whole."""
    for opener, begin, end, read in (
        (CALLS_BEGIN, CALL_BEGIN, CALL_END, _deepseek),
        (CALL_BEGIN, CALL_BEGIN, CALL_END, _deepseek),
        (_HERMES_BEGIN, _HERMES_BEGIN, _HERMES_END, _hermes),
    ):
        head, found, rest = text.partition(opener)
        if found:
            return head, _each(found + rest, begin, end, read) or [WrittenCall("", "", "no call inside the marks")]
    return text, []


def _each(text: str, begin: str, end: str, read: Callable[[str], list[WrittenCall]]) -> list[WrittenCall]:
    """What `read` makes of every piece between the marks."""
    calls = []
    for piece in text.split(begin)[1:]:
        inside, closed, _ = piece.partition(end)
        calls += read(inside) if closed else [WrittenCall("", inside, f"the call does not end with {end}")]
    return calls


def _deepseek(inside: str) -> list[WrittenCall]:
    name, found, rest = inside.partition(CALL_SEP)
    if not found:
        return [WrittenCall("", inside, f"no {CALL_SEP} between the name and the arguments")]
    if name == "function" and (fenced := _FENCE.fullmatch(rest.strip())):
        return [WrittenCall(fenced["name"].strip(), fenced["arguments"])]
    return [WrittenCall(name.strip(), rest)]


def _hermes(inside: str) -> list[WrittenCall]:
    """One call, or as SmolLM2 writes them a list of calls."""
    try:
        found = json.loads(inside)
    except (ValueError, RecursionError):
        return [WrittenCall("", inside, "the call is not JSON")]
    return [_named(call, inside) for call in (found if isinstance(found, list) else [found])]


def _named(call: Any, inside: str) -> WrittenCall:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return WrittenCall("", inside, "the call has no name")
    arguments = call.get("arguments", {})
    return WrittenCall(call["name"], arguments if isinstance(arguments, str) else json.dumps(arguments))
