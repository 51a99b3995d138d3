"""/v1/messages through Anthropic's own client: the same replies as a chat's, block by block, and errors in its form."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import anthropic
import pytest
from served import FAST, Here, policy, serving

from zifio.serve.messages_in import UNREADABLE
from zifio.serve.messages_out import table

ASK: list[Any] = [{"role": "user", "content": "How deep does the whale dive? 🐋"}]
THINK: dict[str, Any] = {"type": "enabled", "budget_tokens": 6}
DIVE: dict[str, Any] = {
    "name": "dive", "description": "Goes down.",
    "input_schema": FAST,
}  # fmt: skip


@pytest.fixture(scope="module")
def here() -> Generator[Here, None, None]:
    with serving({"fit_max_tokens": True}) as server:
        yield server


@pytest.fixture(scope="module")
def client(here: Here) -> Generator[anthropic.Anthropic, None, None]:
    with anthropic.Anthropic(base_url=f"{here.url}/anthropic", api_key="x", max_retries=0, timeout=60) as made:
        yield made


def asked(seed: int = 0, **more: Any) -> dict[str, Any]:
    """A request for a few tokens."""
    drawn = {"seed": seed, "temperature": 1.5, **more.pop("extra_body", {})}
    return {"model": "tiny", "messages": ASK, "max_tokens": 24, "extra_body": drawn, **more}


def events(here: Here, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    """The names and contents of a stream's events, as they stand in the bytes."""
    text = here.post("/v1/messages", **{"messages": ASK, "max_tokens": 24, "stream": True, **body}).text
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def plain(message: Any) -> list[dict[str, Any]]:
    """Content blocks without what is new each time."""
    return [block.model_dump(exclude={"id", "parsed_output"}) for block in message.content]


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_adds_up_to_the_whole_and_to_the_chats_reply(here: Here, client: anthropic.Anthropic, seed: int):
    body = asked(seed, thinking=THINK if seed % 2 else {"type": "disabled"})
    whole = client.messages.create(**body)
    with client.messages.stream(**body) as stream:
        streamed = stream.get_final_message()
    assert plain(streamed) == plain(whole) and streamed.stop_reason == whole.stop_reason
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    assert [block.type for block in whole.content][: seed % 2] == ["thinking"] * (seed % 2)
    chat = here.post(
        "/v1/chat/completions", messages=ASK, max_tokens=24, seed=seed, temperature=1.5, thinking=body["thinking"]
    ).json()
    message = chat["choices"][0]["message"]
    told = {"thinking": message.get("reasoning_content", ""), "text": message["content"]}
    for block in whole.content:
        assert getattr(block, block.type) == told[block.type]
    assert whole.stop_reason == {"length": "max_tokens", "stop": "end_turn"}[chat["choices"][0]["finish_reason"]]
    usage = streamed.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == chat["usage"]["prompt_tokens"]
    assert whole.usage.output_tokens_details is not None
    reasoned = chat["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert whole.usage.output_tokens_details.thinking_tokens == reasoned


@pytest.mark.parametrize("tools", [{}, {"tools": [DIVE], "tool_choice": {"type": "any"}}])
def test_events_come_in_anthropics_order(here: Here, tools: dict[str, Any]):
    told = events(here, thinking=THINK, seed=1, max_tokens=200 if tools else 24, **tools)
    names = [name for name, _ in told]
    assert all(data["type"] == name for name, data in told)
    assert [names[0], *names[-2:]] == ["message_start", "message_delta", "message_stop"]
    start = told[0][1]["message"]
    assert start["content"] == [] and start["stop_reason"] is None and start["usage"]["input_tokens"] > 0
    place, kind, last = -1, "", ""
    for name, data in told[1:-2]:
        if name == "content_block_start":
            assert kind == "" and data["index"] == place + 1
            place, kind = data["index"], data["content_block"]["type"]
            assert not any(data["content_block"].get(key) for key in ("text", "thinking", "signature", "input"))
        elif name == "content_block_delta":
            last = data["delta"]["type"]
            allowed = {"text": ("text_delta",), "tool_use": ("input_json_delta",)}
            assert data["index"] == place and last in allowed.get(kind, ("thinking_delta", "signature_delta"))
        else:
            assert name == "content_block_stop" and data["index"] == place
            assert kind != "thinking" or last == "signature_delta"
            kind = ""
    assert kind == "" and place >= 1
    end = told[-2][1]
    assert end["delta"]["stop_reason"] in (("tool_use",) if tools else ("end_turn", "max_tokens"))
    assert end["usage"]["output_tokens"] > end["usage"]["output_tokens_details"]["thinking_tokens"] > 0


def test_a_stop_sequence_is_told(client: anthropic.Anthropic):
    free = client.messages.create(**asked(2, thinking={"type": "disabled"}, max_tokens=40))
    assert free.content[0].type == "text"
    text = free.content[0].text
    stop = text[4:6]
    message = client.messages.create(**asked(2, thinking={"type": "disabled"}, stop_sequences=["never there", stop]))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].type == "text" and message.content[0].text == text[: text.find(stop)]


def test_tools_are_called_and_answered(here: Here, client: anthropic.Anthropic):
    choice: Any = {"type": "tool", "name": "dive", "disable_parallel_tool_use": True}
    body = asked(1, tools=[DIVE, {"type": "web_search_20250305", "name": "web_search"}], tool_choice=choice)
    body |= {"max_tokens": 200, "thinking": {"type": "disabled"}}
    message = client.messages.create(**body)
    (call,) = message.content
    assert message.stop_reason == "tool_use" and call.type == "tool_use" and call.name == "dive"
    assert set(call.input) == {"fast"}
    with client.messages.stream(**body) as stream:
        (streamed,) = stream.get_final_message().content
    assert streamed.type == "tool_use" and streamed.input == call.input
    answer = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "at 900 m"}]}
    turns = [
        *ASK,
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "It can dive.", "signature": "?"}, call.model_dump()],
        },
        {"role": "user", "content": [answer, {"type": "text", "text": "So?"}]},
    ]
    function = {"name": "dive", "description": "Goes down.", "parameters": DIVE["input_schema"]}
    called = {
        "id": call.id,
        "type": "function",
        "function": {"name": "dive", "arguments": json.dumps(call.input)},
    }
    as_chat = [
        *ASK,
        {"role": "assistant", "content": None, "reasoning_content": "It can dive.", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": call.id, "content": "at 900 m"},
        {"role": "user", "content": "So?"},
    ]
    chat = here.post(
        "/v1/chat/completions", messages=as_chat, tools=[{"type": "function", "function": function}], max_tokens=9,
        temperature=0,
    ).json()  # fmt: skip
    again = client.messages.create(
        model="tiny", messages=turns, tools=[DIVE], max_tokens=9, extra_body={"temperature": 0}
    )
    assert again.usage.cache_read_input_tokens == chat["usage"]["prompt_tokens"] // 32 * 32 > 0
    assert again.content[-1].type == "text" and again.content[-1].text == chat["choices"][0]["message"]["content"]
    count = client.messages.count_tokens(model="tiny", messages=turns, tools=[DIVE]).input_tokens
    assert count == chat["usage"]["prompt_tokens"] == again.usage.input_tokens + again.usage.cache_read_input_tokens


def test_systems_prefills_and_schemas(client: anthropic.Anthropic):
    said = client.messages.count_tokens(model="tiny", messages=ASK, system="Be brief.").input_tokens
    billed = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=abc;"},
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
    ]
    assert client.messages.count_tokens(model="tiny", messages=ASK, system=billed).input_tokens == said
    assert client.messages.count_tokens(model="tiny", messages=ASK).input_tokens < said
    whole = client.messages.create(**asked(extra_body={"temperature": 0}, thinking={"type": "disabled"}))
    assert whole.content[0].type == "text"
    head = whole.content[0].text[:7]
    begun = [*ASK, {"role": "assistant", "content": head}]
    rest = client.messages.create(
        **asked(messages=begun, extra_body={"temperature": 0}, thinking={"type": "disabled"}, max_tokens=9)
    )
    assert rest.content[0].type == "text" and not rest.content[0].text.startswith(head)
    schema = {"type": "object", "properties": {"deep": {"type": "boolean"}}, "required": ["deep"]}
    output: Any = {"format": {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}}
    made = client.messages.create(**asked(output_config=output, thinking=THINK, max_tokens=200))
    assert made.content[-1].type == "text" and set(json.loads(made.content[-1].text)) == {"deep"}


def test_a_reply_that_the_context_ends_says_so(here: Here, client: anthropic.Anthropic):
    """Where the server fits max_tokens."""
    long: list[Any] = [{"role": "user", "content": "x" * 480}]
    never = {"logit_bias": here.never_ends}
    message = client.messages.create(**asked(messages=long, max_tokens=9000, extra_body=never))
    assert message.stop_reason == "model_context_window_exceeded"
    assert message.usage.input_tokens + message.usage.output_tokens == 512


@pytest.mark.parametrize(
    "body, words",
    [
        ({"max_tokens": None}, ["max_tokens"]),
        ({"messages": []}, ["messages"]),
        ({"messages": [{"role": "user"}, {"role": "user", "content": 7}]}, ["messages.1.content", "list"]),
        ({"messages": [{"role": "captain", "content": "x"}]}, ["messages.0.role", "captain"]),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, ["messages.0.content.0", "image"]),
        ({"messages": [{"role": "user", "content": ["x"]}]}, ["messages.0.content.0", "str"]),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": 3}]}]}, ["input"]),
        ({"messages": [{"role": "user", "content": "deep " * 400}]}, ["tokens", "512"]),
        ({"system": [{"type": "image"}]}, ["system.0", "image"]),
        ({"tool_choice": {"type": "any"}}, ["tool_choice", "tools"]),
        ({"tools": [DIVE], "tool_choice": {"type": "tool", "name": "rise"}}, ["tool_choice"]),
        ({"tools": [{**DIVE, "input_schema": "x"}]}, ["tools.0.input_schema"]),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": 3}}}}, ["schema"]),
        ({"thinking": {"type": "sometimes"}}, ["thinking.type"]),
    ],
)
def test_what_cannot_be_answered_is_refused_in_anthropics_form(here: Here, body: dict[str, Any], words: list[str]):
    answer = here.post("/v1/messages", **{"messages": ASK, "max_tokens": 5, **body})
    assert answer.status_code == 400, answer.text
    found = answer.json()
    assert found["type"] == "error" and found["error"]["type"] == "invalid_request_error"
    assert all(word in found["error"]["message"] for word in words), answer.text


def test_keys_names_and_models(client: anthropic.Anthropic, here: Here):
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        client.messages.create(**asked(model="other"))
    (model,) = client.models.list().data
    assert (model.id, model.type, model.display_name) == ("tiny", "model", "tiny")
    for path in ("/v1/messages", "/messages", "/anthropic/v1/messages", "/anthropic/messages"):
        assert here.post(path, messages=ASK, max_tokens=1).json()["type"] == "message"
    assert here.http.get("/anthropic/v1/nothing").json()["error"]["type"] == "not_found_error"
    with serving({"max_body_bytes": 1000}, {"key-of-ann": "ann"}) as closed:
        for key in ("key-of-ann", "key-of-eve"):
            with anthropic.Anthropic(base_url=closed.url, api_key=key, max_retries=0) as asker:
                if key == "key-of-ann":
                    assert asker.messages.create(**asked()).role == "assistant"
                    with pytest.raises(anthropic.APIStatusError, match="request_too_large"):
                        asker.messages.create(**asked(system="x" * 2000))
                else:
                    with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
                        asker.messages.count_tokens(model="tiny", messages=ASK)


def test_a_long_reply_is_kept_alive_and_ended_and_whoever_leaves_frees_the_engine():
    with serving({"keep_alive_s": 0.001, "request_s": 1.0}, made=policy(context=8192)) as here:
        long = {"max_tokens": 8000, "logit_bias": here.never_ends}
        told = [name for name, _ in events(here, **long)]
        assert "ping" in told and told[-1] == "error"
        with anthropic.Anthropic(base_url=here.url, api_key="x", max_retries=0) as client:
            with pytest.raises(anthropic.APIStatusError, match="timeout_error"):
                for _ in client.messages.create(**asked(extra_body=long | {"max_tokens": 8000}, stream=True)):
                    pass
            assert client.messages.create(**asked(max_tokens=4)).stop_reason in ("max_tokens", "end_turn")
        body = {"model": "tiny", "messages": ASK, "stream": True, **long}
        with here.http.stream("POST", "/v1/messages", json=body) as answer:
            lines = answer.iter_lines()  # held: a dropped iterator would hang up
            assert next(lines).startswith("event: ")
        assert here.is_idle(1.0)


def test_arguments_are_a_table_whatever_the_model_wrote():
    assert table('{"fast": true}') == {"fast": True} and table("") == {}
    for arguments in ("{fast: true", "[1]", '{"deep": NaN}', "[" * 100_000, '{"deep": ' + "9" * 5000 + "}"):
        assert table(arguments) == {UNREADABLE: arguments}
