"""The benchmark's own machinery: the protocol, turns, absent peers, ratios, the report and the limit. No peers."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import bench.run
from bench import linear
from bench.report import Results, markdown, merge, ratio, row
from bench.roofline import Peaks, limit
from bench.work import MEMORY, SMOKE, SYSTEMS, WORKS, System, Work, chosen
from bench.worker import Failed, Worker
from tests.tiny import deepseek, llama, save_base
from zifio.engine.cache import bytes_per_page
from zifio.models.config import write_config
from zifio.models.count import forward_flops, parameters

PEERS = Path(bench.run.__file__).parent / "peers"
FAKE = """
import os, sys, time
sys.path.insert(0, {peers!r})
from channel import Absent, Done, rounds, run

def work(job, channel):
    print("a library says hello")
    if job.get("absent"):
        raise Absent(job["absent"])
    def once(round_):
        with open(job["diary"], "a") as diary:
            diary.write(f"{{job['name']}}{{round_}} ")
        if job.get("dies_in") == round_:
            os._exit(7)
        if job.get("raises_in") == round_:
            raise ValueError("broken")
        return Done(100, [50, 50])
    channel.ready("1.2", "a note")
    rounds(channel, once)

run(work)
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A worker that does nothing, at the speed it likes."""
    path = tmp_path / "fake.py"
    path.write_text(FAKE.format(peers=str(PEERS)))
    return path


def started(fake: Path, tmp_path: Path, **job: Any) -> Worker:
    file = tmp_path / "job.json"
    file.write_text(json.dumps({"diary": str(tmp_path / "diary"), "name": "a", **job}))
    return Worker(Path(sys.executable), str(fake), file, tmp_path / "log", {})


def test_a_worker_answers_rounds_and_prints_of_libraries_do_not_disturb(fake: Path, tmp_path: Path):
    worker = started(fake, tmp_path)
    assert (worker.version, worker.note) == ("1.2", "a note")
    answer = worker.go(3)
    assert answer["tokens"] == 100 and answer["lengths"] == [50, 50]
    assert 0 < answer["seconds"] < 5 and answer["peak_rss"] > 1e6
    worker.end()
    assert worker.process.returncode == 0
    assert (tmp_path / "diary").read_text() == "a3 "
    assert "a library says hello" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("job", "reason"),
    [({"raises_in": 0}, "ValueError: broken"), ({"dies_in": 0}, "ended with code 7")],
)
def test_a_worker_that_fails_says_why(fake: Path, tmp_path: Path, job: dict[str, Any], reason: str):
    worker = started(fake, tmp_path, **job)
    with pytest.raises(Failed, match=reason):
        worker.go(0)


def test_a_worker_that_cannot_says_so_at_once(fake: Path, tmp_path: Path):
    with pytest.raises(Failed, match="needs a moon"):
        started(fake, tmp_path, absent="needs a moon")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rollouts", "startup", "grpo", "pretrain"])
def test_our_own_worker_does_each_kind_of_work(kind: str, tmp_path: Path):
    """On a tiny model: every token counted. A random model says any token, also the one that stands for no end."""
    model = save_base(tmp_path / "model", deepseek())
    job = {
        "kind": kind, "model": str(model), "threads": 1, "device": "cpu", "dtype": "float32", "fixed": True,
        "prompts": [[1, 5], [1, 6, 7]], "questions": ["1+2", "3-1"], "group": 4, "temperature": 1.0,
        "max_new_tokens": 5, "row_tokens": 32, "micro_tokens": [64] if kind == "pretrain" else 64,
        "sequences": [{"tokens": [1, 5, 6], "weight": [1.0] * 3}, {"tokens": [1, 7], "weight": [1.0] * 2}],
    }  # fmt: skip
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job))
    worker = Worker(Path(sys.executable), "ours.py", file, tmp_path / "log", {})
    if kind != "startup":
        least, most = {"rollouts": (40, 40), "grpo": (8, 40), "pretrain": (5, 5)}[kind]
        assert all(least <= worker.go(round_)["tokens"] <= most for round_ in range(3))
    worker.end()


def test_systems_take_turns_and_a_dying_one_is_absent(fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A warm-up round each, then A B A B; B dies in round 2, and has no row; memory has rows of its own."""
    diary = str(tmp_path / "diary")
    systems = {
        "zifio": System(None, str(fake), {"name": "a"}),
        "dying": System(None, str(fake), {"name": "b", "dies_in": 2}),
        "never": System(None, str(fake), {"name": "c", "absent": "no engine"}),
        "other": System(None, str(fake), {"name": "d"}),
    }
    monkeypatch.setattr(bench.run, "SYSTEMS", systems)
    monkeypatch.setattr(bench.run, "CACHE", tmp_path)
    monkeypatch.setattr(bench.run, "measured_peaks", lambda *_: Peaks(1e9, 1e9))
    write_config(llama(), tmp_path)
    made = {"model": str(tmp_path), "prompts": [[1, 2]], "diary": diary}
    monkeypatch.setattr(bench.run, "job", lambda name, settings, given: made | settings)
    work = Work("a1", "title", "rollouts", "m", tuple(systems), {"group": 2, "max_new_tokens": 50, "fixed": True})
    options = argparse.Namespace(
        torch="x", torch_index="", systems=None, smoke=False, runs=2, model=None, threads=1, device="cpu",
        dtype="float32", only="",
    )  # fmt: skip
    rows, details = bench.run.Bench(options).work(work)
    assert (tmp_path / "diary").read_text() == "a0 b0 d0 a1 b1 d1 a2 b2 d2 "
    assert [(one["work"], one["system"], one["runs"]) for one in rows] == [
        ("a1", "zifio", 2), ("a1", "other", 2), ("e-a1", "zifio", 1), ("e-a1", "other", 1),
    ]  # fmt: skip
    assert set(details["a1"]["absent"]) == {"dying", "never"}
    assert "code 7" in details["a1"]["absent"]["dying"] and details["a1"]["absent"]["never"] == "no engine"
    assert details["a1"]["limit"] > 0 and details["a1"]["notes"]["zifio"] == "a note"


def test_a_row_has_exactly_its_columns():
    found = row("a1", "zifio", "1", [3.0, 1.0, 2.0], "tokens/s")
    assert found == {
        "work": "a1", "system": "zifio", "version": "1", "median": 2.0, "min": 1.0, "max": 3.0, "unit": "tokens/s",
        "runs": 3,
    }  # fmt: skip


@pytest.mark.parametrize(("unit", "expected"), [("tokens/s", 2.0), ("s", 0.5), ("MB", 0.5)])
def test_a_ratio_says_how_many_times_as_good_we_are(unit: str, expected: float):
    assert ratio(row("w", "zifio", "", [10.0], unit), row("w", "peer", "", [5.0], unit)) == expected


def test_running_one_work_again_replaces_its_rows_only(tmp_path: Path):
    first = [row("a1", "zifio", "1", [1.0], "tokens/s"), row("c1", "zifio", "1", [2.0], "tokens/s")]
    again = [row("c1", "zifio", "2", [4.0], "tokens/s"), row("c1", "trl", "9", [2.0], "tokens/s")]
    assert merge(first, again, {"c1"}) == [first[0], *again]
    results = Results(tmp_path)
    works = {name: {"title": f"work {name}", "absent": {}, "notes": {}} for name in ("a1", "c1")}
    results.take({"a1", "c1"}, first, works, {"processor": "abacus"})
    detail = {
        "c1": {
            "title": "work c1", "limit": 8.0, "peaks": "1 GFLOP/s", "absent": {"vllm": "too heavy"},
            "notes": {"trl": "slow"},
        }
    }  # fmt: skip
    Results(tmp_path).take({"c1"}, again, detail, {"memory": "1 GiB"})
    assert json.loads((tmp_path / "results.json").read_text()) == [first[0], *again]
    page = (tmp_path / "RESULTS.md").read_text()
    assert "abacus" in page and "1 GiB" in page, "what an earlier run knew of the machine stays"
    assert "| trl | 9 | 2 | 2 | 2 | 1 | 2.00x | 25% |" in page
    assert "absent: vllm: too heavy" in page and "- trl: slow" in page
    assert (tmp_path / "figures" / "results-rates.png").stat().st_size > 1000


def test_a_work_that_nobody_could_do_is_still_on_the_page():
    details = {"machine": {}, "works": {"a1": {"title": "t", "absent": {"zifio": "why"}, "notes": {}, "day": "today"}}}
    assert "absent: zifio: why" in markdown([], details, [])


def test_only_chooses_by_letter_or_id():
    assert [work.id for work in chosen("c", False)] == ["c1", "c2", "c3"]
    assert [work.id for work in chosen("e", False)] == list(MEMORY)
    assert len(chosen("", False)) == len(WORKS) and {work.id for work in chosen("", True)} == set(SMOKE)
    with pytest.raises(ValueError, match="ONLY=z"):
        chosen("z", False)


def test_every_work_names_systems_that_exist():
    assert {system for work in WORKS.values() for system in work.systems} <= SYSTEMS.keys()
    assert all((PEERS / system.worker).exists() for system in SYSTEMS.values())
    assert set(MEMORY) | set(SMOKE) <= WORKS.keys()


def test_the_limit_is_memory_alone_or_arithmetic_alone_when_the_other_is_free():
    """One greedy stream reads all weights and its cache for each token; many rows cost their FLOPs."""
    shape = llama()
    settings = {
        "kind": "rollouts", "prompts": [[1]], "group": 1, "max_new_tokens": 3, "fixed": True, "temperature": 0.0,
    }  # fmt: skip
    weights, cache = 4 * parameters(shape).multiplied, 4 * 2 * 2 * shape.n_kv_heads * shape.d_head
    found = limit(settings, shape, Peaks(1e30, 1e6))
    assert found == pytest.approx(3 / ((3 * weights + cache * (1 + 2)) / 1e6))
    found = limit(settings | {"group": 5}, shape, Peaks(1e6, 1e30))
    tail = forward_flops(shape, [3]) - forward_flops(shape, [1])
    assert found == pytest.approx(15 / ((forward_flops(shape, [1]) + 5 * tail) / 1e6))
    learnt = {"kind": "pretrain", "sequences": [{"tokens": [1] * 7}, {"tokens": [1] * 3}]}
    found = limit(learnt, shape, Peaks(1e6, 1e30))
    assert found == pytest.approx(10 / (3 * forward_flops(shape, [7, 3]) / 1e6))


def test_the_limit_counts_only_experts_that_can_be_visited():
    """A single token reads its own experts, a large batch all of them."""
    shape, peaks = deepseek(), Peaks(1e30, 1e6)
    settings = {"kind": "rollouts", "prompts": [[1]], "max_new_tokens": 2, "fixed": True, "temperature": 1.0}
    one = 2 / limit(settings | {"group": 1}, shape, peaks)
    many = 2 * 50 / limit(settings | {"group": 50}, shape, peaks)
    counted = parameters(shape)
    cache = 4 * (shape.kv_lora_rank + shape.qk_rope_head_dim) * shape.num_hidden_layers
    assert one * 1e6 == pytest.approx(4 * 2 * counted.multiplied + cache)
    assert (many - one) * 1e6 == pytest.approx(4 * (counted.total - counted.active) + 49 * cache)


def test_no_limit_without_the_lengths_of_replies():
    settings = {"kind": "rollouts", "prompts": [[1]], "group": 2, "max_new_tokens": 9, "fixed": False}
    assert limit(settings, llama(), Peaks(1e6, 1e6)) is None
    assert limit(settings, llama(), Peaks(1e6, 1e6), [3, 5]) is not None
    assert limit({"kind": "startup"}, llama(), Peaks(1e6, 1e6)) is None


def test_the_fastest_way_is_taken_and_a_broken_one_is_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(PEERS))
    import time

    from channel import Absent, fastest

    def broken() -> None:
        raise RuntimeError("no")

    ways = {"slow": lambda: time.sleep(0.05), "fast": lambda: None, "broken": broken}
    assert fastest(ways) == "fast"
    with pytest.raises(Absent, match="broken: RuntimeError: no"):
        fastest({"broken": broken})


def test_replies_count_up_to_their_end_and_rows_are_filled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(PEERS))
    from transformers_text import first_fit, until_end

    assert until_end([5, 2, 0, 0], {"fixed": False, "eos_id": 2}) == 2
    assert until_end([5, 2, 0, 0], {"fixed": True, "eos_id": 2}) == 4
    assert until_end([5, 6], {"fixed": False, "eos_id": 2}) == 2
    sized = [{"tokens": [0] * n} for n in (6, 5, 4, 2)]
    assert [[len(one["tokens"]) for one in laid] for laid in first_fit(sized, 8)] == [[6, 2], [5], [4]]


def test_mixers_of_one_size_and_what_they_hold():
    """The models of bench.linear differ by an eighth at most; two of them keep nothing that grows."""
    sizes = {name: parameters(config).total for name, config in linear.models(64).items()}
    assert max(sizes.values()) < 1.125 * min(sizes.values()), sizes
    grows = {name for name, config in linear.models(64).items() if bytes_per_page(config, True)}
    assert grows == {"softmax (GQA)", "MLA", "hybrid 3:1", "sparse"}


def test_a_token_behind_a_long_past_is_measured(tmp_path: Path):
    rows = linear.measure("gated delta", [40, 80], 4)
    assert [row["page_bytes"] for row in rows] == [0, 0] and rows[0]["state_bytes"] == rows[1]["state_bytes"] > 0
    assert all(row["ms_p10"] <= row["ms_per_token"] <= row["ms_p90"] for row in rows)
    linear.figure(rows, tmp_path / "figures" / "linear.png")
    assert (tmp_path / "figures" / "linear.png").stat().st_size > 10_000
