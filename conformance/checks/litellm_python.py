"""litellm, by its DeepSeek and its OpenAI provider."""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network

import litellm
from checking import CAPITAL, KEY, SUM, TEXT, THINKS, URL, WEATHER, check, is_weather, run

AT: Any = {"api_base": f"{URL}/v1", "api_key": KEY, "num_retries": 0, "timeout": 300}
GREEDY: Any = {
    **AT, "model": f"openai/{TEXT}", "messages": [{"role": "user", "content": CAPITAL}], "temperature": 0,
    "max_tokens": 12,
}  # fmt: skip
SUMS: Any = {**AT, "model": f"deepseek/{THINKS}", "messages": [{"role": "user", "content": SUM}], "temperature": 0}


@check("whole")
def whole() -> None:
    """An answer, why it ended, and what it took."""
    reply: Any = litellm.completion(**GREEDY)
    assert "Paris" in reply.choices[0].message.content and reply.choices[0].finish_reason == "stop", reply
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


@check("stream")
def stream() -> None:
    """Chunks that litellm builds into the whole."""
    chunks: Any = list(litellm.completion(**GREEDY, stream=True, stream_options={"include_usage": True}))
    built: Any = litellm.stream_chunk_builder(chunks)
    told: Any = litellm.completion(**GREEDY)
    assert built.choices[0].message.content == told.choices[0].message.content, built
    assert built.usage.completion_tokens == told.usage.completion_tokens, built


@check("thinking")
def thinking() -> None:
    """The thinking passes through the gateway, whole and in a stream."""
    reply: Any = litellm.completion(**SUMS)
    message = reply.choices[0].message
    assert message.reasoning_content and message.content and "<think>" not in message.content, message
    deltas: Any = [chunk.choices[0].delta for chunk in litellm.completion(**SUMS, stream=True)]  # type: ignore[union-attr]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == message.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == message.content


@check("tools")
def tools() -> None:
    """A forced call, and its result sent back."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
    messages: list[Any] = [{"role": "user", "content": "The weather in Rome for 3 days?"}]
    asked: Any = {**GREEDY, "tools": [tool], "parallel_tool_calls": False, "max_tokens": 60}
    reply: Any = litellm.completion(**{**asked, "messages": messages, "tool_choice": "required"})
    (call,) = reply.choices[0].message.tool_calls
    assert reply.choices[0].finish_reason == "tool_calls" and is_weather(json.loads(call.function.arguments)), call
    messages += [reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    after: Any = litellm.completion(**{**asked, "messages": messages, "tool_choice": "none", "max_tokens": 8})
    assert after.choices[0].message.content


@check("schema")
def schema() -> None:
    """JSON that fits."""
    form = {"type": "json_schema", "json_schema": {"name": "weather", "strict": True, "schema": WEATHER}}
    reply: Any = litellm.completion(**{**GREEDY, "max_tokens": 40}, response_format=form)
    assert is_weather(json.loads(reply.choices[0].message.content)), reply


@check("log-probs")
def logprobs() -> None:
    """Each token's log-prob."""
    choice: Any = litellm.completion(**GREEDY, logprobs=True, top_logprobs=2).choices[0]  # type: ignore[union-attr]
    told = choice.logprobs.content
    assert "".join(token.token for token in told) == choice.message.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in told)


@check("completions")
def completions() -> None:
    """Text completions."""
    asked: Any = {**AT, "model": f"text-completion-openai/{TEXT}", "prompt": "The capital of France is"}
    reply: Any = litellm.text_completion(**asked, temperature=0, max_tokens=6)
    assert "Paris" in reply.choices[0].text, reply


@check("errors")
def errors() -> None:
    """Refusals are litellm's own exceptions; a conversation that is too long is told from other mistakes."""
    for bad, kind in (
        ({"model": "openai/no-such-model"}, litellm.NotFoundError),
        ({"temperature": 1000}, litellm.BadRequestError),
        ({"messages": [{"role": "user", "content": "deep " * 9000}]}, litellm.ContextWindowExceededError),
        ({"api_key": "wrong"}, litellm.AuthenticationError),
    ):
        try:
            litellm.completion(**{**GREEDY, **bad})
        except kind:
            continue
        raise AssertionError(f"{kind.__name__} was not raised")


if __name__ == "__main__":
    run()
