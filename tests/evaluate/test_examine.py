"""An exam from end to end: against a server on this machine, killed and resumed, with errors and failures counted."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from server import adder, serving

from zifio import cli
from zifio.data.sources import read_jsonl
from zifio.tasks.sums import ChainMod

ROOT = Path(__file__).resolve().parent.parent.parent
TASK = "chain_mod:min_terms=2,max_terms=4"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr("zifio.wire._FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)


def evaluated(capsys, *words: str, code: int = 0) -> dict:
    """What `zifio eval ... --json` says."""
    assert cli.main(["eval", *words, "--task", TASK, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_an_endpoint_from_end_to_end(capsys, tmp_path):
    with serving(adder) as server:
        words = [server.url, "--model", "m/1", "--problems", "10", "--n", "4", "prices.input=1", "prices.output=2"]
        found = evaluated(capsys, *words)
        n_requests = len(server.requests)
        again = evaluated(capsys, *words)
        assert len(server.requests) == n_requests == 40, "what is answered is not asked again"
    folder = tmp_path / "runs" / "eval" / "m-1-chain_mod"
    rows = read_jsonl(folder / "records.jsonl")
    assert len(rows) == 40 and {row["outcome"] for row in rows} == {"right", "wrong"}
    for row in rows:
        assert row["outcome"] == ("right" if row["seed"] % 4 else "wrong")
        assert row["thinking"].startswith("it ends in") and row["response"].startswith("<answer>")
        assert row["cost"] == pytest.approx((7 * 1 + 5 * 2) / 1e6) and row["n_tokens"] == 5 and row["seconds"] > 0
        assert row["finish"] == "stop" and row["answer"] == row["response"][8:-9]
    share = sum(row["outcome"] == "right" for row in rows) / 40
    assert found["pass_at_k"]["1"]["mean"] == pytest.approx(share)
    assert found["n_missing"] == 0 and set(found["pass_at_k"]) == {"1", "2", "4"}
    assert {k: v for k, v in again.items() if k != "date"} == {k: v for k, v in found.items() if k != "date"}
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "results.md").read_text()
    assert "majority@4" in page
    solved = Counter(row["problem"] for row in rows if row["outcome"] == "right")
    assert found["diversity"]["distinct_right"] == pytest.approx(sum(1 / n for n in solved.values()) / len(solved))
    assert found["diversity"]["coverage"] == len(solved) / 10 and "reply_entropy" not in found["diversity"]
    assert "| distinct right | " in page and "| coverage | " in page and "nats a reply" not in page
    assert json.loads((folder / "results.json").read_text()) == {k: v for k, v in found.items() if k != "folder"} | {
        "date": again["date"]
    }


def test_more_replies_later_keep_the_first_ones(capsys, tmp_path):
    with serving(adder) as server:
        words = [server.url, "--model", "m", "--out", "run"]
        evaluated(capsys, *words, "--problems", "4", "--n", "2")
        before = (tmp_path / "run" / "records.jsonl").read_bytes()
        evaluated(capsys, *words, "--problems", "6", "--n", "3")
        assert len(server.requests) == 18
        assert (tmp_path / "run" / "records.jsonl").read_bytes().startswith(before)
        assert evaluated(capsys, *words, "--problems", "4", "--n", "2")["n_replies"] == 8
        assert cli.main(["eval", *words, "--problems", "4", "--task", TASK, "sampling.temperature=0.5"]) == 2
        assert "sampling.temperature: 1.0 -> 0.5" in capsys.readouterr().err
        assert cli.main(["eval", *words, "--problems", "4", "--task", TASK, "--fresh", "sampling.temperature=0.5"]) == 0


def test_a_dry_run_asks_nothing(capsys, tmp_path):
    with serving(adder) as server:
        plan = evaluated(capsys, server.url, "--model", "m", "--problems", "5", "--n", "2", "--dry-run")
        assert (plan["replies"], plan["done"]) == (10, 0)
        assert server.requests == [] and not (tmp_path / "runs").exists()


def test_replies_that_did_not_come_are_missing_not_wrong(capsys, tmp_path):
    def behave(request, count):
        hard = request["seed"] % 10 == 0 and mended == []
        return ("status", 400, {}, b"too long") if hard else adder(request, count)

    mended: list[int] = []
    with serving(behave) as server:
        words = [server.url, "--model", "m", "--problems", "30", "--n", "2", "most_errors=0.5"]
        found = evaluated(capsys, *words, code=1)
        n_hard = sum(request["seed"] % 10 == 0 for request in server.requests)
        assert 0 < n_hard == found["n_missing"]
        assert found["n_replies"] == 60 - n_hard and found["failures"] == ["HTTP 400: too long"]
        mended.append(1)
        assert evaluated(capsys, *words)["n_missing"] == 0
        assert len(server.requests) == 60 + n_hard


def test_a_server_that_fails_on_everything_stops_the_run_early(capsys):
    with serving(lambda *_: ("status", 400, {}, b"no such parameter")) as server:
        words = [server.url, "--model", "m", "--problems", "200", "--task", TASK, "endpoint.concurrency=2"]
        assert cli.main(["eval", *words]) == 2
        assert "failures; for example: HTTP 400: no such parameter" in capsys.readouterr().err
        assert len(server.requests) < 20


class Fragile(ChainMod):
    """A task whose check breaks on some replies."""

    def score(self, problem, response):
        """As ChainMod, unless there is a 3."""
        assert ">3<" not in response, "cannot read 3"
        return super().score(problem, response)


def test_checks_that_break_are_counted_apart_and_too_many_stop_the_run(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("zifio.evaluate.examine.make_task", lambda config: Fragile(**config.model_dump()))
    with serving(adder) as server:
        words = [server.url, "--model", "m", "--problems", "40", "--out", "run"]
        found = evaluated(capsys, *words, "most_errors=0.5")
        rows = read_jsonl(tmp_path / "run" / "records.jsonl")
        broken = [row for row in rows if row["outcome"] == "error"]
        assert 0 < len(broken) == found["n_errors"] < 15
        right = sum(row["outcome"] == "right" for row in rows)
        assert found["pass_at_k"]["1"]["mean"] == pytest.approx(right / (40 - len(broken)))
        assert found["wilson"][0] < right / (40 - len(broken)) < found["wilson"][1]
        assert cli.main(["eval", *words, "--task", TASK, "most_errors=0.01", "--fresh"]) == 2
        assert re.search("checks that broke.*cannot read 3", capsys.readouterr().err)


def test_recorded_answers_and_their_questions(capsys, tmp_path):
    with serving(adder) as server:
        live = evaluated(capsys, server.url, "--model", "m", "--problems", "12", "--n", "2", "--out", "live")
    words = ["--task", TASK, "--problems", "12"]
    assert cli.main(["eval", *words, "--questions", "questions.jsonl"]) == 0
    questions = read_jsonl(tmp_path / "questions.jsonl")
    assert len(questions) == 12 and all(row.keys() == {"problem", "prompt", "messages"} for row in questions)
    rows = read_jsonl(tmp_path / "live" / "records.jsonl")
    assert {row["problem"] for row in rows} == {row["problem"] for row in questions}
    again = evaluated(capsys, "--answers", "live/records.jsonl", "--model", "closed", "--problems", "12")
    for figure in ("pass_at_k", "majority_at_k"):  # intervals depend on the order of the records
        assert {k: at["mean"] for k, at in again[figure].items()} == {k: at["mean"] for k, at in live[figure].items()}
    assert again["name"] == "closed" and again["prompts_digest"] == live["prompts_digest"]
    capsys.readouterr()
    assert cli.main(["eval", "--answers", "live/records.jsonl", "--task", TASK, "--problems", "13"]) == 2
    assert "chain_mod/held-out/0/12 (place 0)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "wanted a task, came none"),
        (["--task", TASK], "one of a model, a URL or --answers"),
        (["x", "--answers", "a.jsonl", "--task", TASK], "came both"),
        (["http://127.0.0.1:1/v1", "--task", TASK], "Add --model NAME"),
        (["no-such-model", "--task", TASK], "no-such-model"),
        (["http://127.0.0.1:1/v1", "--model", "m", "--task", "chain_mud"], "chain_mod"),
        (["http://127.0.0.1:1/v1", "--model", "m", "--task", "chain_mod:terms=3"], "terms"),
        (["http://127.0.0.1:1/v1", "--model", "m", "--task", TASK, "sampling.temprature=1"], "temperature"),
        (["http://127.0.0.1:1/v1", "--model", "m", "--task", TASK, "--n", "2", "ks=[4]"], "Set n to 4"),
        (["http://127.0.0.1:1/v1", "--model", "m", "--task", TASK, "--stage", "x"], "takes no --stage"),
        (["recipe.toml", "--task", TASK], "a recipe takes no --task"),
        (["--answers", "a.jsonl", "--task", TASK], "a.jsonl: wanted a file, came none"),
    ],
)
def test_mistakes_are_told_in_words(words, message, capsys):
    assert cli.main(["eval", *words]) == 2
    assert message in capsys.readouterr().err


def test_killed_again_and_again_an_exam_asks_for_what_is_missing(tmp_path):
    """The command itself under SIGKILL, against a server in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).parents[1] / "server.py")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        words = ["eval", url, "--model", "m", "--task", TASK, "--problems", "50", "--n", "4", "--out", "run", "--json"]
        command = [sys.executable, "-m", "zifio.cli", *words, "endpoint.concurrency=4"]
        records = tmp_path / "run" / "records.jsonl"
        for _ in range(3):
            size = records.stat().st_size if records.exists() else 0
            run = subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while run.poll() is None and not (records.exists() and records.stat().st_size > size + 2000):
                time.sleep(0.005)
            run.kill()
            assert run.wait() == -signal.SIGKILL
        partial = records.read_bytes()
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()  # type: ignore[union-attr]
    assert done.returncode == 0, done.stderr
    assert 0 < partial.count(b"\n") < 200
    assert records.read_bytes().startswith(partial[: partial.rfind(b"\n") + 1])
    names = [(row["problem"], row["place"]) for row in read_jsonl(records)]
    assert len(names) == len(set(names)) == 200
    seeds = {(row["problem"], row["place"]): row["seed"] for row in read_jsonl(records)}
    assert len(set(seeds.values())) == 200
    assert json.loads(done.stdout)["n_replies"] == 200
