"""Hostile input: whatever comes, the answer is a clear 4xx, in time, and the server is as it was before."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from served import ASK, Here, connected, policy, running, serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from zifio.serve.answer import Answer
from zifio.serve.connection import Connection

JUNK: list[Any] = [
    None, True, 0, -1, 10**30, -(10**30), 1.5, 1e308, -1e308, "", "x", "\ud800", "\0", "é" * 50, [], [[]], [None],
    ["x"], [1], [-1], [10**30], [{}], {}, {"type": "x"}, {"x": {"y": []}}, {"": None}, {"type": []},
]  # fmt: skip
FEW: list[Any] = [None, True, 10**30, "\ud800", "é" * 50, [], [None], {}, {"x": {"y": []}}]
CHAT = (
    "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "logit_bias", "seed", "stop", "n", "stream", "stream_options", "logprobs",
    "top_logprobs", "response_format", "tools", "tool_choice", "parallel_tool_calls", "thinking", "reasoning_effort",
    "thinking_budget", "thinking_token_budget", "chat_template_kwargs", "model", "user", "metadata",
)  # fmt: skip
TEXT = ("prompt", "echo", "logprobs", "suffix", "best_of", "stop", "n", "logit_bias", "max_tokens", "seed", "top_p")


@pytest.fixture(scope="module")
def here() -> Generator[Here, None, None]:
    settings = {"max_tokens": 4, "max_body_bytes": 200_000, "request_s": 20, "body_s": 1.0, "max_n": 4}
    with serving(settings, made=policy(context=256)) as server:
        server.http.timeout = 30
        yield server


def raw(here: Here, *pieces: bytes, wait_s: float = 0.0, timeout_s: float = 10.0) -> bytes:
    """What a connection answers to bytes that are sent piece by piece, until it is closed or silent."""
    with connected(here.url, timeout_s) as line:
        for piece in pieces:
            with contextlib.suppress(OSError):
                line.sendall(piece)
            time.sleep(wait_s)
        out = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while got := line.recv(65536):
                out += got
                if out.endswith(b"0\r\n\r\n"):
                    break
    return out


def head(path: str, body: bytes, *more: str) -> bytes:
    """A request as bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", *more, "", ""]).encode() + body


def send(here: Here, path: str, body: Any) -> int:
    """The status of an answer, which is told in words where it is a refusal."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    began = time.monotonic()
    answer = here.http.post(path, content=content, headers={"content-type": "application/json"})
    assert time.monotonic() - began < 10, (path, body)
    if answer.status_code == 200:
        assert "engine_failed" not in answer.text, body
    else:
        assert 400 <= answer.status_code < 500, (answer.status_code, answer.text, content[:300])
        assert answer.json()["error"]["message"], content[:300]
    return answer.status_code


def is_well(here: Here) -> bool:
    """Whether an ordinary request is answered, and then nothing is left."""
    assert send(here, "/v1/chat/completions", {"model": "tiny", "messages": ASK, "max_tokens": 2}) == 200
    return here.is_idle(5.0)


@pytest.mark.parametrize("field", CHAT)
def test_any_type_in_any_field_of_a_chat(here: Here, field: str):
    for junk in JUNK:
        send(here, "/v1/chat/completions", {"model": "tiny", "messages": ASK, "max_tokens": 2, field: junk})
    assert is_well(here)


@pytest.mark.parametrize("field", TEXT)
def test_any_type_in_any_field_of_a_completion(here: Here, field: str):
    for junk in JUNK:
        send(here, "/v1/completions", {"model": "tiny", "prompt": "deep", "max_tokens": 2, field: junk})
    assert is_well(here)


@pytest.mark.parametrize(
    "path, base",
    [
        ("/v1/responses", {"input": "deep", "max_output_tokens": 2}),
        ("/v1/messages", {"messages": ASK, "max_tokens": 2}),
        ("/v1/messages/count_tokens", {"messages": ASK}),
    ],
)
def test_any_type_in_any_field_of_the_other_interfaces(here: Here, path: str, base: dict[str, Any]):
    fields = here.http.get("/openapi.json").json()["components"]["schemas"]
    names = {"/v1/responses": "ResponseRequest", "/v1/messages": "MessageRequest"}
    for field in fields[names.get(path, "MessageCount")]["properties"]:
        for junk in FEW:
            send(here, path, {"model": "tiny", **base, field: junk})
    for junk in FEW:
        block = {"type": "text", "text": junk}
        send(here, path, {"model": "tiny", **base, "input": [{"role": "user", "content": [block]}]})
        send(here, path, {"model": "tiny", **base, "messages": [{"role": "user", "content": [block]}]})
        for kind in ("function_call", "function_call_output", "reasoning", "message", "item_reference"):
            send(here, path, {"model": "tiny", **base, "input": [{"type": kind, "call_id": junk, "content": junk}]})
        for kind in ("tool_use", "tool_result", "thinking", "image", "document"):
            blocks = [{"type": kind, "id": junk, "input": junk, "content": junk, "tool_use_id": junk}]
            send(here, path, {"model": "tiny", **base, "messages": [{"role": "user", "content": blocks}]})
            send(here, path, {"model": "tiny", **base, "messages": [*ASK, {"role": "assistant", "content": blocks}]})
    assert is_well(here)


def test_any_type_within_messages_tools_and_formats(here: Here):
    def chat(**more: Any) -> None:
        send(here, "/v1/chat/completions", {"model": "tiny", "messages": ASK, "max_tokens": 2, **more})

    for junk in FEW:
        for key in ("role", "content", "tool_calls", "tool_call_id", "reasoning_content", "prefix", "name"):
            for role in ("assistant", "tool"):
                chat(messages=[*ASK, {"role": role, "content": "x", key: junk}])
        chat(messages=[*ASK, {"role": "assistant", "tool_calls": [{"function": junk}]}])
        chat(messages=[*ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": junk}}]}])
        chat(messages=[{"role": "user", "content": [{"type": "text", "text": junk}]}])
        chat(tools=[{"type": "function", "function": junk}])
        chat(tools=[{"type": junk, "function": {"name": "f"}}])
        for key in ("name", "parameters", "strict", "description"):
            tool = {"type": "function", "function": {"name": "f", key: junk}}
            chat(tools=[tool])
            chat(tools=[tool], tool_choice="required")
        chat(tools=[{"type": "function", "function": {"name": "f"}}], tool_choice={"function": junk})
        chat(response_format={"type": junk})
        chat(response_format={"type": "json_schema", "json_schema": junk})
        chat(response_format={"type": "json_schema", "json_schema": {"schema": junk}})
        for key in ("type", "properties", "pattern", "enum", "minLength", "$ref", "anyOf", "items", "required"):
            chat(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "object", key: junk}}})
        chat(thinking={"type": junk})
        chat(thinking={"type": "enabled", "budget_tokens": junk})
        chat(logit_bias={"5": junk})
        chat(stream=True, stream_options={"include_usage": junk})
        chat(chat_template_kwargs={"enable_thinking": junk, "add_generation_prompt": junk, "messages": junk})
    assert is_well(here)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"1", b'"x"', b"\xff\xfe", b'{"model": "tiny", "messages": "\xff"}', b"\0" * 100,
        b"[" * 100_000, b'{"a":' * 30_000, b'{"model": "tiny", "messages": [' + b"[" * 50_000 + b"]" * 50_000 + b"]}",
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud83d"}]}', b'{"model": "tiny", "seed": NaN}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": Infinity}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "seed": 1' + b"0" * 5000 + b"}",
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "top_k": 1' + b"0" * 25 + b"}",
    ],
    ids=range(17),
)  # fmt: skip
def test_bodies_that_are_no_requests(here: Here, body: bytes):
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert send(here, path, body) in (400, 413, 422, 200)
    assert is_well(here)


def bomb(depth: int) -> dict[str, Any]:
    """A schema whose tree doubles at each level."""
    level = {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(depth)}
    return {"$ref": "#/$defs/0", "$defs": {**level, str(depth): {"type": "null"}}}


def nested(depth: int, key: str) -> dict[str, Any]:
    """A schema within a schema within a schema."""
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}} if key == "properties" else {key: [schema]}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        bomb(40), nested(60, "properties"), nested(400, "properties"), nested(400, "anyOf"), nested(60, "allOf"),
        {"type": "string", "pattern": "(((((a{1,99}){1,99}){1,99}){1,99}){1,99})"},
        {"type": "string", "pattern": "(a*)*b" * 200},
        {"type": "string", "pattern": "("}, {"type": "string", "pattern": "(?=a)b"}, {"$ref": "#"},
        {"$ref": "http://evil.example/x"},
        {"$ref": "file:///etc/passwd"}, {"type": "string", "minLength": 10**9}, {"type": "array", "minItems": 10**9},
        {"enum": [str(n) for n in range(8000)]}, {"type": "integer", "minimum": 10**40, "maximum": -(10**40)},
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(500)}}, {"not": {}}, {"enum": []},
        {"type": "object", "patternProperties": {".*" * 500: {}}}, {"allOf": [{"type": "string"}, {"type": "object"}]},
        {"type": "number", "multipleOf": 1e-300},
    ],
    ids=range(22),
)  # fmt: skip
def test_schemas_without_a_bottom(here: Here, schema: dict[str, Any]):
    """Refused or kept to; others are answered meanwhile."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
    for more in ({"response_format": form}, {"tools": [tool], "tool_choice": "required"}):
        answers: list[int] = []
        body = {"model": "tiny", "messages": ASK, "max_tokens": 4, **more}

        def ask(body: Any = body, answers: list[int] = answers) -> None:
            answers.append(send(here, "/v1/chat/completions", body))

        asking = threading.Thread(target=ask)
        asking.start()
        began = time.monotonic()
        assert here.http.get("/health").status_code == 200 and time.monotonic() - began < 3
        asking.join(15)
        assert answers and answers[0] in (200, 400), answers
    assert is_well(here)


def test_much_of_everything(here: Here):
    chat, text = "/v1/chat/completions", "/v1/completions"
    base = {"model": "tiny", "messages": ASK, "max_tokens": 2}
    tools = [{"type": "function", "function": {"name": f"f{n}", "parameters": {"type": "object"}}} for n in range(1000)]
    assert send(here, chat, {**base, "tools": tools}) in (200, 400)
    assert send(here, chat, {**base, "tools": tools[:300], "tool_choice": "required"}) in (200, 400)
    assert send(here, chat, {**base, "stop": [f"s{n}" for n in range(5000)]}) == 400
    assert send(here, chat, {**base, "stop": "s" * 100_000}) == 400
    assert send(here, chat, {**base, "messages": [{"role": "user", "content": "x" * 150_000}]}) == 400
    assert send(here, chat, {**base, "messages": ASK * 3000}) == 400
    assert send(here, chat, {**base, "n": 10**6}) == 400
    assert send(here, chat, {**base, "max_tokens": 10**12}) == 400
    assert send(here, chat, {**base, "logit_bias": {str(n): 1 for n in range(9000)}}) == 400
    assert send(here, chat, {**base, "chat_template_kwargs": {"x" * 1000: "y" * 100_000}}) == 200
    assert send(here, text, {"model": "tiny", "prompt": ["x"] * 20_000}) == 400
    assert send(here, text, {"model": "tiny", "prompt": [1] * 60_000}) == 400
    assert send(here, text, {"model": "tiny", "prompt": [[10**18]]}) == 400
    assert send(here, text, {"model": "x" * 100_000, "prompt": "x"}) == 404
    assert send(here, text, b"x" * 300_000) == 413
    assert here.http.get("/v1/models/" + "%00%ff/../" * 500).status_code == 404
    assert is_well(here)


@pytest.mark.parametrize(
    "lines",
    [
        b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"\0" * 5000, b"POST /v1/completions\r\n\r\n",
        b"POST /v1/completions HTTP/9.9\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200_000,
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n"
        b"Content-Encoding: gzip\r\n\r\n\x1f\x8b",
        b"GET /%ff%fe%00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET //../..//etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: \xff\xfe\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
        b"TRACE /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ],
    ids=range(18),
)  # fmt: skip
def test_lines_that_are_not_http(here: Here, lines: bytes):
    answer = raw(here, lines, timeout_s=3.0)
    status = answer.split(b" ", 2)[1] if answer else b"closed"
    assert status[:1] == b"4" or b"/health" in lines, answer
    assert is_well(here)


def test_what_is_no_http_is_refused_in_json(here: Here):
    answer = raw(here, b"GARBAGE\r\n\r\n", timeout_s=3.0)
    told, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in told and json.loads(body)["error"]["type"] == "invalid_request_error"


def test_pipelined_and_half_closed_and_dropped(here: Here):
    body = json.dumps({"model": "tiny", "prompt": "deep", "max_tokens": 2}).encode()
    good = head("/v1/completions", body)
    answer = raw(here, good + good + b"GARBAGE\r\n\r\n" * 3, timeout_s=3.0)
    assert answer.count(b"HTTP/1.1 200") == 1 or answer.count(b"HTTP/1.1 200") == 2
    for begun in (good, good[:-5], good[:40], b""):
        for how in (socket.SHUT_WR, None):
            with connected(here.url, 5) as line:
                line.sendall(begun)
                if how is not None:
                    line.shutdown(how)
                    while line.recv(65536):
                        pass
    assert is_well(here)


def test_slow_writers_are_told(here: Here, monkeypatch: pytest.MonkeyPatch):
    """A head that never ends, a body that never ends, a connection that never says anything."""
    monkeypatch.setattr(Connection, "PATIENCE_S", 0.4)
    body = json.dumps({"model": "tiny", "prompt": "deep", "max_tokens": 2}).encode()
    good = head("/v1/completions", body)
    assert raw(here, b"POST /v1/comp").startswith(b"HTTP/1.1 408")
    assert raw(here, b"POST /v1/comp", b"letions HT", b"TP/1.1\r\nHo", b"st: ", wait_s=0.2).startswith(b"HTTP/1.1 408")
    assert raw(here).startswith(b"HTTP/1.1 408")
    assert b"HTTP/1.1 408" in raw(here, good[:-3])
    answer = raw(here, good[:-3], good[-3:-1], good[-1:], wait_s=0.2)
    assert answer.startswith(b"HTTP/1.1 200")
    assert is_well(here)


def test_a_client_that_never_reads_is_hung_up_on(monkeypatch: pytest.MonkeyPatch):
    """The engine does not wait for it, and what it has not taken stays within the reply's size."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("wants TCP_USER_TIMEOUT, which Linux has")
    monkeypatch.setattr(Connection, "PATIENCE_S", 0.5)
    with serving(made=policy(context=4096)) as here:
        never = here.never_ends
        more = {"logprobs": 20, "n": 2, "stream": True}
        body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 4000, "logit_bias": never, **more}).encode()
        place = urlsplit(here.url)
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect((place.hostname or "", place.port or 0))
            line.sendall(head("/v1/completions", body))
            end = time.monotonic() + 15
            while here.n_connections != 1 and time.monotonic() < end:
                time.sleep(0.01)
            while here.n_connections == 1 and time.monotonic() < end:
                time.sleep(0.05)
            assert here.n_connections == 0, "its connection is still there"
            assert here.is_idle(2.0)
        assert here.post("/v1/completions", prompt="x", max_tokens=2).status_code == 200


def test_who_reads_too_slowly_is_hung_up_on(monkeypatch: pytest.MonkeyPatch):
    """A byte now and then is no way to keep a connection: a reply has its time."""
    monkeypatch.setattr("zifio.serve.answer._GRACE_S", 0.2)
    over: list[bool] = []

    async def lines() -> AsyncGenerator[bytes, None]:
        while True:
            yield b"x" * 100_000

    def answer(_: Request) -> Answer:
        return Answer([], lines(), lambda _: b"", lambda: over.append(True), {}, most_s=0.3)

    app = Starlette(routes=[Route("/", answer)])
    with running(app, 1.0, lambda: None) as (url, server), connected(url) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert line.recv(100)
        end = time.monotonic() + 5
        while server.server_state.connections and time.monotonic() < end:
            line.recv(100)
            time.sleep(0.01)
        assert over and not server.server_state.connections


@pytest.mark.slow
def test_nothing_grows():
    """Thousands of hostile requests later: as many threads, files and pages as before, and about as much memory."""

    def held(here: Here) -> tuple[int, int, int]:
        assert is_well(here)
        rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return threading.active_count(), len(os.listdir("/proc/self/fd")), rss

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("wants /proc, which Linux has")
    with serving({"max_tokens": 4, "body_s": 0.2}, made=policy(context=256)) as here:

        def storm(n: int) -> None:
            for round_ in range(n):
                for junk in JUNK:
                    field = CHAT[round_ % len(CHAT)]
                    send(here, "/v1/chat/completions", {"model": "tiny", "messages": ASK, "max_tokens": 2, field: junk})
                schema = {"type": "object", "properties": {f"p{round_}": {"type": "string", "pattern": f"a{round_}"}}}
                form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
                send(here, "/v1/chat/completions", {"model": "tiny", "messages": ASK, "response_format": form})
                body = {"model": "tiny", "prompt": f"x{round_}", "max_tokens": 200, "stream": True}
                with connected(here.url, 5) as line:
                    line.sendall(head("/v1/completions", json.dumps(body).encode())[: -(round_ % 3) or None])
                    line.recv(10)

        storm(60)
        before = held(here)
        storm(150)
        after = held(here)
        assert after[0] <= before[0] and after[1] <= before[1] + 2, (before, after)
        assert after[2] - before[2] < 8 << 20, f"{(after[2] - before[2]) >> 20} MiB more"
