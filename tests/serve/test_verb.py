"""`zifio serve` as people start it: a process of its own, several models, aliases, keys, and an end without loss."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
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
        assert server.wait(30) in (0, -signal.SIGTERM)
        assert server.stdout is not None and "sesame" not in server.stdout.read()


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
