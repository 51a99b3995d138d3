"""Keys and limits: who may ask, how much at once, how long a request may be and how slowly it may come."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest
from served import connected, policy, serving

from zifio.serve.gate import Gate
from zifio.serve.refused import Refused
from zifio.serve.settings import ServeConfig

BODY = {"model": "tiny", "prompt": "the secret of the whale", "max_tokens": 2}


def test_keys_open_and_bound(capfd: pytest.CaptureFixture[str]):
    keys = {"key-of-ann": "ann", "key-of-bob": "bob"}
    with serving({"key_requests": 1}, keys, policy(context=8192)) as here:

        def ask(key: str, **more: object) -> httpx2.Response:
            return here.http.post("/v1/completions", json={**BODY, **more}, headers={"authorization": f"Bearer {key}"})

        assert here.post("/v1/completions", prompt="x").status_code == 401
        assert here.http.get("/v1/models").status_code == 401
        wrong = ask("key-of-eve")
        assert wrong.status_code == 401 and "key-of-eve" not in wrong.text
        assert ask("key-of-ann").status_code == 200
        assert here.http.post("/v1/completions", json=BODY, headers={"x-api-key": "key-of-bob"}).status_code == 200
        never = here.never_ends
        long = {**BODY, "max_tokens": 8000, "logit_bias": never, "stream": True}
        with here.http.stream(
            "POST", "/v1/completions", json=long, headers={"authorization": "Bearer key-of-ann"}
        ) as answer:
            lines = answer.iter_lines()  # held: a dropped iterator would hang up
            assert next(lines).startswith("data: ")
            more = ask("key-of-ann")
            assert more.status_code == 429 and int(more.headers["retry-after"]) >= 1
            assert ask("key-of-bob").status_code == 200
        assert here.is_idle(2.0)
        assert ask("key-of-ann").status_code == 200
    log = "".join(capfd.readouterr())
    assert "key-of" not in log and "secret" not in log


def test_a_key_has_so_many_requests_a_minute():
    now = [100.0]
    gate = Gate({"a": "ann", "b": "bob"}, ServeConfig(key_per_minute=2), lambda: now[0])
    for _ in range(2):
        gate.enter("ann")()
    with pytest.raises(Refused) as refused:
        gate.enter("ann")
    assert refused.value.status == 429 and refused.value.headers()["Retry-After"] == "60"
    gate.enter("bob")()
    now[0] += 61
    leave = gate.enter("ann")
    assert gate.n_running == 1
    leave()
    leave()
    assert gate.n_running == 0


def test_long_and_slow_requests_and_strange_names_are_refused():
    with serving({"max_body_bytes": 2000, "body_s": 0.5}) as here:
        long = json.dumps({**BODY, "prompt": "x" * 3000}).encode()
        kind = {"content-type": "application/json"}
        assert here.http.post("/v1/completions", content=long, headers=kind).status_code == 413

        def pieces() -> Iterator[bytes]:
            yield from (long[at : at + 500] for at in range(0, len(long), 500))

        assert here.http.post("/v1/completions", content=pieces(), headers=kind).status_code == 413
        assert here.http.post("/v1/completions", json=BODY, headers={"host": "evil.example"}).status_code == 403
        with connected(here.url, 20) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{")
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        assert here.http.post("/v1/completions", json=BODY).status_code == 200


def test_a_reply_that_takes_too_long_is_ended():
    with serving({"request_s": 0.3}, made=policy(context=8192)) as here:
        never = here.never_ends
        answer = here.post("/v1/completions", prompt="x", max_tokens=8000, logit_bias=never)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        assert here.is_idle(2.0)
