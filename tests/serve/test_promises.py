"""What the server promises beyond answers: patience, limits, tools held to schemas, equal bits, honest figures."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from served import ASK, STRICT_DIVE, Here, policy, serving
from tiny import lively, llama

from zifio.config import ConfigError, build
from zifio.data.calls import CALLS_BEGIN
from zifio.data.tokenizer import TokenizerConfig, chat_tokenizer, train_tokenizer
from zifio.engine.config import EngineConfig
from zifio.engine.engine import Engine
from zifio.engine.policy import LocalPolicy
from zifio.serve.gate import Gate
from zifio.serve.settings import ServeConfig, read_keys
from zifio.serve.thread import EngineThread

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def here() -> Generator[Here, None, None]:
    settings = {"keep_alive_s": 0.05, "waiting": 9, "fit_max_tokens": True, "engine": {"max_rows": 8, "bitwise": True}}
    with serving(settings, made=policy(context=512)) as server:
        yield server


def busy(here: Here, seconds: float) -> None:
    """Let the engine do nothing for a while."""
    far = here.served.worker.far
    assert isinstance(far, EngineThread)
    far._jobs.put(lambda: time.sleep(seconds))


def figure(here: Here, finish: str) -> float:
    """Replies that ended so."""
    found = re.search(
        rf'^zifio:request_success_total{{finished_reason="{finish}",model_name="tiny"}} (\S+)',
        here.http.get("/metrics").text, re.MULTILINE,
    )  # fmt: skip
    return float(found[1]) if found else 0.0


def test_who_waits_hears_that_we_are_there(here: Here):
    """Comments in a stream, blank lines before a whole answer; a stop to both when the answer comes."""
    for path, asked in ((CHAT, {"messages": ASK}), ("/v1/completions", {"prompt": "x"})):
        busy(here, 0.3)
        lines = here.post(path, **asked, stream=True, max_tokens=3).text.split("\n\n")
        n = lines.index(next(line for line in lines if line.startswith("data: ")))
        assert 2 <= n <= 6 and lines[:n] == [": keep-alive"] * n and lines[-2] == "data: [DONE]"
        busy(here, 0.3)
        whole = here.post(path, **asked, max_tokens=3).text
        assert re.match(r"\n{2,6}\{", whole) and json.loads(whole)["choices"][0]["finish_reason"]


def test_a_full_server_says_so(here: Here):
    body = {"model": "tiny", "messages": ASK, "max_tokens": 2, "stream": True}
    busy(here, 0.5)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: here.http.post(CHAT, json=body), range(12)))
    full = [answer for answer in answers if answer.status_code == 503]
    assert len(full) == 3 and all(int(answer.headers["retry-after"]) >= 1 for answer in full)
    assert {answer.status_code for answer in answers} == {200, 503}
    assert here.post(CHAT, messages=ASK, max_tokens=2).status_code == 200


def test_what_is_too_long_is_fitted_where_wanted(here: Here):
    reply = here.post(CHAT, messages=ASK, max_tokens=10**6, logit_bias=here.never_ends).json()
    assert reply["usage"]["total_tokens"] == 512 and reply["choices"][0]["finish_reason"] == "length"
    too_long = here.post(CHAT, messages=[{"role": "user", "content": "deep " * 3000}], max_tokens=5)
    assert too_long.status_code == 400 and "Shorten" in too_long.json()["error"]["message"]


def test_figures_tell_how_replies_ended(here: Here):
    before = [figure(here, finish) for finish in ("stop", "length")]
    assert here.post(CHAT, messages=ASK, max_tokens=3, n=2, logit_bias=here.never_ends).status_code == 200
    assert here.post(CHAT, messages=ASK, logit_bias={str(here.served.tokenizer.eos_id): 100}).status_code == 200
    assert [figure(here, finish) for finish in ("stop", "length")] == [before[0] + 1, before[1] + 2]
    assert 'zifio:num_requests_running{model_name="tiny"} 0.0' in here.http.get("/metrics").text


def test_as_many_replies_as_asked(here: Here):
    asked: dict[str, Any] = {"messages": ASK, "n": 6, "max_tokens": 5, "seed": 1, "logit_bias": here.never_ends}
    reply = here.post(CHAT, **asked).json()
    texts = [choice["message"]["content"] for choice in reply["choices"]]
    assert [choice["index"] for choice in reply["choices"]] == list(range(6)) and len(set(texts)) > 3
    assert reply["usage"]["completion_tokens"] == 30
    told = [""] * 6
    for line in here.post(CHAT, **asked, stream=True).text.split("\n\n"):
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                told[choice["index"]] += choice["delta"].get("content") or ""
    assert told == texts


def test_a_call_of_free_will_fits_a_strict_tool(here: Here):
    """`tool_choice=auto`: the model may write text; when it calls, the arguments are the schema's."""
    begin = here.served.tokenizer.tokenizer.token_to_id(CALLS_BEGIN)
    asked = {"messages": ASK, "tools": [STRICT_DIVE], "max_tokens": 200, "thinking": {"type": "disabled"}, "seed": 2}
    choice = here.post(CHAT, **asked, logit_bias={str(begin): 100}).json()["choices"][0]
    calls = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and calls
    assert all(
        call["function"]["name"] == "dive" and set(json.loads(call["function"]["arguments"])) == {"fast"}
        for call in calls
    )
    text = here.post(CHAT, **asked, logit_bias={str(begin): -100}).json()["choices"][0]["message"]
    assert text["content"] and "tool_calls" not in text


def test_calls_in_hermes_form():
    """A tokenizer without DeepSeek's tokens for calls: written as Hermes and Qwen do, read, streamed."""
    words = chat_tokenizer(train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), ["the whale dives"]))
    model = lively(llama(vocab_size=words.vocab_size, max_position_embeddings=1024), words.eos_id, push=0.5)
    with serving(made=LocalPolicy(model, words)) as here:
        asked = {"messages": ASK, "tools": [STRICT_DIVE], "tool_choice": "required", "max_tokens": 200, "seed": 1}
        asked |= {"parallel_tool_calls": False, "thinking": {"type": "disabled"}}
        choice = here.post(CHAT, **asked).json()["choices"][0]
        (call,) = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls" and set(json.loads(call["function"]["arguments"])) == {"fast"}
        assert "<tool_call>" not in (choice["message"]["content"] or "")
        stream = here.post(CHAT, **asked, stream=True).text
        assert json.dumps(call["function"]["arguments"]) in stream and "<tool_call>" not in stream


def test_thinking_that_is_not_passed_back(here: Here):
    call = {"id": "1", "type": "function", "function": {"name": "dive", "arguments": "{}"}}
    turn = [*ASK, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "ok"}]
    lenient = here.post(CHAT, messages=turn, max_tokens=2)
    assert lenient.status_code == 200 and "reasoning_content" in lenient.headers["x-zifio-warning"]
    with serving({"strict_deepseek": True}) as strict:
        refused = strict.post(CHAT, messages=turn, max_tokens=2)
        assert refused.status_code == 400 and "must be passed back" in refused.json()["error"]["message"]
        turn[1]["reasoning_content"] = "deep"
        assert strict.post(CHAT, messages=turn, max_tokens=2).status_code == 200


def test_greedy_replies_do_not_depend_on_the_others(here: Here):
    """To the last bit of every log-prob, whoever else is in the batch."""
    body = {"model": "tiny", "messages": ASK, "temperature": 0, "max_tokens": 40, "logprobs": True}
    body["logit_bias"] = here.never_ends

    def ask(number: int) -> Any:
        if number % 2:
            return here.http.post(CHAT, json=body).json()["choices"]
        noise = {"messages": [{"role": "user", "content": "x" * number * 7}], "seed": number, "max_tokens": 9 + number}
        return here.post(CHAT, **noise, n=1).status_code

    alone = here.http.post(CHAT, json=body).json()["choices"]
    with ThreadPoolExecutor(8) as pool:
        among = list(pool.map(ask, range(16)))
    assert among[1::2] == [alone] * 8 and among[::2] == [200] * 8


def test_equal_bits_are_refused_where_they_cannot_be():
    made = policy()
    with pytest.raises(ConfigError, match="bitwise"):
        Engine(made.model, made.tokenizer.eos_id, settings=EngineConfig(bitwise=True), precision="bf16")


def test_an_engine_that_fails_is_told_of_and_made_anew(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """Also when the new one fails at first: nobody waits for a dead thread."""
    with serving() as here:
        assert here.post(CHAT, messages=ASK, max_tokens=2).status_code == 200
        first = here.engine
        monkeypatch.setattr(Engine, "step", lambda _: 1 / 0)
        monkeypatch.setattr(EngineThread, "_make", lambda _: (_ for _ in ()).throw(MemoryError("none left")))
        answer = here.post(CHAT, messages=ASK, max_tokens=2)
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "engine_failed"
        for _ in range(2):
            answer = here.post(CHAT, messages=ASK, max_tokens=2)
            assert answer.status_code == 500 and "MemoryError" in answer.json()["error"]["message"]
        assert "0.0" in here.http.get("/metrics").text
        monkeypatch.undo()
        assert here.post(CHAT, messages=ASK, max_tokens=2).status_code == 200
        assert here.engine is not first and here.is_idle(2.0)
    assert "How deep" not in "".join(capfd.readouterr())


def test_requests_are_logged_where_wanted_and_keys_never(capfd: pytest.CaptureFixture[str]):
    with serving({"log_requests": True}, {"key-of-ann": "ann"}) as here:
        headers = {"authorization": "Bearer key-of-ann"}
        here.http.post(CHAT, json={"model": "tiny", "messages": ASK, "max_tokens": 2}, headers=headers)
        here.http.post(CHAT, json={"model": "tiny", "messages": ASK}, headers={"authorization": "Bearer key-of-eve"})
    log = "".join(capfd.readouterr())
    assert "How deep?" in log and "key-of" not in log


def test_a_file_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "keys.txt"
    config = build(ServeConfig, {"keys_file": str(file), "key_env": "KEYS_OF_THE_TEST"}, "test")
    with pytest.raises(ConfigError, match="keys_file"):
        read_keys(config)
    file.write_text("# who asks\nann key-of-ann\n\nbob\tkey-of-bob\n", encoding="utf-8")
    monkeypatch.setenv("KEYS_OF_THE_TEST", "one, two,")
    keys = read_keys(config)
    assert keys == {"one": "default", "two": "default", "key-of-ann": "ann", "key-of-bob": "bob"}
    gate = Gate(keys, config)
    assert gate.who({"authorization": "bearer key-of-bob"}) == "bob" and gate.who({"x-api-key": "one"}) == "default"
    file.write_text("ann key-of-ann\nkey-of-eve\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"keys\.txt:2") as refused:
        read_keys(config)
    assert "key-of-eve" not in str(refused.value)
