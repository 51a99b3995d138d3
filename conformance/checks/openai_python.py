"""The openai client for Python, on chat and text completions."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
from checking import CAPITAL, KEY, SUM, TEXT, THINKS, URL, WEATHER, check, is_weather, run
from openai import OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=300)
chat = client.chat.completions
ASK: Any = [{"role": "user", "content": CAPITAL}]
GREEDY: Any = {"model": TEXT, "messages": ASK, "temperature": 0, "max_tokens": 12}


@check("models")
def models() -> None:
    """Both models are listed, and each can be asked for."""
    assert {TEXT, THINKS} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(TEXT).id == TEXT


@check("whole")
def whole() -> None:
    """An answer, why it ended, and what it took; `n` and `seed` give the same replies again."""
    reply = chat.create(**GREEDY)
    choice, usage = reply.choices[0], reply.usage
    assert choice.message.role == "assistant" and "Paris" in (choice.message.content or ""), choice
    assert usage is not None and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    cut = chat.create(**{**GREEDY, "max_tokens": 2}).choices[0]
    assert cut.finish_reason == "length" and choice.finish_reason == "stop", (cut, choice)
    twice = [chat.create(**{**GREEDY, "temperature": 1, "n": 2, "seed": 7, "max_tokens": 6}) for _ in range(2)]
    one, two = ([each.message.content for each in reply.choices] for reply in twice)
    assert one == two and len(one) == 2, (one, two)


@check("stream")
def stream() -> None:
    """The chunks add up to the whole; the usage comes last; the client's own accumulator agrees."""
    told = chat.create(**GREEDY)
    chunks = list(chat.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert text == told.choices[0].message.content and finishes[-1] == told.choices[0].finish_reason
    assert chunks[-1].usage is not None and told.usage is not None and not chunks[-1].choices
    assert chunks[-1].usage.completion_tokens == told.usage.completion_tokens
    with chat.stream(**GREEDY) as events:
        assert events.get_final_completion().choices[0].message.content == text


@check("thinking")
def thinking() -> None:
    """Thinking and answer are apart, whole and in a stream, and its tokens are counted."""
    asked: Any = {"model": THINKS, "messages": [{"role": "user", "content": SUM}], "temperature": 0}
    reply = chat.create(**asked, extra_body={"thinking": {"type": "enabled"}})
    message: Any = reply.choices[0].message
    assert message.reasoning_content and message.content and "<think>" not in message.content, message
    assert reply.usage is not None and reply.usage.completion_tokens_details is not None
    assert (reply.usage.completion_tokens_details.reasoning_tokens or 0) > 0
    deltas: list[Any] = [
        chunk.choices[0].delta
        for chunk in chat.create(**asked, extra_body={"thinking": {"type": "enabled"}}, stream=True)
    ]
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == message.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == message.content
    passed_back = [*asked["messages"], message.model_dump(exclude_none=True), *asked["messages"]]
    assert chat.create(**{**asked, "messages": passed_back}).choices[0].message.content
    short = chat.create(**asked, extra_body={"thinking": {"type": "enabled", "budget_tokens": 5}}).usage
    assert short is not None and short.completion_tokens_details is not None
    assert (short.completion_tokens_details.reasoning_tokens or 0) <= 6


@check("tools")
def tools() -> None:
    """A forced call fits its schema, whole and streamed, and its result goes back."""
    tool = {"type": "function", "function": {"name": "weather", "strict": True, "parameters": WEATHER}}
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    asked: Any = {
        **GREEDY, "messages": [{"role": "user", "content": "The weather in Rome for 3 days?"}], "tools": [tool],
        "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 60,
    }  # fmt: skip
    reply = chat.create(**asked).choices[0]
    (call,) = reply.message.tool_calls or []
    assert call.type == "function" and call.function.name == "weather"
    assert is_weather(json.loads(call.function.arguments)), call
    chunks = [chunk.choices[0] for chunk in chat.create(**asked, stream=True)]
    pieces = [piece for chunk in chunks for piece in chunk.delta.tool_calls or []]
    streamed = "".join((piece.function and piece.function.arguments) or "" for piece in pieces)
    assert streamed == call.function.arguments and chunks[-1].finish_reason == reply.finish_reason == "tool_calls"
    back = [*asked["messages"], reply.message.model_dump(exclude_none=True)]
    back.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    after = chat.create(**{**asked, "messages": back, "tool_choice": "none", "max_tokens": 8}).choices[0]
    assert after.message.content and not after.message.tool_calls, after


class City(BaseModel):
    """What is asked for."""

    name: Literal["Paris", "Rome", "Oslo"]
    is_capital: bool


@check("schema")
def schema() -> None:
    """The client's own typed answers, and plain JSON."""
    parsed = chat.parse(**{**GREEDY, "max_tokens": 40}, response_format=City).choices[0].message.parsed
    assert isinstance(parsed, City), parsed
    form: Any = {"type": "json_schema", "json_schema": {"name": "weather", "strict": True, "schema": WEATHER}}
    assert is_weather(
        json.loads(chat.create(**{**GREEDY, "max_tokens": 40}, response_format=form).choices[0].message.content or "")
    )


@check("log-probs")
def logprobs() -> None:
    """Each token, its log-prob and the likeliest instead of it."""
    choice = chat.create(**GREEDY, logprobs=True, top_logprobs=3).choices[0]
    assert choice.logprobs is not None
    told = choice.logprobs.content or []
    assert "".join(token.token for token in told) == choice.message.content
    assert all(len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == token.logprob for token in told)


@check("completions")
def completions() -> None:
    """A text goes on; a text is scored; the stream adds up."""
    asked: Any = {"model": TEXT, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 6}
    reply = client.completions.create(**asked, echo=True, logprobs=1).choices[0]
    assert reply.text.startswith(asked["prompt"]) and "Paris" in reply.text and reply.logprobs is not None
    scores = reply.logprobs.token_logprobs or []
    assert scores[0] is None and all(score <= 0 for score in scores[1:]), scores
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True))
    assert asked["prompt"] + streamed == reply.text


@check("errors")
def errors() -> None:
    """Refusals are the client's own exceptions, and say what is wrong."""
    for bad, kind, word in (
        ({"model": "no-such-model"}, openai.NotFoundError, "no-such-model"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "1000000"),
        ({"messages": [{"role": "user", "content": "deep " * 9000}]}, openai.BadRequestError, "maximum context length"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"temperature": "hot"}, openai.BadRequestError, "temperature"),
    ):
        try:
            chat.create(**{**GREEDY, **bad})
        except kind as error:
            assert word in str(error), error
        else:
            raise AssertionError(f"{bad} was not refused")
    try:
        OpenAI(base_url=f"{URL}/v1", api_key="wrong", max_retries=0).chat.completions.create(**GREEDY)
    except openai.AuthenticationError:
        return
    raise AssertionError("a wrong key was let in")


if __name__ == "__main__":
    run()
