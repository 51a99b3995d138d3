"""Messages and tools of others as ours."""

from __future__ import annotations

import inspect
import json
from typing import Any, get_type_hints

import pytest

from zifio.adapters.translate import as_function, text_of, turn_of, with_empty_thinking
from zifio.tasks.environment import Call, Turn
from zifio.tasks.tools import calculator, python

CALL = Call("calculator", '{"expression": "2*3"}')


@pytest.mark.parametrize(
    "said",
    [
        'so <tool_call>{"name": "calculator", "arguments": {"expression": "2*3"}}</tool_call>',
        "so <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>calculator<｜tool▁sep｜>"
        '{"expression": "2*3"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        {"role": "assistant", "content": "so ", "tool_calls": [CALL.message()]},
        {"content": "so ", "tool_calls": [{"function": {"name": "calculator", "arguments": {"expression": "2*3"}}}]},
        {"content": "so ", "tool_calls": [{"id": "1", "name": "calculator", "arguments": CALL.arguments}]},
    ],
)
def test_a_call_in_every_form(said: Any):
    assert turn_of(said, has_tools=True) == Turn("so ", (CALL,))


def test_a_call_that_cannot_be_read_is_still_a_call():
    (call,) = turn_of("<tool_call>2*3</tool_call>", has_tools=True).calls
    assert call.fault == "the call is not JSON"


def test_without_tools_nothing_is_read_out_of_a_text():
    text = '<tool_call>{"name": "x"}</tool_call>'
    assert turn_of(text, has_tools=False) == Turn(text)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_thinking_is_put_back(key: str):
    assert turn_of({"content": "<answer>5</answer>", key: "2+3"}, False).text == "<think>2+3</think><answer>5</answer>"
    for nothing in (None, ""):
        assert turn_of({"content": "5", key: nothing}, False) == Turn("5")
    assert turn_of({"content": None}, False) == Turn("")


@pytest.mark.parametrize(
    ("raw", "content", "wanted"),
    [
        ("<think></think><answer>5</answer>", "<answer>5</answer>", "<think></think><answer>5</answer>"),
        ("call\n<think>\n\n</think>\n\n5 \n", "5", "<think></think>5"),
        ("5", "5", "5"),
        ("<think></think>4 5", "5", "5"),
        ("<think>x</think>5", "5", "5"),
        ("<think></think>", "", ""),
    ],
)
def test_an_empty_thinking_is_found_in_the_raw_text(raw: str, content: str, wanted: str):
    assert with_empty_thinking({"role": "assistant", "content": content}, raw)["content"] == wanted  # pyright: ignore
    assert with_empty_thinking(content, raw) == content, "a text was not parsed by anybody"
    assert with_empty_thinking({"content": content, "reasoning": "x"}, raw) == {"content": content, "reasoning": "x"}


def test_text_of_messages():
    assert text_of([{"role": "tool", "content": "1"}, {"role": "user", "content": "2"}]) == "1\n2"


@pytest.mark.parametrize("tool", [calculator(), python()])
def test_a_tool_as_a_function(tool: Any):
    class Desk:
        heard: Call | None = None

        def take(self, call: Call) -> str:
            self.heard = call
            return "done"

    method = as_function(tool.schema, Desk.take)
    desk = Desk()
    ((name, about),) = tool.parameters["properties"].items()
    assert (method.__name__, inspect.getdoc(method)) == (
        tool.name, f"{tool.description}\n\nArgs:\n    {name}: {about['description']}",
    )  # fmt: skip
    assert get_type_hints(method) == {name: str, "return": str}
    assert list(inspect.signature(method).parameters) == ["self", name]
    assert method(desk, **{name: "2*3"}) == "done"
    assert desk.heard == Call(tool.name, json.dumps({name: "2*3"}))
    assert method(desk, other=1) == "done" and desk.heard == Call(tool.name, '{"other": 1}'), (
        "who answers will complain"
    )


def test_types_and_what_may_be_left_out():
    properties = {"text": {"type": "string"}, "n": {"type": "integer"}, "all": {"type": "boolean"}, "x": {}}
    parameters = {"type": "object", "properties": properties, "required": ["n"]}
    schema = {"function": {"name": "f", "description": "Does.", "parameters": parameters}}
    method = as_function(schema, lambda self, call: "")
    assert get_type_hints(method) == {"text": str, "n": int, "all": bool, "x": Any, "return": str}
    optional = [key for key, one in inspect.signature(method).parameters.items() if one.default is None]
    assert optional == ["text", "all", "x"]
