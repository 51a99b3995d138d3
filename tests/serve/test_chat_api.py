"""Chat completions through the real client: the engine's own replies, whole and in a stream, and honest refusals."""

from __future__ import annotations

import json
from collections.abc import Generator

import openai
import pytest
from served import STRICT_DIVE, WHALE, Here, serving

from zifio.config import Sampling
from zifio.engine.engine import Engine
from zifio.serve.steer import Steering
from zifio.tasks.form import split_thinking

ASK = [{"role": "user", "content": "How deep does the whale dive, and for how long at most? 🐋"}]


@pytest.fixture(scope="module")
def here() -> Generator[Here, None, None]:
    with serving({"aliases": {"deepseek-chat": "tiny"}, "max_tokens": 24}) as server:
        yield server


def engines_own(here: Here, n_new: int, messages: list[dict[str, str]] = ASK) -> tuple[str, list[float]]:
    """What the bare engine says, greedily."""
    policy = here.policy
    engine = Engine(policy.model, policy.engine.eos_ids, text_of=policy.tokenizer.decode)
    [[done]] = engine.generate([policy.prompt(messages)], [[0]], Sampling(temperature=0, max_new_tokens=n_new))
    return policy.tokenizer.decode(done.tokens), done.logps


def test_greedy_replies_are_the_engines_own(here: Here):
    text, logps = engines_own(here, 24)
    reply = here.openai.chat.completions.create(
        model="tiny", messages=ASK, temperature=0, logprobs=True, top_logprobs=3, max_completion_tokens=24
    )
    choice = reply.choices[0]
    thought = split_thinking(text)
    assert (choice.message.content or "") == (thought.rest if thought.thinking else text)
    told = choice.logprobs
    assert told is not None and told.content is not None
    every = [token["logprob"] for token in told.model_extra["reasoning_content"]] + [t.logprob for t in told.content]
    assert every == logps[: len(every)] and len(logps) - len(every) == (choice.finish_reason == "stop")
    assert all(token.top_logprobs[0].logprob == token.logprob for token in told.content)
    assert b"".join(bytes(token.bytes or []) for token in told.content).decode(errors="replace") == text
    usage = reply.usage
    assert usage is not None and usage.completion_tokens == len(logps)
    assert usage.total_tokens == usage.prompt_tokens + len(logps)
    again = here.openai.chat.completions.create(model="tiny", messages=ASK, temperature=0, max_tokens=24)
    assert again.choices[0].message.content == choice.message.content
    assert again.usage is not None and again.usage.model_extra["prompt_cache_hit_tokens"] >= 32
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.model_extra["prompt_cache_hit_tokens"]


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_adds_up_to_the_whole(here: Here, seed: int):
    asked = {"model": "tiny", "messages": ASK, "seed": seed, "n": 2, "max_tokens": 30, "temperature": 1.5}
    whole = here.openai.chat.completions.create(**asked)
    texts, finishes, usage = ["", ""], [None, None], None
    for chunk in here.openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] = choice.finish_reason or finishes[choice.index]
        usage = chunk.usage
    assert texts == [choice.message.content for choice in whole.choices] and texts[0] != texts[1]
    assert finishes == [choice.finish_reason for choice in whole.choices]
    assert usage is not None and whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_stop_strings_and_biases(here: Here):
    text, _ = engines_own(here, 24)
    stop = text[10:13]
    choice = here.openai.chat.completions.create(model="tiny", messages=ASK, temperature=0, stop=stop).choices[0]
    assert (choice.message.content, choice.finish_reason) == (text[: text.find(stop)], "stop")
    (only,) = here.served.tokenizer.encode("w")
    choice = here.openai.chat.completions.create(
        model="tiny", messages=ASK, temperature=0, max_tokens=5, logit_bias={str(only): 100}
    ).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("wwwww", "length")


def test_thinking_is_bounded_and_told_apart(here: Here):
    """The budget closes the thinking; the content follows; the field is DeepSeek's."""
    reply = here.post(
        "/chat/completions", messages=ASK, thinking={"type": "enabled", "budget_tokens": 6}, max_tokens=12, seed=3,
        logit_bias=here.never_ends,
    ).json()  # fmt: skip
    usage = reply["usage"]
    assert usage["completion_tokens"] == 12 and 1 <= usage["completion_tokens_details"]["reasoning_tokens"] <= 7
    assert reply["choices"][0]["finish_reason"] == "length" and reply["choices"][0]["message"]["content"]
    plain = here.post("/chat/completions", messages=ASK, thinking={"type": "disabled"}, max_tokens=6).json()
    assert "reasoning_content" not in plain["choices"][0]["message"]


def test_json_comes_behind_the_thinking(here: Here):
    for seed in range(3):
        reply = here.openai.chat.completions.create(
            model="tiny", messages=ASK, max_tokens=120, seed=seed, temperature=1.5,
            extra_body={"thinking": {"type": "enabled", "budget_tokens": 8}},
            response_format={"type": "json_schema", "json_schema": {"name": "w", "schema": WHALE, "strict": True}},
        )  # fmt: skip
        found = json.loads(reply.choices[0].message.content or "")
        assert set(found) == {"deep", "kind"} and found["kind"] in ("whale", "seal"), found
        assert reply.choices[0].finish_reason == "stop"


def test_a_forced_call_fits_its_schema_and_streams(here: Here):
    asked = {
        "model": "tiny", "messages": ASK, "tools": [STRICT_DIVE], "tool_choice": "required",
        "parallel_tool_calls": False, "max_tokens": 200, "seed": 1, "extra_body": {"thinking": {"type": "disabled"}},
    }  # fmt: skip
    message = here.openai.chat.completions.create(**asked).choices[0]
    assert message.finish_reason == "tool_calls" and message.message.tool_calls is not None
    (call,) = message.message.tool_calls
    assert call.function.name == "dive" and set(json.loads(call.function.arguments)) == {"fast"}
    deltas = [chunk.choices[0] for chunk in here.openai.chat.completions.create(**asked, stream=True)]
    told = [call for choice in deltas for call in choice.delta.tool_calls or []]
    assert [(one.index, one.function.arguments) for one in told] == [(0, call.function.arguments)]
    assert [choice.finish_reason for choice in deltas if choice.finish_reason] == ["tool_calls"]


@pytest.mark.parametrize(
    "body, words",
    [
        ({"messages": [{"role": "user", "content": "deep " * 400}]}, ["tokens", "512", "Shorten"]),
        ({"messages": ASK, "max_tokens": 5000}, ["max_tokens=5000", "512", "Lower max_tokens to"]),
        ({"messages": []}, ["messages"]),
        ({"messages": [{"role": "captain", "content": "x"}]}, ["messages.0.role", "captain"]),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, ["image_url", "text only"]),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, ["surrogate"]),
        ({"messages": ASK, "temperature": "hot"}, ["temperature"]),
        (
            {"messages": ASK, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 3}}}},
            ["schema"],
        ),
        ({"messages": ASK, "tool_choice": "required"}, ["tool_choice"]),
        ({"messages": ASK, "logit_bias": {"x": 1}}, ["logit_bias"]),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(here: Here, body: dict[str, object], words: list[str]):
    raw = json.dumps({"model": "tiny", **body})
    answer = here.http.post("/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert all(word in answer.json()["error"]["message"] for word in words), answer.text


def test_models_aliases_paths_and_metrics(here: Here):
    assert [model.id for model in here.openai.models.list()] == ["tiny", "deepseek-chat"]
    with pytest.raises(openai.NotFoundError, match="wanted one of tiny"):
        here.openai.chat.completions.create(model="other", messages=ASK)
    for path in ("/chat/completions", "/v1/chat/completions", "/beta/chat/completions"):
        reply = here.http.post(path, json={"model": "deepseek-chat", "messages": ASK, "tools": [], "max_tokens": 2})
        assert reply.status_code == 200 and reply.json()["model"] == "deepseek-chat"
    assert here.http.get("/health").json() == {"status": "ok"}
    figures = here.http.get("/metrics").text
    assert 'zifio:num_requests_running{model_name="tiny"}' in figures and "zifio:generation_tokens_total" in figures
    assert "/v1/chat/completions" in here.http.get("/openapi.json").json()["paths"]


def test_a_prefix_is_continued(here: Here):
    text, _ = engines_own(here, 24)
    head = text[:8]
    messages = [*ASK, {"role": "assistant", "content": head, "prefix": True}]
    reply = here.post("/beta/chat/completions", messages=messages, temperature=0, max_tokens=4).json()
    tokenizer = here.served.tokenizer
    prompt = tokenizer.render(ASK, generation_prompt=True) + head
    engine = Engine(here.policy.model, tokenizer.eos_id)
    [[done]] = engine.generate([tokenizer.encode(prompt)], [[0]], Sampling(temperature=0, max_new_tokens=4))
    assert reply["choices"][0]["message"]["content"] == tokenizer.decode(done.tokens)


def test_a_broken_guide_ends_its_request_and_nothing_else(here: Here, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Steering, "hear", lambda *_: 1 / 0)
    assert here.post("/chat/completions", messages=ASK, presence_penalty=1).status_code == 500
    monkeypatch.undo()
    assert here.post("/chat/completions", messages=ASK, presence_penalty=1).status_code == 200
