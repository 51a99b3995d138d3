"""`zifio serve` as people start it: a process of its own, several models, aliases, keys, and an end without loss."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import httpx2
import pytest
from tiny import llama, save_base

from zifio.config import ConfigError
from zifio.serve.verb import serve

COMPLETION = {"prompt": "1+2", "seed": 1}


@contextlib.contextmanager
def process(*words: str, key: str = "") -> Generator[tuple[subprocess.Popen[str], str], None, None]:
    """The verb, when it listens, and its URL."""
    environment = {**os.environ, "ZIFIO_API_KEY": key}
    with subprocess.Popen(
        [sys.executable, "-m", "zifio.cli", "serve", *words, "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    ) as server:  # fmt: skip
        try:
            assert server.stdout is not None
            said: list[str] = []
            for line in server.stdout:
                said.append(line)
                if found := re.search(r"serving: (http://\S+)/v1", line):
                    yield server, found[1]
                    break
            else:
                raise AssertionError("".join(said))
        finally:
            server.kill()


def test_several_models_and_an_end_without_loss(tmp_path: Path):
    """A stream that is under way at SIGTERM comes to its end; then the process ends."""
    for name in ("one", "two"):
        save_base(tmp_path / name / "model", llama(max_position_embeddings=4096), seed=len(name))
    settings = tmp_path / "serve.toml"
    settings.write_text(
        f'[models]\nthird = "{tmp_path / "two" / "model"}"\n[aliases]\ndeepseek-chat = "two"\n', encoding="utf-8"
    )
    folders = [str(tmp_path / name / "model") for name in ("one", "two")]
    with (
        process(*folders, "--config", str(settings), key="sesame") as (server, url),
        httpx2.Client(base_url=url, timeout=60, headers={"authorization": "Bearer sesame"}) as client,
    ):
        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert names == ["one", "two", "third", "deepseek-chat"]
        for name in names:
            reply = client.post("/v1/completions", json={**COMPLETION, "model": name, "max_tokens": 4})
            assert reply.status_code == 200 and reply.json()["model"] == name
        body = {**COMPLETION, "model": "one", "max_tokens": 1500, "stream": True, "logit_bias": {"2": -100}}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            server.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]" and '"finish_reason":"length"' in "".join(rest)
        assert server.wait(30) == 0
        assert server.stdout is not None and "sesame" not in server.stdout.read()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose replies take long."""
    folder = tmp_path_factory.mktemp("serve") / "long" / "model"
    save_base(folder, llama(max_position_embeddings=60_000), seed=1)
    return folder


LONG = {**COMPLETION, "model": "long", "max_tokens": 50_000, "stream": True, "logit_bias": {"2": -100}}


def test_who_goes_on_for_too_long_is_told_that_it_is_over(model: Path):
    """SIGTERM, and a stream that the drain does not wait for: a told error, an orderly end, exit code 0."""
    with (
        process(str(model), "drain_s=0.3", "engine.max_rows=4") as (server, url),
        httpx2.Client(base_url=url, timeout=60) as client,
        client.stream("POST", "/v1/completions", json=LONG) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        server.send_signal(signal.SIGTERM)
        last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert server.wait(30) == 0


def test_an_engine_that_dies_is_told_of_and_another_is_started(model: Path):
    """Killed with -9 under a stream; and when the server itself is killed so, its engine does not stay behind."""
    with (
        process(str(model), "engine.max_rows=4") as (server, url),
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        (engine,) = children(server.pid)
        with client.stream("POST", "/v1/completions", json=LONG) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            os.kill(engine, signal.SIGKILL)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"
        end = time.monotonic() + 60
        while (reply := ask(client)).status_code != 200 and time.monotonic() < end:
            time.sleep(0.1)
        assert reply.status_code == 200 and reply.json()["choices"][0]["finish_reason"]
        (engine,) = children(server.pid)
        server.send_signal(signal.SIGKILL)
        end = time.monotonic() + 20
        while Path(f"/proc/{engine}").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert not Path(f"/proc/{engine}").exists()


def ask(client: httpx2.Client) -> httpx2.Response:
    """A short request."""
    return client.post("/v1/completions", json={**COMPLETION, "model": "long", "max_tokens": 2})


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    threads = Path(f"/proc/{pid}/task")
    if not threads.exists():
        pytest.skip("wants /proc, which Linux has")
    return [int(word) for thread in threads.iterdir() for word in (thread / "children").read_text().split()]


@pytest.mark.parametrize(
    "words, host, told",
    [
        ([], "127.0.0.1", "wanted a model"),
        (["a/model", "aliases.x=b"], "127.0.0.1", "aliases.x"),
        (["a/model", "b/a"], "127.0.0.1", "second 'a'"),
        (["a/model"], "0.0.0.0", "wanted keys"),
        (["a/model", "waiting=none"], "127.0.0.1", "waiting"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    words: list[str], host: str, told: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("ZIFIO_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=told):
        serve(words, host=host)
