"""Tools: what fails is told and counted, what is broken breaks, and the calls are bounded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from zifio.config import ConfigError
from zifio.tasks.environment import Call, Turn
from zifio.tasks.search import Corpus, open_corpus
from zifio.tasks.tools import Tool, ToolBroken, ToolFault, Workshop, calculator, python, search, use

TOOLS = [calculator()]


def call(arguments: Any, name: str = "calculator") -> Call:
    """A call with these arguments."""
    return Call(name, arguments if isinstance(arguments, str) else json.dumps(arguments))


def failing(error: Exception) -> Tool:
    """A tool that raises."""

    def run() -> str:
        raise error

    return Tool("fails", "", {"type": "object", "properties": {}}, run)


def test_a_call_gets_its_result():
    assert use(TOOLS, call({"expression": "347*582"})) == ("201954", False)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (call("{"), "not json"),
        (call("[1]"), "not a table"),
        (call("[" * 100_000), "not json"),
        (call({}), "no argument 'expression'"),
        (call({"expression": 3}), "type string"),
        (call({"expression": "1", "x": 1}), "no parameter 'x'"),
        (call({"expression": "1/0"}), "division by zero"),
        (call({"expression": "1"}, "calc"), "no tool 'calc', there is calculator"),
        (Call("", "whatever", "the call does not end"), "does not end"),
    ],
)
def test_a_slip_is_told_to_the_policy(bad: Call, words: str):
    content, failed = use(TOOLS, bad)
    assert failed and content.startswith("error: ") and words in content and len(content) < 200


def test_an_exception_is_told_and_a_broken_tool_breaks():
    assert use([failing(KeyError("x"))], call({}, "fails")) == ("error: KeyError: 'x'", True)
    assert use([failing(ToolFault("not today"))], call({}, "fails")) == ("error: not today", True)
    with pytest.raises(ToolBroken):
        use([failing(ToolBroken("no sandbox"))], call({}, "fails"))


def test_booleans_are_no_numbers_and_long_results_are_cut():
    tool = Tool("echo", "", {"properties": {"n": {"type": "integer"}}}, lambda n: "x" * n)
    assert use([tool], call({"n": True}, "echo")).failed
    assert use([tool], call({"n": 2.5}, "echo")).failed
    assert use([tool], call({"n": 30}, "echo"), most_characters=10) == ("x" * 10 + " [20 more characters]", False)


def test_a_workshop_answers_calls_until_there_are_none():
    shop = Workshop(TOOLS, max_calls=2)
    seen = shop.step(Turn("", (call({"expression": "2*3"}), call({"expression": "2*"}))))
    assert [message["role"] for message in seen.messages] == ["tool", "tool"]
    assert seen.messages[0]["content"] == "6" and (seen.n_calls, seen.n_failures, seen.done) == (2, 1, False)
    seen = shop.step(Turn("", (call({"expression": "2*3"}),)))
    assert seen.messages[0]["content"] == "error: no calls left" and seen.n_failures == 1
    assert shop.step(Turn("6")).done and shop.verdict("6") is None


def test_python_runs_in_the_sandbox_and_says_when_there_is_none(monkeypatch: pytest.MonkeyPatch):
    """The seam: a program's failure is the policy's, a missing sandbox is not."""
    tool = python()
    assert not tool.instant and not Workshop([tool, *TOOLS], 1).instant
    monkeypatch.setitem(sys.modules, "zifio.tasks.sandbox", None)
    with pytest.raises(ToolBroken):
        use([tool], call({"code": "print(6*7)"}, "python"))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Two files."""
    rows = [
        {"title": "Muon", "text": "Muon orthogonalises the momentum of a matrix by Newton and Schulz's iteration."},
        {"title": "Adam", "text": "Adam divides the momentum by the root of the second moment."},
        {"text": "Experts are chosen by a router. A router that collapses uses few experts."},
    ]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "notes.txt").write_text(f"The router of experts.\nIt has a bias.\n\n{'Padding words. ' * 200}router\n")
    return Corpus([tmp_path / "facts.jsonl", tmp_path / "notes.txt"])


def test_the_best_passage_comes_first(corpus: Corpus):
    """Rare words weigh more, frequent use and short passages too (bm25); words are stemmed."""
    assert corpus.n_passages == 5
    assert [hit.title for hit in corpus.search("orthogonalise the momentum")][:2] == ["Muon", "Adam"]
    found = corpus.search("routers", count=5)
    assert {hit.title for hit in found} == {"facts.jsonl:3", "notes.txt"}
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
    assert found[-1].snippet.endswith("router") and len(found[-1].snippet) < 500, "the long passage is last, and cut"
    assert len(corpus.search("router", count=1)) == 1
    assert "Newton" in use([search(corpus)], call({"query": "Newton"}, "search")).content
    assert use([search(corpus)], call({"query": "zebra"}, "search")) == ("nothing found", False)


@pytest.mark.parametrize(
    "query", ['"', "AND OR NOT", "router NEAR(", "title:x*", "a' OR 1=1 --", "", "*", "(" * 999, "w " * 999]
)
def test_no_query_is_more_than_words(corpus: Corpus, query: str):
    assert isinstance(corpus.search(query), list)


def test_files_that_cannot_be_searched_are_named(tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"txt": 1}\n')
    (tmp_path / "worse.jsonl").write_text("{\n")
    (tmp_path / "empty.txt").write_text("\n\n")
    for name, words in (
        ("bad.jsonl", "line 2"),
        ("worse.jsonl", "line 1"),
        ("empty.txt", "no"),
        ("none.txt", "none.txt"),
    ):
        with pytest.raises(ConfigError, match=words):
            Corpus([tmp_path / name])


def test_a_corpus_is_made_once(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    assert open_corpus((str(tmp_path / "a.txt"),)) is open_corpus((str(tmp_path / "a.txt"),))
