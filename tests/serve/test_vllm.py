"""vLLM in our engine's place: the same answers above it as above ours, on the same weights in fp32."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from served import ASK, FAST, tokenizer
from test_verb import process
from tiny import lively, llama

from zifio.data.tokenizer import save_tokenizer
from zifio.models.weights import save_model

_OF_THE_BENCH = Path(__file__).parents[2] / "bench" / ".venvs" / "vllm" / "bin" / "python"
Both = tuple[httpx2.Client, httpx2.Client]


def python_with_vllm() -> str:
    """The Python that has vLLM; the test is left out where there is none."""
    if importlib.util.find_spec("vllm"):
        return sys.executable
    if not _OF_THE_BENCH.exists():
        pytest.skip("wants vLLM, which `python -m bench.environments vllm` installs in an environment of its own")
    return str(_OF_THE_BENCH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model with heads as wide as vLLM wants them."""
    words = tokenizer()
    config = llama(
        vocab_size=words.vocab_size, hidden_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        max_position_embeddings=512,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("vllm") / "tiny" / "model"
    folder.mkdir(parents=True)
    save_model(lively(config, words.eos_id, push=0.5), folder)
    save_tokenizer(words, folder)
    return folder


@contextlib.contextmanager
def asked(folder: Path, *words: str) -> Generator[tuple[httpx2.Client, Any], None, None]:
    """A client of a server, and its process."""
    with (
        process(str(folder), "engine.max_rows=4", "engine.memory_gb=0.1", *words) as (server, url),
        httpx2.Client(base_url=url, timeout=120) as client,
    ):
        yield client, server


@pytest.fixture(scope="module")
def both(folder: Path) -> Generator[Both, None, None]:
    """The server with our engine, and with vLLM."""
    python = python_with_vllm()
    with asked(folder) as (ours, _), asked(folder, "--engine", "vllm", f"vllm.python={python}") as (theirs, _):
        yield ours, theirs


def choices(client: httpx2.Client, path: str = "/v1/chat/completions", **body: Any) -> Any:
    """The choices of an answer."""
    given = {"model": "tiny", "temperature": 0, "max_tokens": 12, **body}
    answer = client.post(path, json=given if "prompt" in body else {"messages": ASK, **given})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


BODIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "stop": {"stop": ["e", "s"], "max_tokens": 200},
    "biased": {"logit_bias": {"70": 100}},
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 1.0},
    "repetition": {"repetition_penalty": 1.5},
    "a budget of thinking": {
        "thinking_budget": 3, "max_tokens": 40, "logit_bias": {"2": -100}, "thinking": {"type": "enabled"},
    },
    "two replies": {"n": 2},
    "a schema behind the thinking": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": FAST}},
        "thinking_budget": 3, "max_tokens": 60,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_greedy_replies_are_those_of_our_engine(both: Both, name: str):
    """Under each of the means to steer them, to the letter."""
    ours, theirs = (choices(client, **BODIES[name]) for client in both)
    assert ours == theirs
    if name == "a schema behind the thinking":
        assert set(json.loads(theirs[0]["message"]["content"])) == {"fast"}


@pytest.mark.slow
def test_log_probs_are_those_of_our_engine(both: Both):
    """Of what is drawn, of the likeliest beside it, and of a prompt that is echoed."""
    ours, theirs = (choices(client, logprobs=True, top_logprobs=3)[0]["logprobs"]["content"] for client in both)
    assert len(ours) == len(theirs) > 3
    for one, two in zip(ours, theirs, strict=True):
        assert one["token"] == two["token"] and one["logprob"] == pytest.approx(two["logprob"], abs=1e-4)
        assert [top["token"] for top in one["top_logprobs"]] == [top["token"] for top in two["top_logprobs"]]
    echoed = {"prompt": "the whale dives", "echo": True, "logprobs": 1, "max_tokens": 1}
    ours, theirs = (choices(client, "/v1/completions", **echoed)[0]["logprobs"] for client in both)
    assert ours["tokens"] == theirs["tokens"] and theirs["token_logprobs"][0] is None
    assert ours["token_logprobs"][1:] == pytest.approx(theirs["token_logprobs"][1:], abs=1e-4)


@pytest.mark.slow
def test_seeds_streams_and_what_is_counted(both: Both):
    """A seed says the same again; a stream is what the whole answer is; who hangs up holds nothing."""
    _, client = both
    drawn = {"temperature": 1.0, "max_tokens": 30, "logit_bias": {"2": -100}}
    first, again, other = (choices(client, **drawn, seed=seed)[0]["message"] for seed in (5, 5, 6))
    assert first == again != other
    body = {"model": "tiny", "messages": ASK, **drawn, "seed": 5, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    deltas = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines[:-1]]
    assert "".join(deltas) == first["content"] and len(deltas) > 5
    with client.stream("POST", "/v1/chat/completions", json={**body, "max_tokens": 400}) as answer:
        next(answer.iter_lines())
    end = time.monotonic() + 10
    while 'num_requests_running{model_name="tiny"} 0.0' not in client.get("/metrics").text:
        assert time.monotonic() < end
        choices(client, max_tokens=1)
        time.sleep(0.1)


@pytest.mark.slow
def test_when_vllm_dies_everybody_is_told_and_another_is_started(folder: Path):
    """Killed with -9 under a stream."""
    with asked(folder, "--engine", "vllm", f"vllm.python={python_with_vllm()}") as (client, server):
        body = {"model": "tiny", "prompt": "a", "max_tokens": 500, "stream": True, "logit_bias": {"2": -100}}
        engine = int(Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()[0])
        with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            os.kill(engine, signal.SIGKILL)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"
        assert choices(client, prompt="a", path="/v1/completions")[0]["finish_reason"]
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


def test_without_vllm_a_person_is_told_how_to_get_it(folder: Path):
    """The key, what was wanted, what came, the way out."""
    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed here")
    with pytest.raises(AssertionError, match=r"wanted vLLM in .*vllm\.python="), asked(folder, "--engine", "vllm"):
        pass
