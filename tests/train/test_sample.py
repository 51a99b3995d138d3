"""Rejection sampling: what is kept, once and within limits, with its provenance; killed and resumed exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny import Sevens, context, deepseek, metrics, run, save_base

import zifio.train.sample as sample_module
import zifio.train.stage as stage_module
from zifio.checkpoint import model_digest
from zifio.config import ConfigError, Sampling, build
from zifio.data.sources import read_jsonl, write_jsonl
from zifio.engine.policy import load_policy
from zifio.log import RunFolder
from zifio.seed import stream_seed
from zifio.tasks.catalog import verifier_digest
from zifio.tasks.episode import play
from zifio.train.feedback import SampleStage
from zifio.train.sample import keep

SAMPLE: dict[str, Any] = {"from": "base", "problems": 10, "n": 8, "sampling": {"max_new_tokens": 6}}
TASK = Sevens()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model that ends its replies now and then."""
    return save_base(tmp_path_factory.mktemp("base"), deepseek(), seed=3)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four problems a part, so that ten problems make three."""
    monkeypatch.setattr(sample_module, "PART_REPLIES", 32)


def stage(**changes: Any) -> SampleStage:
    """The tiny stage."""
    return build(SampleStage, {"kind": "sample", "name": "tiny", **SAMPLE, **changes}, "test")


def here(folder: Path, base: Path, **changes: Any) -> dict[str, float]:
    """The tiny stage in this process."""
    return run("sample", SAMPLE | {"keep": "all"} | changes, context(folder, TASK, base=base))


def row(problem: str, response: str, **changes: Any) -> dict[str, Any]:
    """What a drawn reply is written as; right and finished unless said otherwise."""
    parts = {"accuracy": 1.0, "format": 1.0, "process": 1.0}
    whole = {"prompt": f"{problem}?", "response": response, "outcome": "right", "parts": parts, "finish": "stop"}
    return {**whole, "problem": problem, **changes}


ROWS = [
    row("a", "1"),
    row("a", "1"),
    row("a", "2", outcome="wrong"),
    row("a", "3", parts={"accuracy": 1.0, "process": 0.0}),
    row("b", "1"),
    row("b", "4", finish="length"),
    row("b", "5", outcome="error", parts={}),
    row("b", "6"),
    row("b", "7"),
    row("c", "8", prompt="a?"),
    row("c", "1", prompt="a?"),
]


@pytest.mark.parametrize(
    "changes, kept",
    [
        ({"keep": "right"}, ["a1", "a3", "b1", "b6", "b7", "c8"]),
        ({"keep": "process"}, ["a1", "b1", "b6", "b7", "c8"]),
        ({"keep": "all"}, ["a1", "a2", "a3", "b1", "b4", "b5", "b6", "c8"]),
        ({"keep": "right", "most_per_problem": 1}, ["a1", "b1", "c8"]),
        ({"keep": "right", "most_per_problem": 2}, ["a1", "a3", "b1", "b6", "c8"]),
        ({"keep": "right", "most": 3}, ["a1", "a3", "b1"]),
        ({"keep": "right", "most": 3, "most_per_problem": 1}, ["a1", "b1", "c8"]),
    ],
    ids=str,
)
def test_what_is_kept(changes: dict[str, Any], kept: list[str]):
    """Right and finished, each text once for a prompt, in order, within the limits."""
    found = keep(ROWS, stage(**({"most_per_problem": 4} | changes)))
    assert [one["problem"] + one["response"] for one in found.rows] == kept
    assert len(found.rows) + sum(found.dropped.values()) == len(ROWS)


def test_rows_tell_where_they_come_from(base: Path, tmp_path: Path):
    """Each can be drawn again from what it says: the weights, the problem, its seed and place, the sampling."""
    totals = here(tmp_path, base)
    rows = read_jsonl(tmp_path / "data.jsonl")
    assert 20 < len(rows) == totals["kept"] <= totals["drawn"] == 80
    policy, seed = load_policy(base), stream_seed(5, "sample", "tiny")
    for number in (0, 17, len(rows) - 1):
        one = rows[number]
        assert one["model"] == model_digest(base) and one["seed"] == seed
        index = int(one["problem"].split("/")[-1])
        problem = TASK.problem("train", index, one["seed"])
        assert (problem.id, problem.prompt, problem.gold) == (one["problem"], one["prompt"], one["gold"])
        (group,) = play(policy, TASK, [problem], 8, Sampling(**one["sampling"]), one["seed"], "sample")
        again = group[one["place"]]
        assert again.reply.text == one["response"] and len(again.reply.tokens) == one["n_tokens"]
        assert (again.verdict.outcome, again.verdict.parts) == (one["outcome"], one["parts"])
        assert again.reply.finish == one["finish"]


def test_totals_and_metrics_count_everything_drawn(base: Path, tmp_path: Path):
    totals = here(tmp_path, base, keep="right")
    drawn = [one for path in sorted((tmp_path / "parts").iterdir()) for one in read_jsonl(path)]
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3] and len(drawn) == 80
    assert totals["tokens"] == sum(one["n_tokens"] for one in drawn) == sum(line["n_tokens"] for line in lines)
    assert totals["flops"] == sum(line["part_flops"] for line in lines) > 0
    assert lines[0]["pass_at_1"] == sum(one["outcome"] == "right" for one in drawn[:32]) / 32
    kept = read_jsonl(tmp_path / "data.jsonl")
    assert kept and all(one["outcome"] == "right" and one["finish"] == "stop" for one in kept)


def test_what_filters_dropped_is_in_the_totals_and_on_the_card(base: Path, tmp_path: Path):
    """Every drawn reply is either kept or dropped by one filter; both files hold the same rows."""
    changes = {"keep": "all", "dataset": True, "license": "apache-2.0", "curation": {"max_tokens": 5}}
    totals = here(tmp_path, base, **changes)
    dropped = {key: n for key, n in totals.items() if key.startswith("dropped_")}
    assert dropped["dropped_length"] > 0 and totals["kept"] + sum(dropped.values()) == totals["drawn"]
    rows = read_jsonl(tmp_path / "data.jsonl")
    assert rows == read_jsonl(tmp_path / "dataset" / "data.jsonl") and all(one["n_tokens"] <= 5 for one in rows)
    table = pq.read_table(tmp_path / "dataset" / "data.parquet").to_pylist()
    assert [one | {key: json.loads(one[key]) for key in ("parts", "sampling")} for one in table] == rows
    card = (tmp_path / "dataset" / "README.md").read_text()
    for name, n in dropped.items():
        assert f"| {name.removeprefix('dropped_').replace('_', ' ')} | {n} |" in card
    assert model_digest(base) in card and verifier_digest(TASK) in card and str(tmp_path) not in card
    assert all(one["verifier"] == verifier_digest(TASK) for one in rows)


def test_parts_are_a_matter_of_memory_only(base: Path, tmp_path: Path, monkeypatch):
    here(tmp_path / "small", base)
    monkeypatch.setattr(sample_module, "PART_REPLIES", 800)
    here(tmp_path / "large", base)
    small, large = ((tmp_path / name / "data.jsonl").read_bytes() for name in ("small", "large"))
    assert small == large


class Killed(BaseException):
    """As if the process had died here."""


def die_at(patch: pytest.MonkeyPatch, nth: int) -> None:
    """Die before the nth thing that is written, or right behind it."""
    seen = [0]

    def dying(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            seen[0] += 1
            if seen[0] == nth:
                raise Killed
            result = function(*args, **options)
            seen[0] += 1
            if seen[0] == nth:
                raise Killed
            return result

        return call

    for module in (sample_module, stage_module):
        patch.setattr(module, "write_jsonl", dying(write_jsonl))
    patch.setattr(RunFolder, "metrics", dying(RunFolder.metrics))
    patch.setattr(RunFolder, "timing", dying(RunFolder.timing))


def test_killed_at_any_moment_and_resumed_is_the_same(base: Path, tmp_path: Path, monkeypatch):
    """Data, metrics and totals; whatever was being written when it died."""
    monkeypatch.setattr(sample_module, "PART_REPLIES", 12)
    small = {"problems": 6, "n": 3}
    totals = here(tmp_path / "whole", base, **small)
    for nth in range(1, 100):
        folder = tmp_path / f"run-{nth}"
        with pytest.MonkeyPatch.context() as patch:
            die_at(patch, nth)
            try:
                here(folder, base, **small)
                break
            except Killed:
                pass
        again = here(folder, base, **small)
        for file in ("data.jsonl", "metrics.jsonl"):
            assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), (nth, file)
        assert len((folder / "timing.jsonl").read_text().splitlines()) == 2
        assert {k: again[k] for k in again if k != "seconds"} == {k: totals[k] for k in totals if k != "seconds"}
    assert nth == 15, "two parts of three writes, and the data, before and behind each"


def test_it_stops_drawing_when_there_is_enough(base: Path, tmp_path: Path):
    totals = here(tmp_path, base, most=5)
    assert totals["kept"] == 5 and totals["drawn"] == 32
    assert len(list((tmp_path / "parts").iterdir())) == 1


def test_nothing_kept_is_an_error_with_the_way_out(base: Path, tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"none of 80 replies was kept \(keep = 'process'; verdict: 80 dropped\).*train it longer"
    ):
        here(tmp_path, base, keep="process")
    assert not (tmp_path / "data.jsonl").exists()


def test_parts_of_another_model_are_not_passed_off_as_this_ones(base: Path, tmp_path: Path):
    here(tmp_path / "run", base)
    other = save_base(tmp_path / "other", deepseek(), seed=8)
    (tmp_path / "run" / "data.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"part-00000\.jsonl.*model"):
        here(tmp_path / "run", other)


def test_a_torn_part_is_named(base: Path, tmp_path: Path):
    here(tmp_path, base)
    path = tmp_path / "parts" / "part-00001.jsonl"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ConfigError, match=r"part-00001\.jsonl: line 32"):
        here(tmp_path, base)


def test_the_written_file_is_plain_json_lines(base: Path, tmp_path: Path):
    here(tmp_path, base)
    lines = (tmp_path / "data.jsonl").read_text(encoding="utf-8").splitlines()
    keys = {
        "prompt", "response", "gold", "outcome", "parts", "reason", "n_tokens", "finish", "problem", "place", "seed",
        "model", "sampling", "verifier", "pass_rate",
    }  # fmt: skip
    assert all(json.loads(line).keys() == keys for line in lines)
