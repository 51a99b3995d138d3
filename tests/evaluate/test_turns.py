"""Tools and games in evaluation: endpoints and models play in turns; what they call is measured, shown and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from server import completion, serving
from tiny import RL, Chatter, context, deepseek, run, save_brief

import zifio.evaluate.figures as figures
from zifio import cli
from zifio.config import Sampling, build
from zifio.data.sources import read_jsonl
from zifio.engine.policy import load_policy
from zifio.evaluate.config import EvalStage
from zifio.evaluate.examples import examples
from zifio.evaluate.report import terminal_table, write_report
from zifio.evaluate.run import eval_stage, summarise
from zifio.record.stage import read_run
from zifio.seed import stream_seed
from zifio.tasks.calculator import Calculator
from zifio.tasks.environment import Turn
from zifio.tasks.episode import Episode, Reply, Start
from zifio.tasks.game import TicTacToe
from zifio.tasks.task import Problem, Verdict
from zifio.tasks.tools import Workshop, calculator

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


def calling(request: dict[str, Any], count: int) -> dict[str, Any]:
    """A server that calls the calculator, then says what it heard; seeds that 3 divides guess instead."""
    messages = request["messages"]
    if messages[-1]["role"] == "tool":
        assert messages[-2]["tool_calls"][0]["id"] == messages[-1]["tool_call_id"]
        assert "<think>" not in messages[-2]["content"]
        return completion(f"<think></think><answer>{messages[-1]['content']}</answer>")
    assert [tool["function"]["name"] for tool in request["tools"]] == ["calculator"]
    if request["seed"] % 3 == 0:
        return completion("<think></think><answer>1</answer>")
    arguments = json.dumps({"expression": messages[0]["content"]})
    if request["seed"] % 3 == 1:  # a server that leaves calls in the text
        call = json.dumps({"name": "calculator", "arguments": {"expression": messages[0]["content"]}})
        return completion(f"<think>hm</think><tool_call>{call}</tool_call>")
    call = {"id": "x", "type": "function", "function": {"name": "calculator", "arguments": arguments}}
    answer = completion(None, "hm", finish="tool_calls")
    answer["choices"][0]["message"]["tool_calls"] = [call]
    return answer


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examined(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    assert cli.main(["eval", *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_an_endpoint_calls_tools_and_is_resumed(here, capsys):
    with serving(calling) as server:
        words = [server.url, "--model", "m", "--task", "calculator", "--problems", "6", "--n", "4"]
        words += ["prices.input=1", "prices.output=1"]
        found = examined(capsys, *words)
        folder = here / "runs/eval/m-calculator"
        rows, n_requests = read_jsonl(folder / "records.jsonl"), len(server.requests)
        kept = (folder / "records.jsonl").read_text().splitlines(keepends=True)
        (folder / "records.jsonl").write_text("".join(kept[:7]))
        again = examined(capsys, *words)
    assert len(rows) == 24 and {row["seed"] % 3 for row in rows} == {0, 1, 2}
    for row in rows:
        guessed = row["seed"] % 3 == 0
        assert (row["outcome"] == "right") == (not guessed) == (row["n_calls"] == 1) and not row["n_failures"]
        assert row["n_tokens"] == (5 if guessed else 10) and row["cost"] == pytest.approx(12e-6 * row["n_turns"])
        assert [m["role"] for m in row["messages"]] == ["user", *(["assistant"] if guessed else TALK)]
        assert row["messages"][-1]["content"] == f"<think></think><answer>{row['answer']}</answer>"
    assert n_requests == sum(row["n_turns"] for row in rows)
    assert found["share_calls_tools"] == sum(row["n_calls"] for row in rows) / 24 and found["share_calls_failed"] == 0
    assert "call tools" in (folder / "results.md").read_text()
    resumed = read_jsonl(folder / "records.jsonl")
    assert sorted((r["problem"], r["place"], r["answer"]) for r in resumed) == sorted(
        (r["problem"], r["place"], r["answer"]) for r in rows
    )
    assert again["pass_at_k"] == found["pass_at_k"]


TALK = ["assistant", "tool", "assistant"]


def first_free(request: dict[str, Any], count: int) -> dict[str, Any]:
    """A server that takes the first free square of the last board it was shown."""
    board = request["messages"][-1]["content"].split(" ")[0].replace("/", "")
    assert "tools" not in request
    return completion(f"<think></think><answer>{board.index('.') + 1}</answer>")


def test_an_endpoint_plays_a_game_and_the_game_judges(here, capsys):
    with serving(first_free) as server:
        words = [server.url, "--model", "m", "--task", "tic_tac_toe", "--problems", "12", "--n", "2"]
        found = examined(capsys, *words)
    rows = read_jsonl(here / "runs/eval/m-tic_tac_toe/records.jsonl")
    task = TicTacToe()
    for row in rows:  # the same game again, by hand
        played = task.start(
            Problem(row["problem"], row["prompt"], row["gold"]), stream_seed(row["seed"], "environment")
        )
        for message in row["messages"]:
            if message["role"] == "assistant":
                played.step(Turn(message["content"]))
        assert played.verdict("").outcome == row["outcome"] and played.is_over
    assert {row["outcome"] for row in rows} == {"right", "wrong"} and found["mean_turns"] > 1.5


def test_a_local_model_is_examined_in_turns_as_in_training(here, capsys):
    """Every reply depends on its ask alone, and is what `play` gives from the same seeds."""
    base = save_brief(here / "brief", deepseek())
    words = [
        str(base),
        "--task",
        'calculator:operations=["+"],min_digits=1,max_digits=1,sum_digits=1',
        "--problems",
        "5",
        "--n",
        "3",
    ]
    found = examined(capsys, *words, "sampling.max_new_tokens=24")
    rows = read_jsonl(here / "runs/eval/brief-calculator/records.jsonl")
    task = Calculator(operations=("+",), min_digits=1, max_digits=1, sum_digits=1)
    policy = load_policy(base)
    for row in rows:
        start = Start(
            [{"role": "user", "content": row["prompt"]}], Workshop([calculator()], task.max_calls), row["seed"]
        )
        [[reply]] = policy.converse([[start]], Sampling(max_new_tokens=24), task.max_turns, task.tools)
        assert row["messages"][1:] == reply.messages and row["n_tokens"] == reply.n_sampled
        assert row["logp"] == pytest.approx(sum(reply.logps), abs=1e-4)
    assert len(rows) == 15 and found["mean_turns"] >= 1
    assert cli.main(["eval", *words, "budgets=[4]", "--fresh"]) == 2
    assert "played in turns" in capsys.readouterr().err
