"""Tools in evaluation and report: how often a model calls is measured, shown, and kept word for word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny import RL, Chatter, context, deepseek, run, save_brief

import zifio.evaluate.figures as figures
from zifio.config import build
from zifio.data.sources import read_jsonl
from zifio.evaluate.config import EvalStage
from zifio.evaluate.record import examples, read_run
from zifio.evaluate.report import terminal_table, write_report
from zifio.evaluate.run import eval_stage, summarise
from zifio.tasks.episode import Episode, Reply
from zifio.tasks.task import Problem, Verdict

SAMPLING = {"max_new_tokens": 24, "temperature": 0.9}


def test_a_summary_says_how_tools_were_used():
    """By hand: three episodes in turns, two of which call, three calls, one of them in vain."""
    verdict = Verdict("right", 1.0, {"accuracy": 1.0, "format": 1.0, "process": 1.0})
    said = [{"role": "assistant", "content": ""}]
    own = [True, False, True]
    replies = [
        Reply([1, 2, 3], "", [], sampled=own, messages=said, n_turns=3, n_calls=2, n_failures=1),
        Reply([1, 2, 3], "", [], sampled=own, messages=said, n_turns=2, n_calls=1),
        Reply([1], "", [], messages=said),
    ]
    found = summarise([[Episode(Problem("p", "1", "1"), reply, verdict) for reply in replies]], [1])
    assert found["share_calls_tools"] == pytest.approx(2 / 3) and found["mean_calls"] == 1.0
    assert found["share_calls_failed"] == pytest.approx(1 / 3) and found["mean_turns"] == 2.0
    assert found["mean_response_tokens"] == pytest.approx(5 / 3), "what was told is no part of a reply's length"


def test_the_report_shows_the_share_of_tool_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = save_brief(tmp_path / "model", deepseek())
    settings = RL | {"steps": 3, "sampling": SAMPLING, "rows": {"row_tokens": 96, "micro_tokens": 192}}
    run("rl", settings, context(tmp_path / "run" / "agent", Chatter(), base=base))
    stage = {
        "kind": "eval",
        "name": "final",
        "models": ["base"],
        "problems": 6,
        "n": 3,
        "ks": [1, 3],
        "sampling": SAMPLING,
    }
    folder = tmp_path / "run" / "final"
    folder.mkdir()
    eval_stage(build(EvalStage, stage, "test"), folder, 1, Chatter(), lambda _: base)
    found = json.loads((folder / "results.json").read_text())["base"]
    rows = read_jsonl(folder / "records-base.jsonl")
    assert found["share_calls_tools"] == pytest.approx(sum(row["n_calls"] > 0 for row in rows) / len(rows))
    assert 0 < found["share_calls_tools"] <= 1 and found["mean_turns"] > 1
    assert all(row["messages"][-1]["content"] in row["response"] for row in rows if row["finish"] == "stop")
    monkeypatch.setattr(figures, "_FIGURES", (figures._tools,))
    report = write_report(tmp_path / "run", "agent", [("agent", "rl"), ("final", "eval")])
    assert report["models"]["base"]["share_calls_tools"] == found["share_calls_tools"]
    for page in ("report.html", "report.md"):
        assert "calls tools" in (tmp_path / "run" / page).read_text()
    assert (tmp_path / "run" / "figures" / "tools.png").stat().st_size > 1000
    console = Console(width=200, record=True)
    with console.capture() as shown:
        console.print(terminal_table(report))
    assert "calls tools" in shown.get()
    (_, measured) = read_run(tmp_path / "run", [("agent", "rl"), ("final", "eval")])
    assert any("→ " in answer.thinking for example in examples(measured) for answer in example.answers)
