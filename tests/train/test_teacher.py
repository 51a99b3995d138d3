"""A teacher behind a server tells what a local one does, and what it cannot do is refused in words."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from server import Server, serving
from tiny import (
    ADAM,
    SHORT_SUMS,
    Sevens,
    characters,
    context,
    deepseek,
    llama,
    logits_of,
    made,
    metrics,
    run,
    save_base,
)

from zifio.config import ConfigError, EndpointSettings, build
from zifio.data.sources import write_jsonl
from zifio.models.decoder import Decoder
from zifio.models.weights import load_model
from zifio.train.batch import Batch, make_batches
from zifio.train.config import DistillStage
from zifio.train.distill import _followed
from zifio.train.divergence import Targets, Top
from zifio.train.stage import conversation_sequence
from zifio.train.teacher import LocalTeacher, RemoteTeacher

K = 4
TOKENIZER = characters()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, and no proxy between us and this machine."""
    monkeypatch.setattr("zifio.wire._FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def telling(model: Decoder, shift: int = 0, text: str | None = None, n: int = K) -> Any:
    """Answers as vLLM does, by this model; with a token's number shifted, or its text replaced."""

    def answer(request: dict[str, Any], _: int) -> dict[str, Any]:
        tokens = request["prompt"]
        assert request["prompt_logprobs"] == K and request["model"] == "m" and request["max_tokens"] == 1
        with torch.no_grad():
            logp = logits_of(model, torch.tensor([tokens]))[0].log_softmax(-1)
        table: list[Any] = [None]
        for t in range(1, len(tokens)):
            best = logp[t - 1].topk(n).indices.tolist()
            kept = dict.fromkeys([*best, tokens[t]])  # the prompt's own token comes along
            table.append(
                {
                    str(id + shift): {
                        "logprob": logp[t - 1, id].item(),
                        "rank": 1,
                        "decoded_token": text or TOKENIZER.tokenizer.decode([id], skip_special_tokens=False),
                    }
                    for id in kept
                }
            )
        return {"id": "1", "choices": [{"index": 0, "text": "", "prompt_logprobs": table}]}

    return answer


def told(server: Server, batch: Batch) -> Targets:
    """What the teacher behind this server says of a batch."""
    with closing(RemoteTeacher(server.url, "m", K, TOKENIZER, EndpointSettings(tries=2))) as teacher:
        return teacher.targets(batch, batch.columns["teacher_weight"] != 0)


def batch_of(n: int) -> Batch:
    """Conversations packed into two rows, with weights on their replies."""
    problems = [SHORT_SUMS.problem("train", index, seed=1) for index in range(n)]
    sequences = [conversation_sequence(TOKENIZER, p.prompt, SHORT_SUMS.document(p, True)) for p in problems]
    (batch,) = make_batches(_followed(sequences), 64, 1000, TOKENIZER.pad_id)
    return batch


def test_a_server_tells_what_the_model_itself_does():
    model = made(deepseek(vocab_size=TOKENIZER.vocab_size), 3)
    batch = batch_of(5)
    counted = batch.columns["teacher_weight"] != 0
    with serving(telling(model)) as server:
        found = told(server, batch)
        assert sorted(map(len, (request["prompt"] for request in server.requests))) == sorted(batch.lengths)
        assert set(server.paths) == {"/v1/completions"}
    wanted = LocalTeacher(model, K).targets(batch, counted)
    assert isinstance(found, Top) and isinstance(wanted, Top)
    assert found.ids_NK.tolist() == wanted.ids_NK.tolist()
    torch.testing.assert_close(found.logp_NK, wanted.logp_NK, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.rest_N, wanted.rest_N, atol=1e-4, rtol=1e-4)


def test_training_behind_a_server_is_training_on_the_local_top_k(tmp_path: Path):
    base, teacher = save_base(tmp_path / "base", llama(), 4), save_base(tmp_path / "teacher", deepseek(), 3)
    problems = [SHORT_SUMS.problem("train", index, seed=1) for index in range(4)]
    rows = [{"prompt": p.prompt, "response": SHORT_SUMS.document(p, True)} for p in problems]
    write_jsonl(tmp_path / "data.jsonl", rows)
    settings = {
        "from": "base", "method": "gkd", "data": "data", "steps": 2, "sequences": 4, "top_k": K, "optim": ADAM,
        "rows": {"row_tokens": 64}, "sampling": {"max_new_tokens": 6}, "student_share": 0.5,
    }  # fmt: skip
    paths = {"base": base, "teacher": teacher, "data": tmp_path / "data.jsonl"}
    run("distill", settings | {"teacher": "teacher"}, context(tmp_path / "local", Sevens(), **paths))
    with serving(telling(load_model(teacher))) as server:
        behind = {"teacher": server.url, "teacher_model": "m"}
        run("distill", settings | behind, context(tmp_path / "remote", Sevens(), **paths))
    for one, two in zip(metrics(tmp_path / "local"), metrics(tmp_path / "remote"), strict=True):
        assert one["divergence"] == pytest.approx(two["divergence"], rel=1e-3)
        assert one["completions/mean_length"] == two["completions/mean_length"]


@pytest.mark.parametrize(
    "behaviour, message",
    [
        ({"shift": 30}, r"own tokenizer.*came another: id \d+"),
        ({"text": "zz"}, "own tokenizer.*'zz' to the teacher"),
        ({"n": 2}, "came a failure: .*of 4 log-probs.*tried 2 times"),
    ],
    ids=["ids", "text", "few"],
)
def test_another_tokenizer_or_too_little_is_refused(behaviour: dict[str, Any], message: str):
    batch = batch_of(2)
    with (
        serving(telling(made(llama(vocab_size=TOKENIZER.vocab_size)), **behaviour)) as server,
        pytest.raises(ConfigError, match=message),
    ):
        told(server, batch)


@pytest.mark.parametrize(
    "answer", [b'{"choices": [{"text": "7"}]}', json.dumps({"choices": [{"prompt_logprobs": [None]}]}).encode(), b"no"]
)
def test_a_server_without_log_probs_of_prompts_is_refused(answer: bytes):
    batch = batch_of(2)
    with serving(lambda *_: answer) as server, pytest.raises(ConfigError, match="prompt_logprobs, as vLLM has it"):
        told(server, batch)


SERVED = {"teacher": "http://127.0.0.1:1/v1", "teacher_model": "m", "from": "base", "steps": 1}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "traces", "data": "data"}, "teacher_model counts with method|wants text of the teacher"),
        ({"method": "reverse_kl"}, "came top_k=0"),
        ({"method": "reverse_kl", "top_k": 4, "temperature": 2.0}, "temperature=2"),
        ({"method": "reverse_kl", "top_k": 4, "teacher_model": ""}, "what the server calls the teacher"),
        ({"method": "reverse_kl", "top_k": 4, "from": None, "model": {"model_type": "llama"}}, "give `from`"),
        ({"method": "reverse_kl", "top_k": 4, "teacher": "base"}, "are about a server"),
    ],
    ids=str,
)
def test_mistakes_are_told(changes: dict[str, Any], message: str):
    settings = {key: value for key, value in (SERVED | changes).items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        build(DistillStage, {"kind": "distill", "name": "tiny", **settings}, "test")
