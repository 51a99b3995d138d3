"""/v1/responses through OpenAI's own client: the same replies as a chat's, item by item, and nothing kept."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import pytest
from pydantic import BaseModel
from served import FAST, Here, policy, serving

ASK = "How deep does the whale dive? 🐋"
AS_CHAT = [{"role": "user", "content": ASK}]
DIVE: dict[str, Any] = {
    "type": "function", "name": "dive", "description": "Goes down.",
    "parameters": FAST,
}  # fmt: skip
CHAT_DIVE = {"type": "function", "function": {key: value for key, value in DIVE.items() if key != "type"}}


class Whale(BaseModel):
    deep: bool


@pytest.fixture(scope="module")
def here() -> Generator[Here, None, None]:
    settings = {"aliases": {"deepseek-reasoner": "tiny", "deepseek-chat": "tiny"}, "max_tokens": 24}
    with serving(settings) as server:
        yield server


def asked(seed: int = 0, thinks: bool = True, **more: Any) -> dict[str, Any]:
    """A request for a few tokens, a quarter of them thinking."""
    model = "deepseek-reasoner" if thinks else "deepseek-chat"
    drawn = {"seed": seed, **more.pop("extra_body", {})}
    body = {"model": model, "input": ASK, "temperature": 1.5, "max_output_tokens": 24, "extra_body": drawn}
    return {**body, **({"reasoning": {"effort": "low"}} if thinks else {}), **more}


def events(here: Here, **body: Any) -> list[dict[str, Any]]:
    """A stream's events as they stand in the bytes."""
    flat = {key: value for key, value in body.items() if key != "extra_body"} | body.get("extra_body", {})
    text = here.post("/v1/responses", **flat, stream=True).text
    blocks = [block.split("\n") for block in text.strip().split("\n\n") if not block.startswith(":")]
    told = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]
    assert all(name == data["type"] for name, data in told)
    return [data for _, data in told]


def plain(response: Any) -> list[dict[str, Any]]:
    """Output items without what is new each time."""
    strange = {"id": True, "call_id": True, "parsed_arguments": True, "content": {"__all__": {"parsed"}}}
    return [item.model_dump(exclude=strange) for item in response.output]


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_adds_up_to_the_whole_and_to_the_chats_reply(here: Here, seed: int):
    body = asked(seed, thinks=bool(seed % 2))
    whole = here.openai.responses.create(**body)
    with here.openai.responses.stream(**body) as stream:
        last = list(stream)[-1]
    assert last.type == f"response.{whole.status}"
    streamed = last.response
    assert plain(streamed) == plain(whole) and streamed.output_text == whole.output_text
    effort = {"reasoning_effort": "low"} if seed % 2 else {}
    chat = here.post(
        "/v1/chat/completions", model=body["model"], messages=AS_CHAT, seed=seed, temperature=1.5, max_tokens=24,
        **effort,
    ).json()  # fmt: skip
    choice, usage = chat["choices"][0], whole.usage
    assert whole.output_text == choice["message"]["content"]
    thought = [item.content[0].text for item in whole.output if item.type == "reasoning" and item.content]
    assert thought == ([choice["message"]["reasoning_content"]] if seed % 2 else [])
    assert whole.status == {"length": "incomplete", "stop": "completed"}[choice["finish_reason"]]
    assert (whole.incomplete_details is None) == (whole.status == "completed")
    assert whole.output[-1].status == whole.status and usage is not None and streamed.usage is not None
    assert usage.input_tokens == chat["usage"]["prompt_tokens"]
    assert usage.output_tokens == chat["usage"]["completion_tokens"] == streamed.usage.output_tokens
    reasoned = chat["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert usage.output_tokens_details.reasoning_tokens == reasoned


@pytest.mark.parametrize(
    "more",
    [{}, {"reasoning": {"effort": "low", "summary": "auto"}}, {"tools": [DIVE], "tool_choice": "required"}],
)
def test_events_come_in_openais_order(here: Here, more: dict[str, Any]):
    told = events(here, **asked(1, **more, max_output_tokens=200 if "tools" in more else 24))
    kinds = [event["type"].removeprefix("response.") for event in told]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert kinds[:2] == ["created", "in_progress"] and kinds[-1] in ("completed", "incomplete")
    assert told[0]["response"]["output"] == [] and told[0]["response"]["status"] == "in_progress"
    final = told[-1]["response"]
    assert final["id"] == told[0]["response"]["id"] and final["output"]
    rest = told[2:-1]
    for place, item in enumerate(final["output"]):
        mine = [event for event in rest if event["output_index"] == place]
        assert mine == rest[: len(mine)]  # one item behind the other
        rest = rest[len(mine) :]
        assert {event.get("item_id", item["id"]) for event in mine} == {item["id"]}
        assert mine[0]["item"]["status"] == "in_progress" and mine[-1]["item"] == item
        names = [event["type"].removeprefix("response.") for event in mine]
        around, inside = {
            "message": (["content_part"], "output_text"),
            "function_call": ([], "function_call_arguments"),
            "reasoning": (["content_part"], "reasoning_text"),
        }[item["type"]]
        if item["type"] == "reasoning" and "summary" in more.get("reasoning", {}):
            around, inside = ["reasoning_summary_part"], "reasoning_summary_text"
            assert item["content"] == [] and item["summary"][0]["type"] == "summary_text"
        deltas = [event["delta"] for event in mine if event["type"].endswith(".delta")]
        before = ["output_item.added", *(f"{part}.added" for part in around)]
        after = [f"{inside}.done", *(f"{part}.done" for part in around), "output_item.done"]
        assert names == [*before, *[f"{inside}.delta"] * len(deltas), *after]
        done = mine[len(before) + len(deltas)]
        assert "".join(deltas) == done["arguments" if item["type"] == "function_call" else "text"]
    assert not rest


def test_open_responses_name_for_thinking():
    with serving({"reasoning_events": "reasoning", "aliases": {"deepseek-reasoner": "tiny"}}) as here:
        kinds = {event["type"] for event in events(here, **asked(1))}
    assert {"response.reasoning.delta", "response.reasoning.done"} < kinds


def test_tools_are_called_and_answered(here: Here):
    tools: Any = [DIVE, {"type": "web_search"}, {"type": "custom", "name": "patch"}]
    body = asked(1, thinks=False, tools=tools, tool_choice={"type": "function", "name": "dive"}, max_output_tokens=200)
    response = here.openai.responses.create(**body)
    (call,) = response.output
    assert call.type == "function_call" and call.name == "dive" and set(json.loads(call.arguments)) == {"fast"}
    assert response.status == "completed" and [tool.type for tool in response.tools] == ["function"]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "dive"}]}
    two = [DIVE, {**DIVE, "name": "rise"}]
    again = here.openai.responses.create(**{**body, "tools": two, "tool_choice": allowed})
    assert {item.name for item in again.output if item.type == "function_call"} == {"dive"}
    thought = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "It can."}],
    }
    items: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": ASK}]},
        thought,
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "at 900 m"},
    ]
    function = {"name": "dive", "arguments": call.arguments}
    as_chat = [
        {"role": "system", "content": "You know whales.\nBe brief."},
        *AS_CHAT,
        {
            "role": "assistant", "content": "Let me see.", "reasoning_content": "It can.",
            "tool_calls": [{"id": call.call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call.call_id, "content": "at 900 m"},
    ]  # fmt: skip
    chat = here.post("/v1/chat/completions", messages=as_chat, tools=[CHAT_DIVE], max_tokens=9, temperature=0).json()
    for changed in (thought, {**thought, "content": None, "summary": [{"type": "summary_text", "text": "It can."}]}):
        items[2] = changed
        asks: dict[str, Any] = {"model": "tiny", "input": items, "tools": tools, "instructions": "You know whales."}
        answer = here.openai.responses.create(**asks, temperature=0, max_output_tokens=9)
        assert answer.output_text == chat["choices"][0]["message"]["content"] and answer.usage is not None
        assert answer.usage.input_tokens == chat["usage"]["prompt_tokens"]
        assert answer.usage.input_tokens_details.cached_tokens >= 32


def test_schemas_log_probs_and_what_is_echoed(here: Here):
    parsed = here.openai.responses.parse(**asked(thinks=False, text_format=Whale, max_output_tokens=100))
    assert isinstance(parsed.output_parsed, Whale) and parsed.text is not None
    assert parsed.text.format is not None and parsed.text.format.type == "json_schema"
    body = asked(3, thinks=False, metadata={"run": "7"}, store=True, top_p=0.9, top_logprobs=2, instructions="Dive.")
    body |= {"include": ["message.output_text.logprobs"]}
    response = here.openai.responses.create(**body)
    assert (response.metadata, response.top_p, response.instructions) == ({"run": "7"}, 0.9, "Dive.")
    assert (response.temperature, response.top_logprobs, response.to_dict()["store"]) == (1.5, 2, False)
    told = response.output[0].content[0].logprobs
    n_end = response.status == "completed"
    assert response.usage is not None and len(told) == response.usage.output_tokens - n_end
    assert b"".join(bytes(token.bytes) for token in told).decode(errors="replace") == response.output_text
    assert all(len(token.top_logprobs) == 2 for token in told)
    deltas = [event for event in events(here, **body) if event["type"] == "response.output_text.delta"]
    streamed = [token["logprob"] for event in deltas for token in event["logprobs"]]
    assert streamed == [token.logprob for token in told]


@pytest.mark.parametrize(
    "body, words",
    [
        ({"previous_response_id": "resp_1"}, ["previous_response_id", "whole conversation"]),
        ({"background": True}, ["background"]),
        ({"input": None}, ["input"]),
        ({"input": []}, ["input"]),
        ({"input": [{"type": "reasoning", "summary": []}]}, ["input", "message"]),
        ({"input": [{"role": "captain", "content": "x"}]}, ["input.0.role", "captain"]),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, ["input.0.type", "item_reference"]),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            ["input.0.content.0", "input_image", "text only"],
        ),
        ({"input": [{"type": "function_call", "arguments": "{}"}]}, ["input.0", "name"]),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": 3}}}}, ["schema"]),
        ({"text": {"format": "json"}}, ["text.format"]),
        ({"top_logprobs": 1, "tools": [DIVE]}, ["log-probs", "tools"]),
        ({"tools": [{"type": "function"}]}, ["tools.0", "name"]),
        ({"tool_choice": "required"}, ["tool_choice"]),
        ({"tool_choice": {"type": "allowed_tools", "tools": 3, "mode": "required"}}, ["tool_choice"]),
        ({"reasoning": {"effort": "some"}}, ["reasoning_effort"]),
        ({"max_output_tokens": 5000}, ["5000", "512"]),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(here: Here, body: dict[str, Any], words: list[str]):
    answer = here.post("/v1/responses", **{"input": ASK, **body})
    assert answer.status_code == 400, answer.text
    assert all(word in answer.json()["error"]["message"] for word in words), answer.text


def test_a_reply_that_takes_too_long_fails_as_an_event_and_whoever_leaves_frees_the_engine():
    with serving({"keep_alive_s": 0.001, "request_s": 1.0}, made=policy(context=8192)) as here:
        never = {"logit_bias": here.never_ends}
        whole = here.post("/v1/responses", input=ASK, **never)  # its status has gone out before
        assert whole.status_code == 200 and "longer than 1 s" in whole.json()["error"]["message"]
        last = list(here.openai.responses.create(model="tiny", input=ASK, extra_body=never, stream=True))[-1]
        assert last.type == "response.failed" and last.response.error is not None
        assert "longer than 1 s" in last.response.error.message and last.response.output[0].status == "incomplete"
        body = {"model": "tiny", "input": ASK, "stream": True, **never}
        with here.http.stream("POST", "/v1/responses", json=body) as answer:
            lines = answer.iter_lines()  # held: a dropped iterator would hang up
            assert next(lines)
        assert here.is_idle(1.0)
