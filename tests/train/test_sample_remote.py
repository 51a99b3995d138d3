"""Rejection sampling from a real server on this machine: what rows say, what a killed or failing run keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from server import Server, adder, completion, serving

import zifio.train.sample as sample_module
from zifio.config import ConfigError, build
from zifio.data.sources import read_jsonl
from zifio.recipe import Recipe, Run, references
from zifio.tasks.catalog import verifier_digest
from zifio.tasks.sums import ChainMod
from zifio.train.feedback import SampleStage
from zifio.train.mark import read_solutions

TASK = {"name": "chain_mod", "min_terms": 2, "max_terms": 4}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, a few replies a part, no proxy, no key."""
    monkeypatch.setattr("zifio.wire._FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(sample_module, "_REMOTE_REPLIES", 8)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def stage(url: str, **changes: Any) -> dict[str, Any]:
    """A stage of twelve problems, two replies each, in parts of eight replies."""
    settings = {"kind": "sample", "name": "traces", "from": url, "from_model": "big", "problems": 12, "n": 2}
    return settings | {"keep": "all", "endpoint": {"concurrency": 1, "tries": 2}} | changes


def sampled(server: Server, folder: Path, **changes: Any) -> dict[str, Any]:
    """The stage as a recipe runs it; its totals."""
    recipe = build(Recipe, {"name": "remote", "task": TASK, "stage": [stage(server.url, **changes)]}, "test")
    assert references(recipe.stage[0]) == []
    return Run(recipe, folder).stage(recipe.stage[0])


def test_rows_tell_the_servers_name_for_the_model_and_no_digest(tmp_path: Path):
    """And hold the thinking that came apart, the tokens that the server counted, and our own verdict."""
    with serving(adder) as server:
        totals = sampled(server, tmp_path, dataset=True)
    rows = read_jsonl(tmp_path / "traces" / "data.jsonl")
    assert {(one["model"], one["digest"], one["verifier"]) for one in rows} == {
        ("big", None, verifier_digest(ChainMod(**TASK)))  # type: ignore[arg-type]
    }
    sent = {(r["messages"][0]["content"], r["seed"] % 4 > 0) for r in server.requests}
    assert all(0 <= request["seed"] < 2**31 and request["model"] == "big" for request in server.requests)
    assert {(one["prompt"], one["outcome"] == "right") for one in rows} == sent
    assert {one["outcome"] for one in rows} == {"right", "wrong"}
    assert all(one["response"].startswith("<think>it ends in ") and one["n_tokens"] == 5 for one in rows)
    assert len(server.requests) == totals["drawn"] == 24 and totals["tokens"] == 5 * 24
    assert totals["flops"] == 0.0 and totals["failed"] == 0
    assert {one.source for one in read_solutions(tmp_path / "traces" / "data.jsonl")} == {"big"}
    table = pq.read_table(tmp_path / "traces" / "dataset" / "data.parquet").to_pylist()
    assert [one["digest"] for one in table] == [None] * len(rows)
    card = (tmp_path / "traces" / "dataset" / "README.md").read_text()
    assert "big, as its server calls it" in card and "nobody here knows" in card and server.url not in card


def test_a_stage_whose_server_went_away_goes_on_where_it_was(tmp_path: Path):
    """What a part has is not asked for again, and the result is that of a run without the trouble."""
    gone: list[int] = []

    def behave(request: dict[str, Any], count: int) -> Any:
        return ("status", 500, {}, b"gone") if gone and len(server.requests) > gone[0] else adder(request, count)

    with serving(behave) as server:
        sampled(server, tmp_path / "whole")
        gone.append(len(server.requests) + 11)
        with pytest.raises(ConfigError, match=r"wanted 8 replies, came 5 failures, .*HTTP 500: gone.*same command"):
            sampled(server, tmp_path / "halves")
        assert len(list((tmp_path / "halves" / "traces" / "parts").iterdir())) == 1
        before = len(server.requests)
        gone.clear()
        totals = sampled(server, tmp_path / "halves")
        assert len(server.requests) - before == 16 and totals["drawn"] == 24
    for name in ("data.jsonl", "metrics.jsonl"):
        one, two = (tmp_path / run / "traces" / name for run in ("whole", "halves"))
        assert one.read_bytes() == two.read_bytes(), name


def test_a_few_failures_are_left_out_and_counted_and_never_wrong(tmp_path: Path):
    refused: list[int] = []

    def behave(request: dict[str, Any], count: int) -> Any:
        if len(server.requests) % 8 == 3:
            refused.append(request["seed"])
            return ("status", 400, {}, b"not that one")
        return adder(request, count)

    with serving(behave) as server:
        totals = sampled(server, tmp_path, most_errors=0.2)
    rows = read_jsonl(tmp_path / "traces" / "data.jsonl")
    drawn = [one for path in sorted((tmp_path / "traces" / "parts").iterdir()) for one in read_jsonl(path)]
    assert totals["failed"] == len(refused) == 3 and totals["drawn"] == len(drawn) == 21
    assert all(one["response"] and one["outcome"] != "error" for one in [*rows, *drawn])
    lines = [json.loads(line) for line in (tmp_path / "traces" / "metrics.jsonl").read_text().splitlines()]
    assert [line["n_failed"] for line in lines] == [1, 1, 1] and "part_flops" not in lines[0]


def test_nothing_but_failures_is_an_error_whatever_is_allowed(tmp_path: Path):
    with serving(lambda *_: ("status", 400, {}, b"no")) as server, pytest.raises(ConfigError, match="came 8 failures"):
        sampled(server, tmp_path, most_errors=1.0)


def test_a_task_in_turns_is_refused_in_words(tmp_path: Path):
    with serving(lambda *_: completion("1")) as server:
        with pytest.raises(ConfigError, match="wanted a policy that can be spoken to in turns"):
            sampled(server, tmp_path, task={"name": "tic_tac_toe"})
        assert server.requests == []


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"from_model": ""}, "from_model: wanted what the server"),
        ({"device": "cuda"}, "device is about a local model"),
        ({"engine": {"bitwise": True}}, "engine is about a local model"),
        ({"from": "base"}, "endpoint is about a server, came from='base'"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        build(SampleStage, stage("http://127.0.0.1:1/v1") | changes, "test")
